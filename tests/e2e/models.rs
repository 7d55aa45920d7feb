//! Models from `kubectl apply` to an answer, and everything that can be wrong with them.
//!
//! Serving needs what pods need, and the model all-MiniLM-L6-v2 in the folder that `KEDGE_MINILM` names.

use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::harness::{Server, assert_has, eventually};
use crate::needs::{Need, lacks, model as minilm};
use crate::pods::Cluster;
use crate::web::{Reply, Web};

fn apply(server: &Server, object: &Value) {
    let (ok, text) = server.try_kubectl("apply -f -", &object.to_string());
    assert!(ok, "{text}");
}

fn model(name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "kedge.dev/v1alpha1", "kind": "Model", "metadata": { "name": name }, "spec": spec })
}

fn condition(server: &Server, kind: &str, name: &str) -> (String, String) {
    let (code, object) =
        server.request("GET", &format!("/apis/kedge.dev/v1alpha1/namespaces/default/{kind}/{name}"), "");
    assert_eq!(code, 200, "{object}");
    let text = |key: &str| object["status"]["conditions"][0][key].as_str().unwrap_or_default().to_owned();
    (text("reason"), text("message"))
}

/// Waits until the object's condition has this reason; its message.
fn until(server: &Server, kind: &str, name: &str, reason: &str) -> String {
    let mut message = String::new();
    eventually(&format!("{kind} {name} is {reason}"), || {
        let found = condition(server, kind, name);
        message.clone_from(&found.1);
        if found.0 == reason { Ok(()) } else { Err(format!("{found:?}\n{}", server.log())) }
    });
    message
}

/// A folder that looks like a BERT model, small; only its settings and headers have to make sense.
pub(crate) fn small_model(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let config = json!({
        "model_type": "bert", "hidden_act": "gelu", "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1,
        "intermediate_size": 4, "vocab_size": 2, "max_position_embeddings": 8, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": { "type": "BertPreTokenizer" },
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": { "[UNK]": 0, "edge": 1 },
        },
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let mut tensors = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![2, 4]),
        ("embeddings.position_embeddings.weight".into(), vec![8, 4]),
        ("embeddings.token_type_embeddings.weight".into(), vec![2, 4]),
    ];
    let layer = "encoder.layer.0";
    let parts = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"];
    for part in parts.into_iter().chain(["intermediate.dense", "output.dense"]) {
        tensors.push((format!("{layer}.{part}.weight"), vec![4, 4]));
        tensors.push((format!("{layer}.{part}.bias"), vec![4]));
    }
    for norm in ["embeddings".to_owned(), format!("{layer}.attention.output"), format!("{layer}.output")] {
        tensors.push((format!("{norm}.LayerNorm.weight"), vec![4]));
        tensors.push((format!("{norm}.LayerNorm.bias"), vec![4]));
    }
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let begin = end;
        end += 4 * shape.iter().product::<usize>();
        header.insert(name, json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, end] }));
    }
    let header = Value::from(header).to_string();
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend(header.as_bytes());
    weights.resize(weights.len() + end, 0);
    std::fs::write(folder.join("model.safetensors"), weights).unwrap();
}

