//! The sockets of cluster DNS, inside the node's namespace, and the tasks behind them.
//!
//! UDP packets that the zone answers are answered in place; a question for others gets a task. A TCP client has a
//! task, some seconds of silence, and a share of a bounded number of connections.
#![allow(clippy::disallowed_methods, reason = "a shell: sockets opened inside a namespace, which Net cannot name")]

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::Message;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kedge_client::{Informers, Key};
use kedge_world::Random;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use parking_lot::RwLock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Zone;
use super::answer::{Step, encode, step, udp_limit};
use super::forward::{Forwarder, Resolvers};
use crate::{Namespace, NetworkError};

/// How long a TCP client may be silent.
const SILENCE: Duration = Duration::from_secs(10);
/// How many TCP clients there may be at once.
const CLIENTS_MAX: usize = 128;
/// The largest message over TCP.
const TCP_BYTES: u16 = u16::MAX;
/// Room for packets that wait; a burst beyond it is lost, and clients wait seconds before they ask again.
const RECEIVE_BYTES: usize = 1 << 20;
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What the server is made from.
pub struct DnsSettings {
    /// Where the node's network is.
    pub namespace: Namespace,
    /// The cluster's DNS address; it must be on a link of the namespace.
    pub address: Ipv4Addr,
    /// 53, but for tests.
    pub port: u16,
    /// Such as `cluster.local`.
    pub domain: String,
    /// Whom to ask about other names.
    pub resolvers: Resolvers,
    /// Where the resolvers are reached from.
    pub resolvers_namespace: Namespace,
}

/// Cluster DNS, running. Dropping it ends it.
pub struct DnsServer {
    zone: Arc<RwLock<Zone>>,
    _tasks: JoinSet<()>,
}

struct Shared {
    zone: Arc<RwLock<Zone>>,
    forwarder: Forwarder,
    clients: Arc<Semaphore>,
}

