//! What a pull asks a registry for, and what it leaves on the disk.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test's registry on loopback, and its files; a test ends where it fails"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use kedge_fetch::Fetcher;
use kedge_images::{Login, PullError, Puller};
use kedge_runtimes::Runtime;
use kedge_runtimes::fake::Fake;
use kedge_runtimes::image::{Digest, host_architecture};
use kedge_world::World;
use serde_json::json;

/// A registry on loopback: documents by the end of their path, given to one user if there is one, and who asked.
struct Registry {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Registry {
    fn serve(documents: BTreeMap<String, Vec<u8>>, user: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, &documents, user, &log);
            }
        });
        Self { port, asked }
    }

    /// How often something was given, as far as its path ends so.
    fn given(&self, end: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|path| path.ends_with(end)).count()
    }
}

fn answer(mut stream: TcpStream, held: &BTreeMap<String, Vec<u8>>, user: Option<&str>, log: &Mutex<Vec<String>>) {
    let (mut path, mut authorization) = (String::new(), String::new());
    for line in BufReader::new(stream.try_clone().unwrap()).lines() {
        let line = line.unwrap_or_default();
        match line.split_once(' ') {
            Some(("GET", rest)) => path = rest.split(' ').next().unwrap().to_owned(),
            Some((name, value)) if name.eq_ignore_ascii_case("authorization:") => authorization = value.to_owned(),
            Some(_) => {}
            None => break,
        }
    }
    let expected = user.map(|user| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(user)));
    let end = path.rsplit('/').next().unwrap();
    let (status, body) = match (held.get(end), &expected) {
        (_, Some(expected)) if authorization.is_empty() || !expected.ends_with(&authorization[6..]) => {
            ("401 Unauthorized", Vec::new())
        }
        (None, _) => ("404 Not Found", Vec::new()),
        (Some(body), _) => {
            log.lock().unwrap().push(path);
            ("200 OK", body.clone())
        }
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nWWW-Authenticate: Basic realm=\"r\"\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // Who has heard enough may go.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

/// An image of these layers under a tag; `claimed` is added to the size of each.
fn image(documents: &mut BTreeMap<String, Vec<u8>>, tag: &str, layers: &[&str], claimed: u64) {
    let mut keep = |bytes: &[u8]| {
        documents.insert(Digest::of(bytes).to_string(), bytes.to_vec());
        json!({ "mediaType": "x", "digest": Digest::of(bytes), "size": bytes.len() as u64 })
    };
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer.as_bytes())).collect();
    let config = json!({
        "architecture": host_architecture(), "os": "linux", "config": { "Labels": { "tag": tag } },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = keep(config.to_string().as_bytes());
    let mut layers: Vec<_> = layers.iter().map(|layer| keep(layer.as_bytes())).collect();
    for layer in &mut layers {
        layer["size"] = (layer["size"].as_u64().unwrap() + claimed).into();
    }
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers }).to_string();
    documents.insert(tag.to_owned(), manifest.into_bytes());
}

fn puller(folder: &Path) -> (Puller, Fake) {
    let world = World::real();
    let fake = Fake::new(world.clone());
    (Puller::new(Fetcher::new(world.net.clone()), folder.to_owned(), Arc::new(fake.clone())), fake)
}

#[tokio::test]
async fn a_layer_that_is_here_is_not_fetched_again() {
    let mut documents = BTreeMap::new();
    image(&mut documents, "one", &["base", "middle", "one's own"], 0);
    image(&mut documents, "two", &["base", "middle", "two's own"], 0);
    // The same bytes in another place are another layer to the runtime.
    image(&mut documents, "three", &["middle", "base"], 0);
    let registry = Registry::serve(documents, None);
    let folder = tempfile::tempdir().unwrap();
    let (puller, runtime) = puller(&folder.path().join("pulls"));
    let of = |layer: &str| registry.given(Digest::of(layer.as_bytes()).as_str());
    let name = |tag: &str| format!("127.0.0.1:{}/box:{tag}", registry.port);
    puller.pull(&name("one"), &[]).await.unwrap();
    let two = puller.pull(&name("two"), &[]).await.unwrap();
    assert_eq!(["base", "middle", "one's own", "two's own"].map(of), [1; 4]);
    puller.pull(&name("three"), &[]).await.unwrap();
    assert_eq!(["base", "middle"].map(of), [2; 2]);
    assert_eq!(std::fs::read_dir(folder.path().join("pulls")).unwrap().count(), 0);
    runtime.remove_image(&two.id).await.unwrap();
    puller.pull(&name("two"), &[]).await.unwrap();
    assert_eq!(["base", "middle", "two's own"].map(of), [2, 2, 2]);
}

#[tokio::test]
async fn every_login_for_the_registry_is_tried() {
    let mut documents = BTreeMap::new();
    image(&mut documents, "one", &["base"], 0);
    let registry = Registry::serve(documents, Some("right:secret"));
    let folder = tempfile::tempdir().unwrap();
    let (puller, _) = puller(folder.path());
    let host = format!("127.0.0.1:{}", registry.port);
    let login = |registry: &str, user: &str| Login {
        registry: registry.to_owned(),
        user: user.to_owned(),
        password: "secret".to_owned(),
    };
    let name = format!("{host}/box:one");
    let wrong = [login(&host, "wrong"), login("elsewhere.test", "right"), login(&host, "other")];
    for logins in [&[][..], &wrong] {
        let error = puller.pull(&name, logins).await.unwrap_err();
        assert!(matches!(error, PullError::Refused { .. }), "{error}");
    }
    puller.pull(&name, &[&wrong[..], &[login(&host, "right")]].concat()).await.unwrap();
}

#[tokio::test]
async fn an_image_that_does_not_fit_is_refused_before_its_layers_come() {
    let mut documents = BTreeMap::new();
    image(&mut documents, "huge", &["base"], 1 << 50);
    let registry = Registry::serve(documents, None);
    let folder = tempfile::tempdir().unwrap();
    let (puller, _) = puller(folder.path());
    let name = format!("127.0.0.1:{}/box:huge", registry.port);
    let error = puller.pull(&name, &[]).await.unwrap_err().to_string();
    assert!(error.contains("box:huge") && error.contains("are free"), "{error}");
    assert_eq!(registry.given(Digest::of(b"base").as_str()), 0);
}

#[tokio::test]
async fn what_nobody_came_back_for_goes() {
    let folder = tempfile::tempdir().unwrap();
    let (puller, _) = puller(folder.path());
    let now = World::real().clock.wall();
    for (name, age) in [("new", 0), ("younger", 7 * 86400 - 60), ("older", 7 * 86400 + 60)] {
        let file = std::fs::File::create(folder.path().join(name)).unwrap();
        let modified = std::time::SystemTime::from(now) - Duration::from_secs(age);
        file.set_modified(modified).unwrap();
    }
    puller.clean(now).unwrap();
    let mut left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["new", "younger"]);
    let (puller, _) = self::puller(&folder.path().join("none"));
    puller.clean(now).unwrap();
}
