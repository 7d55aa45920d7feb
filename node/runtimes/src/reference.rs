//! Image references: from what people write to the one full name that images are stored under.
//!
//! The rules are those of `distribution/reference` (normalize.go): a first part with a dot, a colon or `localhost`
//! is a host, anything else lives on docker.io, in `library/` when it has one part; no tag and no digest is `latest`.

use crate::image::Digest;
use crate::runtime::RuntimeError;

/// A reference in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Host and path, without tag or digest.
    pub repository: String,
    /// The tag.
    pub tag: Option<String>,
    /// The digest; it wins over the tag.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Reads what a person wrote.
    pub fn parse(text: &str) -> Result<Self, RuntimeError> {
        let fail = |reason| RuntimeError::InvalidReference { reference: text.to_owned(), reason };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(digest.parse().map_err(|_| fail("what follows @ is not a sha256 digest"))?))
            }
            None => (text, None),
        };
        let (name, tag) = match rest.rfind(':') {
            Some(at) if !rest[at..].contains('/') => (&rest[..at], Some(&rest[at + 1..])),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !valid_tag(tag)
        {
            return Err(fail("a tag has 1 to 128 letters, digits, _, . and -"));
        }
        let (host, path) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest.to_owned()),
            Some(_) => ("docker.io", name.to_owned()),
            None => ("docker.io", format!("library/{name}")),
        };
        let host = if host == "index.docker.io" { "docker.io" } else { host };
        let path = if host == "docker.io" && !path.contains('/') { format!("library/{path}") } else { path };
        if !path.split('/').all(valid_part) || !valid_host(host) {
            return Err(fail("a repository has lower-case letters, digits, and single . _ - between them"));
        }
        if host.len() + path.len() >= 255 {
            return Err(fail("a repository has at most 255 characters"));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some("latest".to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Self { repository: format!("{host}/{path}"), tag, digest })
    }

    /// The full name to look up: by digest when there is one.
    pub fn full_name(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("{}@{digest}", self.repository),
            (None, tag) => format!("{}:{}", self.repository, tag.as_deref().unwrap_or("latest")),
        }
    }

    /// Whether a pod with this reference and no `imagePullPolicy` always pulls.
    pub fn is_latest(&self) -> bool {
        self.digest.is_none() && self.tag.as_deref() == Some("latest")
    }
}

fn valid_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn valid_host(host: &str) -> bool {
    let (name, port) = host.split_once(':').unwrap_or((host, "0"));
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b))
        && port.parse::<u16>().is_ok()
}

/// Runs of lower-case letters and digits with one `.`, one or two `_`, or any number of `-` between.
fn valid_part(part: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !word(*first) || !word(*last) {
        return false;
    }
    part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|gap| gap.is_empty() || gap == "." || gap == "_" || gap == "__" || gap.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_get_their_full_name() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (written, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("a/b", "docker.io/a/b:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("localhost/x:1", "localhost/x:1"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("registry.k8s.io/e2e-test-images/agnhost:2.53", "registry.k8s.io/e2e-test-images/agnhost:2.53"),
            ("a__b/c-d--e.f:T_1", "docker.io/a__b/c-d--e.f:T_1"),
        ] {
            assert_eq!(Reference::parse(written).unwrap().full_name(), full, "{written}");
        }
        let pinned = Reference::parse(&format!("busybox:1@{digest}")).unwrap();
        assert_eq!(pinned.full_name(), format!("docker.io/library/busybox@{digest}"));
        assert!(!pinned.is_latest());
        assert!(Reference::parse("busybox").unwrap().is_latest());
    }

    #[test]
    fn what_is_not_a_reference_is_refused() {
        for bad in ["", "Busybox", "a//b", "a/", "/a", "busybox:", "a:b c", "a@sha256:12", "-a", "a..b", "a b", "é"] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }
}
