//! Puts the hub together and serves sites until it is told to stop.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use kedge_client::Informers;
use kedge_models::{ModelStore, StoreError};
use kedge_wire::Peer;
use kedge_wire::proto::enrolment_server::EnrolmentServer;
use kedge_wire::proto::sync_server::SyncServer;
use kedge_world::{BoxedListener, BoxedStream, DiskError, World};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::api::{ApiError, As, connect};
use crate::keys::{HubKeys, KeysError};
use crate::service::{Caller, Service};
use crate::site::Shared;
use crate::sites::Sites;

/// A handshake that takes longer is somebody's who does not want one.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Handshakes at one time: after a hub's restart ten thousand sites come back within a minute.
const HANDSHAKES_MAX: usize = 256;
/// Connections of sites, and of those who are none yet: whoever shows no certificate can do nothing but join, and has a
/// minute for it.
const SITES_MAX: usize = 20_000;
const STRANGERS_MAX: usize = 256;
const STRANGER_TIME: Duration = Duration::from_secs(60);
/// Streams of one connection: the link, and some transfers.
const STREAMS_MAX: u32 = 8;
/// A site sends no larger message: reports are below [`kedge_link::Limits::BATCH_BYTES`] each, and requests for pieces
/// have a bound of their own.
const MESSAGE_BYTES_MAX: usize = 512 << 10;
/// How often a silent connection is asked whether it is there, and how long the answer may take. Sites ask, too, and more
/// often: it is they who have to come back.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(20));

/// What a hub must be told.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// The data directory of the server beside it.
    pub data_dir: PathBuf,
    /// Where sites connect to (`host:port`).
    pub listen: String,
    /// Where the server beside it listens (`host:port`).
    pub api: String,
}

/// Why a hub does not run.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Its keys cannot be used.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// There is no way to the API server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Its files cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The models of the server cannot be read.
    #[error(transparent)]
    Models(#[from] StoreError),
    /// Nobody can connect.
    #[error("{0} (--listen)")]
    Listen(std::io::Error),
    /// Serving ended.
    #[error("serving sites has ended: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Runs a hub until `stop`.
pub async fn run(world: World, options: HubOptions, stop: impl Future<Output = ()>) -> Result<(), HubError> {
    let folder = crate::folder(&options.data_dir);
    let ledgers = folder.join("sites");
    world.disk.create_dir_all(&ledgers)?;
    let keys = Arc::new(HubKeys::open(&world, &folder)?);
    let client = connect(&world, &options.data_dir, &options.api, As::Hub)?;
    let models = ModelStore::open(&options.data_dir, world.random.clone())?;
    let listener = world.net.listen(&options.listen).await.map_err(HubError::Listen)?;
    let tls = keys.tls()?;
    let informers = Informers::new(client.clone());
    let run = world.random.number().max(1);
    let shared = Shared { world: world.clone(), client: client.clone(), keys: keys.clone(), folder: ledgers, run };
    let sites = Sites::new(shared);
    let context = kedge_client::Context { informers: informers.clone(), world: world.clone() };
    tokio::spawn(kedge_client::run(sites.clone(), context));
    let service = Service::new(world, client, informers, keys, sites, models);
    let address = listener.address().unwrap_or(options.listen);
    tracing::info!(address, "the hub is ready");
    let incoming = accept(listener, TlsAcceptor::from(tls));
    let serving = Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEP_ALIVE.0))
        .http2_keepalive_timeout(Some(KEEP_ALIVE.1))
        .add_service(EnrolmentServer::new(service.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(SyncServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .serve_with_incoming(incoming);
    // Links last for ever, so nobody waits for them to end: a site goes on from what it acknowledged.
    tokio::select! {
        served = serving => Ok(served?),
        () = stop => Ok(()),
    }
}

/// Connections whose handshake is done.
fn accept(listener: BoxedListener, tls: TlsAcceptor) -> ReceiverStream<std::io::Result<SiteStream>> {
    let (sender, receiver) = mpsc::channel(HANDSHAKES_MAX);
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let rooms = [SITES_MAX, STRANGERS_MAX].map(|room| Arc::new(Semaphore::new(room)));
        loop {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, mostly: others end meanwhile.
                    tracing::warn!(%error, "a connection could not be taken");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (tls, sender, [sites, strangers]) = (tls.clone(), sender.clone(), rooms.clone());
            tokio::spawn(async move {
                let _place = place;
                match tokio::time::timeout(HANDSHAKE_MAX, tls.accept(stream)).await {
                    Ok(Ok(stream)) => {
                        let caller = caller(&stream);
                        let room = if caller.0.is_some() { sites } else { strangers };
                        match room.try_acquire_owned() {
                            Ok(room) => drop(sender.send(Ok(SiteStream::new(stream, caller, room))).await),
                            Err(_) => tracing::warn!(peer, "a connection was refused: there are too many"),
                        }
                    }
                    Ok(Err(error)) => tracing::debug!(peer, %error, "a handshake failed"),
                    Err(_) => tracing::debug!(peer, "a handshake took too long"),
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

/// A connection of a site, or of somebody who wants to become one.
struct SiteStream {
    stream: TlsStream<BoxedStream>,
    caller: Caller,
    /// When a stranger has to be gone.
    ends: Option<Pin<Box<Sleep>>>,
    _room: OwnedSemaphorePermit,
}

/// Who has connected.
fn caller(stream: &TlsStream<BoxedStream>) -> Caller {
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    Caller(shown.and_then(|certificate| match Peer::read(certificate) {
        Ok(peer) => Some(peer),
        Err(error) => {
            tracing::warn!(%error, "a certificate of ours cannot be read");
            None
        }
    }))
}

impl SiteStream {
    fn new(stream: TlsStream<BoxedStream>, caller: Caller, room: OwnedSemaphorePermit) -> Self {
        let ends = caller.0.is_none().then(|| Box::pin(tokio::time::sleep(STRANGER_TIME)));
        Self { stream, caller, ends, _room: room }
    }
}

impl Connected for SiteStream {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for SiteStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.ends.as_mut().is_some_and(|ends| ends.as_mut().poll(context).is_ready()) {
            return Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, out)
    }
}

impl AsyncWrite for SiteStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
