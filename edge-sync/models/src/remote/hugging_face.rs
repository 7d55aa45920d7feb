//! A model on the Hugging Face Hub, or on a mirror that answers as the Hub does.
//!
//! Files in Git LFS are known by their SHA-256, all others by their Git object's SHA-1; both come with the listing.
//! Pickle files run code when they are loaded, and are never fetched.

use std::collections::BTreeSet;

use async_trait::async_trait;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use kedge_content::Digest;
use kedge_fetch::{Answer, FetchError, Fetcher, Get};
use kedge_own::HuggingFaceSource;
use serde::Deserialize;

use super::{Check, Listing, Part, Place, Remote, RemoteError, Tools, encoded, endpoint};

const HUB: &str = "https://huggingface.co";
/// The key of the token in a Secret, unless the source names another.
const TOKEN_KEY: &str = "HF_TOKEN";
/// The largest listing: ten thousand files with long names.
const LISTING_BYTES_MAX: usize = 16 << 20;
/// Endings of files that a model is set up by.
const SETTINGS: [&str; 4] = [".json", ".txt", ".jinja", ".model"];
const PICKLES: [&str; 6] = [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"];

struct HuggingFace {
    fetcher: Fetcher,
    location: String,
    endpoint: String,
    repository: String,
    /// A branch, a tag or a commit.
    revision: String,
    include: Vec<String>,
    headers: HeaderMap,
    /// The commit that parts are asked for at; known once listed.
    commit: String,
}

pub(super) async fn open(source: &HuggingFaceSource, tools: &Tools<'_>) -> Result<impl Remote + use<>, RemoteError> {
    let (repository, revision) = parse(&source.location)
        .ok_or_else(|| RemoteError::Unusable(format!("{:?} is no hf://OWNER/NAME@REVISION", source.location)))?;
    let mut headers = HeaderMap::new();
    if let Some(secret) = &source.secret_ref {
        let key = secret.key.as_deref().unwrap_or(TOKEN_KEY);
        let wrong = |what: &str| RemoteError::SecretInvalid(format!("the Secret {}: {what}", secret.name));
        let data = tools.secrets.read(&secret.name).await?;
        let token = data.get(key).ok_or_else(|| wrong(&format!("it has no key {key}")))?;
        let token = std::str::from_utf8(token).ok().map(str::trim).filter(|token| !token.is_empty());
        let header = token.and_then(|token| HeaderValue::from_str(&format!("Bearer {token}")).ok());
        let mut header = header.ok_or_else(|| wrong(&format!("{key} is no token")))?;
        header.set_sensitive(true);
        headers.insert(AUTHORIZATION, header);
    }
    Ok(HuggingFace {
        fetcher: tools.fetcher.clone(),
        location: source.location.clone(),
        endpoint: endpoint(source.endpoint.as_deref().unwrap_or(HUB))?,
        repository: repository.to_owned(),
        revision: revision.to_owned(),
        include: source.include.clone(),
        headers,
        commit: String::new(),
    })
}

/// The repository and the revision.
fn parse(location: &str) -> Option<(&str, &str)> {
    let rest = location.strip_prefix("hf://")?;
    let (repository, revision) = rest.split_once('@').unwrap_or((rest, "main"));
    let (owner, name) = repository.split_once('/')?;
    let word = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            && text.bytes().any(|byte| byte.is_ascii_alphanumeric())
    };
    (word(owner) && word(name) && revision.split('/').all(word)).then_some((repository, revision))
}

#[async_trait]
impl Remote for HuggingFace {
    async fn list(&mut self, pinned: Option<&str>) -> Result<Listing, RemoteError> {
        let revision = encoded(pinned.unwrap_or(&self.revision), "");
        let path = format!("api/models/{}/revision/{revision}?blobs=true", self.repository);
        let bytes = self.ask(&path, 0).await?.bytes(LISTING_BYTES_MAX).await?;
        let wrong = |what: String| RemoteError::Unusable(format!("{}: {what}", self.location));
        let found: Found = serde_json::from_slice(&bytes)
            .map_err(|error| wrong(format!("{} answers with no listing: {error}", self.endpoint)))?;
        if found.sha.len() < 40 || !found.sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong(format!("its revision {:?} is no commit", found.sha)));
        }
        let chosen = choose(&found.siblings, &self.include).map_err(wrong)?;
        let parts: Result<Vec<Part>, String> = chosen.into_iter().map(File::part).collect();
        let parts = parts.map_err(wrong)?;
        self.commit.clone_from(&found.sha);
        Ok(Listing { location: self.location.clone(), revision: found.sha, parts })
    }

    async fn get(&mut self, part: &Part, from: u64) -> Result<Answer, RemoteError> {
        let path = format!("{}/resolve/{}/{}", self.repository, self.commit, encoded(&part.name, "/"));
        self.ask(&path, from).await
    }
}

