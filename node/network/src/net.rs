//! Streams inside the node's namespace, for everybody who takes a [`Net`]: probes that must reach pods, the API's
//! second listener when pods live apart from the machine's network.
//!
//! Names are looked up where the process is; only the socket is opened inside.
#![allow(clippy::disallowed_methods, reason = "a shell: sockets opened inside a namespace")]

use std::io;
use std::net::{SocketAddr, TcpListener};

use async_trait::async_trait;
use kedge_world::{BoxedListener, BoxedStream, Net};
use tokio::net::TcpSocket;

use crate::Namespace;

/// The operating system's TCP inside one namespace.
#[derive(Clone, Debug)]
pub struct NamespaceNet(Namespace);

impl NamespaceNet {
    /// Streams inside `namespace`.
    pub fn new(namespace: Namespace) -> Self {
        Self(namespace)
    }

    fn inside<T: Send>(&self, open: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        self.0.run(open).map_err(io::Error::other)?
    }
}

#[async_trait]
impl Net for NamespaceNet {
    async fn connect(&self, address: &str) -> io::Result<BoxedStream> {
        let naming = |e: io::Error| io::Error::new(e.kind(), format!("cannot connect to {address}: {e}"));
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for peer in tokio::net::lookup_host(address).await.map_err(naming)? {
            let open = || if peer.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
            match self.inside(open).map_err(naming)?.connect(peer).await {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(Box::new(stream));
                }
                Err(error) => last = error,
            }
        }
        Err(naming(last))
    }

    async fn listen(&self, address: &str) -> io::Result<BoxedListener> {
        let naming = |e: io::Error| io::Error::new(e.kind(), format!("cannot listen on {address}: {e}"));
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host(address).await.map_err(naming)?.collect();
        let open = || {
            let listener = TcpListener::bind(addresses.as_slice())?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = self.inside(open).map_err(naming)?;
        Ok(Box::new(tokio::net::TcpListener::from_std(listener).map_err(naming)?))
    }
}
