//! From a packet to a reply, or to what must be asked elsewhere. No sockets, no time.

use std::net::Ipv4Addr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

use super::zone::{Data, Lookup, Zone};

/// Upstream's CoreDNS gives the same: short, for endpoints move.
const TTL_SECONDS: u32 = 5;
/// What a client that says nothing can take over UDP (RFC 1035), and the most we send (DNS flag day 2020).
const UDP_BYTES: (u16, u16) = (512, 1232);
/// How often one name may stand for another within the zone.
const ALIASES_MAX: usize = 8;

/// What becomes of a packet.
#[derive(Debug)]
pub enum Step {
    /// Send this back.
    Reply(Message),
    /// Ask a resolver about `question`, and put its records behind those of `reply`.
    Ask {
        /// The reply so far: header, question, aliases.
        reply: Message,
        /// What to ask.
        question: Query,
    },
    /// Say nothing: it was no question.
    Drop,
}

/// What to do about a packet.
pub fn step(zone: &Zone, packet: &[u8]) -> Step {
    let query = match Message::from_vec(packet) {
        Ok(query) => query,
        Err(_) => return malformed(packet),
    };
    if query.metadata.message_type != MessageType::Query {
        return Step::Drop;
    }
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.queries.clone_from(&query.queries);
    if let Some(asked) = &query.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES.1);
        reply.edns = Some(edns);
        if asked.version() > 0 {
            return refuse(reply, ResponseCode::BADVERS);
        }
    }
    if query.metadata.op_code != OpCode::Query {
        return refuse(reply, ResponseCode::NotImp);
    }
    let [question] = query.queries.as_slice() else { return refuse(reply, ResponseCode::FormErr) };
    if !matches!(question.query_class(), DNSClass::IN | DNSClass::ANY)
        || matches!(question.query_type(), RecordType::AXFR | RecordType::IXFR)
    {
        return refuse(reply, ResponseCode::Refused);
    }
    let question = question.clone();
    resolve(zone, question, reply)
}

/// The bytes of a message, cut to what the transport takes.
pub fn encode(message: &Message, most: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(most);
    message.emit(&mut encoder).ok()?;
    Some(bytes)
}

/// How large a reply to this packet may be over UDP.
pub fn udp_limit(packet: &[u8]) -> u16 {
    let asked = Message::from_vec(packet).ok().and_then(|query| query.edns.map(|edns| edns.max_payload()));
    asked.unwrap_or(UDP_BYTES.0).clamp(UDP_BYTES.0, UDP_BYTES.1)
}

fn resolve(zone: &Zone, question: Query, mut reply: Message) -> Step {
    let mut name = question.name().clone();
    for _ in 0..ALIASES_MAX {
        let Some(labels) = labels(&name) else { return refuse(reply, ResponseCode::FormErr) };
        if let Some(address) = reversed(&labels) {
            let found = zone.names_of(address);
            if !found.is_empty() {
                reply.metadata.authoritative = true;
                return Step::Reply(fill(zone, reply, &name, &question, found));
            }
        }
        let Some(inside) = zone.inside(&labels) else { return elsewhere(question, name, reply) };
        if !zone.ready {
            return refuse(reply, ResponseCode::ServFail);
        }
        reply.metadata.authoritative = true;
        match zone.lookup(inside) {
            Lookup::Missing => {
                reply.metadata.response_code = ResponseCode::NXDomain;
                reply.authorities.extend(soa(zone));
                return Step::Reply(reply);
            }
            Lookup::Records(found) => {
                if inside.is_empty() {
                    apex(zone, &question, &mut reply);
                }
                return Step::Reply(fill(zone, reply, &name, &question, found));
            }
            Lookup::Alias(target) => {
                let Ok(target) = Name::from_ascii(format!("{target}.")) else {
                    return refuse(reply, ResponseCode::ServFail);
                };
                reply.answers.push(Record::from_rdata(name, TTL_SECONDS, RData::CNAME(CNAME(target.clone()))));
                if question.query_type() == RecordType::CNAME {
                    return Step::Reply(reply);
                }
                name = target;
            }
        }
    }
    refuse(reply, ResponseCode::ServFail)
}

