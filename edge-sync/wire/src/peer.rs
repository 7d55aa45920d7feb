//! Who is at the other end of a connection, by the certificate that was shown.

use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The longest name of a site (a DNS label, as for nodes in a name).
pub const SITE_NAME_BYTES_MAX: usize = 63;

/// A site, as its certificate names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The name of the Site.
    pub site: String,
    /// The uid of the Site that was enrolled: another one of the same name is another site.
    pub uid: String,
    /// SHA-256 of its public key.
    pub key: String,
    /// Its public key, as a SubjectPublicKeyInfo.
    pub public_key: Vec<u8>,
    /// When its certificate ends, in seconds since 1970.
    pub ends: i64,
}

/// A certificate that names no site.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate names no site: {0}")]
pub struct PeerError(String);

impl Peer {
    /// Reads a certificate whose chain TLS has verified.
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Self, PeerError> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| PeerError(error.to_string()))?;
        let text = |value: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
            value.and_then(|value| value.as_str().ok()).map(str::to_owned).filter(|text| !text.is_empty())
        };
        let subject = parsed.subject();
        let site = text(subject.iter_common_name().next()).ok_or_else(|| PeerError("no common name".into()))?;
        let uid = text(subject.iter_organization().next()).ok_or_else(|| PeerError("no uid".into()))?;
        let public_key = parsed.public_key().raw.to_vec();
        Ok(Self { site, uid, key: key_hash(&public_key), public_key, ends: parsed.validity().not_after.timestamp() })
    }
}

/// SHA-256 of a public key, in hexadecimal.
pub fn key_hash(public_key: &[u8]) -> String {
    hex::encode(Sha256::digest(public_key))
}

/// Whether `name` can be a site's: lower case letters, digits and `-`, as in a DNS label (RFC 1123).
pub fn check_site_name(name: &str) -> Result<(), String> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let good = !name.is_empty()
        && name.len() <= SITE_NAME_BYTES_MAX
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if good {
        return Ok(());
    }
    Err(format!(
        "{name:?} is no name for a site: lower case letters, digits and '-', at most {SITE_NAME_BYTES_MAX}, such as shop-1"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_access::{Identity, Purpose};

    #[test]
    fn a_certificate_says_which_site_it_is() {
        let now: jiff::Timestamp = "2026-05-01T00:00:00Z".parse().unwrap();
        let ca = Identity::make("ca", &Purpose::Authority, None, now, 10).unwrap();
        let site = Identity::make("shop-1", &Purpose::Client(vec!["u1".into()]), Some(&ca), now, 10).unwrap();
        let peer = Peer::read(site.certificate()).unwrap();
        assert_eq!((&*peer.site, &*peer.uid, &peer.key), ("shop-1", "u1", &key_hash(&site.public_key())));
        assert!(Peer::read(ca.certificate()).is_err());
    }

    #[test]
    fn names_are_dns_labels() {
        assert!(check_site_name("shop-1").is_ok());
        for bad in ["", "Shop", "a_b", "-a", "a-", "a.b", &"a".repeat(64)] {
            assert!(check_site_name(bad).is_err(), "{bad}");
        }
    }
}
