//! Models that are somewhere else: what they consist of, and how their bytes are asked for.
//!
//! A source is one file here that says both, and one line in [`open`]. What must hold: credentials come from a Secret
//! beside the Model and go to the source's own host alone; nothing that a source says is believed beyond its bounds.
//! Not here: keeping, resuming and verifying what comes (`download.rs`).

mod hugging_face;
mod oci;
mod s3;
mod signature;
#[cfg(test)]
pub(crate) mod testing;
mod url;

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use kedge_content::Digest;
use kedge_fetch::{Answer, FetchError, Fetcher};
use kedge_own::Source;
use kedge_world::World;

use crate::manifest::{FILES_MAX, check_path};

/// The largest model that is fetched (an upper bound, not a promise of space).
const BYTES_MAX: u64 = 4 << 40;

/// Something that models are fetched from.
#[async_trait]
pub(crate) trait Remote: Send {
    /// What the model consists of: at the revision `pinned`, as an earlier listing named it, else at the present one.
    async fn list(&mut self, pinned: Option<&str>) -> Result<Listing, RemoteError>;

    /// Asks for a part from byte `from` on; the answer is 200 or 206.
    async fn get(&mut self, part: &Part, from: u64) -> Result<Answer, RemoteError>;
}

/// The remote that `source` names; none for those whose files do not come from anywhere.
pub(crate) async fn open(source: &Source, tools: &Tools<'_>) -> Result<Option<Box<dyn Remote>>, RemoteError> {
    Ok(Some(match source {
        Source::Path(_) | Source::Hub(_) => return Ok(None),
        Source::Url(source) => Box::new(url::open(source, tools)?),
        Source::HuggingFace(source) => Box::new(hugging_face::open(source, tools).await?),
        Source::Oci(source) => Box::new(oci::open(source, tools).await?),
        Source::S3(source) => Box::new(s3::open(source, tools).await?),
    }))
}

/// What a source may use.
pub(crate) struct Tools<'a> {
    pub(crate) fetcher: &'a Fetcher,
    pub(crate) world: &'a World,
    pub(crate) secrets: &'a dyn Secrets,
}

/// The Secrets beside a Model.
#[async_trait]
pub(crate) trait Secrets: Send + Sync {
    /// The values of one.
    async fn read(&self, name: &str) -> Result<BTreeMap<String, Vec<u8>>, RemoteError>;
}

/// What a model consists of where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listing {
    /// How people call the source.
    pub(crate) location: String,
    /// What it is a listing of, if that stays the same under this name: a commit, the digest of a manifest.
    pub(crate) revision: String,
    pub(crate) parts: Vec<Part>,
}

/// A file of a model, or an archive of such.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) place: Place,
    /// How the source calls it.
    pub(crate) name: String,
    /// Its bytes, if the source says so beforehand.
    pub(crate) size: Option<u64>,
    pub(crate) check: Check,
}

/// Where the bytes of a part go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// To the file of this name.
    File(String),
    /// They are an archive, and go where it says.
    Archive,
}

/// By what a part is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// Its SHA-256.
    Sha256(Digest),
    /// Its name as a blob of Git, a SHA-1 of 40 digits.
    GitBlob(String),
    /// Its length, and that its source still has it under this tag: no digest is known.
    Entity {
        /// Its address.
        of: String,
        /// The tag.
        tag: String,
    },
}

impl Part {
    /// What its bytes are kept under while they come: never the same for two contents.
    pub(crate) fn key(&self) -> Digest {
        match &self.check {
            Check::Sha256(digest) => digest.clone(),
            Check::GitBlob(id) => Digest::of(format!("git blob {id}").as_bytes()),
            Check::Entity { of, tag } => {
                Digest::of(format!("entity {tag:?} of {of:?} with {:?} bytes", self.size).as_bytes())
            }
        }
    }
}

