//! One client for both clusters: HTTP/1.1 over TLS, a connection for each worker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use kedge_world::Net;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde_json::Value;
use tokio_rustls::TlsConnector;

/// A way to a cluster's API.
#[derive(Clone)]
pub(crate) struct Client {
    net: Arc<dyn Net>,
    port: u16,
    tls: Arc<ClientConfig>,
    token: Option<String>,
}

impl Client {
    /// With the certificates of a kubeconfig.
    pub(crate) fn of_kubeconfig(net: Arc<dyn Net>, port: u16, kubeconfig: &str) -> Result<Self> {
        let config: Value = serde_yaml_ng::from_str(kubeconfig).context("the kubeconfig")?;
        let bytes = |value: &Value| -> Result<Vec<u8>> {
            Ok(base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap_or_default())?)
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&bytes(&config["clusters"][0]["cluster"]["certificate-authority-data"])?)? {
            roots.add(certificate)?;
        }
        let user = &config["users"][0]["user"];
        let chain = certificates(&bytes(&user["client-certificate-data"])?)?;
        let key = PrivateKeyDer::from_pem_slice(&bytes(&user["client-key-data"])?).map_err(anyhow::Error::msg)?;
        let tls = builder()?.with_root_certificates(roots).with_client_auth_cert(chain, key)?;
        Ok(Self { net, port, tls: Arc::new(tls), token: None })
    }

    /// With a token, to a server whose certificate this machine has just made.
    pub(crate) fn of_token(net: Arc<dyn Net>, port: u16, token: &str) -> Result<Self> {
        let builder = builder()?.dangerous().with_custom_certificate_verifier(Arc::new(Anybody));
        Ok(Self { net, port, tls: Arc::new(builder.with_no_client_auth()), token: Some(token.to_owned()) })
    }

    /// A connection.
    pub(crate) async fn connect(&self) -> Result<Connection> {
        let stream = self.net.connect(&format!("127.0.0.1:{}", self.port)).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = TlsConnector::from(self.tls.clone()).connect(name, stream).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Connection { sender, token: self.token.clone() })
    }

    /// One request on a connection of its own; the answer must be a success.
    pub(crate) async fn call(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let (status, answer) = self.connect().await?.send(method.clone(), path, body).await?;
        if !status.is_success() {
            bail!("{method} {path}: {status}: {}", String::from_utf8_lossy(&answer));
        }
        Ok(serde_json::from_slice(&answer)?)
    }

    /// Waits until `path` answers 200, and then until `done` likes what it says.
    pub(crate) async fn until(&self, path: &str, limit: Duration, done: impl Fn(&Value) -> bool) -> Result<()> {
        let begin = Instant::now();
        loop {
            let attempt = async { self.connect().await?.send(Method::GET, path, Bytes::new()).await };
            let found = attempt.await;
            if let Ok((StatusCode::OK, bytes)) = &found
                && done(&serde_json::from_slice(bytes).unwrap_or_default())
            {
                return Ok(());
            }
            if begin.elapsed() > limit {
                let last = found.map(|(status, bytes)| format!("{status} {}", String::from_utf8_lossy(&bytes)));
                bail!("{path} was not as wanted within {limit:?}; last: {last:?}");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// A connection to an API.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    token: Option<String>,
}

impl Connection {
    /// Sends a request; the status and the whole answer.
    pub(crate) async fn send(&mut self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes)> {
        let response = self.sender.send_request(self.request(method, path, body)?).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }

    /// Sends a request and reads the answer without keeping it; its length.
    pub(crate) async fn read(&mut self, path: &str) -> Result<u64> {
        let response = self.sender.send_request(self.request(Method::GET, path, Bytes::new())?).await?;
        let (status, mut body, mut length) = (response.status(), response.into_body(), 0);
        while let Some(frame) = body.frame().await {
            length += frame?.data_ref().map_or(0, |data| data.len() as u64);
        }
        if status.is_success() { Ok(length) } else { bail!("GET {path}: {status}") }
    }

    /// Reads lines of a watch until `done` likes one.
    pub(crate) async fn watch(&mut self, path: &str, done: impl Fn(&Value) -> bool) -> Result<()> {
        let response = self.sender.send_request(self.request(Method::GET, path, Bytes::new())?).await?;
        let (mut body, mut rest) = (response.into_body(), Vec::new());
        while let Some(frame) = body.frame().await {
            rest.extend_from_slice(&frame?.into_data().unwrap_or_default());
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                if done(&serde_json::from_slice(&line)?) {
                    return Ok(());
                }
            }
        }
        bail!("the watch {path} ended")
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(method).uri(path).header("Host", "localhost");
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if !body.is_empty() {
            request = request.header("Content-Type", "application/json");
        }
        Ok(request.body(Full::new(body))?)
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(anyhow::Error::msg)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>> {
    Ok(ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?)
}

/// Takes any certificate: the server was started by this program, in a namespace nobody else is in.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
