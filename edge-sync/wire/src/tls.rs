//! TLS between site and hub: TLS 1.3, authorities of its own, and no trust in a clock.
//!
//! A box without a battery wakes up in 1970, and one that lay in a drawer comes back after its certificate ended. So
//! neither side looks at dates here: chains are checked as of the moment a certificate began. Whether a site's
//! certificate has ended is asked by the hub, by its own clock, call by call; one that has may still be renewed. The
//! hub's certificates are signed by an authority that signs nothing else, so its name is always [`HUB_SERVER_NAME`],
//! whatever address the hub is reached under.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use kedge_world::{BoxedStream, Net};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The name in every hub's certificate.
pub const HUB_SERVER_NAME: &str = "kedge-hub";
const ALPN: &[u8] = b"h2";

/// TLS could not be set up with these keys.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot set up TLS: {0}")]
pub struct TlsError(String);

/// How a site knows its hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HubRoots {
    /// By the hash in a join token: SHA-256 of the authority's certificate, which the hub shows.
    Hash([u8; 32]),
    /// By the authority's certificate, kept since joining.
    Authority(CertificateDer<'static>),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn failed(error: impl std::fmt::Display) -> TlsError {
    TlsError(error.to_string())
}

/// A site's side. `identity` is its certificate and key, once it has one.
pub fn site_config(
    roots: HubRoots,
    identity: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(HubVerifier { roots, provider: provider() }));
    let mut config = match identity {
        Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).map_err(failed)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// The hub's side: its certificate with that of its authority, and the authority that signs for sites. A site that
/// shows no certificate may connect: it can do nothing but join.
pub fn hub_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    site_authority: CertificateDer<'static>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(site_authority).map_err(failed)?;
    let inner = WebPkiClientVerifier::builder_with_provider(roots.into(), provider())
        .allow_unauthenticated()
        .build()
        .map_err(failed)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_client_cert_verifier(Arc::new(SiteVerifier(inner)))
        .with_single_cert(chain, key)
        .map_err(failed)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// The moment a certificate began, at which its chain is checked.
fn begin(certificate: &CertificateDer<'_>) -> Result<UnixTime, Error> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|_| Error::InvalidCertificate(rustls::CertificateError::BadEncoding))?;
    let seconds = u64::try_from(parsed.validity().not_before.timestamp()).unwrap_or(0);
    Ok(UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)))
}

