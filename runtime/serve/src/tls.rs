//! TLS for the server: its certificate, and which authority clients' certificates must be from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

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
