//! Images from a registry that the test starts: with a login, over a link that breaks off.
//!
//! Needs what pods need.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::harness::eventually;
use crate::needs::{Need, lacks};
use crate::pods::Cluster;
use crate::web::{Reply, Request, Web};

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// What a registry holds: documents by name or digest, blobs by digest.
struct Held {
    manifests: BTreeMap<String, Vec<u8>>,
    blobs: BTreeMap<String, Vec<u8>>,
    layer: String,
    /// The digests of the index and of the manifest that it lists for this machine.
    index: String,
    manifest: String,
}

/// An image of busybox for this machine behind an index that lists another machine's first, with a layer under gzip;
/// and another one of the same layer.
fn image() -> Held {
    let mut layer = tar::Builder::new(Vec::new());
    let busybox = std::fs::read("/bin/busybox").unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(busybox.len() as u64);
    header.set_mode(0o755);
    layer.append_data(&mut header, "bin/busybox", busybox.as_slice()).unwrap();
    // Something that the image of other tests, which is here, has not: its layer would not be asked for.
    header.set_size(0);
    layer.append_data(&mut header, "pulled", &[][..]).unwrap();
    let layer = layer.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&layer).unwrap();
    let packed = gzip.finish().unwrap();
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let config = |of: &str| {
        let config = json!({
            "architecture": architecture, "os": "linux", "config": { "Labels": { "of": of } },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        config.to_string().into_bytes()
    };
    let manifest = |config: &[u8]| {
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(config), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(&packed), "size": packed.len(),
            }],
        });
        manifest.to_string().into_bytes()
    };
    let (config, twin_config) = (config("one"), config("its twin"));
    let (manifest, twin) = (manifest(&config), manifest(&twin_config));
    let entry = |architecture: &str, digest: String| {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1,
            "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry("s390x", digest(b"another")), entry(architecture, digest(&manifest))],
    })
    .to_string()
    .into_bytes();
    let foreign =
        json!({ "schemaVersion": 2, "manifests": [entry("s390x", digest(b"another"))] }).to_string().into_bytes();
    let layer = digest(&packed);
    Held {
        index: digest(&index),
        manifest: digest(&manifest),
        manifests: BTreeMap::from([
            ("1".to_owned(), index.clone()),
            (digest(&index), index),
            ("foreign".to_owned(), foreign),
            ("twin".to_owned(), twin),
            (digest(&manifest), manifest),
        ]),
        blobs: BTreeMap::from([
            (digest(&config), config),
            (digest(&twin_config), twin_config),
            (layer.clone(), packed),
        ]),
        layer,
    }
}

/// A registry that gives nothing without a token, and a token only to `user:secret`; the layer breaks off once.
fn registry(held: Held) -> Web {
    let broken = AtomicBool::new(false);
    Web::serve(move |request| {
        if request.path.starts_with("/token?") {
            // user:secret
            if request.authorization != "Basic dXNlcjpzZWNyZXQ=" {
                return Reply::status("401 Unauthorized", "");
            }
            assert!(request.path.contains("scope=repository%3Abox%3Apull"), "{}", request.path);
            return Reply::content(request, br#"{"token": "right"}"#);
        }
        if request.authorization != "Bearer right" {
            let port = *PORT.get().expect("the registry has a port");
            let wants = format!(
                "WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"r\",scope=\"repository:box:pull\"\r\n"
            );
            return Reply::status("401 Unauthorized", &wants);
        }
        serve(&held, request, &broken)
    })
}

/// How often the one registry of this process was asked for the layer.
static LAYERS: AtomicUsize = AtomicUsize::new(0);

/// Where the one registry of this process listens; its answers name it.
static PORT: std::sync::OnceLock<u16> = std::sync::OnceLock::new();

fn serve(held: &Held, request: &Request, broken: &AtomicBool) -> Reply {
    let last = request.path.rsplit('/').next().unwrap_or_default();
    if last == held.layer {
        LAYERS.fetch_add(1, Ordering::SeqCst);
    }
    let found =
        if request.path.starts_with("/v2/box/manifests/") { held.manifests.get(last) } else { held.blobs.get(last) };
    let Some(content) = found else { return Reply::status("404 Not Found", "") };
    let cut = last == held.layer && !broken.swap(true, Ordering::SeqCst);
    Reply { cut, ..Reply::content(request, content) }
}

fn pod(name: &str, image: &str, secret: bool) -> Value {
    let secrets = if secret { json!([{ "name": "login" }]) } else { json!([]) };
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "terminationGracePeriodSeconds": 1, "imagePullSecrets": secrets, "containers": [
            { "name": "main", "image": image, "command": ["/bin/busybox", "sleep", "600"] },
        ]},
    })
}

