//! Who asks, and who may: keys of clients, a line each in a file.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap};
use parking_lot::RwLock;
use sha2::{Digest, Sha256};

use crate::ServeError;
use crate::api::Refusal;
use crate::files::{self, FromFiles};

/// The keys that open a server. Only their hashes are kept.
#[derive(Debug)]
pub struct Keys {
    file: PathBuf,
    hashes: RwLock<Vec<[u8; 32]>>,
}

impl Keys {
    /// Reads the keys: a line each; empty lines and those that begin with `#` are none.
    pub fn open(file: &Path) -> Result<Self, ServeError> {
        let wrong = |reason| ServeError::File { flag: "--api-key-file", path: file.to_owned(), reason };
        let hashes = read(file).map_err(wrong)?;
        Ok(Self { file: file.to_owned(), hashes: RwLock::new(hashes) })
    }

    /// Whether this is one of them. Takes the same time whatever the keys have in common with it.
    fn has(&self, key: &str) -> bool {
        let shown: [u8; 32] = Sha256::digest(key).into();
        let differs = |hash: &[u8; 32]| hash.iter().zip(&shown).fold(0, |differs, (a, b)| differs | (a ^ b));
        self.hashes.read().iter().fold(false, |found, hash| found | (std::hint::black_box(differs(hash)) == 0))
    }

    /// Lets a request pass that shows one of the keys.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        match shown(headers) {
            Some(key) if self.has(key) => Ok(()),
            Some(_) => Err(Refusal::plain(401, "the API key is not one of this server's")),
            None => Err(Refusal::plain(401, "an API key is needed: Authorization: Bearer KEY")),
        }
    }
}

/// The key that a request shows.
fn shown(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
}

/// The other end of a connection, as requests carry it: the hash of its certificate if it has one, else its address
/// without the port, of IPv6 its /64, since whoever has one address of those has all of them.
#[derive(Clone, Debug)]
pub(crate) struct Peer(String);

impl Peer {
    pub(crate) fn at(address: &str) -> Self {
        Self(match address.parse().map(|address: SocketAddr| address.ip().to_canonical()) {
            Ok(IpAddr::V4(ip)) => ip.to_string(),
            Ok(IpAddr::V6(ip)) => format!("{}/64", Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
            Err(_) => address.rsplit_once(':').map_or(address, |(host, _)| host).to_owned(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    pub(crate) fn with_certificate(der: &[u8]) -> Self {
        Self(fingerprint(der))
    }
}

fn fingerprint(of: &[u8]) -> String {
    Sha256::digest(of).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whom a server that has those keys knows the sender of a request to be: the one with that key, else that peer.
pub(crate) fn origin(keys: Option<&Keys>, headers: &HeaderMap, extensions: &Extensions) -> String {
    match keys.and_then(|_| shown(headers)) {
        Some(key) => fingerprint(key.as_bytes()),
        None => extensions.get().map_or_else(String::new, |Peer(name)| name.clone()),
    }
}

impl FromFiles for Keys {
    fn files(&self) -> Vec<PathBuf> {
        vec![self.file.clone()]
    }

    fn read_again(&self) -> Result<(), String> {
        *self.hashes.write() = read(&self.file)?;
        Ok(())
    }
}

fn read(file: &Path) -> Result<Vec<[u8; 32]>, String> {
    let text = String::from_utf8(files::read(file)?).map_err(|_| "is not UTF-8".to_owned())?;
    // Some editors begin every file with a mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let keys: Vec<_> = text.lines().map(str::trim).filter(|key| !key.is_empty() && !key.starts_with('#')).collect();
    if keys.is_empty() {
        return Err("holds no key; nobody could ask anything".to_owned());
    }
    if keys.iter().any(|key| !key.bytes().all(|byte| byte.is_ascii_graphic())) {
        return Err("has a key with a space or another character that no header can carry".to_owned());
    }
    Ok(keys.iter().map(|key| Sha256::digest(key).into()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a test")]
    fn a_client_is_its_key_else_its_certificate_else_its_address() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "\u{feff}one\n").unwrap();
        let keys = Keys::open(file.path()).unwrap();
        let with = |peer| {
            let mut extensions = Extensions::new();
            extensions.insert::<Peer>(peer);
            extensions
        };
        let (near, far) = (with(Peer::at("127.0.0.1:4000")), with(Peer::at("[::1]:4000")));
        for (address, expected) in [
            ("127.0.0.1:4000", "127.0.0.1"),
            ("[::ffff:127.0.0.1]:4000", "127.0.0.1"),
            ("[2001:db8:1:2:3:4:5:6]:4000", "2001:db8:1:2::/64"),
            ("[2001:db8:1:2::7]:4001", "2001:db8:1:2::/64"),
            ("[2001:db8:1:3::7]:4001", "2001:db8:1:3::/64"),
            ("[fe80::7%2]:4001", "fe80::/64"),
            ("till:4000", "till"),
        ] {
            assert_eq!(origin(None, &headers("Bearer any"), &with(Peer::at(address))), expected, "{address}");
        }
        assert_eq!(
            origin(Some(&keys), &headers("Bearer one"), &near),
            origin(Some(&keys), &headers("bearer one"), &far)
        );
        let (one, two) = (with(Peer::with_certificate(b"one")), with(Peer::with_certificate(b"two")));
        assert_ne!(origin(None, &HeaderMap::new(), &one), origin(None, &HeaderMap::new(), &two));
    }

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a test")]
    fn keys_are_those_of_the_file_as_it_is_now() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        std::fs::write(&file, "# of the till\none\n\n  two  \n").unwrap();
        let keys = Keys::open(&file).unwrap();
        let check = |value: &str| keys.check(&headers(value)).map_err(|refusal| refusal.status);
        for (value, expected) in [
            ("Bearer one", Ok(())),
            ("bearer two", Ok(())),
            ("Bearer three", Err(401)),
            ("Bearer on", Err(401)),
            ("Bearer ", Err(401)),
            ("Basic one", Err(401)),
            ("one", Err(401)),
            ("Bearer # of the till", Err(401)),
        ] {
            assert_eq!(check(value), expected, "{value}");
        }
        assert_eq!(keys.check(&HeaderMap::new()).unwrap_err().status, 401);
        std::fs::write(&file, "three\n").unwrap();
        keys.read_again().unwrap();
        assert_eq!((check("Bearer one"), check("Bearer three")), (Err(401), Ok(())));
        std::fs::write(&file, "\n").unwrap();
        assert!(keys.read_again().unwrap_err().contains("no key"));
        assert_eq!(check("Bearer three"), Ok(()), "what was read before stays");
        let error = Keys::open(&file).unwrap_err().to_string();
        assert!(error.contains("--api-key-file") && error.contains(file.to_str().unwrap()), "{error}");
    }
}
