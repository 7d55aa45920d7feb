//! Asks the node's own resolvers about names that are not the cluster's.
//!
//! Bounded in every direction: time for each resolver, resolvers for each question, questions at once. A reply counts
//! only when it comes from the resolver asked, under the number drawn for it, about the same question.
#![allow(clippy::disallowed_methods, reason = "a shell: sockets opened inside a namespace, which Net cannot name")]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::Name;
use kedge_world::Random;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::{Namespace, NetworkError};

/// How long one resolver has; clients give up after five seconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many resolvers are asked about one question, as in `resolv.conf`.
const RESOLVERS_MAX: usize = 3;
/// How many questions may be on their way.
const QUESTIONS_MAX: usize = 256;
/// The largest reply over UDP that we ask for.
const UDP_BYTES: usize = 1232;

/// Whom to ask about names that are not the cluster's.
#[derive(Clone, Debug)]
pub enum Resolvers {
    /// These, for ever; none makes such questions fail.
    Fixed(Vec<SocketAddr>),
    /// Those that this `resolv.conf` names whenever a question comes: a machine may start before its network does.
    File(PathBuf),
}

/// Asks others.
pub struct Forwarder {
    namespace: Namespace,
    resolvers: Resolvers,
    /// Our own addresses: asking ourselves would never end.
    own: Vec<IpAddr>,
    /// What the file said, with the mark of that version of it.
    read: Mutex<Option<(FileMark, Arc<[SocketAddr]>)>>,
    random: Arc<dyn Random>,
    free: Semaphore,
    /// The place of the one that answered last: it is asked first, so that a silent one costs its time once.
    first: AtomicUsize,
}

/// Tells one version of a file from the next: device, inode, length, and the time of its last change.
type FileMark = (u64, u64, u64, i64, i64);

/// The resolvers that a `resolv.conf` names, those in `own` left out.
pub fn resolvers_of(text: &str, own: &[IpAddr]) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok()).flatten()
    });
    named.filter(|address| !own.contains(address)).take(RESOLVERS_MAX).map(|address| (address, 53).into()).collect()
}

impl Forwarder {
    /// Asks `resolvers` in turn, from inside `namespace`, but never those at one of our `own` addresses.
    pub fn new(namespace: Namespace, resolvers: Resolvers, own: Vec<IpAddr>, random: Arc<dyn Random>) -> Self {
        let (free, first) = (Semaphore::new(QUESTIONS_MAX), AtomicUsize::new(0));
        Self { namespace, resolvers, own, read: Mutex::new(None), random, free, first }
    }

    /// Whom to ask now. A look at the file's mark costs less than handing it to another thread would.
    pub(super) fn resolvers(&self) -> Arc<[SocketAddr]> {
        let path = match &self.resolvers {
            Resolvers::Fixed(all) => return all.iter().take(RESOLVERS_MAX).copied().collect(),
            Resolvers::File(path) => path,
        };
        let mut read = self.read.lock();
        let found = std::fs::metadata(path).and_then(|meta| {
            let mark = (meta.dev(), meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec());
            if let Some((_, resolvers)) = read.as_ref().filter(|(before, _)| *before == mark) {
                return Ok(resolvers.clone());
            }
            let resolvers: Arc<[SocketAddr]> = resolvers_of(&std::fs::read_to_string(path)?, &self.own).into();
            tracing::debug!(file = %path.display(), ?resolvers, "the node's resolvers");
            *read = Some((mark, resolvers.clone()));
            Ok(resolvers)
        });
        found.unwrap_or_else(|error| {
            tracing::debug!(file = %path.display(), %error, "the node's resolvers cannot be read");
            Arc::default()
        })
    }

