//! Streams to other processes and machines, as values somebody hands in.

use std::io;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// A stream whose kind is not known to its user.
pub type BoxedStream = Box<dyn Stream>;
/// A listener whose kind is not known to its user.
pub type BoxedListener = Box<dyn Listener>;

/// Opens and accepts streams. Addresses are `host:port`.
#[async_trait]
pub trait Net: Send + Sync + 'static {
    /// Connects to `address`; the error names it.
    async fn connect(&self, address: &str) -> io::Result<BoxedStream>;
    /// Listens on `address`; the error names it.
    async fn listen(&self, address: &str) -> io::Result<BoxedListener>;
}

/// Accepts streams on one address.
#[async_trait]
pub trait Listener: Send + Sync + 'static {
    /// The next stream and the peer's address as text.
    async fn accept(&self) -> io::Result<(BoxedStream, String)>;
    /// The address bound, with the port that was really taken when 0 was asked for.
    fn address(&self) -> io::Result<String>;
}

/// The operating system's TCP.
#[derive(Debug)]
pub struct RealNet;

fn naming(action: &str, address: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {action} {address}: {error}"))
}

/// Connections that wait to be accepted. With the 128 that are usual, a burst costs some clients a second each: the system
/// lets go of their first packet, and they send it again after that.
const BACKLOG: u32 = 4096;

/// What `TcpListener::bind` does, with more room for a burst.
async fn listen(address: &str) -> io::Result<tokio::net::TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "it stands for no address");
    for address in tokio::net::lookup_host(address).await? {
        let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[allow(clippy::disallowed_methods, reason = "this is the one place that opens real sockets")]
#[async_trait]
impl Net for RealNet {
    async fn connect(&self, address: &str) -> io::Result<BoxedStream> {
        let stream = tokio::net::TcpStream::connect(address).await.map_err(|e| naming("connect to", address, &e))?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    async fn listen(&self, address: &str) -> io::Result<BoxedListener> {
        let listener = listen(address).await.map_err(|e| naming("listen on", address, &e))?;
        Ok(Box::new(listener))
    }
}

#[async_trait]
impl Listener for tokio::net::TcpListener {
    async fn accept(&self) -> io::Result<(BoxedStream, String)> {
        let (stream, peer) = tokio::net::TcpListener::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok((Box::new(stream), peer.to_string()))
    }

    fn address(&self) -> io::Result<String> {
        Ok(self.local_addr()?.to_string())
    }
}