#[test]
fn an_image_is_pulled_with_a_login_over_a_link_that_breaks() {
    if lacks(&[Need::Pods]) {
        return;
    }
    let held = image();
    let (index, manifest) = (held.index.clone(), held.manifest.clone());
    let web = registry(held);
    PORT.set(web.port).expect("there is one registry");
    let host = format!("127.0.0.1:{}", web.port);
    let cluster = Cluster::start("pulls");
    let server = &cluster.server;
    server.kubectl(&format!(
        "create secret docker-registry login --docker-server={host} --docker-username=user --docker-password=secret"
    ));
    let create = |pod: &Value| {
        let (ok, text) = server.try_kubectl("create -f -", &pod.to_string());
        assert!(ok, "{text}");
    };
    let until = |name: &str, field: &str, expected: &str| {
        eventually(&format!("{name} is {expected}"), || {
            let found = server.kubectl(&format!("get pod {name} -o jsonpath={{{field}}}"));
            if found.contains(expected) { Ok(()) } else { Err(found + &server.log()) }
        });
    };
    let waiting = ".status.containerStatuses[0].state.waiting";
    create(&pod("stranger", &format!("{host}/box:1"), false));
    until("stranger", &format!("{waiting}.message"), "imagePullSecrets");
    // Two images of one layer at the same time, and two pods of one image.
    for (name, tag) in [("puller", "1"), ("twin", "twin"), ("second", "1")] {
        create(&pod(name, &format!("{host}/box:{tag}"), true));
    }
    for name in ["puller", "twin", "second"] {
        until(name, ".status.phase", "Running");
    }
    create(&pod("absent", &format!("{host}/box:2"), true));
    until("absent", &format!("{waiting}.message"), "does not exist");
    create(&pod("foreign", &format!("{host}/box:foreign"), true));
    until("foreign", &format!("{waiting}.message"), "s390x");
    // What was pulled is here now, whoever asks.
    create(&pod("late", &format!("{host}/box:1"), false));
    until("late", ".status.phase", "Running");
    // By the digest of the index, of the manifest, and with a tag beside it, which says nothing then.
    for (name, of) in [
        ("by-index", format!("box@{index}")),
        ("by-manifest", format!("box@{manifest}")),
        ("by-both", format!("box:1@{index}")),
        ("by-twin", format!("box:twin@{manifest}")),
    ] {
        create(&pod(name, &format!("{host}/{of}"), true));
        until(name, ".status.phase", "Running");
        let before = web.asked();
        create(&pod(&format!("{name}-again"), &format!("{host}/{of}"), false));
        until(&format!("{name}-again"), ".status.phase", "Running");
        assert_eq!(web.asked(), before, "{name}: what is here was asked for again");
    }
    assert_eq!(LAYERS.load(Ordering::SeqCst), 2, "the layer came once, in two parts");
    // The tag beside a digest was not moved to it.
    create(&pod("twin-again", &format!("{host}/box:twin"), false));
    until("twin-again", ".status.phase", "Running");
    let id = |pod: &str| server.kubectl(&format!("get pod {pod} -o jsonpath={{.status.containerStatuses[0].imageID}}"));
    assert_eq!(id("twin"), id("twin-again"));
    assert_eq!(id("puller"), id("by-twin"));
    // What a container uses stays; once none does, it goes.
    let twin = format!("{host}/box:twin");
    let (ok, text) = server.try_kedge(&["image", "remove", &twin]);
    assert!(!ok && text.contains("uses the image") && text.contains(&twin), "{text}");
    server.kubectl("delete pod twin twin-again --wait=true");
    eventually("the image can be removed", || match server.try_kedge(&["image", "remove", "--unused"]) {
        (true, text) if text.contains(&twin) => Ok(()),
        (_, text) => Err(text),
    });
    let left = server.kedge(&["image", "list"]);
    assert!(!left.contains(&twin) && left.contains(&format!("{host}/box:1")), "{left}");
}
