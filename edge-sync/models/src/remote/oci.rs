//! A model in an OCI registry. (OCI image spec, `manifest.md`; ModelPack's `model-spec`; ORAS' file annotations.)
//!
//! Each layer of the manifest is a file, named by an annotation, or an archive of files. The config says nothing that a
//! model needs, and is not fetched.

use std::collections::BTreeMap;

use async_trait::async_trait;
use kedge_content::Digest;
use kedge_fetch::Answer;
use kedge_own::OciSource;
use kedge_registry::{RegistryError, Session, logins};
use serde::Deserialize;

use super::{Check, Listing, Part, Place, Remote, RemoteError, Tools, is_packed};

/// Manifests larger than this are none; registries refuse them at the same size.
const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// What a registry may answer for a name. The artifact manifest is one that older versions of ORAS wrote.
const ACCEPTED: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.artifact.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// By which a layer says what file it is: ORAS', ModelPack's, and ModelPack's of before it was so called.
const NAMES: [&str; 3] = ["org.cncf.model.filepath", "org.cnai.model.filepath", "org.opencontainers.image.title"];
/// By which ORAS says that a layer is a folder.
const UNPACK: &str = "io.deis.oras.content.unpack";
/// By which builders mark what in an index is no image.
const ATTESTATION: &str = "vnd.docker.reference.type";

struct Oci {
    location: String,
    /// The tag, or the digest.
    asked: String,
    session: Session,
}

pub(super) async fn open(source: &OciSource, tools: &Tools<'_>) -> Result<impl Remote + use<>, RemoteError> {
    let place = Address::parse(&source.location)
        .ok_or_else(|| RemoteError::Unusable(format!("{:?} is no oci://HOST/REPOSITORY:TAG", source.location)))?;
    let logins = match &source.secret_ref {
        None => Vec::new(),
        Some(secret) => {
            let data = tools.secrets.read(&secret.name).await?;
            let wrong = |what: String| RemoteError::SecretInvalid(format!("the Secret {}: {what}", secret.name));
            let logins = logins(|key| data.get(key).map(Vec::as_slice)).map_err(wrong)?;
            if !logins.iter().any(|login| login.registry == place.registry) {
                return Err(wrong(format!("it holds no login for {}", place.registry)));
            }
            logins
        }
    };
    let session = Session::new(tools.fetcher, &format!("{}/{}", place.registry, place.repository), &logins);
    Ok(Oci { location: source.location.clone(), asked: place.asked.to_owned(), session })
}

/// The parts of a location.
#[derive(Debug, PartialEq, Eq)]
struct Address<'a> {
    registry: &'a str,
    repository: &'a str,
    /// A digest if there is one, else a tag.
    asked: &'a str,
}

impl<'a> Address<'a> {
    fn parse(location: &'a str) -> Option<Self> {
        let (registry, rest) = location.strip_prefix("oci://")?.split_once('/')?;
        let (name, digest) = match rest.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (rest, None),
        };
        let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
        let word = |text: &str, more: &[u8]| text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b));
        let part = |part: &str| word(part, b"._-") && part.bytes().any(|byte| byte.is_ascii_alphanumeric());
        let good = !registry.is_empty()
            && word(registry, b".-:")
            && repository.split('/').all(part)
            && part(tag)
            && digest.is_none_or(|digest| Digest::parse(digest).is_some());
        good.then_some(Self { registry, repository, asked: digest.unwrap_or(tag) })
    }
}

#[async_trait]
impl Remote for Oci {
    async fn list(&mut self, pinned: Option<&str>) -> Result<Listing, RemoteError> {
        let asked = pinned.unwrap_or(&self.asked).to_owned();
        let (mut document, mut revision) = self.document(&asked).await?;
        if let Some(only) = document.only().map_err(|what| self.wrong(&what))? {
            (document, revision) = self.document(&only).await?;
            if !document.manifests.is_empty() {
                return Err(self.wrong("its index names another index"));
            }
        }
        let layers = document.layers.into_iter().chain(document.blobs);
        let parts: Result<Vec<Part>, String> = layers.map(Descriptor::part).collect();
        let parts = parts.map_err(|what| self.wrong(&what))?;
        Ok(Listing { location: self.location.clone(), revision, parts })
    }