impl Listing {
    /// Whether it is of a model's size and shape, and its names stay below the model's folder.
    pub(crate) fn check(&self) -> Result<(), RemoteError> {
        let wrong = |what: String| Err(RemoteError::Unusable(format!("{}: {what}", self.location)));
        if self.parts.is_empty() {
            return wrong("there are no files".into());
        }
        if self.parts.len() > FILES_MAX {
            return wrong(format!("there are more than {FILES_MAX} files"));
        }
        if self.bytes() > BYTES_MAX {
            return wrong(format!("it has {} bytes, and {BYTES_MAX} are the most", self.bytes()));
        }
        let mut names = BTreeSet::new();
        for part in &self.parts {
            let Place::File(name) = &part.place else { continue };
            if check_path(name).is_err() {
                return wrong(format!("the file name {name:?} is not allowed"));
            }
            if !names.insert(name) {
                return wrong(format!("the file {name:?} is there twice"));
            }
        }
        Ok(())
    }

    /// The bytes of all parts that say how many they have.
    pub(crate) fn bytes(&self) -> u64 {
        self.parts.iter().filter_map(|part| part.size).fold(0, u64::saturating_add)
    }

    /// A digest of what the parts are and where they go: the same means the same model.
    pub(crate) fn contents(&self) -> Digest {
        let mut text = String::new();
        for part in &self.parts {
            let place = match &part.place {
                Place::File(name) => name,
                Place::Archive => "",
            };
            // Names hold no control characters.
            text.push_str(&format!("{place}\n{}\n", part.key()));
        }
        Digest::of(text.as_bytes())
    }
}

/// An address that others are made from: encrypted, unless it is on this machine's loopback; without a slash at its end.
fn endpoint(text: &str) -> Result<String, RemoteError> {
    let wrong = |why: &str| RemoteError::Unusable(format!("the endpoint {text:?} {why}"));
    let uri: http::Uri = text.parse().map_err(|_| wrong("is no address"))?;
    let host = uri.host().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    match uri.scheme_str() {
        _ if host.is_empty() || uri.query().is_some() || text.contains(['@', '#']) => Err(wrong("is no plain address")),
        Some("https") => Ok(text.trim_end_matches('/').to_owned()),
        Some("http") if loopback => Ok(text.trim_end_matches('/').to_owned()),
        Some("http") => Err(wrong("is not encrypted; only loopback is asked in plain HTTP")),
        _ => Err(wrong("is neither https:// nor http://")),
    }
}

/// Whether a file of this name is an archive of a model.
fn is_packed(name: &str) -> bool {
    [".tar", ".tar.gz", ".tgz", ".tar.zst"].iter().any(|end| name.ends_with(end))
}

/// `text` in an address: everything but letters, digits, `-._~` and what `keep` has as `%XX` (RFC 3986, section 2.3).
fn encoded(text: &str, keep: &str) -> String {
    let mut all = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.as_bytes().contains(&byte) {
            all.push(char::from(byte));
        } else {
            all.push_str(&format!("%{byte:02X}"));
        }
    }
    all
}

/// Why a source did not give something.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The network or the server.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It takes too long.
    #[error("{0}")]
    Late(String),
    /// Who asks may not have it.
    #[error("{0}")]
    Unauthorized(String),
    /// It is not there.
    #[error("{0}")]
    Missing(String),
    /// What is there is no model that can be taken.
    #[error("{0}")]
    Unusable(String),
    /// It is no longer what was listed.
    #[error("{0}")]
    Changed(String),
    /// It has another digest than it was asked for by.
    #[error("{0}")]
    Digest(String),
    /// The Secret with the credentials is not there.
    #[error("{0}")]
    SecretMissing(String),
    /// The Secret does not hold what is needed.
    #[error("{0}")]
    SecretInvalid(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_encrypted_or_on_loopback() {
        for (text, good) in [
            ("https://hub.test", true),
            ("https://hub.test:8443/mirror/", true),
            ("http://127.0.0.1:9000", true),
            ("http://localhost", true),
            ("http://[::1]:9000", true),
            ("http://hub.test", false),
            ("http://127.0.0.1.hub.test", false),
            ("https://user:word@hub.test", false),
            ("https://hub.test?a", false),
            ("ftp://hub.test", false),
            ("hub.test", false),
        ] {
            assert_eq!(endpoint(text).is_ok(), good, "{text}");
        }
        assert_eq!(endpoint("https://hub.test/mirror/").unwrap(), "https://hub.test/mirror");
    }

    #[test]
    fn names_in_addresses() {
        assert_eq!(encoded("a b/c+d?é", "/"), "a%20b/c%2Bd%3F%C3%A9");
        assert_eq!(encoded("refs/pr/1", ""), "refs%2Fpr%2F1");
    }
}
