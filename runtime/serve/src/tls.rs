//! TLS for the server: its certificate, and which authority clients' certificates must be from.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::Instant;

use crate::ServeError;
use crate::files::{self, FromFiles};

/// Where certificates and keys lie, as PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's certificate, then those of its authorities, if any.
    pub certificate: PathBuf,
    /// The key of the certificate.
    pub key: PathBuf,
    /// Authorities of clients; where it is set, nobody without a certificate from one of them is let in.
    pub client_ca: Option<PathBuf>,
}

/// What connections are shown and must show, as the files say now.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    current: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files.
    pub fn open(files: TlsFiles) -> Result<Self, ServeError> {
        let config = config(&files)?;
        Ok(Self { files, current: RwLock::new(config) })
    }

    /// For the next connection.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        self.current.read().clone()
    }
}

impl FromFiles for Tls {
    fn files(&self) -> Vec<PathBuf> {
        let TlsFiles { certificate, key, client_ca } = &self.files;
        [certificate, key].into_iter().chain(client_ca).cloned().collect()
    }

    fn read_again(&self) -> Result<(), String> {
        *self.current.write() = config(&self.files).map_err(|error| error.to_string())?;
        Ok(())
    }
}

/// Bytes by which it is seen what a peer speaks: the longest method, and a blank.
pub(crate) const FIRST_BYTES: usize = 8;

/// Whether what a peer said first is the method of a request, or the beginning of one: TLS begins with a byte that is no
/// letter.
pub(crate) fn speaks_http(first: &[u8]) -> bool {
    let method = first.split(|byte| *byte == b' ').next().unwrap_or_default();
    !method.is_empty() && method.iter().all(u8::is_ascii_uppercase)
}

/// The log has a line of failed handshakes this often at most.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// Handshakes that failed.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<Untold>);

#[derive(Debug, Default)]
struct Untold {
    count: u64,
    told: Option<Instant>,
}

impl Failures {
    /// Notes one; how many there were since some were told last, if it is time to tell.
    pub(crate) fn note(&self, now: Instant) -> Option<u64> {
        let mut untold = self.0.lock();
        untold.count += 1;
        if untold.told.is_some_and(|told| now < told + TOLD_EVERY) {
            return None;
        }
        untold.told = Some(now);
        Some(std::mem::take(&mut untold.count))
    }
}

fn config(files: &TlsFiles) -> Result<Arc<ServerConfig>, ServeError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificates = certificates("--tls-cert", &files.certificate)?;
    let wrong = |flag, path: &Path| {
        let path = path.to_owned();
        move |reason: String| ServeError::File { flag, path, reason }
    };
    let key = PrivateKeyDer::from_pem_slice(&files::read(&files.key).map_err(wrong("--tls-key", &files.key))?);
    let key = key.map_err(|error| wrong("--tls-key", &files.key)(format!("has no private key: {error}")))?;
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| wrong("--tls-cert", &files.certificate)(error.to_string()))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in self::certificates("--client-ca", path)? {
                roots.add(authority).map_err(|error| wrong("--client-ca", path)(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| wrong("--client-ca", path)(error.to_string()))?)
        }
    };
    let config = builder.with_single_cert(certificates, key);
    let mut config = config.map_err(|error| wrong("--tls-key", &files.key)(error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(flag: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, ServeError> {
    let wrong = |reason| ServeError::File { flag, path: path.to_owned(), reason };
    let bytes = files::read(path).map_err(wrong)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(wrong("has no certificate".to_owned())),
        Err(error) => Err(wrong(format!("is not PEM: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_without_tls_are_known_by_their_method() {
        for (first, expected) in [
            (&b"GET / HT"[..], true),
            (b"G", true),
            (b"OPTIONS ", true),
            (b"PROPFIND", true),
            (b"PRI * HT", true),
            (b"\x16\x03\x01\x02\0\x01\0\x01", false),
            (b"\x16", false),
            (b"get / HT", false),
            (b" GET / H", false),
            (b"SSH-2.0-", false),
        ] {
            assert_eq!(speaks_http(first), expected, "{first:?}");
        }
    }

    #[test]
    fn a_crowd_of_failures_is_a_line_a_second() {
        let (failures, begin) = (Failures::default(), Instant::now());
        let told: Vec<_> = (0..25).map(|n| failures.note(begin + Duration::from_millis(n * 100))).collect();
        let lines: Vec<_> = told.iter().enumerate().filter_map(|(n, told)| Some((n, (*told)?))).collect();
        assert_eq!(lines, [(0, 1), (10, 10), (20, 10)]);
    }
}