    async fn get(&mut self, part: &Part, from: u64) -> Result<Answer, RemoteError> {
        self.session.get(&format!("blobs/{}", part.name), from, None).await.map_err(said)
    }
}

impl Oci {
    fn wrong(&self, what: &str) -> RemoteError {
        RemoteError::Unusable(format!("{}: {what}", self.location))
    }

    /// The manifest or index of this tag or digest, and its digest.
    async fn document(&mut self, asked: &str) -> Result<(Document, String), RemoteError> {
        let answer = self.session.get(&format!("manifests/{asked}"), 0, Some(ACCEPTED)).await.map_err(said)?;
        let bytes = answer.bytes(MANIFEST_BYTES_MAX).await?;
        let digest = Digest::of(&bytes);
        if Digest::parse(asked).is_some_and(|expected| expected != digest) {
            let text = format!("{}: its manifest has the digest {digest}, not {asked}", self.location);
            return Err(RemoteError::Digest(text));
        }
        let document = serde_json::from_slice(&bytes)
            .map_err(|error| self.wrong(&format!("its manifest cannot be read: {error}")))?;
        Ok((document, digest.to_string()))
    }
}

fn said(error: RegistryError) -> RemoteError {
    match error {
        RegistryError::Fetch(error) => RemoteError::Fetch(error),
        RegistryError::Refused { .. } => RemoteError::Unauthorized(error.to_string()),
        RegistryError::Missing(_) => RemoteError::Missing(error.to_string()),
        RegistryError::Invalid { .. } => RemoteError::Unusable(error.to_string()),
    }
}

/// What a manifest, an artifact manifest and an index have that matters here.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    layers: Vec<Descriptor>,
    /// An artifact manifest calls them so.
    #[serde(default)]
    blobs: Vec<Descriptor>,
    /// Only an index has them.
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Document {
    /// The one manifest that an index names; none when this is no index.
    fn only(&self) -> Result<Option<String>, String> {
        let mut named = self.manifests.iter().filter(|entry| !entry.annotations.contains_key(ATTESTATION));
        match (named.next(), named.count()) {
            (None, _) if self.manifests.is_empty() => Ok(None),
            (Some(only), 0) if Digest::parse(&only.digest).is_some() => Ok(Some(only.digest.clone())),
            (_, more) => Err(format!(
                "it is an index of {} manifests, and a model is one: name it by its digest (@sha256:…)",
                more + 1
            )),
        }
    }
}

impl Descriptor {
    fn part(self) -> Result<Part, String> {
        let digest = Digest::parse(&self.digest)
            .ok_or_else(|| format!("a layer is named {:?}, and only sha256 digests are taken", self.digest))?;
        // Before a byte of it comes, where the type says so.
        if self.media_type.ends_with("+zstd") {
            return Err(format!("the layer {} is compressed with zstd, which is not supported", self.digest));
        }
        let place = self.place()?;
        Ok(Part { place, name: self.digest, size: Some(self.size), check: Check::Sha256(digest) })
    }