impl DnsServer {
    /// Opens the sockets and starts to answer; the zone fills by [`DnsServer::feed`].
    pub fn start(settings: DnsSettings, random: Arc<dyn Random>) -> Result<Self, NetworkError> {
        let address = SocketAddr::from((settings.address, settings.port));
        let fail = |source| NetworkError::Listen { address, source };
        let bound = settings.namespace.run(|| {
            let udp = std::net::UdpSocket::bind(address)?;
            let tcp = std::net::TcpListener::bind(address)?;
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            Ok::<_, io::Error>((udp, tcp))
        })?;
        let (udp, tcp) = bound.map_err(fail)?;
        if let Err(error) = setsockopt(&udp, RcvBufForce, &RECEIVE_BYTES) {
            tracing::debug!(%error, "cluster DNS keeps the kernel's default room for waiting packets");
        }
        let udp = Arc::new(UdpSocket::from_std(udp).map_err(fail)?);
        let tcp = TcpListener::from_std(tcp).map_err(fail)?;
        let own = vec![settings.address.into()];
        let zone = Arc::new(RwLock::new(Zone::new(&settings.domain, settings.address)));
        let shared = Arc::new(Shared {
            zone: zone.clone(),
            forwarder: Forwarder::new(settings.resolvers_namespace, settings.resolvers, own, random),
            clients: Arc::new(Semaphore::new(CLIENTS_MAX)),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(packets(udp, shared.clone()));
        tasks.spawn(streams(tcp, shared));
        tracing::info!(%address, domain = settings.domain, "cluster DNS answers");
        Ok(Self { zone, _tasks: tasks })
    }

    /// The names it knows.
    pub fn zone(&self) -> &Arc<RwLock<Zone>> {
        &self.zone
    }

    /// Keeps the names in step with the API; runs until dropped.
    pub async fn feed(&self, informers: Informers) {
        let (services, slices) = (informers.of::<Service>(), informers.of::<EndpointSlice>());
        let (mut service_changes, mut slice_changes) = (services.subscribe(), slices.subscribe());
        services.synced().await;
        slices.synced().await;
        loop {
            {
                let mut zone = self.zone.write();
                while let Ok(change) = service_changes.try_recv() {
                    zone.set_service(&Key::of(&**change.latest()), change.new.as_deref());
                }
                while let Ok(change) = slice_changes.try_recv() {
                    note_slice(&mut zone, change.old.as_deref(), change.new.as_deref());
                }
                zone.ready = true;
            }
            tokio::select! {
                Some(change) = service_changes.recv() => {
                    self.zone.write().set_service(&Key::of(&**change.latest()), change.new.as_deref());
                }
                Some(change) = slice_changes.recv() => {
                    note_slice(&mut self.zone.write(), change.old.as_deref(), change.new.as_deref());
                }
                else => return,
            }
        }
    }
}

/// Takes in a changed slice: under its old Service's name it goes, under its new one's it comes.
pub(super) fn note_slice(zone: &mut Zone, old: Option<&EndpointSlice>, new: Option<&EndpointSlice>) {
    let place = |slice: &EndpointSlice| {
        let key = Key::of(slice);
        let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
        Some((Key::new(&key.namespace, service), key.name))
    };
    let (before, after) = (old.and_then(place), new.and_then(place));
    if let Some((service, name)) = before.filter(|before| Some(before) != after.as_ref()) {
        zone.set_slice(&service, &name, None);
    }
    if let Some((service, name)) = after {
        zone.set_slice(&service, &name, new);
    }
}

async fn packets(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut buffer = vec![0; 4096];
    let mut asking = JoinSet::new();
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // What an earlier reply met on its way (a port that is closed by now) is reported here.
            Err(error) => {
                tracing::debug!(%error, "cluster DNS cannot read a packet");
                continue;
            }
        };
        let packet = &buffer[..length];
        let next = step(&shared.zone.read(), packet);
        let most = udp_limit(packet);
        match next {
            Step::Drop => {}
            Step::Reply(reply) => send(&socket, peer, &reply, most).await,
            Step::Ask { reply, question } => {
                let (socket, shared) = (socket.clone(), shared.clone());
                asking.spawn(async move {
                    let reply = shared.forwarder.complete(reply, question, false).await;
                    send(&socket, peer, &reply, most).await;
                });
            }
        }
        while asking.try_join_next().is_some() {}
    }
}

async fn send(socket: &UdpSocket, peer: SocketAddr, reply: &Message, most: u16) {
    let Some(bytes) = encode(reply, most) else {
        tracing::warn!(%peer, "a DNS reply cannot be written");
        return;
    };
    if let Err(error) = socket.send_to(&bytes, peer).await {
        tracing::debug!(%peer, %error, "a DNS reply cannot be sent");
    }
}

async fn streams(listener: TcpListener, shared: Arc<Shared>) {
    let mut clients = JoinSet::new();
    loop {
        let held = shared.clients.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, peer)) => {
                let shared = shared.clone();
                clients.spawn(async move {
                    if let Err(error) = stream_of(stream, &shared).await {
                        tracing::debug!(%peer, %error, "a DNS client over TCP ended");
                    }
                    drop(held);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: waiting lets some of them come back.
                tracing::warn!(%error, "cluster DNS cannot accept over TCP");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        while clients.try_join_next().is_some() {}
    }
}

async fn stream_of(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let length = match timeout(SILENCE, stream.read_u16()).await {
            Ok(Ok(length)) => length,
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(()),
        };
        let mut packet = vec![0; usize::from(length)];
        timeout(SILENCE, stream.read_exact(&mut packet)).await??;
        let next = step(&shared.zone.read(), &packet);
        let reply = match next {
            Step::Drop => return Ok(()),
            Step::Reply(reply) => reply,
            Step::Ask { reply, question } => shared.forwarder.complete(reply, question, true).await,
        };
        let bytes = encode(&reply, TCP_BYTES).ok_or_else(|| io::Error::other("the reply cannot be written"))?;
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        timeout(SILENCE, stream.write_all(&[&length.to_be_bytes(), bytes.as_slice()].concat())).await??;
    }
}