#[derive(Debug)]
struct HubVerifier {
    roots: HubRoots,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for HubVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let root = match &self.roots {
            HubRoots::Authority(certificate) => certificate.clone(),
            HubRoots::Hash(hash) => {
                let named = |certificate: &&CertificateDer<'_>| Sha256::digest(certificate).as_slice() == hash;
                let found = intermediates.iter().find(named).ok_or_else(|| other_hub(hash, intermediates))?;
                found.clone().into_owned()
            }
        };
        let mut roots = RootCertStore::empty();
        roots.add(root)?;
        let inner = WebPkiServerVerifier::builder_with_provider(roots.into(), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        let verified = inner.verify_server_cert(end_entity, &[], server_name, ocsp_response, begin(end_entity)?);
        verified.map_err(|error| match (&error, &self.roots) {
            (Error::InvalidCertificate(_), HubRoots::Authority(root)) => {
                other_hub(&Sha256::digest(root).into(), intermediates)
            }
            _ => error,
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn other_hub(expected: &[u8; 32], shown: &[CertificateDer<'_>]) -> Error {
    let shown = shown.last().map_or_else(|| "none".to_owned(), |root| hex::encode(Sha256::digest(root)));
    Error::General(format!(
        "another hub answers there: it shows the authority {shown}, expected is {}; check the address, and that the \
         token was made at this hub",
        hex::encode(expected)
    ))
}

#[derive(Debug)]
struct SiteVerifier(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for SiteVerifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.0.verify_client_cert(end_entity, intermediates, begin(end_entity)?)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

type Connected = TokioIo<TlsStream<BoxedStream>>;

/// A connection to the hub, made once: when it is gone, its channel is over, and whoever used it decides what comes
/// next.
#[derive(Clone)]
pub struct Connector(Arc<Mutex<Option<Connected>>>);

impl Connector {
    /// Connects to `address` (`host:port`); the error says what is wrong with the address or the hub there.
    pub async fn dial(net: &dyn Net, address: &str, config: Arc<ClientConfig>) -> io::Result<Self> {
        let stream = net.connect(address).await?;
        let name = ServerName::try_from(HUB_SERVER_NAME).expect("a constant");
        let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot make a secure connection to {address}: {error}"))
        })?;
        Ok(Self(Arc::new(Mutex::new(Some(TokioIo::new(stream))))))
    }

    /// The channel of this connection. A peer that is silent for a minute is gone.
    pub async fn channel(self) -> Result<Channel, tonic::transport::Error> {
        Endpoint::from_static("http://kedge-hub")
            .http2_keep_alive_interval(std::time::Duration::from_secs(30))
            .keep_alive_timeout(std::time::Duration::from_secs(20))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(2 << 20)
            .connect_with_connector(self)
            .await
    }
}

impl tower::Service<http::Uri> for Connector {
    type Response = Connected;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Connected>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let taken = self.0.lock().expect("nobody panics with the lock").take();
        Box::pin(async move { taken.ok_or_else(|| io::Error::other("the connection to the hub has ended")) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_access::{Identity, Purpose};
    use rustls::{ClientConnection, ServerConnection};

    fn ca(name: &str) -> Identity {
        Identity::make(name, &Purpose::Authority, None, "2026-05-01T00:00:00Z".parse().unwrap(), 7300).unwrap()
    }

    fn hash(certificate: &CertificateDer<'_>) -> [u8; 32] {
        Sha256::digest(certificate).into()
    }

    /// Shakes hands over memory.
    fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Result<(), String> {
        let name = ServerName::try_from(HUB_SERVER_NAME).unwrap();
        let mut client = ClientConnection::new(client, name).unwrap();
        let mut server = ServerConnection::new(server).unwrap();
        for _ in 0..10 {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut &*wire).unwrap();
            server.process_new_packets().map_err(|error| error.to_string())?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut &*wire).unwrap();
            client.process_new_packets().map_err(|error| error.to_string())?;
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Ok(())
    }

    #[test]
    fn sites_and_hub_know_each_other_without_a_clock() {
        let now = "2026-05-01T00:00:00Z".parse().unwrap();
        let (hub_ca, site_ca, other) = (ca("hub-ca"), ca("site-ca"), ca("hub-ca"));
        let hub = Identity::make("hub", &Purpose::Server(vec![HUB_SERVER_NAME.into()]), Some(&hub_ca), now, 1).unwrap();
        let chain = vec![hub.certificate().clone(), hub_ca.certificate().clone()];
        let server = hub_config(chain, hub.private_key(), site_ca.certificate().clone()).unwrap();
        // Both certificates ended long before this test runs or, by a clock of 1970, have not begun: nobody looks.
        let site = |ca: &Identity| {
            let purpose = Purpose::Client(vec!["uid".into()]);
            let site = Identity::make("shop-1", &purpose, Some(ca), now, 1).unwrap();
            (site.certificate().clone(), site.private_key())
        };
        let by_hash = HubRoots::Hash(hash(hub_ca.certificate()));
        let kept = HubRoots::Authority(hub_ca.certificate().clone());
        assert_eq!(shake(site_config(by_hash, None).unwrap(), server.clone()), Ok(()));
        assert_eq!(shake(site_config(kept.clone(), Some(site(&site_ca))).unwrap(), server.clone()), Ok(()));
        assert!(shake(site_config(kept, Some(site(&other))).unwrap(), server.clone()).is_err());
        for wrong in [HubRoots::Hash([1; 32]), HubRoots::Authority(other.certificate().clone())] {
            let error = shake(site_config(wrong, None).unwrap(), server.clone()).unwrap_err();
            assert!(error.contains("another hub answers there"), "{error}");
        }
    }
}