    /// Whether this layer is a file, or an archive. ModelPack says so in the media type. ORAS does not: to it a media type
    /// is the user's, and that of a layer of an image where the user gave none.
    fn place(&self) -> Result<Place, String> {
        let kind = self.media_type.as_str();
        let name = NAMES.iter().find_map(|key| self.annotations.get(*key));
        let of_modelpack = ["application/vnd.cncf.model.", "application/vnd.cnai.model."];
        let packed_kind = [".tar", "+gzip", ".gzip", "+zstd"].iter().any(|end| kind.ends_with(end));
        let is_archive = match name {
            None if !packed_kind => {
                return Err(format!(
                    "the layer {} of type {kind:?} is no archive and has no name (annotation {})",
                    self.digest, NAMES[2]
                ));
            }
            None => true,
            Some(_) if of_modelpack.iter().any(|start| kind.starts_with(start)) => packed_kind,
            Some(name) => self.annotations.get(UNPACK).is_some_and(|text| text == "true") || is_packed(name),
        };
        Ok(if is_archive { Place::Archive } else { Place::File(name.cloned().unwrap_or_default()) })
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use kedge_own::{SecretRef, Source};
    use serde_json::{Value, json};

    use super::*;
    use crate::remote::testing::{Asked, Machine, Reply, Web, noise};

    const TITLE: &str = "org.opencontainers.image.title";

    /// What a registry holds: tags and digests, each with its bytes.
    #[derive(Default)]
    struct Held(BTreeMap<String, Vec<u8>>);

    impl Held {
        fn blob(&mut self, bytes: &[u8], kind: &str, notes: &Value) -> Value {
            let digest = Digest::of(bytes).to_string();
            self.0.insert(digest.clone(), bytes.to_vec());
            json!({ "mediaType": kind, "digest": digest, "size": bytes.len(), "annotations": notes })
        }

        fn file(&mut self, name: &str, bytes: &[u8]) -> Value {
            self.blob(bytes, "application/octet-stream", &json!({ TITLE: name }))
        }

        fn manifest(&mut self, tag: &str, layers: &[Value]) -> Digest {
            let manifest = json!({ "schemaVersion": 2, "config": { "digest": "x", "size": 2 }, "layers": layers });
            self.document(tag, &manifest)
        }

        fn document(&mut self, tag: &str, document: &Value) -> Digest {
            let bytes = document.to_string().into_bytes();
            let digest = Digest::of(&bytes);
            self.0.insert(tag.to_owned(), bytes.clone());
            self.0.insert(digest.to_string(), bytes);
            digest
        }

        fn reply(&self, asked: &Asked) -> Reply {
            match self.0.get(asked.path.rsplit('/').next().unwrap()) {
                Some(bytes) => Reply::content(asked, bytes),
                None => Reply::status("404 Not Found"),
            }
        }
    }

    fn source(web: &Web, rest: &str) -> Source {
        Source::Oci(OciSource { location: format!("oci://{}/{rest}", web.host), secret_ref: None })
    }

    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o600);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[tokio::test]
    async fn files_and_archives_become_one_model_whatever_way_they_were_packed() {
        let mut held = Held::default();
        let weights = noise(3000);
        let files = [held.file("config.json", b"{}"), held.file("sub/model.safetensors", &weights)];
        held.manifest("files", &files);
        let packed = tar(&[("m/config.json", b"{}"), ("m/sub/model.safetensors", &weights)]);
        let layer = held.blob(&packed, "application/vnd.oci.image.layer.v1.tar", &json!({}));
        let manifest = held.manifest("packed", std::slice::from_ref(&layer));
        held.document("index", &json!({ "manifests": [{ "digest": manifest, "size": 9 }] }));
        held.document("artifact", &json!({ "artifactType": "x", "blobs": files }));
        let one = tar(&[("config.json", b"{}")]);
        let kind = "application/vnd.cncf.model.weight.config.v1.tar";
        let one = held.blob(&one, kind, &json!({ "org.cncf.model.filepath": "config.json" }));
        let kind = "application/vnd.cncf.model.weight.v1.raw";
        let raw = held.blob(&weights, kind, &json!({ "org.cncf.model.filepath": "sub/model.safetensors" }));
        held.manifest("modelpack", &[one, raw]);
        let web = Web::serve(move |asked, _| held.reply(asked));
        let here = Machine::new();
        let mut digests = Vec::new();
        for tag in ["files", "packed", "index", "artifact", "modelpack"] {
            let fetched = here.fetch(&source(&web, &format!("a/b:{tag}")), None).await.unwrap();
            assert_eq!(fetched.files.keys().collect::<Vec<_>>(), ["config.json", "sub/model.safetensors"], "{tag}");
            assert_eq!(fetched.files["sub/model.safetensors"], weights, "{tag}");
            digests.push(fetched.digest);
        }
        assert!(digests.iter().all(|digest| *digest == digests[0]), "the same files are the same model");
        assert_eq!(here.store.list().unwrap().len(), 1);
        let fetched = here.fetch(&source(&web, &format!("a/b:gone@{manifest}")), None).await.unwrap();
        assert_eq!(fetched.revision, manifest.as_str());
    }

