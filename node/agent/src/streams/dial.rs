//! Connections to ports of a pod, from inside its network.
#![allow(clippy::disallowed_methods, reason = "a shell: a namespace is a file of the kernel, and belongs to a thread")]

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use kedge_streams::portforward::{Dial, Duplex};
use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

/// Loopback answers at once, unless the port's queue of connections is full.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

/// Dials loopback in one network namespace.
pub(super) struct Inside {
    /// The namespace, by path; none is the process's own.
    pub(super) namespace: Option<PathBuf>,
}

#[async_trait]
impl Dial for Inside {
    async fn dial(&self, port: u16) -> Result<Box<dyn Duplex>, String> {
        let (sender, receiver) = oneshot::channel();
        let namespace = self.namespace.clone();
        // A thread that has entered a namespace stays there, so it is ended rather than given back to a pool.
        let work = move || {
            let _ = sender.send(connect(namespace.as_deref(), port)); // The client may have left.
        };
        let thread = std::thread::Builder::new().name("port-forward".to_owned()).spawn(work);
        thread.map_err(|error| format!("cannot start a thread: {error}"))?;
        let connected = receiver.await.map_err(|_| "the connecting thread ended".to_owned())??;
        let stream = tokio::net::TcpStream::from_std(connected).map_err(|error| error.to_string())?;
        Ok(Box::new(stream))
    }
}

fn connect(namespace: Option<&Path>, port: u16) -> Result<TcpStream, String> {
    if let Some(path) = namespace {
        enter(path).map_err(|error| format!("cannot enter network namespace {}: {error}", path.display()))?;
    }
    let try_at = |address| TcpStream::connect_timeout(&SocketAddr::new(address, port), CONNECT_TIME_MAX);
    let stream = try_at(Ipv4Addr::LOCALHOST.into()).or_else(|four| {
        let tell = |six| {
            let place = "inside the pod's network namespace";
            format!("failed to connect to localhost:{port} {place}, IPv4: {four}, IPv6: {six}")
        };
        try_at(Ipv6Addr::LOCALHOST.into()).map_err(tell)
    })?;
    let prepared = stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true));
    prepared.map_err(|error| error.to_string())?;
    Ok(stream)
}

fn enter(path: &Path) -> io::Result<()> {
    setns(File::open(path)?, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn loopback_is_reached_and_a_closed_port_is_told() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let inside = Inside { namespace: None };
        let mut stream = inside.dial(port).await.unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut accepted, b"hello").unwrap();
        drop((accepted, listener));
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
        let _ = stream.shutdown().await;
        let refused = inside.dial(port).await.err().unwrap();
        assert!(refused.contains("Connection refused"), "{refused}");
        let nowhere = Inside { namespace: Some("/nowhere/ns".into()) };
        assert!(nowhere.dial(port).await.err().unwrap().contains("/nowhere/ns"));
    }
}