fn elsewhere(mut question: Query, name: Name, reply: Message) -> Step {
    if !reply.metadata.recursion_desired && reply.answers.is_empty() {
        return refuse(reply, ResponseCode::Refused);
    }
    question.set_name(name);
    Step::Ask { reply, question }
}

/// The records that were asked for; none of them with the zone's SOA, so that "none" can be remembered.
fn fill(zone: &Zone, mut reply: Message, name: &Name, question: &Query, found: Vec<Data>) -> Message {
    let wanted = |kind: RecordType| question.query_type() == kind || question.query_type() == RecordType::ANY;
    for data in found {
        let record = |data| Record::from_rdata(name.clone(), TTL_SECONDS, data);
        match data {
            Data::A(address) if wanted(RecordType::A) => reply.answers.push(record(RData::A(A(address)))),
            Data::Txt(text) if wanted(RecordType::TXT) => reply.answers.push(record(RData::TXT(TXT::new(vec![text])))),
            Data::Ptr(target) if wanted(RecordType::PTR) => {
                reply.answers.extend(absolute(&target).map(|target| record(RData::PTR(PTR(target)))));
            }
            Data::Srv(port, share, target, address) if wanted(RecordType::SRV) => {
                let Some(target) = absolute(&target) else { continue };
                let beside = Record::from_rdata(target.clone(), TTL_SECONDS, RData::A(A(address)));
                reply.answers.push(record(RData::SRV(SRV::new(0, (100 / share).max(1), port, target))));
                if !reply.additionals.contains(&beside) {
                    reply.additionals.push(beside);
                }
            }
            _ => {}
        }
    }
    if reply.answers.is_empty() {
        reply.authorities.extend(soa(zone));
    }
    reply
}

/// What the domain itself has.
fn apex(zone: &Zone, question: &Query, reply: &mut Message) {
    let kind = question.query_type();
    if matches!(kind, RecordType::SOA | RecordType::ANY) {
        reply.answers.extend(soa(zone));
    }
    if matches!(kind, RecordType::NS | RecordType::ANY) {
        let (domain, server) = (absolute(&zone.domain()), absolute(&format!("ns.dns.{}", zone.domain())));
        if let (Some(domain), Some(server)) = (domain, server) {
            reply.answers.push(Record::from_rdata(domain, TTL_SECONDS, RData::NS(NS(server))));
        }
    }
}

fn soa(zone: &Zone) -> Option<Record> {
    let domain = zone.domain();
    let (server, mailbox) = (absolute(&format!("ns.dns.{domain}"))?, absolute(&format!("hostmaster.{domain}"))?);
    let soa = SOA::new(server, mailbox, zone.serial, 7200, 1800, 86400, TTL_SECONDS);
    Some(Record::from_rdata(absolute(&domain)?, TTL_SECONDS, RData::SOA(soa)))
}

fn refuse(mut reply: Message, code: ResponseCode) -> Step {
    reply.metadata.response_code = code;
    Step::Reply(reply)
}

/// Not a message; if it has a header that asks, its sender learns so.
fn malformed(packet: &[u8]) -> Step {
    match packet.get(..12) {
        Some(header) if header[2] & 0x80 == 0 => {
            let id = u16::from_be_bytes([header[0], header[1]]);
            Step::Reply(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr))
        }
        _ => Step::Drop,
    }
}

/// The labels in lower case; none when one of them is not text.
fn labels(name: &Name) -> Option<Vec<String>> {
    name.iter().map(|label| Some(std::str::from_utf8(label).ok()?.to_ascii_lowercase())).collect()
}

/// The address that a name below `in-addr.arpa` asks about.
fn reversed(labels: &[String]) -> Option<Ipv4Addr> {
    match labels {
        [d, c, b, a, inaddr, arpa] if inaddr == "in-addr" && arpa == "arpa" => {
            let byte = |text: &String| text.parse::<u8>().ok();
            Some(Ipv4Addr::new(byte(a)?, byte(b)?, byte(c)?, byte(d)?))
        }
        _ => None,
    }
}

fn absolute(name: &str) -> Option<Name> {
    Name::from_ascii(format!("{name}.")).ok()
}