    #[tokio::test]
    async fn what_was_cut_is_gone_on_from_and_nothing_comes_twice() {
        let mut held = Held::default();
        let (small, large) = (noise(1000), noise(700_000));
        let layers = [held.file("config.json", &small), held.file("model.safetensors", &large)];
        held.manifest("1", &layers);
        let end = Digest::of(&large).to_string();
        let cut = end.clone();
        let web = Web::serve(move |asked, before| {
            let cut = (asked.path.ends_with(&cut) && before == 0).then_some(400_000);
            Reply { cut, ..held.reply(asked) }
        });
        let here = Machine::new();
        assert_eq!(here.fails(&source(&web, "m:1")).await.0, "FetchFailed");
        assert!(here.store.list().unwrap().is_empty());
        let fetched = here.fetch(&source(&web, "m:1"), None).await.unwrap();
        assert_eq!(fetched.files["model.safetensors"], large);
        let asked: Vec<_> = web.asked_for(&end).iter().map(|asked| (asked.from(), asked.sent)).collect();
        assert_eq!(asked, [(0, 400_000), (400_000, 300_000)]);
        assert_eq!(web.asked_for(Digest::of(&small).as_str()).len(), 1);
    }

    #[tokio::test]
    async fn a_revision_that_was_found_is_asked_for_again_unless_it_is_gone() {
        let mut held = Held::default();
        let layers = [held.file("a", b"old")];
        let old = held.manifest("1", &layers);
        let layers = [held.file("a", b"new")];
        let new = held.manifest("1", &layers);
        let web = Web::serve(move |asked, _| held.reply(asked));
        let here = Machine::new();
        let fetched = here.fetch(&source(&web, "m:1"), Some(old.as_str())).await.unwrap();
        assert_eq!((&*fetched.revision, &*fetched.files["a"]), (old.as_str(), &b"old"[..]));
        let gone = Digest::of(b"gone");
        let fetched = here.fetch(&source(&web, "m:1"), Some(gone.as_str())).await.unwrap();
        assert_eq!((&*fetched.revision, &*fetched.files["a"]), (new.as_str(), &b"new"[..]));
    }

