//! A SHA-256 as text.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const ALGORITHM: &str = "sha256:";

/// A SHA-256, written `sha256:<64 hexadecimal digits>`; no other algorithm is accepted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// Of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_hash(Sha256::digest(bytes).as_slice())
    }

    /// From a finished hash of 32 bytes.
    pub fn from_hash(hash: &[u8]) -> Self {
        Self(format!("{ALGORITHM}{}", hex::encode(hash)))
    }

    /// Reads `sha256:…`; anything else is none.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(ALGORITHM)?;
        let good = digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        good.then(|| Self(text.to_owned()))
    }

    /// `sha256:…`
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The digits alone.
    pub fn hex(&self) -> &str {
        &self.0[ALGORITHM.len()..]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text).ok_or_else(|| format!("{text:?} is no digest (sha256: and 64 hexadecimal digits)"))
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_lower_case_sha256_is_a_digest() {
        let good = Digest::of(b"abc");
        assert_eq!(good.hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(Digest::parse(good.as_str()), Some(good.clone()));
        assert_eq!(serde_json::from_str::<Digest>(&serde_json::to_string(&good).unwrap()).unwrap(), good);
        let bad = [good.hex(), "", "sha256:", &good.as_str()[..70], &good.as_str().to_uppercase(), "sha512:00"];
        for bad in bad {
            assert_eq!(Digest::parse(bad), None, "{bad}");
        }
        assert!("x/../y".parse::<Digest>().unwrap_err().contains("\"x/../y\""));
    }
}