    /// Completes `reply` with what the resolvers say about `question`.
    pub async fn complete(&self, mut reply: Message, question: Query, over_tcp: bool) -> Message {
        let resolvers = self.resolvers();
        if resolvers.is_empty() && !reply.answers.is_empty() {
            // An alias that leads out, and nobody to ask: the alias is still the truth.
            return reply;
        }
        let Ok(_held) = self.free.try_acquire() else {
            tracing::warn!(most = QUESTIONS_MAX, "too many questions to other resolvers at once");
            reply.metadata.response_code = ResponseCode::ServFail;
            return reply;
        };
        let (count, first) = (resolvers.len(), self.first.load(Ordering::Relaxed));
        for place in (0..count).map(|step| (first + step) % count) {
            let resolver = &resolvers[place];
            match timeout(PATIENCE, self.ask(*resolver, &question, over_tcp)).await {
                Ok(Ok(found)) if found.metadata.response_code != ResponseCode::ServFail => {
                    self.first.store(place, Ordering::Relaxed);
                    reply.metadata.authoritative = false;
                    reply.metadata.response_code = found.metadata.response_code;
                    reply.metadata.truncation = found.metadata.truncation;
                    reply.answers.extend(found.answers);
                    reply.authorities.extend(found.authorities);
                    return reply;
                }
                Ok(Ok(_)) => tracing::debug!(%resolver, "a resolver cannot answer"),
                Ok(Err(error)) => tracing::debug!(%resolver, %error, "a resolver cannot be asked"),
                Err(_) => tracing::debug!(%resolver, "a resolver is silent"),
            }
        }
        reply.metadata.response_code = ResponseCode::ServFail;
        reply
    }

    async fn ask(&self, resolver: SocketAddr, question: &Query, over_tcp: bool) -> Result<Message, NetworkError> {
        let id = (self.random.number() & 0xffff) as u16;
        let mut query = Message::new(id, MessageType::Query, OpCode::Query);
        query.metadata.recursion_desired = true;
        query.add_query(question.clone());
        let fail = |source| NetworkError::Listen { address: resolver, source };
        let bytes = query.to_vec().map_err(|e| fail(io::Error::other(e)))?;
        let found = self.over_udp(resolver, &bytes, id, question.name()).await.map_err(fail)?;
        if found.metadata.truncation && over_tcp {
            return self.over_tcp(resolver, &bytes, id, question.name()).await.map_err(fail);
        }
        Ok(found)
    }

    async fn over_udp(&self, resolver: SocketAddr, query: &[u8], id: u16, name: &Name) -> io::Result<Message> {
        let local: SocketAddr = unspecified(resolver);
        let bind = || {
            let socket = std::net::UdpSocket::bind(local)?;
            socket.set_nonblocking(true)?;
            Ok::<_, io::Error>(socket)
        };
        let socket = UdpSocket::from_std(self.namespace.run(bind).map_err(io::Error::other)??)?;
        // From here on the kernel takes packets of this resolver only.
        socket.connect(resolver).await?;
        socket.send(query).await?;
        let mut buffer = [0; UDP_BYTES];
        loop {
            let length = socket.recv(&mut buffer).await?;
            if let Some(found) = matching(&buffer[..length], id, name) {
                return Ok(found);
            }
        }
    }

    async fn over_tcp(&self, resolver: SocketAddr, query: &[u8], id: u16, name: &Name) -> io::Result<Message> {
        let make = || if resolver.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = self.namespace.run(make).map_err(io::Error::other)??;
        let mut stream = socket.connect(resolver).await?;
        let length = u16::try_from(query.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
        let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut bytes).await?;
        matching(&bytes, id, name)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not the reply to our question"))
    }
}

fn matching(bytes: &[u8], id: u16, name: &Name) -> Option<Message> {
    let found = Message::from_vec(bytes).ok()?;
    let same = found.queries.first().is_some_and(|query| query.name() == name);
    (found.metadata.id == id && found.metadata.message_type == MessageType::Response && same).then_some(found)
}

fn unspecified(peer: SocketAddr) -> SocketAddr {
    if peer.is_ipv4() {
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    }
}
