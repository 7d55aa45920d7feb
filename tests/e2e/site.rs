//! A hub and a site: two clusters in network namespaces of their own, joined by a cable that the test makes, slows
//! down and cuts.
//!
//! Needs root, `ip` and `tc`. Nothing leaves the two namespaces.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kedge_access::{Identity, Purpose};
use serde_json::{Value, json};

use crate::harness::{Server, assert_has, eventually, exists};
use crate::needs::{Need, lacks, model as minilm};

/// Addresses of the two ends of the cable. They exist in the two namespaces only.
const HUB_IP: &str = "10.99.0.1";
const HUB_URL: &str = "https://10.99.0.1:6445";
/// A piece of a model, which is what a cut costs at most for each one on its way.
const PIECE_BYTES: u64 = 1 << 20;

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Two namespaces and the cable between them; both go with the value.
struct Cable {
    hub: String,
    site: String,
}

impl Cable {
    fn lay(name: &str) -> Self {
        let of = |end: &str| format!("kedge-{name}-{end}-{}", std::process::id());
        let cable = Self { hub: of("h"), site: of("s") };
        for namespace in [&cable.hub, &cable.site] {
            ip(&format!("netns add {namespace}"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        ip(&format!("-n {} link add wire type veth peer name wire netns {}", cable.hub, cable.site));
        ip(&format!("-n {} addr add {HUB_IP}/24 dev wire", cable.hub));
        ip(&format!("-n {} addr add 10.99.0.2/24 dev wire", cable.site));
        cable.mend();
        ip(&format!("-n {} link set wire up", cable.site));
        cable
    }

    fn cut(&self) {
        ip(&format!("-n {} link set wire down", self.hub));
    }

    fn mend(&self) {
        ip(&format!("-n {} link set wire up", self.hub));
    }

    /// What the hub sends takes time from now on.
    fn slow_down(&self, megabits: u32) {
        let shape = format!("tbf rate {megabits}mbit burst 256kb latency 400ms");
        ip(&format!("netns exec {} tc qdisc add dev wire root {shape}", self.hub));
    }

    /// Bytes that came out at the site's end since the cable was laid.
    fn arrived(&self) -> u64 {
        let path = "/sys/class/net/wire/statistics/rx_bytes";
        let output = Command::new("ip").args(["netns", "exec", &self.site, "cat", path]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for namespace in [&self.hub, &self.site] {
            let _ = Command::new("ip").args(["netns", "delete", namespace]).status();
        }
    }
}

/// A process in a namespace, ended with the value.
struct Hub {
    child: Option<Child>,
    namespace: String,
    data_dir: PathBuf,
    log: PathBuf,
}

impl Hub {
    fn start(namespace: &str, server: &Server) -> Self {
        let folder = server.folder.path();
        let mut hub = Self {
            child: None,
            namespace: namespace.to_owned(),
            data_dir: folder.join("data"),
            log: folder.join("hub.log"),
        };
        hub.restart();
        hub
    }

    fn restart(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, env!("CARGO_BIN_EXE_kedge"), "hub", "--data-dir"]);
        command.arg(&self.data_dir).args(["--listen", "10.99.0.1:6445"]);
        let before = self.ready_lines();
        self.child = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
        eventually("the hub is ready", || {
            if self.ready_lines() > before { Ok(()) } else { Err(std::fs::read_to_string(&self.log).unwrap()) }
        });
    }

    fn ready_lines(&self) -> usize {
        std::fs::read_to_string(&self.log).unwrap_or_default().matches("the hub is ready").count()
    }

    /// Ends it without a word.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A hub with its server, and a site that has joined or is about to.
struct Fleet {
    // In this order they end: processes before their namespaces.
    hub: Hub,
    hub_server: Server,
    site: Server,
    cable: Cable,
}

impl Fleet {
    fn start(name: &str) -> Self {
        Self::start_with(name, &["--disable-agent"])
    }

    /// One whose site is started with these flags.
    fn start_with(name: &str, site_flags: &[&str]) -> Self {
        let cable = Cable::lay(name);
        let hub_server = Server::start_in(&cable.hub, &["--disable-agent"]);
        let hub = Hub::start(&cable.hub, &hub_server);
        let site = Server::start_in(&cable.site, site_flags);
        Self { hub, hub_server, site, cable }
    }

    /// Runs `kedge` in a namespace; whether it succeeded, and its outputs.
    fn kedge(namespace: &str, arguments: &[&str]) -> (bool, String, String) {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, env!("CARGO_BIN_EXE_kedge")]).args(arguments);
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    }

    /// A token made at the hub.
    fn token(&self, more: &[&str]) -> String {
        let data_dir = data_dir(&self.hub_server);
        let mut arguments = vec!["site", "token", "create", "--data-dir", &data_dir];
        arguments.extend(more);
        let (ok, token, text) = Self::kedge(&self.cable.hub, &arguments);
        assert!(ok, "{text}");
        assert_has(&text, "kedge site join --hub");
        token.trim().to_owned()
    }

    fn try_join(&self, data_dir: &str, token: &str) -> (bool, String) {
        let arguments = ["site", "join", "--hub", HUB_URL, "--token", token, "--data-dir", data_dir];
        let (ok, out, text) = Self::kedge(&self.cable.site, &arguments);
        (ok, out + &text)
    }

    /// Makes the site one, as `shop-1`.
    fn join(&self) {
        let token = self.token(&["--name", "shop-1", "--label", "city=bonn"]);
        let (ok, text) = self.try_join(&data_dir(&self.site), &token);
        assert!(ok && text.contains("joined as site shop-1"), "{text}");
        self.until_condition("Connected", "True");
    }

    /// The Site as the hub has it.
    fn status(&self) -> Value {
        let (code, site) = self.hub_server.request("GET", "/apis/kedge.dev/v1alpha1/sites/shop-1", "");
        assert_eq!(code, 200, "{site}");
        site["status"].clone()
    }

    fn until_condition(&self, kind: &str, expected: &str) {
        eventually(&format!("the site's {kind} is {expected}"), || {
            let status = self.status();
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            let found = conditions.iter().any(|c| c["type"] == kind && c["status"] == expected);
            if found { Ok(()) } else { Err(self.told(&status)) }
        });
    }

    fn told(&self, status: &Value) -> String {
        let hub = std::fs::read_to_string(&self.hub.log).unwrap_or_default();
        format!("{status:#}\nhub: {hub}\nhub's server: {}\nsite: {}", self.hub_server.log(), self.site.log())
    }

    /// The model as the Site says it is.
    fn model(&self, name: &str) -> Value {
        let models = self.status()["models"].as_array().cloned().unwrap_or_default();
        models.into_iter().find(|model| model["name"] == name).unwrap_or_default()
    }

    fn until_state(&self, name: &str, state: &str) -> Value {
        let mut last = Value::Null;
        eventually(&format!("{name} is {state} at the site"), || {
            last = self.model(name);
            if last["state"] == state { Ok(()) } else { Err(self.told(&self.status())) }
        });
        last
    }

    /// Fills a folder below the hub's models and assigns it to the site; its digest.
    fn assign(&self, name: &str, padding_bytes: u64) -> String {
        let folder = self.hub_server.folder.path().join("data/models").join(name);
        crate::models::small_model(&folder);
        std::fs::write(folder.join("padding.bin"), noise(name, padding_bytes)).unwrap();
        self.apply(name, name)
    }

    /// Says that the model `name` has the files of a folder; its digest, once it is ready at the hub.
    fn apply(&self, name: &str, folder: &str) -> String {
        let model = json!({
            "apiVersion": "kedge.dev/v1alpha1", "kind": "Model", "metadata": { "name": name },
            "spec": { "source": { "path": folder }, "sites": { "selector": { "matchLabels": { "city": "bonn" } } } },
        });
        let (ok, text) = self.hub_server.try_kubectl("apply -f -", &model.to_string());
        assert!(ok, "{text}");
        let mut digest = String::new();
        eventually("the model is ready at the hub", || {
            let path = format!("/apis/kedge.dev/v1alpha1/namespaces/default/models/{name}");
            let (_, model) = self.hub_server.request("GET", &path, "");
            digest = model["status"]["digest"].as_str().unwrap_or_default().to_owned();
            let current = model["status"]["observedGeneration"] == model["metadata"]["generation"];
            if current && is_ready(&model) { Ok(()) } else { Err(format!("{model}")) }
        });
        digest
    }

    /// The Model object of the site; null when there is none.
    fn at_site(&self, name: &str) -> Value {
        let path = format!("/apis/kedge.dev/v1alpha1/namespaces/default/models/{name}");
        let (code, model) = self.site.request("GET", &path, "");
        if code == 200 { model } else { Value::Null }
    }

    fn site_file(&self, digest: &str, file: &str) -> PathBuf {
        stored(&self.site, digest).join("files").join(file)
    }
}

fn data_dir(server: &Server) -> String {
    server.folder.path().join("data").to_str().unwrap().to_owned()
}

fn stored(server: &Server, digest: &str) -> PathBuf {
    let digits = digest.strip_prefix("sha256:").unwrap();
    server.folder.path().join("data/model-store").join(digits)
}

/// Bytes that no compression makes smaller, the same for the same name.
fn noise(name: &str, bytes: u64) -> Vec<u8> {
    let mut state = name.bytes().fold(1_u64, |state, byte| state.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..bytes.div_ceil(8)).flat_map(|_| next()).take(bytes as usize).collect()
}

fn is_ready(model: &Value) -> bool {
    let conditions = model["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

#[test]
fn a_join_token_is_worth_one_site_and_says_what_is_wrong() {
    if lacks(&[Need::Network]) {
        return;
    }
    let mut fleet = Fleet::start("join");
    let own = data_dir(&fleet.site);
    let token = fleet.token(&["--name", "shop-1"]);
    let hash_at = 3..67;
    let mut other_hub = token.clone();
    other_hub.replace_range(hash_at, &"0".repeat(64));
    let mut other_secret = token.clone();
    let last = if token.ends_with('0') { "1" } else { "0" };
    other_secret.replace_range(token.len() - 1.., last);
    let short_lived = fleet.token(&["--ttl", "1s"]);
    std::thread::sleep(Duration::from_secs(2));
    let another = "kedge site token create";
    for (token, expected) in [
        ("hello", "K10"),
        (&token[..70], "cut short"),
        (&*other_hub, "another hub answers there"),
        (&*other_secret, "is wrong"),
        (&*short_lived, "has ended"),
    ] {
        let (ok, text) = fleet.try_join(&own, token);
        assert!(!ok && text.lines().count() == 1, "{text}");
        assert_has(&text, expected);
        if expected != "another hub answers there" {
            assert_has(&text, another);
        }
        assert!(!exists(&fleet.site.folder.path().join("data/site/identity.json")), "half joined: {text}");
    }
    let arguments = ["site", "join", "--hub", "https://10.99.0.1:1", "--token", &token, "--data-dir", &own];
    let (ok, _, text) = Fleet::kedge(&fleet.cable.site, &arguments);
    assert!(!ok && text.contains("cannot reach the hub at https://10.99.0.1:1"), "{text}");

    let (ok, text) = fleet.try_join(&own, &token);
    assert!(ok && text.contains("joined as site shop-1"), "{text}");
    fleet.until_condition("Connected", "True");
    fleet.until_condition("ClockInStep", "True");
    assert_eq!(fleet.status()["version"], env!("CARGO_PKG_VERSION"));
    // Asking again changes nothing; another cluster cannot use the token.
    let (ok, text) = fleet.try_join(&own, &token);
    assert!(ok && text.contains("already site shop-1"), "{text}");
    // Where no server ever ran the token is not even shown.
    let elsewhere = tempfile::tempdir().unwrap();
    let (ok, text) = fleet.try_join(elsewhere.path().to_str().unwrap(), &token);
    assert!(!ok && text.contains("no server has run with --data-dir"), "{text}");
    std::fs::create_dir(elsewhere.path().join("server")).unwrap();
    std::fs::write(elsewhere.path().join("server/address"), "127.0.0.1:1").unwrap();
    let (ok, text) = fleet.try_join(elsewhere.path().to_str().unwrap(), &token);
    assert!(!ok && text.contains("already used"), "{text}");
    assert_has(&text, another);

    // Removed at the hub, the site is told; with a new token it comes back.
    fleet.hub_server.kubectl("delete site shop-1");
    eventually("the site is told", || {
        let log = fleet.site.log();
        if log.contains("was removed at the hub") { Ok(()) } else { Err(log) }
    });
    let (ok, text) = fleet.try_join(&own, &token);
    assert!(!ok && text.contains("removed at the hub"), "{text}");
    fleet.join();
    // After a year in a drawer: the certificate has ended, and is renewed all the same.
    fleet.site.kill();
    fleet.until_condition("Connected", "False");
    expire(&fleet);
    assert!(ends(&fleet) < "2026-02-01T00:00:00Z".parse().unwrap());
    fleet.site.restart();
    fleet.until_condition("Connected", "True");
    assert_has(&fleet.site.log(), "the certificate of this site was renewed");
    assert!(ends(&fleet) > "2026-10-01T00:00:00Z".parse().unwrap());

    let (ok, _, text) = Fleet::kedge(&fleet.cable.site, &["site", "leave", "--data-dir", &own]);
    assert!(ok, "{text}");
    fleet.until_condition("Connected", "False");
}

fn site_keys(fleet: &Fleet) -> (Value, Identity) {
    let path = fleet.site.folder.path().join("data/site/identity.json");
    let kept: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let keys = Identity::from_pem(kept["keys"].as_str().unwrap().as_bytes()).unwrap();
    (kept, keys)
}

/// When the site's certificate ends.
fn ends(fleet: &Fleet) -> Timestamp {
    site_keys(fleet).1.ends()
}

/// Gives the site a certificate of its hub that ended long ago.
fn expire(fleet: &Fleet) {
    let (mut kept, keys) = site_keys(fleet);
    let authority = std::fs::read(fleet.hub_server.folder.path().join("data/hub/keys/site-ca.pem")).unwrap();
    let authority = Identity::from_pem(&authority).unwrap();
    let purpose = Purpose::Client(vec![kept["uid"].as_str().unwrap().to_owned()]);
    let issued = "2026-01-01T00:00:00Z".parse().unwrap();
    let ended = authority.issue(&keys.public_key(), "shop-1", &purpose, issued, 1).unwrap();
    kept["keys"] = keys.with_certificate(ended).to_pem().into();
    std::fs::write(fleet.site.folder.path().join("data/site/identity.json"), kept.to_string()).unwrap();
}

#[test]
fn a_model_comes_down_through_cuts_and_kills_and_no_byte_comes_twice() {
    if lacks(&[Need::Network]) {
        return;
    }
    let mut fleet = Fleet::start("pull");
    fleet.join();
    let small = fleet.assign("small", 100);
    let state = fleet.until_state("small", "Active");
    assert_eq!(state["digest"], *small);
    let model = fleet.at_site("small");
    assert!(is_ready(&model) && model["spec"]["digest"] == *small, "{model}");
    assert_eq!(model["metadata"]["labels"]["kedge.dev/from-hub"], "true");
    assert_eq!(std::fs::read(fleet.site_file(&small, "padding.bin")).unwrap(), noise("small", 100));
    // The Model at the hub says which sites have it, and which there are not.
    fleet.hub_server.kubectl("wait --for=condition=SitesInStep model/small --timeout=60s");
    assert_has(&fleet.hub_server.kubectl("get model small"), "1/1");
    let elsewhere = "patch model small --type=merge -p {\"spec\":{\"sites\":{\"names\":[\"shop-9\"]}}}";
    fleet.hub_server.kubectl(elsewhere);
    fleet.hub_server.kubectl("wait --for=condition=SitesInStep=False model/small --timeout=60s");
    let told = "get model small -o jsonpath={.status.sitesActive}{.status.sites}{.status.conditions[?(@.type==\"SitesInStep\")].message}";
    let told = fleet.hub_server.kubectl(told);
    for expected in ["1/2", "\"state\":\"NotFound\"", "there is no Site named shop-9"] {
        assert_has(&told, expected);
    }
    fleet.hub_server.kubectl("patch model small --type=merge -p {\"spec\":{\"sites\":{\"names\":null}}}");
    fleet.hub_server.kubectl("wait --for=condition=SitesInStep model/small --timeout=60s");

    // 48 MiB through 80 Mbit/s take five seconds: enough to cut, and to kill both sides.
    let size = 48 * PIECE_BYTES;
    fleet.cable.slow_down(80);
    let begin = fleet.cable.arrived();
    let large = fleet.assign("large", size);
    let until_arrived = |fleet: &Fleet, pieces: u64| {
        eventually("some of it is there", || {
            let arrived = fleet.cable.arrived() - begin;
            if arrived >= pieces * PIECE_BYTES { Ok(()) } else { Err(fleet.told(&fleet.status())) }
        });
    };
    until_arrived(&fleet, 8);
    fleet.cable.cut();
    std::thread::sleep(Duration::from_secs(2));
    fleet.cable.mend();
    until_arrived(&fleet, 18);
    fleet.hub.kill();
    fleet.hub.restart();
    until_arrived(&fleet, 28);
    fleet.site.kill();
    fleet.site.restart();
    fleet.until_state("large", "Active");
    let arrived = fleet.cable.arrived() - begin;
    println!("{size} bytes of a model, {arrived} bytes on the wire, with a cut and two kills");
    // Three interruptions, each with some pieces on their way; the rest is what TLS and TCP add.
    let most = size + size / 20 + 3 * 5 * PIECE_BYTES;
    assert!(arrived < most, "{arrived} bytes came for {size}");
    assert!(std::fs::read(fleet.site_file(&large, "padding.bin")).unwrap() == noise("large", size));

    // The hub and its cluster are gone: the site starts again and has everything.
    fleet.hub.kill();
    fleet.hub_server.kill();
    fleet.site.kill();
    fleet.site.restart();
    for (name, digest) in [("small", &small), ("large", &large)] {
        assert!(is_ready(&fleet.at_site(name)), "{}", fleet.site.log());
        assert!(exists(&fleet.site_file(digest, "config.json")));
    }

    // They come back; another version of a model takes the place of the first, which stays until then.
    fleet.hub_server.restart();
    fleet.hub.restart();
    fleet.until_condition("Connected", "True");
    let folder = fleet.hub_server.folder.path().join("data/models/small-2");
    crate::models::small_model(&folder);
    std::fs::write(folder.join("padding.bin"), "another").unwrap();
    let other = fleet.apply("small", "small-2");
    assert_ne!(other, small);
    eventually("the other version is active", || {
        let state = fleet.model("small");
        let good = state["state"] == "Active" && state["digest"] == *other;
        if good { Ok(()) } else { Err(fleet.told(&fleet.status())) }
    });
    assert_eq!(std::fs::read(fleet.site_file(&other, "padding.bin")).unwrap(), b"another");

    // No longer assigned: the object goes, and its contents.
    fleet.hub_server.kubectl("delete model large");
    eventually("the model is gone at the site", || {
        let gone = fleet.at_site("large").is_null() && !exists(&stored(&fleet.site, &large));
        if gone && fleet.model("large").is_null() { Ok(()) } else { Err(fleet.told(&fleet.status())) }
    });
}

#[test]
fn what_is_not_what_the_hub_signed_is_named_and_never_active() {
    if lacks(&[Need::Network]) {
        return;
    }
    let fleet = Fleet::start("wrong");
    fleet.join();
    // The hub's copy is changed behind its back, before the site has it.
    fleet.cable.cut();
    let digest = fleet.assign("bent", 3 * PIECE_BYTES);
    let place = stored(&fleet.hub_server, &digest);
    let padding = place.join("files/padding.bin");
    let good = std::fs::read(&padding).unwrap();
    let mut bad = good.clone();
    bad[(2 * PIECE_BYTES + 5) as usize] ^= 1;
    std::fs::write(&padding, &bad).unwrap();
    fleet.cable.mend();
    let state = fleet.until_state("bent", "Failed");
    assert_has(state["message"].as_str().unwrap(), "piece 2 of \"padding.bin\" has the wrong digest");
    fleet.until_condition("InStep", "False");
    assert!(!is_ready(&fleet.at_site("bent")) && !exists(&stored(&fleet.site, &digest)));
    // Put right, it is fetched without anybody's doing.
    std::fs::write(&padding, &good).unwrap();
    fleet.until_state("bent", "Active");
    fleet.until_condition("InStep", "True");

    let digest = fleet.assign("forged", 10);
    fleet.until_state("forged", "Active");
    fleet.cable.cut();
    crate::models::small_model(&fleet.hub_server.folder.path().join("data/models/forged-2"));
    let other = fleet.apply("forged", "forged-2");
    let manifest = stored(&fleet.hub_server, &other).join("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("config.json", "confug.json")).unwrap();
    fleet.cable.mend();
    eventually("the manifest is refused", || {
        let state = fleet.model("forged");
        let message = state["message"].as_str().unwrap_or_default();
        let named = state["state"] == "Failed" && message.contains("the manifest has the digest");
        if named { Ok(()) } else { Err(fleet.told(&fleet.status())) }
    });
    // What was there before stays in use meanwhile.
    let model = fleet.at_site("forged");
    assert!(is_ready(&model) && model["spec"]["digest"] == *digest, "{model}");

    // A model of the site's own is not touched.
    let own = json!({
        "apiVersion": "kedge.dev/v1alpha1", "kind": "Model", "metadata": { "name": "mine" },
        "spec": { "source": { "path": "mine" } },
    });
    let (ok, text) = fleet.site.try_kubectl("apply -f -", &own.to_string());
    assert!(ok, "{text}");
    fleet.assign("mine", 10);
    let state = fleet.until_state("mine", "Failed");
    assert_has(state["message"].as_str().unwrap(), "of its own");
    assert_eq!(fleet.at_site("mine")["spec"]["source"]["path"], "mine");
    fleet.site.kubectl("delete model mine");
    fleet.until_state("mine", "Active");
}

/// The node of a site, with everything that it started.
struct SiteNode {
    fleet: Fleet,
    pods: String,
}

impl Drop for SiteNode {
    fn drop(&mut self) {
        self.fleet.site.kill();
        self.fleet.site.kedge(&["killall"]);
        let _ = Command::new("ip").args(["netns", "delete", &self.pods]).status();
    }
}

#[test]
fn a_site_serves_what_its_hub_assigned_and_goes_on_without_the_hub() {
    if lacks(&[Need::Model, Need::Pods, Need::Network]) {
        return;
    }
    let source = minilm().expect("it is not lacking");
    let pods = format!("kedge-serve-p-{}", std::process::id());
    let fleet = Fleet::start_with("serve", &["--network-namespace", &pods, "--node-name", "n1"]);
    let mut node = SiteNode { fleet, pods };
    let fleet = &mut node.fleet;
    fleet.join();
    let models = fleet.hub_server.folder.path().join("data/models");
    let copied = Command::new("cp").arg("-r").arg(&source).arg(models.join("minilm")).status().unwrap();
    assert!(copied.success());
    fleet.apply("minilm", "minilm");
    let service = json!({
        "apiVersion": "kedge.dev/v1alpha1", "kind": "ModelService", "metadata": { "name": "embeddings" },
        "spec": { "model": "minilm", "replicas": 1 },
    });
    let (ok, text) = fleet.site.try_kubectl("apply -f -", &service.to_string());
    assert!(ok, "{text}");
    fleet.until_state("minilm", "Active");
    let question = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/ask/question.json");
    let path = "/api/v1/namespaces/default/services/embeddings:http/proxy/v1/embeddings";
    let ask = format!("create --raw {path} -f {question}");
    let answers = |fleet: &Fleet| {
        eventually("the model answers at the site", || {
            let (ok, text) = fleet.site.try_kubectl(&ask, "");
            if ok && text.contains("embedding") { Ok(()) } else { Err(text + &fleet.site.log()) }
        });
    };
    answers(fleet);
    eventually("the hub knows the site's node", || {
        let status = fleet.status();
        if status["inventory"]["nodesReady"] == 1 { Ok(()) } else { Err(fleet.told(&status)) }
    });

    // No hub, no cable, and the site's own server ended without a word: the pod goes on, the server comes back.
    fleet.hub.kill();
    fleet.hub_server.kill();
    fleet.cable.cut();
    answers(fleet);
    fleet.site.kill();
    fleet.site.restart();
    answers(fleet);
    assert!(is_ready(&fleet.at_site("minilm")));
}

#[test]
fn a_hub_from_an_older_backup_takes_nothing_away() {
    if lacks(&[Need::Network]) {
        return;
    }
    let mut fleet = Fleet::start("backup");
    fleet.join();
    let (kept, known) = (fleet.assign("kept", 10), fleet.assign("known", 10));
    for name in ["kept", "known"] {
        fleet.until_state(name, "Active");
    }
    // What the hub knew of the site is gone, and one of the two models with it.
    fleet.hub.kill();
    let ledgers = fleet.hub_server.folder.path().join("data/hub/sites");
    for file in std::fs::read_dir(ledgers).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    fleet.hub_server.kubectl("delete model kept");
    let before = fleet.cable.arrived();
    fleet.hub.restart();
    fleet.until_state("kept", "Unclaimed");
    assert_eq!(fleet.until_state("known", "Active")["digest"], *known);
    assert!(is_ready(&fleet.at_site("kept")) && exists(&fleet.site_file(&kept, "config.json")));
    assert!(fleet.cable.arrived() - before < 100_000, "contents that are there came again");
    fleet.hub_server.kubectl("annotate site shop-1 kedge.dev/release=default/kept");
    eventually("the model is let go", || {
        let gone = fleet.at_site("kept").is_null() && fleet.model("kept").is_null();
        if gone { Ok(()) } else { Err(fleet.told(&fleet.status())) }
    });
    assert!(is_ready(&fleet.at_site("known")));

    // The server beside the hub comes back with another past: the hub goes on with what is new there.
    fleet.hub_server.kill();
    fleet.hub_server.restart();
    fleet.assign("later", 10);
    fleet.until_state("later", "Active");

    // A damaged file of either side is named; without it the two compare, and nothing is lost.
    fleet.hub.kill();
    fleet.site.kill();
    let hub_files = fleet.hub_server.folder.path().join("data/hub/sites");
    let mut files = std::fs::read_dir(hub_files).unwrap().map(|file| file.unwrap().path());
    let ledger = files.find(|path| path.extension().is_some_and(|extension| extension == "ledger")).unwrap();
    let state = fleet.site.folder.path().join("data/site/link.json");
    for file in [&ledger, &state] {
        std::fs::write(file, "{").unwrap();
    }
    fleet.hub.restart();
    fleet.site.restart();
    for (file, log) in [(&ledger, fleet.hub.log.clone()), (&state, fleet.site.folder.path().join("log"))] {
        eventually("the damaged file is named", || {
            let log = std::fs::read_to_string(&log).unwrap();
            if log.contains(file.to_str().unwrap()) { Ok(()) } else { Err(log) }
        });
        std::fs::remove_file(file).unwrap();
    }
    assert!(is_ready(&fleet.at_site("known")));
    eventually("both are in step again", || {
        let status = fleet.status();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let connected = conditions.iter().any(|c| c["type"] == "Connected" && c["status"] == "True");
        let active = fleet.model("known")["state"] == "Active";
        let saved = std::fs::read_to_string(&state).is_ok_and(|text| text.contains("Model/default/known"));
        if connected && active && saved { Ok(()) } else { Err(fleet.told(&status)) }
    });

    // Another hub at the same address is no hub of this site's.
    fleet.hub.kill();
    std::fs::remove_dir_all(fleet.hub_server.folder.path().join("data/hub/keys")).unwrap();
    fleet.hub.restart();
    eventually("the site knows the difference", || {
        let log = fleet.site.log();
        if log.contains("another hub answers there") { Ok(()) } else { Err(log) }
    });
    assert!(is_ready(&fleet.at_site("known")));
}

#[test]
fn verbs_name_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().to_str().unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_kedge")).args(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let begin = Instant::now();
    assert_has(&run(&["hub", "--data-dir", data_dir]), "start it first: kedge server");
    assert_has(&run(&["site", "token", "create", "--data-dir", data_dir]), "start it first: kedge server");
    assert_has(&run(&["site", "join", "--hub", "hub", "--token", "x", "--data-dir", data_dir]), "https://HOST:6445");
    assert_has(&run(&["site", "token", "create", "--ttl", "soon", "--data-dir", data_dir]), "24h");
    assert!(begin.elapsed() < Duration::from_secs(30));
}
