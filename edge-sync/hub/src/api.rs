//! A client of the API server beside the hub: over TLS, with a certificate that lies in the same data directory. The
//! hub, which strangers can reach, has one of its own with few rights; inviting sites takes the administrator's.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kedge_access::Identity;
use kedge_world::{BoxedStream, World};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ApiError(String);

/// Who a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum As {
    /// The person at the box.
    Administrator,
    /// The hub: Sites, and the tokens that invite them.
    Hub,
}

impl As {
    fn file(self) -> &'static str {
        match self {
            Self::Administrator => "admin.pem",
            Self::Hub => "hub.pem",
        }
    }
}

/// A client of the server with this data directory, which listens on `address`.
pub fn connect(world: &World, data_dir: &Path, address: &str, acting: As) -> Result<kube::Client, ApiError> {
    let folder = data_dir.join("server/tls");
    let connector = Connector { world: world.clone(), folder, address: address.into(), acting };
    // Asked once here, so that a wrong directory is told at once and not by a connection that never comes up.
    connector.config()?;
    let pool = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
    Ok(kube::Client::new(Absolute(pool, address.into()), "default"))
}

/// The pool wants whole addresses; kube sends paths.
#[derive(Clone)]
struct Absolute<S>(S, Arc<str>);

impl<S, B> tower::Service<http::Request<B>> for Absolute<S>
where
    S: tower::Service<http::Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> S::Future {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        // An address that was connected to, and a path that was parsed before.
        *request.uri_mut() = format!("http://{}{path}", self.1).parse().expect("an address and a path");
        self.0.call(request)
    }
}

#[derive(Clone)]
struct Connector {
    world: World,
    /// The server's keys.
    folder: PathBuf,
    address: Arc<str>,
    acting: As,
}

impl Connector {
    /// Read for every connection: the server renews these certificates.
    fn config(&self) -> Result<Arc<ClientConfig>, ApiError> {
        let read = |file: &str| {
            self.world.disk.read(&self.folder.join(file)).map_err(|error| {
                ApiError(format!(
                    "{error}; the hub runs beside a server with the same --data-dir, which writes this file"
                ))
            })
        };
        let failed = |error: &dyn std::fmt::Display| ApiError(format!("cannot set up TLS to the API server: {error}"));
        let own = Identity::from_pem(&read(self.acting.file())?).map_err(|e| failed(&e))?;
        let authority = CertificateDer::from_pem_slice(&read("server-ca.pem")?).map_err(|e| failed(&e))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority).map_err(|e| failed(&e))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| failed(&e))?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![own.certificate().clone()], own.private_key())
            .map_err(|e| failed(&e))?;
        Ok(Arc::new(config))
    }
}

impl tower::Service<http::Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let config = connector.config().map_err(io::Error::other)?;
            let stream = connector.world.net.connect(&connector.address).await?;
            let name = ServerName::try_from("localhost").expect("a constant");
            Ok(Stream(TokioIo::new(TlsConnector::from(config).connect(name, stream).await?)))
        })
    }
}

/// A TLS stream that a pool can keep.
struct Stream(TokioIo<TlsStream<BoxedStream>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, out)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
