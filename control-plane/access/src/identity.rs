//! A key with its certificate, kept in one file so that no power cut parts them.

use std::net::{Ipv4Addr, Ipv6Addr};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SubjectPublicKeyInfo, date_time_ymd,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::attributes::User;

/// Certificates begin at the epoch: a box whose clock lost its battery must still trust its own cluster.
const BEGIN: (i32, u8, u8) = (1970, 1, 1);
/// The least time that a clock can truthfully say; a certificate's end is counted from no earlier.
const CLOCK_FLOOR: &str = "2026-01-01T00:00:00Z";

/// A private key and the certificate for it.
#[derive(Debug)]
pub struct Identity {
    key: KeyPair,
    certificate: CertificateDer<'static>,
}

/// What went wrong with a key or a certificate.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A key or a certificate could not be made.
    #[error("cannot make a certificate for {name}: {source}")]
    Make {
        /// The common name.
        name: String,
        /// The cause.
        #[source]
        source: rcgen::Error,
    },
    /// The bytes are no key with a certificate.
    #[error("not a PEM file with a private key and a certificate: {0}")]
    Parse(String),
    /// A client's certificate names nobody.
    #[error("the client certificate has no common name")]
    Nameless,
}

/// What a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Signing others.
    Authority,
    /// Serving under these names and addresses.
    Server(Vec<String>),
    /// Being `common name` in these groups.
    Client(Vec<String>),
}

impl Identity {
    /// A new key with a certificate signed by `issuer` (or by itself), lasting `days`.
    pub fn make(
        name: &str,
        purpose: &Purpose,
        issuer: Option<&Identity>,
        now: Timestamp,
        days: i64,
    ) -> Result<Self, IdentityError> {
        let fail = |source| IdentityError::Make { name: name.to_owned(), source };
        let key = KeyPair::generate().map_err(fail)?;
        let params = params(name, purpose, now, days).map_err(fail)?;
        let certificate = match issuer {
            None => params.self_signed(&key),
            Some(ca) => {
                let issuer = Issuer::from_ca_cert_der(&ca.certificate, &ca.key).map_err(fail)?;
                params.signed_by(&key, &issuer)
            }
        };
        Ok(Self { key, certificate: certificate.map_err(fail)?.der().clone() })
    }

    /// A certificate for somebody else's key, signed by this authority. `public_key` is a SubjectPublicKeyInfo: nothing
    /// but the key is taken from whoever asks.
    pub fn issue(
        &self,
        public_key: &[u8],
        name: &str,
        purpose: &Purpose,
        now: Timestamp,
        days: i64,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        let fail = |source| IdentityError::Make { name: name.to_owned(), source };
        let key = SubjectPublicKeyInfo::from_der(public_key).map_err(fail)?;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key).map_err(fail)?;
        let certificate = params(name, purpose, now, days).map_err(fail)?.signed_by(&key, &issuer).map_err(fail)?;
        Ok(certificate.der().clone())
    }

    /// The same key with another certificate.
    pub fn with_certificate(self, certificate: CertificateDer<'static>) -> Self {
        Self { certificate, ..self }
    }

    /// The public key as a SubjectPublicKeyInfo.
    pub fn public_key(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }

    /// Reads what [`Identity::to_pem`] wrote.
    pub fn from_pem(pem: &[u8]) -> Result<Self, IdentityError> {
        let fail = |error: &dyn std::fmt::Display| IdentityError::Parse(error.to_string());
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|e| fail(&e))?;
        let key = KeyPair::try_from(&der).map_err(|e| fail(&e))?;
        let certificate = CertificateDer::from_pem_slice(pem).map_err(|e| fail(&e))?;
        Ok(Self { key, certificate })
    }

    /// Both as one PEM text.
    pub fn to_pem(&self) -> String {
        self.key_pem() + &self.certificate_pem()
    }

    /// The private key as PEM.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// The certificate as PEM.
    pub fn certificate_pem(&self) -> String {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(&self.certificate);
        let lines: Vec<&str> =
            text.as_bytes().chunks(64).map(|l| std::str::from_utf8(l).expect("base64 is ASCII")).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    }

    /// The certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The private key in the form that rustls takes.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }

    /// The private key as PKCS #8.
    pub(crate) fn key_der(&self) -> Vec<u8> {
        self.key.serialize_der()
    }

    /// When the certificate ends.
    pub fn ends(&self) -> Timestamp {
        let (_, certificate) = X509Certificate::from_der(&self.certificate).expect("made or parsed before");
        Timestamp::from_second(certificate.validity().not_after.timestamp()).expect("a certificate's time is a time")
    }

    /// The names and addresses that the certificate serves under.
    pub fn names(&self) -> Vec<String> {
        let (_, certificate) = X509Certificate::from_der(&self.certificate).expect("made or parsed before");
        let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
        let text = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
                Ok(four) => Some(Ipv4Addr::from(four).to_string()),
                Err(_) => Some(Ipv6Addr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
            },
            _ => None,
        };
        extension.value.general_names.iter().filter_map(text).collect()
    }
}