impl HuggingFace {
    async fn ask(&self, path: &str, from: u64) -> Result<Answer, RemoteError> {
        let get = Get { from, headers: self.headers.clone(), ..Get::new(format!("{}/{path}", self.endpoint)) };
        let answer = self.fetcher.send(&get).await?;
        let status = answer.status;
        // The Hub says in a header what a person should do, such as ask for access.
        let said = answer.headers.get("x-error-message").and_then(|value| value.to_str().ok());
        let said = said.map(|text| format!(" ({})", text.chars().take(300).collect::<String>())).unwrap_or_default();
        let text = format!("{}: the server answered {status}{said}", answer.url);
        match status.as_u16() {
            200 | 206 => Ok(answer),
            // To whom it does not know, the Hub says this of what does not exist, too.
            401 | 403 => Err(RemoteError::Unauthorized(format!(
                "{text}; it does not exist, or secretRef must name a token that may read it"
            ))),
            404 => Err(RemoteError::Missing(text)),
            _ => Err(FetchError::Status { url: answer.url, status }.into()),
        }
    }
}

/// What the Hub says of a revision. (`huggingface_hub`'s `ModelInfo`.)
#[derive(Deserialize)]
struct Found {
    sha: String,
    #[serde(default)]
    siblings: Vec<File>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(rename = "rfilename")]
    name: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Large>,
}

/// A file in Git LFS.
#[derive(Clone, Debug, Deserialize)]
struct Large {
    sha256: String,
    size: u64,
}

impl File {
    fn part(&self) -> Result<Part, String> {
        let check = match (&self.lfs, &self.blob_id) {
            (Some(large), _) => Digest::parse(&format!("sha256:{}", large.sha256)).map(Check::Sha256),
            (None, Some(id)) => {
                let good = id.len() == 40 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
                good.then(|| Check::GitBlob(id.clone()))
            }
            (None, None) => None,
        };
        let size = self.lfs.as_ref().map(|large| large.size).or(self.size);
        let (Some(check), Some(size)) = (check, size) else {
            return Err(format!("the listing has no digest or no length of {:?}", self.name));
        };
        Ok(Part { place: Place::File(self.name.clone()), name: self.name.clone(), size: Some(size), check })
    }

    fn ends(&self, ends: &[&str]) -> bool {
        ends.iter().any(|end| self.name.ends_with(end))
    }

    fn is_in_root(&self) -> bool {
        !self.name.contains('/')
    }

    /// Whether it sets a model up: in the root, or as sentence-transformers have it, such as `1_Pooling/config.json`.
    fn is_settings(&self) -> bool {
        let of_step =
            || self.name.as_bytes().first().is_some_and(u8::is_ascii_digit) && self.name.ends_with("/config.json");
        self.ends(&SETTINGS) && (self.is_in_root() || of_step())
    }
}

