//! The certificate authorities that this machine trusts.
#![allow(clippy::disallowed_methods, reason = "a shell: the machine's own list of authorities, read once")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Where distributions keep the list (Go's `crypto/x509/root_linux.go` looks in the same places).
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// No authority can be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "no list of certificate authorities can be read ({0}); install the package ca-certificates or set SSL_CERT_FILE"
)]
pub struct RootsError(String);

/// A TLS configuration that trusts the machine's authorities (`SSL_CERT_FILE`, else the usual places); read once.
pub fn machine_roots() -> Result<Arc<rustls::ClientConfig>, RootsError> {
    static ROOTS: OnceLock<Result<Arc<rustls::ClientConfig>, RootsError>> = OnceLock::new();
    ROOTS.get_or_init(read).clone()
}

fn read() -> Result<Arc<rustls::ClientConfig>, RootsError> {
    let chosen = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let places = || BUNDLES.iter().map(PathBuf::from).find(|path| path.exists());
    let path = chosen.or_else(places).ok_or_else(|| RootsError("there is none in the usual places".into()))?;
    let roots = roots(&path).map_err(|error| RootsError(format!("{}: {error}", path.display())))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| RootsError(error.to_string()))?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

fn roots(path: &Path) -> std::io::Result<rustls::RootCertStore> {
    let bytes = std::fs::read(path)?;
    let mut store = rustls::RootCertStore::empty();
    for certificate in rustls_pemfile::certs(&mut bytes.as_slice()) {
        // A list may hold authorities of a form that is no longer taken; the others still count.
        let _ = store.add(certificate?);
    }
    if store.is_empty() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "no certificate in it"));
    }
    Ok(store)
}
