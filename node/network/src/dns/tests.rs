//! Names as the specification lists them, and packets nobody would send.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use kedge_client::Key;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::answer::{Step, encode, step, udp_limit};
use super::forward::Forwarder;
use super::server::note_slice;
use super::*;

fn zone() -> Zone {
    let mut zone = Zone::new("cluster.local", [10, 43, 0, 10].into());
    zone.ready = true;
    let mut service = |name: &str, spec: Value| {
        let value = json!({"metadata": {"namespace": "default", "name": name}, "spec": spec});
        zone.set_service(&Key::new("default", name), Some(&serde_json::from_value(value).unwrap()));
    };
    service(
        "web",
        json!({"clusterIP": "10.43.0.80", "ports": [{"name": "http", "port": 80}, {"name": "dns", "protocol": "UDP", "port": 53}]}),
    );
    service("db", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}));
    service("out", json!({"type": "ExternalName", "externalName": "Example.ORG"}));
    service("near", json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}));
    service("round", json!({"type": "ExternalName", "externalName": "round.default.svc.cluster.local"}));
    let slice = json!({"metadata": {"namespace": "default", "name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4", "ports": [{"name": "sql", "port": 5432}], "endpoints": [
            {"addresses": ["10.42.0.5"], "hostname": "db-0", "conditions": {"ready": true}},
            {"addresses": ["10.42.0.6"], "conditions": {}},
            {"addresses": ["10.42.0.7"], "hostname": "db-2", "conditions": {"ready": false}}]});
    note_slice(&mut zone, None, Some(&serde_json::from_value(slice).unwrap()));
    zone
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// Code, answers, then what lies beside them: `+` additional, `!` authority.
fn ask(zone: &Zone, name: &str, kind: RecordType) -> String {
    let bytes = query(name, kind).to_vec().unwrap();
    match step(zone, &bytes) {
        Step::Drop => "drop".to_owned(),
        Step::Ask { reply, question } => format!("ask {} after {}", question.name(), reply.answers.len()),
        Step::Reply(reply) => {
            let reply = Message::from_vec(&encode(&reply, 4096).unwrap()).unwrap();
            assert_eq!(reply.metadata.id, 7);
            let mut words = vec![format!("{:?}", reply.metadata.response_code)];
            words.extend(reply.answers.iter().map(|record| format!("{} {}", record.record_type(), record.data)));
            words.extend(reply.additionals.iter().map(|record| format!("+{} {}", record.name, record.data)));
            words.extend(reply.authorities.iter().map(|record| format!("!{}", record.record_type())));
            words.join("; ")
        }
    }
}

#[test]
fn names_of_the_specification() {
    let zone = zone();
    let check =
        |name: &str, kind: RecordType, expected: &str| assert_eq!(ask(&zone, name, kind), expected, "{name} {kind}");
    use RecordType::{A, AAAA, CNAME, MX, NS, PTR, SOA, SRV, TXT};
    check("dns-version.cluster.local.", TXT, "NoError; TXT 1.1.0");
    check("web.default.svc.cluster.local.", A, "NoError; A 10.43.0.80");
    check("WEB.default.SVC.cluster.local.", A, "NoError; A 10.43.0.80");
    check("web.default.svc.cluster.local.", AAAA, "NoError; !SOA");
    check("web.default.svc.cluster.local.", MX, "NoError; !SOA");
    check("nobody.default.svc.cluster.local.", A, "NXDomain; !SOA");
    check("web.nowhere.svc.cluster.local.", A, "NXDomain; !SOA");
    check("web.default.svc.cluster.local.default.svc.cluster.local.", A, "NXDomain; !SOA");
    let srv = "NoError; SRV 0 100 80 web.default.svc.cluster.local.; +web.default.svc.cluster.local. 10.43.0.80";
    check("_http._tcp.web.default.svc.cluster.local.", SRV, srv);
    check("_http._udp.web.default.svc.cluster.local.", SRV, "NXDomain; !SOA");
    check("_tcp.web.default.svc.cluster.local.", A, "NoError; !SOA");
    check("default.svc.cluster.local.", A, "NoError; !SOA");
    check("db.default.svc.cluster.local.", A, "NoError; A 10.42.0.5; A 10.42.0.6");
    check("db-0.db.default.svc.cluster.local.", A, "NoError; A 10.42.0.5");
    check("10-42-0-6.db.default.svc.cluster.local.", A, "NoError; A 10.42.0.6");
    check("db-2.db.default.svc.cluster.local.", A, "NXDomain; !SOA");
    check(
        "_sql._tcp.db.default.svc.cluster.local.",
        SRV,
        "NoError; SRV 0 50 5432 10-42-0-6.db.default.svc.cluster.local.; SRV 0 50 5432 db-0.db.default.svc.cluster.local.; \
         +10-42-0-6.db.default.svc.cluster.local. 10.42.0.6; +db-0.db.default.svc.cluster.local. 10.42.0.5",
    );
    check("80.0.43.10.in-addr.arpa.", PTR, "NoError; PTR web.default.svc.cluster.local.");
    check("5.0.42.10.in-addr.arpa.", PTR, "NoError; PTR db-0.db.default.svc.cluster.local.");
    check("9.9.9.9.in-addr.arpa.", PTR, "ask 9.9.9.9.in-addr.arpa. after 0");
    check("10-42-0-99.default.pod.cluster.local.", A, "NoError; A 10.42.0.99");
    check("10-42-0.default.pod.cluster.local.", A, "NXDomain; !SOA");
    check("out.default.svc.cluster.local.", CNAME, "NoError; CNAME example.org.");
    check("out.default.svc.cluster.local.", A, "ask example.org. after 1");
    check("near.default.svc.cluster.local.", A, "NoError; CNAME web.default.svc.cluster.local.; A 10.43.0.80");
    assert!(ask(&zone, "round.default.svc.cluster.local.", A).starts_with("ServFail"));
    check("example.org.", A, "ask example.org. after 0");
    check("cluster.local.", NS, "NoError; NS ns.dns.cluster.local.");
    check("ns.dns.cluster.local.", A, "NoError; A 10.43.0.10");
    assert!(
        ask(&zone, "cluster.local.", SOA).starts_with("NoError; SOA ns.dns.cluster.local. hostmaster.cluster.local.")
    );
}

#[test]
fn what_is_gone_is_gone_from_every_index() {
    let mut zone = zone();
    let slice = json!({"metadata": {"namespace": "default", "name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4", "ports": [], "endpoints": []});
    let slice = serde_json::from_value(slice).unwrap();
    note_slice(&mut zone, Some(&slice), None);
    let web = json!({"metadata": {"namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [], "endpoints": [{"addresses": ["10.42.0.8"], "conditions": {}}]});
    let web = serde_json::from_value(web).unwrap();
    note_slice(&mut zone, None, Some(&web));
    note_slice(&mut zone, Some(&web), None);
    zone.set_service(&Key::new("default", "web"), None);
    assert_eq!(ask(&zone, "db.default.svc.cluster.local.", RecordType::A), "NoError; !SOA");
    for name in ["5.0.42.10.in-addr.arpa.", "80.0.43.10.in-addr.arpa."] {
        assert!(ask(&zone, name, RecordType::PTR).starts_with("ask"), "{name}");
    }
    assert_eq!(zone.reverse_len(), 0);
    zone.ready = false;
    assert!(ask(&zone, "web.default.svc.cluster.local.", RecordType::A).starts_with("ServFail"), "nobody knows yet");
}

#[test]
fn large_replies_are_cut_to_what_the_client_takes() {
    let mut zone = zone();
    let endpoints: Vec<_> =
        (0..200).map(|n| json!({"addresses": [format!("10.42.1.{n}")], "conditions": {}})).collect();
    let slice = json!({"metadata": {"namespace": "default", "name": "db-2", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4", "ports": [], "endpoints": endpoints});
    note_slice(&mut zone, None, Some(&serde_json::from_value(slice).unwrap()));
    let mut message = query("db.default.svc.cluster.local.", RecordType::A);
    let check = |message: &Message, most: u16, over_tcp: bool| {
        let bytes = message.to_vec().unwrap();
        let limit = if over_tcp { u16::MAX } else { udp_limit(&bytes) };
        let Step::Reply(reply) = step(&zone, &bytes) else { panic!("no reply") };
        let sent = encode(&reply, limit).unwrap();
        assert!(sent.len() <= usize::from(most), "{}", sent.len());
        let reply = Message::from_vec(&sent).unwrap();
        assert_eq!(reply.metadata.truncation, !over_tcp);
        assert_eq!(reply.answers.len() == 202, over_tcp);
    };
    check(&message, 512, false);
    check(&message, u16::MAX, true);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    message.set_edns(edns);
    check(&message, 1232, false);
}

#[test]
fn what_is_no_plain_question_is_refused_or_ignored() {
    let zone = zone();
    let code = |change: &dyn Fn(&mut Message)| {
        let mut message = query("web.default.svc.cluster.local.", RecordType::A);
        change(&mut message);
        match step(&zone, &message.to_vec().unwrap()) {
            Step::Reply(reply) => Some(reply.metadata.response_code),
            Step::Drop => None,
            Step::Ask { .. } => panic!("asked elsewhere"),
        }
    };
    assert_eq!(code(&|_| {}), Some(ResponseCode::NoError));
    assert_eq!(code(&|m| m.metadata.message_type = MessageType::Response), None, "a reply is never answered");
    assert_eq!(code(&|m| m.metadata.op_code = OpCode::Status), Some(ResponseCode::NotImp));
    assert_eq!(code(&|m| m.queries.clear()), Some(ResponseCode::FormErr));
    assert_eq!(code(&|m| m.queries.push(m.queries[0].clone())), Some(ResponseCode::FormErr));
    assert_eq!(code(&|m| m.queries[0] = Query::query(Name::root(), RecordType::AXFR)), Some(ResponseCode::Refused));
    assert_eq!(
        code(&|m| *m = {
            let mut outside = query("example.org.", RecordType::A);
            outside.metadata.recursion_desired = false;
            outside
        }),
        Some(ResponseCode::Refused)
    );
    assert!(matches!(step(&zone, b"short"), Step::Drop));
    assert!(matches!(step(&zone, &[0xff; 40]), Step::Drop));
    assert!(
        matches!(step(&zone, &[1; 12]), Step::Reply(reply) if reply.metadata.response_code == ResponseCode::FormErr)
    );
}

#[test]
fn resolvers_are_read_without_ourselves() {
    let text = "# x\nsearch a b\nnameserver 10.43.0.10\nnameserver 9.9.9.9\noptions ndots:5\nnameserver bad\nnameserver fd00::1\n";
    let found = resolvers_of(text, &["10.43.0.10".parse().unwrap()]);
    assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), ["9.9.9.9:53", "[fd00::1]:53"]);
}

#[test]
#[allow(clippy::disallowed_methods, reason = "a file as others write it")]
fn resolvers_that_appear_later_are_asked() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("resolv.conf");
    let random = std::sync::Arc::new(kedge_world::SystemRandom::default());
    let own = vec!["10.43.0.10".parse().unwrap()];
    let forwarder = Forwarder::new(crate::Namespace::own(), Resolvers::File(file.clone()), own, random);
    let asked = || forwarder.resolvers().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert!(asked().is_empty(), "a machine that never had a network has no such file");
    std::fs::write(&file, "nameserver 192.0.2.53\n").unwrap();
    assert_eq!(asked(), ["192.0.2.53:53"]);
    assert_eq!(asked(), ["192.0.2.53:53"]);
    // As resolvconf and systemd do it: another file takes its place; and as an editor may, in place.
    std::fs::write(folder.path().join("new"), "nameserver 192.0.2.54\n").unwrap();
    std::fs::rename(folder.path().join("new"), &file).unwrap();
    assert_eq!(asked(), ["192.0.2.54:53"]);
    std::fs::write(&file, "nameserver 192.0.2.55\nnameserver 10.43.0.10\n").unwrap();
    assert_eq!(asked(), ["192.0.2.55:53"]);
    std::fs::remove_file(&file).unwrap();
    assert!(asked().is_empty());
}

proptest! {
    #[test]
    fn no_packet_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = udp_limit(&bytes);
        if let Step::Reply(reply) = step(&zone(), &bytes) {
            prop_assert!(encode(&reply, 512).is_some());
        }
    }

    #[test]
    fn no_damaged_question_makes_it_panic(at in 0usize..60, byte in any::<u8>(), cut in 0usize..60) {
        let mut bytes = query("_http._tcp.web.default.svc.cluster.local.", RecordType::SRV).to_vec().unwrap();
        let length = bytes.len();
        bytes[at % length] = byte;
        bytes.truncate(length - cut.min(length));
        if let Step::Reply(reply) = step(&zone(), &bytes) {
            prop_assert!(encode(&reply, 512).is_some());
        }
    }
}