/// The files that are fetched: those that `include` names, else what a served model needs.
fn choose<'a>(files: &'a [File], include: &[String]) -> Result<Vec<&'a File>, String> {
    let pickled = |file: &File| {
        format!(
            "{:?} is a pickle file, which runs code when it is loaded; only safetensors and gguf are fetched",
            file.name
        )
    };
    if !include.is_empty() {
        if let Some(nothing) = include.iter().find(|glob| !files.iter().any(|file| matches(glob, &file.name))) {
            return Err(format!("no file is named as {nothing:?} in include says"));
        }
        let chosen = files.iter().filter(|file| include.iter().any(|glob| matches(glob, &file.name)));
        let chosen: Vec<&File> = chosen.collect();
        return match chosen.iter().find(|file| file.ends(&PICKLES)) {
            Some(file) => Err(pickled(file)),
            None => Ok(chosen),
        };
    }
    let weights: Vec<&File> = files.iter().filter(|file| file.is_in_root() && file.ends(&[".safetensors"])).collect();
    // Some hold all weights a second time, for their maker's own program.
    let again = |file: &&File| file.name.starts_with("consolidated");
    let only_again = weights.iter().all(again);
    if !weights.is_empty() {
        let weights: BTreeSet<&str> =
            weights.iter().filter(|file| only_again || !again(file)).map(|file| &*file.name).collect();
        return Ok(files.iter().filter(|file| weights.contains(&*file.name) || file.is_settings()).collect());
    }
    let packed: Vec<&File> = files.iter().filter(|file| file.ends(&[".gguf"])).collect();
    match (&packed[..], files.iter().find(|file| file.ends(&PICKLES))) {
        ([_], _) => Ok(packed),
        ([], Some(file)) => Err(format!("there is neither safetensors nor gguf; {}", pickled(file))),
        ([], None) => Err("there is neither safetensors nor gguf".into()),
        (all, _) => {
            let names: Vec<&str> = all.iter().take(20).map(|file| &*file.name).collect();
            Err(format!("there are {} gguf files; name one in include: {}", all.len(), names.join(", ")))
        }
    }
}

/// Whether `name` is as `glob` says, where `*` is any text, with slashes too, and `?` any character (as in
/// `huggingface_hub`'s `allow_patterns`, without classes of characters).
fn matches(glob: &str, name: &str) -> bool {
    let (glob, name): (Vec<char>, Vec<char>) = (glob.chars().collect(), name.chars().collect());
    let (mut at, mut here) = (0, 0);
    // Where the last star is, and how far it has to reach if the rest fails.
    let mut star: Option<(usize, usize)> = None;
    while here < name.len() {
        if at < glob.len() && glob[at] == '*' {
            star = Some((at, here));
            at += 1;
        } else if at < glob.len() && (glob[at] == '?' || glob[at] == name[here]) {
            (at, here) = (at + 1, here + 1);
        } else if let Some((place, reach)) = star {
            star = Some((place, reach + 1));
            (at, here) = (place + 1, reach + 1);
        } else {
            return false;
        }
    }
    glob[at..].iter().all(|char| *char == '*')
}

#[cfg(test)]
mod tests {
    use kedge_own::{SecretKeyRef, Source};
    use serde_json::json;

    use super::*;
    use crate::download::git_blob;
    use crate::remote::testing::{Asked, Machine, Reply, Web, noise};