/// What is in the store of models, half-made things included.
fn stored(server: &Server) -> Vec<String> {
    let entries = std::fs::read_dir(server.folder.path().join("data/model-store")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn conditions_name_what_is_wrong_with_a_model() {
    let server = Server::start(&["--disable-agent"]);
    let models = server.folder.path().join("data/models");
    small_model(&models.join("good"));
    apply(&server, &model("good", json!({ "source": { "path": "good" } })));
    assert!(until(&server, "models", "good", "Available").contains("bert"));
    let digest = server.kubectl("get model good -o jsonpath={.status.digest}");
    let told = std::process::Command::new(env!("CARGO_BIN_EXE_kedge"))
        .args(["model", "digest", models.join("good").to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(told.stdout).unwrap().trim(), digest);
    apply(&server, &model("named", json!({ "source": { "path": "good" }, "digest": digest })));
    until(&server, "models", "named", "Available");

    let mut service = model("asked", json!({ "model": "good" }));
    service["kind"] = json!("ModelService");
    apply(&server, &service);
    let message = until(&server, "modelservices", "asked", "ImageNotReady");
    assert_has(&message, "this server runs no node (--disable-agent)");

    let other = format!("sha256:{}", "0".repeat(64));
    apply(&server, &model("wrong", json!({ "source": { "path": "good" }, "digest": other })));
    let message = until(&server, "models", "wrong", "DigestMismatch");
    assert!(message.contains(&digest) && message.contains(&other), "{message}");

    apply(&server, &model("outside", json!({ "source": { "path": "../server" } })));
    assert!(until(&server, "models", "outside", "PathOutside").contains("../server"));
    std::os::unix::fs::symlink("../server", models.join("link")).unwrap();
    apply(&server, &model("link", json!({ "source": { "path": "link" } })));
    assert!(until(&server, "models", "link", "SourceInvalid").contains("symbolic link"));
    apply(&server, &model("missing", json!({ "source": { "path": "gone" } })));
    assert!(until(&server, "models", "missing", "PathNotFound").contains("gone"));

    small_model(&models.join("gpt"));
    std::fs::write(models.join("gpt/config.json"), r#"{"model_type": "gpt2"}"#).unwrap();
    // Files that only look like a model are told from one that can be served.
    small_model(&models.join("torn"));
    std::fs::write(models.join("torn/tokenizer.json"), "{}").unwrap();
    apply(&server, &model("torn", json!({ "source": { "path": "torn" } })));
    let message = until(&server, "models", "torn", "FilesInvalid");
    assert!(message.starts_with("torn/tokenizer.json: ") && !message.contains("(file)"), "{message}");
    small_model(&models.join("shop/broken"));
    std::fs::remove_file(models.join("shop/broken/tokenizer.json")).unwrap();
    apply(&server, &model("broken", json!({ "source": { "path": "shop/broken" } })));
    assert!(until(&server, "models", "broken", "FilesInvalid").starts_with("shop/broken/tokenizer.json: No such file"));
    apply(&server, &model("gpt", json!({ "source": { "path": "gpt" } })));
    assert!(until(&server, "models", "gpt", "FormatUnsupported").contains("gpt2"));

    for (about, kind, reason) in [("broken", "Warning", "FilesInvalid"), ("good", "Normal", "Available")] {
        eventually("an event tells what the condition says", || {
            let told = server.kubectl(&format!("get events --field-selector=involvedObject.name={about} --no-headers"));
            if told.contains(kind) && told.contains(reason) { Ok(()) } else { Err(told) }
        });
    }

    let (ok, text) = server.try_kubectl(
        "apply -f -",
        &model("two", json!({ "source": { "path": "a", "hub": { "uid": "u" } } })).to_string(),
    );
    assert!(!ok && text.contains("spec.source"), "{text}");
    let (ok, text) = server
        .try_kubectl("apply -f -", &model("odd", json!({ "source": { "path": "a" }, "digest": "md5:1" })).to_string());
    assert!(!ok && text.contains("spec.digest"), "{text}");

    server.kubectl("delete models --all --wait=true");
    eventually("nothing is left of the models", || match &stored(&server)[..] {
        [] => Ok(()),
        left => Err(format!("{left:?}")),
    });
}

#[test]
fn an_archive_is_fetched_over_http_and_its_digest_holds() {
    let server = Server::start(&["--disable-agent"]);
    let folder = server.folder.path().join("made");
    small_model(&folder.join("m"));
    let archive = server.folder.path().join("m.tar.gz");
    let made = std::process::Command::new("tar").arg("-czf").arg(&archive).arg("-C").arg(&folder).arg("m").status();
    assert!(made.unwrap().success());
    let content = std::fs::read(&archive).unwrap();
    let digest = format!("sha256:{}", hex(&Sha256::digest(&content)));
    // The first answer breaks off in the middle.
    let web = Web::serve(move |request| match &*request.path {
        "/lost" => Reply::status("404 Not Found", ""),
        _ => Reply { cut: request.number == 0, ..Reply::content(request, &content) },
    });
    let port = web.port;
    let url = |digest: &str| json!({ "source": { "url": { "location": format!("http://127.0.0.1:{port}/m.tar.gz"), "digest": digest } } });
    apply(&server, &model("fetched", url(&digest)));
    until(&server, "models", "fetched", "Available");
    assert_eq!(web.asked(), 2, "once cut off, once gone on");
    let wrong = format!("sha256:{}", "1".repeat(64));
    apply(&server, &model("wrong", url(&wrong)));
    let message = until(&server, "models", "wrong", "DigestMismatch");
    assert!(message.contains(&digest) && message.contains(&wrong), "{message}");
    assert_eq!(web.asked(), 3, "the wrong contents came once");
    // Another model of the same archive takes what is here; by now the wrong one would have been asked for again.
    apply(&server, &model("again", url(&digest)));
    until(&server, "models", "again", "Available");
    // It is known by its digest: where it would come from is not asked.
    let lost = |digest: &str| json!({ "source": { "url": { "location": format!("http://127.0.0.1:{port}/lost"), "digest": digest } } });
    apply(&server, &model("elsewhere", lost(&digest)));
    until(&server, "models", "elsewhere", "Available");
    assert_eq!(web.asked(), 3, "what is refused or here is not fetched again");
    apply(&server, &model("lost", lost(&format!("sha256:{}", "2".repeat(64)))));
    assert_has(&until(&server, "models", "lost", "NotFound"), "/lost: the server answered 404 Not Found");
}

#[test]
fn a_model_comes_from_a_registry_with_the_login_of_a_secret() {
    let server = Server::start(&["--disable-agent"]);
    let folder = server.folder.path().join("made");
    small_model(&folder);
    let digest = |bytes: &[u8]| format!("sha256:{}", hex(&Sha256::digest(bytes)));
    let mut held = std::collections::BTreeMap::new();
    let mut layers = Vec::new();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        let notes = json!({ "org.opencontainers.image.title": name });
        layers.push(
            json!({ "mediaType": "text/plain", "digest": digest(&bytes), "size": bytes.len(), "annotations": notes }),
        );
        held.insert(digest(&bytes), bytes);
    }
    let manifest = json!({ "schemaVersion": 2, "layers": layers }).to_string().into_bytes();
    let revision = digest(&manifest);
    held.insert("1".to_owned(), manifest.clone());
    held.insert(revision.clone(), manifest);
    let weights = layers[2]["digest"].as_str().unwrap().to_owned();
    let cut = std::sync::atomic::AtomicBool::new(true);
    // The password is "word"; the weights break off in the middle once.
    let web = Web::serve(move |request| {
        let name = request.path.rsplit('/').next().unwrap();
        match held.get(name) {
            _ if request.authorization != "Basic cmVhZGVyOndvcmQ=" => {
                Reply::status("401 Unauthorized", "WWW-Authenticate: Basic realm=\"r\"\r\n")
            }
            None => Reply::status("404 Not Found", ""),
            Some(bytes) => {
                let cut = name == weights && cut.swap(false, std::sync::atomic::Ordering::SeqCst);
                Reply { cut, ..Reply::content(request, bytes) }
            }
        }
    });
    let host = format!("127.0.0.1:{}", web.port);
    let oci = |tag: &str, secret: &str| json!({ "source": { "oci": { "location": format!("oci://{host}/m:{tag}"), "secretRef": { "name": secret } } } });
    apply(&server, &model("fetched", oci("1", "login")));
    assert_has(&until(&server, "models", "fetched", "SecretNotFound"), "default/login does not exist");
    let login = |name: &str, password: &str| {
        server.kubectl(&format!(
            "create secret docker-registry {name} --docker-server={host} --docker-username=reader --docker-password={password}"
        ));
    };
    login("wrong", "guess");
    login("login", "word");
    apply(&server, &model("refused", oci("1", "wrong")));
    assert_has(&until(&server, "models", "refused", "Unauthorized"), &host);
    apply(&server, &model("absent", oci("2", "login")));
    until(&server, "models", "absent", "NotFound");
    until(&server, "models", "fetched", "Available");
    assert_eq!(server.kubectl("get model fetched -o jsonpath={.status.fetched.revision}"), revision);
    // What changes beside the source costs the manifest, and nothing else.
    let before = web.asked();
    server.kubectl(r#"patch model fetched --type=merge -p {"spec":{"sites":{"names":["a"]}}}"#);
    eventually("the change is seen", || {
        let told = server.kubectl("get model fetched -o jsonpath={.metadata.generation}/{.status.observedGeneration}");
        if told == "2/2" { Ok(()) } else { Err(told) }
    });
    until(&server, "models", "fetched", "Available");
    assert!(web.asked() - before <= 4, "{} requests", web.asked() - before);

    let explained = server.kubectl("explain model.spec.source.oci.location");
    assert_has(&explained, "oci://HOST/REPOSITORY");
    for location in ["https://r.test/m", "oci://r.test", "oci://r.test/../m", "oci://r.test/m@sha256:1"] {
        let object = model("odd", json!({ "source": { "oci": { "location": location } } }));
        let (ok, text) = server.try_kubectl("apply -f -", &object.to_string());
        assert!(!ok && text.contains("spec.source.oci.location"), "{location}: {text}");
    }
    server.kubectl("delete models --all --wait=true");
    eventually("nothing is left of the models", || match &stored(&server)[..] {
        [] => Ok(()),
        left => Err(format!("{left:?}")),
    });
}

#[test]
fn the_same_files_are_one_model_from_a_hub_a_bucket_and_a_folder() {
    let server = Server::start(&["--disable-agent"]);
    let folder = server.folder.path().join("data/models/small");
    small_model(&folder);
    let names = ["config.json", "model.safetensors", "tokenizer.json"];
    let held: Vec<(&str, Vec<u8>)> =
        names.iter().map(|name| (*name, std::fs::read(folder.join(name)).unwrap())).collect();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let files = held.iter().map(|(name, bytes)| {
        let lfs = json!({ "sha256": hex(&Sha256::digest(bytes)), "size": bytes.len() });
        json!({ "rfilename": name, "size": bytes.len(), "lfs": lfs })
    });
    let pickle = json!({ "rfilename": "pytorch_model.bin", "size": 1 });
    let listing = json!({ "sha": commit, "siblings": files.chain([pickle.clone()]).collect::<Vec<_>>() });
    let only_pickle = json!({ "sha": commit, "siblings": [pickle] });
    let entries: String = held
        .iter()
        .map(|(name, bytes)| {
            format!("<Contents><Key>m/{name}</Key><ETag>\"1\"</ETag><Size>{}</Size></Contents>", bytes.len())
        })
        .collect();
    let web = Web::serve(move |request| {
        let (path, _) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let content = match path {
            "/api/models/a/pickled/revision/main" => only_pickle.to_string().into_bytes(),
            "/bucket/" => format!("<ListBucketResult>{entries}</ListBucketResult>").into_bytes(),
            _ if request.path.starts_with("/api/models/a/b/revision/") => listing.to_string().into_bytes(),
            _ => match held.iter().find(|(name, _)| path.ends_with(&format!("/{name}"))) {
                Some((_, bytes)) => bytes.clone(),
                None => return Reply::status("404 Not Found", ""),
            },
        };
        Reply::content(request, &content)
    });
    let endpoint = format!("http://127.0.0.1:{}", web.port);
    let hub = |name: &str| json!({ "source": { "huggingFace": { "location": format!("hf://a/{name}"), "endpoint": endpoint } } });
    let bucket =
        |rest: &str| json!({ "source": { "s3": { "location": format!("s3://bucket/{rest}"), "endpoint": endpoint } } });
    apply(&server, &model("folder", json!({ "source": { "path": "small" } })));
    apply(&server, &model("hub", hub("b")));
    apply(&server, &model("bucket", bucket("m")));
    let mut digests = std::collections::BTreeSet::new();
    for name in ["folder", "hub", "bucket"] {
        until(&server, "models", name, "Available");
        digests.insert(server.kubectl(&format!("get model {name} -o jsonpath={{.status.digest}}")));
    }
    assert_eq!((digests.len(), stored(&server).len()), (1, 1), "{digests:?} {:?}", stored(&server));
    assert_eq!(server.kubectl("get model hub -o jsonpath={.status.fetched.revision}"), commit);
    apply(&server, &model("pickled", hub("pickled")));
    assert_has(&until(&server, "models", "pickled", "SourceInvalid"), "pytorch_model.bin");
    apply(&server, &model("absent", bucket("n")));
    until(&server, "models", "absent", "SourceInvalid");

    assert_has(&server.kubectl("explain model.spec.source.huggingFace.include"), "Q4_K_M.gguf");
    assert_has(&server.kubectl("explain model.spec.source.s3.secretRef"), "AWS_SESSION_TOKEN");
    for (source, field) in [
        (json!({ "huggingFace": { "location": "hf://a" } }), "huggingFace.location"),
        (json!({ "huggingFace": { "location": "hf://a/b", "include": ["[a]"] } }), "huggingFace.include"),
        (json!({ "huggingFace": { "location": "hf://a/b", "endpoint": "file:///etc" } }), "huggingFace.endpoint"),
        (json!({ "s3": { "location": "s3://" } }), "s3.location"),
        (json!({ "s3": { "location": "s3://b", "region": "a/b" } }), "s3.region"),
        (json!({ "s3": { "location": "s3://b" }, "path": "a" }), "spec.source"),
    ] {
        let object = model("odd", json!({ "source": source }));
        let (ok, text) = server.try_kubectl("apply -f -", &object.to_string());
        assert!(!ok && text.contains(field), "{source}: {text}");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_model_is_served_from_pods_and_leaves_nothing_behind() {
    if lacks(&[Need::Model, Need::Pods]) {
        return;
    }
    let source = minilm().expect("it is not lacking");
    let mut cluster = Cluster::start("models");
    let server = &cluster.server;
    let target = server.folder.path().join("data/models");
    std::fs::create_dir_all(&target).unwrap();
    let copied = std::process::Command::new("cp").arg("-r").arg(&source).arg(target.join("minilm")).status().unwrap();
    assert!(copied.success());
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    server.kubectl(&format!("apply -f {examples}/minilm.yaml"));
    until(server, "modelservices", "embeddings", "Available");
    let ask = format!(
        "create --raw /api/v1/namespaces/default/services/embeddings:http/proxy/v1/embeddings -f {examples}/ask/question.json"
    );
    let answer: Value = serde_json::from_str(&server.kubectl(&ask)).unwrap();
    let vectors: Vec<Vec<f64>> = answer["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| serde_json::from_value(item["embedding"].clone()).unwrap())
        .collect();
    let near = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let scores: Vec<f64> = vectors[1..].iter().map(|vector| near(&vectors[0], vector)).collect();
    assert!(scores[0] > 0.5 && scores[1] < 0.3, "the sentence about charging is nearest: {scores:?}");

    let told = server.kubectl("get events --no-headers");
    assert!(told.contains("Available") && !told.contains("Unhealthy"), "a start is no trouble:\n{told}");

    let decoder = concat!(env!("CARGO_MANIFEST_DIR"), "/images/demo-decoder/model");
    let copied =
        std::process::Command::new("cp").arg("-r").arg(decoder).arg(target.join("demo-decoder")).status().unwrap();
    assert!(copied.success());
    server.kubectl(&format!("apply -f {examples}/assistant.yaml"));
    until(server, "modelservices", "assistant", "Available");
    assert_eq!(server.kubectl("get model demo-decoder -o jsonpath={.status.format}"), "llama");
    let ask = format!(
        "create --raw /api/v1/namespaces/default/services/assistant:http/proxy/v1/chat/completions -f {examples}/ask/chat.json"
    );
    let answer: Value = serde_json::from_str(&server.kubectl(&ask)).unwrap();
    let said = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(said.to_lowercase().contains("container"), "what a pod is: {said:?}");
    // Through its Service, from another pod, by name.
    cluster.run("client", "sleep 1000");
    let body = r#"{"model":"demo-decoder","messages":[{"role":"user","content":"What\u0020is\u0020a\u0020pod?"}],"temperature":0,"max_tokens":60}"#;
    let ask = "exec client -- /bin/busybox wget -q -O- --header content-type:application/json --post-data";
    let same = server.kubectl(&format!("{ask} {body} http://assistant.default.svc.cluster.local/v1/chat/completions"));
    let same: Value = serde_json::from_str(&same).unwrap();
    assert_eq!(same["choices"][0]["message"]["content"], said);
    server.kubectl("delete pod client --wait=true");
    eventually("the table tells how fast it was", || {
        let found = server.kubectl("get modelservice assistant -o jsonpath={.status.tokensPerSecond},{.status.queue}");
        if found.ends_with(",0") && found != "0,0" { Ok(()) } else { Err(found) }
    });
    server.kubectl(&format!("delete -f {examples}/assistant.yaml --wait=true"));

    // Pods outlive a server, and what they serve is not said to be away while the next one starts.
    let since = "get modelservice embeddings -o jsonpath={.status.conditions[?(@.type=='Ready')].lastTransitionTime}";
    let before = server.kubectl(since);
    cluster.server.kill();
    cluster.server.restart();
    let server = &cluster.server;
    server.kubectl("annotate modelservice embeddings looked=at");
    eventually("the node is back", || {
        let (ok, text) = server
            .try_kubectl("get node n1 -o jsonpath={.status.conditions[?(@.type=='Ready')].lastHeartbeatTime}", "");
        if ok && !text.is_empty() { Ok(()) } else { Err(text) }
    });
    server.kubectl("wait --for=condition=Ready modelservice/embeddings --timeout=60s");
    assert_eq!(server.kubectl(since), before, "it was ready all the while");
    assert!(!server.log().contains("ImageNotReady"));

    server.kubectl("scale modelservice embeddings --replicas=2");
    eventually("two pods answer", || {
        let found = server.kubectl("get modelservice embeddings -o jsonpath={.status.readyReplicas}");
        if found == "2" { Ok(()) } else { Err(found) }
    });
    server.kubectl("wait --for=condition=Ready model/minilm modelservice/embeddings --timeout=60s");
    assert_has(&server.kubectl("rollout status deployment/embeddings --timeout=60s"), "successfully rolled out");
    let table = server.kubectl("get ms embeddings");
    let cells: Vec<&str> = table.split_whitespace().collect();
    assert_eq!(cells[..9], ["NAME", "MODEL", "READY", "PODS", "TOKENS/S", "QUEUE", "REASON", "URL", "AGE"]);
    assert_eq!(cells[9..13], ["embeddings", "minilm", "True", "2/2"]);
    assert_eq!(cells[14..16], ["0", "Available"], "nobody waits: {table}");
    let resources = |json: &str| {
        let patch = format!("{{\"spec\":{{\"resources\":{json}}}}}");
        server.kubectl(&format!("patch modelservice embeddings --type=merge -p {patch}"));
    };
    // What the API refuses of the Deployment is said where the user wrote it.
    resources("{\"limits\":{\"memory\":\"24Mi\"},\"requests\":{\"memory\":\"25Mi\"}}");
    let message = until(server, "modelservices", "embeddings", "Refused");
    assert_has(&message, "must be less than or equal to memory limit of 24Mi");
    resources("{\"limits\":{\"memory\":\"24Mi\"},\"requests\":null}");
    let message = until(server, "modelservices", "embeddings", "PodsOOMKilled");
    assert_has(&message, "ended with OOMKilled, exit code 137: it needs more memory than spec.resources.limits.memory");
    resources("{\"limits\":null,\"requests\":{\"memory\":\"64Mi\"}}");
    until(server, "modelservices", "embeddings", "Available");
    server.kubectl("delete deployment embeddings --wait=true");
    eventually("what was deleted under a service comes back", || {
        let (_, text) = server.try_kubectl("get deployment embeddings -o jsonpath={.status.readyReplicas}", "");
        if text == "2" { Ok(()) } else { Err(text + &server.log()) }
    });

    server.kubectl("scale modelservice embeddings --replicas=0");
    until(server, "modelservices", "embeddings", "ScaledToZero");
    server.kubectl("scale modelservice embeddings --replicas=2");
    until(server, "modelservices", "embeddings", "Available");
    let told = server.kubectl("get events --field-selector=reason=ScaledToZero -o jsonpath={.items[*].count}");
    assert_eq!(told, "1", "it turned once");

    // A Model that goes takes nothing away from those who serve it.
    server.kubectl("delete model minilm --wait=true");
    let message = until(server, "modelservices", "embeddings", "ModelNotFound");
    assert_has(&message, "2 pods go on answering");
    server.kubectl("delete pods -l kedge.dev/modelservice=embeddings --wait=true");
    eventually("pods come back without the Model", || {
        let found = server.kubectl("get modelservice embeddings -o jsonpath={.status.readyReplicas}");
        if found == "2" { Ok(()) } else { Err(found + &server.log()) }
    });
    server.kubectl("delete modelservice embeddings --wait=true");
    eventually("nothing is left", || {
        let objects =
            server.kubectl("get deployments,pods,replicasets,services,endpointslices,models,modelservices -o name");
        let left: Vec<&str> = objects.lines().filter(|name| !name.contains("kubernetes")).collect();
        let stored = stored(server);
        if left.is_empty() && stored.is_empty() { Ok(()) } else { Err(format!("{left:?} {stored:?}")) }
    });
}