fn params(name: &str, purpose: &Purpose, now: Timestamp, days: i64) -> Result<CertificateParams, rcgen::Error> {
    let names = match purpose {
        Purpose::Server(names) => names.iter().map(|name| san(name)).collect::<Result<Vec<_>, _>>()?,
        _ => Vec::new(),
    };
    let mut params = CertificateParams::new(Vec::new())?;
    params.subject_alt_names = names;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(BEGIN.0, BEGIN.1, BEGIN.2);
    let floor: Timestamp = CLOCK_FLOOR.parse().expect("a constant");
    let end = now.max(floor).checked_add(jiff::SignedDuration::from_hours(24 * days)).unwrap_or(Timestamp::MAX);
    let date = end.to_zoned(jiff::tz::TimeZone::UTC).date();
    params.not_after = date_time_ymd(i32::from(date.year()), date.month() as u8, date.day() as u8);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    match purpose {
        Purpose::Authority => {
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        }
        Purpose::Server(_) => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
        Purpose::Client(groups) => {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            // rcgen keeps one value a kind of name: more than one group is not needed by anybody here.
            debug_assert!(groups.len() <= 1);
            for group in groups {
                params.distinguished_name.push(DnType::OrganizationName, group.as_str());
            }
        }
    }
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn san(name: &str) -> Result<SanType, rcgen::Error> {
    match name.parse() {
        Ok(address) => Ok(SanType::IpAddress(address)),
        Err(_) => Ok(SanType::DnsName(name.try_into()?)),
    }
}

/// Who a client certificate says somebody is: the common name, in the groups that the organizations name.
/// (`k8s.io/apiserver/pkg/authentication/request/x509`.) The chain was verified by TLS.
pub fn certificate_user(certificate: &CertificateDer<'_>) -> Result<User, IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| IdentityError::Parse(e.to_string()))?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next().and_then(|cn| cn.as_str().ok()).ok_or(IdentityError::Nameless)?;
    let groups: Vec<&str> = subject.iter_organization().filter_map(|o| o.as_str().ok()).collect();
    Ok(User::new(name, &groups))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_its_file_and_says_who_it_is() {
        let now: Timestamp = "2026-05-01T00:00:00Z".parse().unwrap();
        let ca = Identity::make("test-ca", &Purpose::Authority, None, now, 7300).unwrap();
        let purpose = Purpose::Client(vec!["system:masters".into()]);
        let admin = Identity::make("system:admin", &purpose, Some(&ca), now, 365).unwrap();
        let again = Identity::from_pem(admin.to_pem().as_bytes()).unwrap();
        assert_eq!(again.certificate(), admin.certificate());
        let user = certificate_user(again.certificate()).unwrap();
        assert_eq!(user.name, "system:admin");
        assert!(user.is_in("system:masters") && user.is_in("system:authenticated"));
        assert_eq!(again.ends().to_string(), "2027-05-01T00:00:00Z");
    }

    #[test]
    fn a_certificate_for_another_key_carries_nothing_else_of_who_asked() {
        let now: Timestamp = "2026-05-01T00:00:00Z".parse().unwrap();
        let ca = Identity::make("test-ca", &Purpose::Authority, None, now, 7300).unwrap();
        let asking = Identity::make("somebody", &Purpose::Authority, None, now, 1).unwrap();
        let purpose = Purpose::Client(vec!["uid".into()]);
        let issued = ca.issue(&asking.public_key(), "shop-1", &purpose, now, 90).unwrap();
        let user = certificate_user(&issued).unwrap();
        assert!(user.name == "shop-1" && user.is_in("uid"));
        let key = asking.public_key();
        let (_, parsed) = X509Certificate::from_der(&issued).unwrap();
        assert!(parsed.public_key().raw == key && !parsed.is_ca());
        assert!(ca.issue(b"no key", "x", &purpose, now, 1).is_err());
    }

    #[test]
    fn a_clock_in_1970_still_makes_certificates_that_last() {
        let ca = Identity::make("test-ca", &Purpose::Authority, None, Timestamp::UNIX_EPOCH, 365).unwrap();
        assert!(ca.ends().to_string().starts_with("2027-01-01"));
    }

    #[test]
    fn servers_carry_names_and_addresses() {
        let now: Timestamp = "2026-05-01T00:00:00Z".parse().unwrap();
        let names = ["localhost", "127.0.0.1", "::1"].map(String::from).to_vec();
        let server = Identity::make("server", &Purpose::Server(names.clone()), None, now, 1).unwrap();
        assert_eq!(server.names(), names);
    }

    #[test]
    fn other_files_are_refused() {
        for bytes in [&b""[..], b"hello", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            assert!(Identity::from_pem(bytes).is_err());
        }
    }
}