    #[test]
    fn locations() {
        assert_eq!(parse("hf://a/b"), Some(("a/b", "main")));
        assert_eq!(parse("hf://a/b-1.0@refs/pr/1"), Some(("a/b-1.0", "refs/pr/1")));
        for bad in
            ["a/b", "hf://a", "hf://a/b/c", "hf://../b", "hf://a/b@", "hf://a/b@../x", "hf://a/b?c", "hf://a/b@x@y"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn globs() {
        for (glob, name, expected) in [
            ("*", "a/b.gguf", true),
            ("*.gguf", "a/b.gguf", true),
            ("*Q4_K_M*.gguf", "m-Q4_K_M.gguf", true),
            ("*Q4_K_M*.gguf", "m-Q4_K_S.gguf", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a*b*c", "aXbYbZc", true),
            ("abc", "abcd", false),
            ("", "a", false),
        ] {
            assert_eq!(matches(glob, name), expected, "{glob} {name}");
        }
        let hostile = "*a".repeat(200);
        assert!(!matches(&hostile, &"a".repeat(199)), "in no long time");
    }

    #[test]
    fn what_a_served_model_needs_is_chosen() {
        let check = |names: &[&str], include: &[&str], expected: Result<&[&str], &str>| {
            let file = |name: &&str| File { name: (*name).to_owned(), size: None, blob_id: None, lfs: None };
            let files: Vec<File> = names.iter().map(file).collect();
            let include: Vec<String> = include.iter().map(|glob| (*glob).to_owned()).collect();
            let found = choose(&files, &include);
            match (&found, expected) {
                (Ok(found), Ok(expected)) => {
                    assert_eq!(found.iter().map(|file| &*file.name).collect::<Vec<_>>(), expected);
                }
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
                _ => panic!("{names:?}: {found:?}"),
            }
        };
        let encoder = [
            ".gitattributes",
            "1_Pooling/config.json",
            "README.md",
            "config.json",
            "model.safetensors",
            "onnx/config.json",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "tokenizer.json",
            "vocab.txt",
        ];
        check(
            &encoder,
            &[],
            Ok(&["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json", "vocab.txt"]),
        );
        check(
            &["config.json", "consolidated.safetensors", "model-1.safetensors"],
            &[],
            Ok(&["config.json", "model-1.safetensors"]),
        );
        check(&["config.json", "consolidated.safetensors"], &[], Ok(&["config.json", "consolidated.safetensors"]));
        check(&["README.md", "m.gguf", "config.json"], &[], Ok(&["m.gguf"]));
        check(&["a-Q4.gguf", "a-Q8.gguf"], &[], Err("a-Q4.gguf, a-Q8.gguf"));
        check(&["a-Q4.gguf", "a-Q8.gguf"], &["*Q8*"], Ok(&["a-Q8.gguf"]));
        check(&["a-Q4.gguf"], &["*Q8*"], Err("*Q8*"));
        check(&["config.json", "pytorch_model.bin"], &[], Err("\"pytorch_model.bin\" is a pickle"));
        check(&encoder, &["*.bin"], Err("\"pytorch_model.bin\" is a pickle"));
        check(&["README.md"], &[], Err("neither safetensors nor gguf"));
    }

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn source(web: &Web, name: &str, secret: Option<&str>) -> Source {
        Source::HuggingFace(HuggingFaceSource {
            location: format!("hf://{name}"),
            endpoint: Some(format!("http://{}/", web.host)),
            include: Vec::new(),
            secret_ref: secret.map(|name| SecretKeyRef { name: name.to_owned(), key: None }),
        })
    }

    /// A listing of a small file and a large one.
    fn listing(small: &[u8], large: &[u8]) -> Vec<u8> {
        let sha256 = Digest::of(large).hex().to_owned();
        let large = json!({ "rfilename": "model.safetensors", "size": large.len(), "blobId": "0".repeat(40),
            "lfs": { "sha256": sha256, "size": large.len(), "pointerSize": 130 } });
        let small = json!({ "rfilename": "config.json", "size": small.len(), "blobId": git_blob(small) });
        json!({ "sha": COMMIT, "siblings": [small, large] }).to_string().into_bytes()
    }

    fn found(asked: &Asked, content: &[u8]) -> Reply {
        Reply::content(asked, content)
    }

    #[tokio::test]
    async fn a_branch_is_looked_up_once_files_come_resumed_and_a_token_stays_where_it_belongs() {
        let (small, large) = (noise(500), noise(600_000));
        let content = large.clone();
        let store =
            Web::serve(move |asked, before| Reply { cut: (before == 0).then_some(250_000), ..found(asked, &content) });
        let at = format!("http://{}/stored?Signature=word", store.host);
        let (config, list) = (small.clone(), listing(&small, &large));
        let web = Web::serve(move |asked, _| match &*asked.path {
            _ if asked.header("authorization") != "Bearer hf_word" => Reply::status("401 Unauthorized"),
            "/api/models/a/b/revision/refs%2Fpr%2F1?blobs=true" => found(asked, &list),
            path if path == format!("/api/models/a/b/revision/{COMMIT}?blobs=true") => found(asked, &list),
            path if path == format!("/a/b/resolve/{COMMIT}/config.json") => found(asked, &config),
            path if path == format!("/a/b/resolve/{COMMIT}/model.safetensors") => {
                Reply { headers: format!("Location: {at}\r\n"), ..Reply::status("302 Found") }
            }
            _ => Reply::status("404 Not Found"),
        });
        let here =
            Machine::new().with_secret("hub", &[("HF_TOKEN", "hf_word\n")]).with_secret("wrong", &[("HF_TOKEN", "x")]);
        let named = source(&web, "a/b@refs/pr/1", Some("hub"));
        let (reason, message) = here.fails(&named).await;
        assert!(reason == "FetchFailed" && message.contains("/stored"), "{reason}: {message}");
        assert!(!message.contains("Signature"), "who reads the status has no right to the store: {message}");
        let fetched = here.fetch(&named, Some(COMMIT)).await.unwrap();
        assert_eq!((&*fetched.revision, &fetched.files["config.json"]), (COMMIT, &small));
        assert_eq!(fetched.files["model.safetensors"], large);
        let asked: Vec<_> = store.asked().iter().map(|asked| (asked.from(), asked.sent)).collect();
        assert_eq!(asked, [(0, 250_000), (250_000, 350_000)]);
        assert!(store.asked().iter().all(|asked| asked.header("authorization").is_empty()));
        assert_eq!(web.asked_for("config.json").len(), 1);
        for (secret, reason) in
            [(None, "Unauthorized"), (Some("wrong"), "Unauthorized"), (Some("none"), "SecretNotFound")]
        {
            assert_eq!(here.fails(&source(&web, "a/b", secret)).await.0, reason);
        }
        assert_eq!(here.fails(&source(&web, "a/gone", Some("hub"))).await.0, "NotFound");
        let here = here.with_secret("odd", &[("token", "x")]);
        assert_eq!(here.fails(&source(&web, "a/b", Some("odd"))).await.0, "SecretInvalid");
    }

    #[tokio::test]
    async fn what_is_wrong_is_said() {
        let (small, large) = (noise(500), noise(5000));
        let hostile = json!({ "sha": COMMIT, "siblings": [
            { "rfilename": "../config.json", "size": 1, "blobId": git_blob(b"x") },
            { "rfilename": "model.safetensors", "size": 1, "blobId": git_blob(b"x") } ] });
        let bare = json!({ "sha": COMMIT, "siblings": [{ "rfilename": "model.safetensors" }] });
        let list = listing(&small, &large);
        let web = Web::serve(move |asked, _| match &*asked.path {
            "/api/models/a/hostile/revision/main?blobs=true" => found(asked, hostile.to_string().as_bytes()),
            "/api/models/a/bare/revision/main?blobs=true" => found(asked, bare.to_string().as_bytes()),
            "/api/models/a/odd/revision/main?blobs=true" => found(asked, br#"{"sha":"../x"}"#),
            "/api/models/a/endless/revision/main?blobs=true" => {
                Reply { endless: true, body: vec![b' '; 1 << 20], ..Reply::status("200 OK") }
            }
            path if path.starts_with("/api/models/") => found(asked, &list),
            path if path.ends_with("config.json") && path.starts_with("/a/small") => found(asked, &noise(501)[1..]),
            path if path.ends_with("config.json") => found(asked, &small),
            path if path.starts_with("/a/long") => Reply { endless: true, ..found(asked, &large) },
            path if path.starts_with("/a/lost") => Reply::status("404 Not Found"),
            _ => found(asked, &noise(5001)[1..]),
        });
        let here = Machine::new();
        for (name, reason, part) in [
            ("a/hostile", "SourceInvalid", "safetensors"),
            ("a/bare", "SourceInvalid", "no digest"),
            ("a/odd", "SourceInvalid", "no commit"),
            ("a/endless", "FetchFailed", "longer than"),
            ("a/small", "DigestMismatch", "config.json"),
            ("a/large", "DigestMismatch", "model.safetensors"),
            ("a/long", "SourceInvalid", "longer than"),
            ("a/lost", "NotFound", "model.safetensors"),
        ] {
            let (found, message) = here.fails(&source(&web, name, None)).await;
            assert_eq!(found, reason, "{name}: {message}");
            assert!(name == "a/hostile" || message.contains(part), "{name}: {message}");
        }
        let mut hostile = source(&web, "a/hostile", None);
        let Source::HuggingFace(inner) = &mut hostile else { unreachable!() };
        inner.include = vec!["*".into()];
        let (reason, message) = here.fails(&hostile).await;
        assert!(reason == "SourceInvalid" && message.contains("../config.json"), "{reason}: {message}");
        let mut open = source(&web, "a/b", None);
        let Source::HuggingFace(inner) = &mut open else { unreachable!() };
        inner.endpoint = Some("http://hub.test".into());
        assert_eq!(here.fails(&open).await.0, "SourceInvalid");
        assert!(here.store.list().unwrap().is_empty());
    }
}