    #[tokio::test]
    async fn tokens_are_got_with_the_login_of_the_secret() {
        let mut held = Held::default();
        let layers = [held.file("a", b"content")];
        held.manifest("1", &layers);
        let login = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("reader:word"));
        let web = Web::serve(move |asked, _| match asked.path.split('?').next().unwrap() {
            "/token" if asked.header("authorization") == login => {
                Reply { body: br#"{"token":"T"}"#.to_vec(), ..Reply::status("200 OK") }
            }
            "/token" => Reply::status("401 Unauthorized"),
            _ if asked.header("authorization") == "Bearer T" => held.reply(asked),
            _ => {
                let realm = format!("http://{}/token", asked.header("host"));
                let headers = format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"r\"\r\n");
                Reply { headers, ..Reply::status("401 Unauthorized") }
            }
        });
        let auths = |host: &str, word: &str| {
            json!({ "auths": { host: { "username": "reader", "password": word } } }).to_string()
        };
        let here = Machine::new()
            .with_secret("right", &[(".dockerconfigjson", &auths(&web.host, "word"))])
            .with_secret("wrong", &[(".dockerconfigjson", &auths(&web.host, "guess"))])
            .with_secret("elsewhere", &[(".dockerconfigjson", &auths("other.test", "word"))])
            .with_secret("odd", &[("password", "word")]);
        let named = |name: &str| {
            let secret_ref = Some(SecretRef { name: name.to_owned() });
            Source::Oci(OciSource { location: format!("oci://{}/m:1", web.host), secret_ref })
        };
        assert_eq!(here.fetch(&named("right"), None).await.unwrap().files["a"], b"content");
        for (name, reason) in [
            ("wrong", "Unauthorized"),
            ("elsewhere", "SecretInvalid"),
            ("odd", "SecretInvalid"),
            ("none", "SecretNotFound"),
        ] {
            assert_eq!(here.fails(&named(name)).await.0, reason, "{name}");
        }
        let (reason, message) = here.fails(&source(&web, "m:1")).await;
        assert!(reason == "Unauthorized" && message.contains(&web.host), "{reason}: {message}");
    }

    #[tokio::test]
    async fn what_is_wrong_is_said_and_nothing_of_it_stays() {
        let mut held = Held::default();
        let good = held.file("config.json", b"{}");
        for name in ["../x", "/etc/x", "a/../../x", ""] {
            let layer = held.file(name, b"evil");
            held.manifest(&format!("name{}", name.len()), &[good.clone(), layer]);
        }
        let evil = held.blob(&tar(&[("m/.wh.x", b"")]), "x.tar", &json!({}));
        held.manifest("whiteout", &[evil]);
        held.manifest("twice", &[good.clone(), good.clone()]);
        held.manifest("empty", &[]);
        let packed = held.blob(b"x", "application/vnd.cncf.model.weight.v1.tar+zstd", &json!({}));
        held.manifest("zstd", &[packed]);
        held.document("index", &json!({ "manifests": [{ "digest": "a", "size": 1 }, { "digest": "b", "size": 1 }] }));
        let mut wrong = held.file("wrong", b"as said");
        held.0.insert(wrong["digest"].as_str().unwrap().to_owned(), b"another".to_vec());
        held.manifest("wrong", &[wrong.clone()]);
        wrong["size"] = json!(1_u64 << 50);
        held.manifest("large", std::slice::from_ref(&wrong));
        wrong["size"] = json!(1_u64 << 41);
        held.manifest("room", &[wrong]);
        let mut long = held.file("endless", &[7; 5000]);
        long["size"] = json!(3000);
        held.manifest("long", &[long]);
        let gone = json!({ "digest": Digest::of(b"gone"), "size": 1, "annotations": { TITLE: "a" } });
        held.manifest("gone", &[good, gone]);
        held.0.insert("text".into(), b"no manifest".to_vec());
        let real = Digest::of(b"real");
        held.0.insert(real.to_string(), b"{}".to_vec());
        let endless = Digest::of(&[7; 5000]).to_string();
        let web = Web::serve(move |asked, _| match &*asked.path {
            "/v2/m/manifests/huge" => Reply { body: vec![b' '; 1 << 20], endless: true, ..Reply::status("200 OK") },
            path if path.ends_with(&endless) => Reply { endless: true, ..held.reply(asked) },
            _ => held.reply(asked),
        });
        let here = Machine::new();
        let digest = format!("m@{real}");
        for (tag, reason, part) in [
            ("m:name4", "SourceInvalid", "../x"),
            ("m:name6", "SourceInvalid", "/etc/x"),
            ("m:name9", "SourceInvalid", "a/../../x"),
            ("m:name0", "SourceInvalid", "\"\""),
            ("m:whiteout", "SourceInvalid", "layer deletes"),
            ("m:twice", "SourceInvalid", "twice"),
            ("m:empty", "SourceInvalid", "no files"),
            ("m:zstd", "SourceInvalid", "zstd"),
            ("m:index", "SourceInvalid", "2 manifests"),
            ("m:wrong", "DigestMismatch", "sha256:"),
            ("m:large", "SourceInvalid", "bytes"),
            ("m:room", "Disk", "has room for"),
            ("m:long", "SourceInvalid", "longer than"),
            ("m:gone", "NotFound", "does not exist"),
            ("m:absent", "NotFound", "absent"),
            ("m:text", "SourceInvalid", "cannot be read"),
            ("m:huge", "FetchFailed", "longer than"),
            (&digest, "DigestMismatch", real.as_str()),
        ] {
            let (found, message) = here.fails(&source(&web, tag)).await;
            assert_eq!(found, reason, "{tag}: {message}");
            assert!(message.contains(part), "{tag}: {message}");
        }
        assert!(here.store.list().unwrap().is_empty());
    }

    #[test]
    fn locations() {
        let digest = Digest::of(b"x");
        let with_digest = format!("oci://r.test:5000/a/b:1@{digest}");
        let check = |location: &str, expected: Option<(&str, &str, &str)>| {
            let found = Address::parse(location);
            let found = found.map(|found| (found.registry, found.repository, found.asked));
            assert_eq!(found, expected, "{location}");
        };
        check("oci://r.test/a/b:1.0", Some(("r.test", "a/b", "1.0")));
        check("oci://127.0.0.1:5000/m", Some(("127.0.0.1:5000", "m", "latest")));
        check(&with_digest, Some(("r.test:5000", "a/b", digest.as_str())));
        for bad in [
            "r.test/a",
            "oci://r.test",
            "oci:///a",
            "oci://r.test/",
            "oci://r.test/a//b",
            "oci://r.test/../a",
            "oci://r.test/a:",
            "oci://r.test/a@sha256:1",
            "oci://u@r.test/a",
            "oci://r.test/a?b",
            "oci://r.test/a:..",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn what_layers_are() {
        let check = |kind: &str, notes: &[(&str, &str)], expected: Result<Option<&str>, &str>| {
            let annotations = notes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let layer = Descriptor { media_type: kind.into(), digest: "sha256:d".into(), size: 1, annotations };
            match (layer.place(), expected) {
                (Ok(Place::File(name)), Ok(Some(expected))) => assert_eq!(name, expected),
                (Ok(Place::Archive), Ok(None)) => {}
                (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
                (found, _) => panic!("{kind} {notes:?}: {found:?}"),
            }
        };
        let (title, path) = ("org.opencontainers.image.title", "org.cncf.model.filepath");
        let layer = "application/vnd.oci.image.layer.v1.tar";
        // ORAS: a file, a folder, and a file that the user packed.
        check(layer, &[(title, "config.json")], Ok(Some("config.json")));
        check("text/plain", &[(title, "a/config.json")], Ok(Some("a/config.json")));
        check(&format!("{layer}+gzip"), &[(title, "model"), ("io.deis.oras.content.unpack", "true")], Ok(None));
        check("application/gzip", &[(title, "model.tar.gz")], Ok(None));
        // ModelPack.
        check("application/vnd.cncf.model.weight.v1.raw", &[(path, "model.gguf")], Ok(Some("model.gguf")));
        check("application/vnd.cncf.model.weight.v1.tar", &[(path, "model.gguf")], Ok(None));
        check("application/vnd.cncf.model.weight.config.v1.tar+zstd", &[(path, "config.json")], Ok(None));
        // An image.
        check(&format!("{layer}+gzip"), &[], Ok(None));
        check("application/vnd.docker.image.rootfs.diff.tar.gzip", &[], Ok(None));
        check("application/vnd.ollama.image.model", &[], Err("vnd.ollama.image.model"));
    }

    #[test]
    fn an_index_stands_for_its_only_manifest() {
        let entry = |digest: &Digest, notes: &str| format!(r#"{{"digest":"{digest}","size":1,"annotations":{notes}}}"#);
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let check = |entries: &[String]| {
            serde_json::from_str::<Document>(&format!(r#"{{"manifests":[{}]}}"#, entries.join(","))).unwrap().only()
        };
        let proof = entry(&b, r#"{"vnd.docker.reference.type":"attestation-manifest"}"#);
        assert_eq!(check(&[]), Ok(None));
        assert_eq!(check(&[entry(&a, "{}"), proof.clone()]), Ok(Some(a.to_string())));
        assert!(check(&[entry(&a, "{}"), entry(&b, "{}")]).unwrap_err().contains("2 manifests"));
        assert!(check(&[proof]).is_err());
    }
}
