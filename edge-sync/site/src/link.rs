//! The connection to the hub: opened, used, and opened again. A shell around the site's half of the link.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kedge_link::{Connection, FromSite, HeldChanged, Key, Output, Reconnect, Report, Saved, SiteHalf};
use kedge_wire::proto::sync_client::SyncClient;
use kedge_wire::{from_hub, proto, to_hub};
use kedge_world::World;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::hub::connect;
use crate::identity::{SiteIdentity, folder};
use crate::join::{Renewal, renew, renew_over};

/// A hub that does not answer within this is not there.
const CONNECT_MAX: Duration = Duration::from_secs(20);
/// The site says this often that it is there.
const BEAT_EVERY: Duration = Duration::from_secs(60);
/// A hub that said no is asked again after this, at the earliest.
const REFUSED_PAUSE: Duration = Duration::from_secs(300);
/// Frames on their way to the hub.
const FRAMES_MAX: usize = 64;
/// Reports waiting to be taken over.
pub(crate) const REPORTS_MAX: usize = 64;
/// The largest frame of a hub: a part of an inventory, or one body.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Where the link's state lies: what the site holds, and up to where.
pub(crate) fn state_path(data_dir: &Path) -> PathBuf {
    folder(data_dir).join("link.json")
}

/// The state of the link cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}; remove the file, and the hub sends again what this site should hold", path.display())]
pub struct StateError {
    path: PathBuf,
    reason: String,
}

/// Reads it; that there is none is the beginning.
pub(crate) fn load(world: &World, data_dir: &Path) -> Result<Saved, StateError> {
    let path = state_path(data_dir);
    let wrong = |reason: String| StateError { path: path.clone(), reason };
    match world.disk.read(&path) {
        Ok(bytes) => Saved::from_bytes(&bytes).map_err(|error| wrong(error.to_string())),
        Err(error) if error.is_not_found() => Ok(Saved::default()),
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// Why a connection is over.
enum Ended {
    /// The way was cut, or the hub is not there.
    Cut(String),
    /// The certificate has ended.
    Expired,
    /// The hub does not want this site.
    Refused(String),
    /// The site's own disk failed: what is held is read again.
    Disk(String),
    /// The certificate was renewed: calls are judged by the one that a connection was opened with.
    Renewed,
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::Unauthenticated => Self::Expired,
            Code::PermissionDenied => Self::Refused(status.message().to_owned()),
            _ => Self::Cut(status.message().to_owned()),
        }
    }
}

/// The link, for as long as the site is one.
pub(crate) struct Link {
    world: World,
    data_dir: PathBuf,
    identity: SiteIdentity,
    half: SiteHalf,
    boot: u64,
    connections: u64,
    /// What is held, as far as it is durable.
    held: watch::Sender<Arc<Saved>>,
    /// The connection, for everything else that uses it.
    channel: watch::Sender<Option<Channel>>,
    reports: mpsc::Receiver<(Key, Report)>,
    /// The last state of everything, for when the half is made again.
    latest: BTreeMap<Key, Report>,
}

impl Link {
    pub(crate) fn new(
        world: World,
        data_dir: PathBuf,
        identity: SiteIdentity,
        saved: Saved,
        held: watch::Sender<Arc<Saved>>,
        channel: watch::Sender<Option<Channel>>,
        reports: mpsc::Receiver<(Key, Report)>,
    ) -> Self {
        let boot = world.random.number();
        let half = SiteHalf::new(saved, boot);
        let latest = BTreeMap::new();
        Self { world, data_dir, identity, half, boot, connections: 0, held, channel, reports, latest }
    }

    /// Keeps the connection up for ever.
    pub(crate) async fn run(mut self) {
        let mut reconnect = Reconnect::default();
        loop {
            let begin = self.world.clock.monotonic();
            let ended = self.session().await;
            self.channel.send_replace(None);
            self.half.disconnected(Connection(self.connections));
            let lasted = self.world.clock.monotonic().saturating_sub(begin);
            let asked = match ended {
                Ended::Cut(reason) => {
                    tracing::info!(hub = %self.identity.hub, reason, "the hub is not connected; this site goes on");
                    Duration::ZERO
                }
                Ended::Expired => self.renew_expired().await,
                Ended::Renewed => Duration::ZERO,
                Ended::Refused(reason) => {
                    tracing::warn!(hub = %self.identity.hub, reason, "the hub refuses this site; it goes on by itself");
                    REFUSED_PAUSE
                }
                Ended::Disk(reason) => {
                    tracing::error!(reason, "what the hub says cannot be kept");
                    self.reload();
                    Duration::ZERO
                }
            };
            let wait = reconnect.ended(lasted, asked, &*self.world.random);
            self.meanwhile(tokio::time::sleep(wait)).await;
        }
    }

    /// Waits for `work`; reports are taken over all the time.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                Some((key, report)) = self.reports.recv() => {
                    // Nobody is connected: nothing comes of it yet.
                    self.half.report(key.clone(), report.clone());
                    self.latest.insert(key, report);
                }
            }
        }
    }

    /// What was saved last, read again.
    fn reload(&mut self) {
        match load(&self.world, &self.data_dir) {
            Ok(saved) => {
                self.half = SiteHalf::new(saved, self.boot);
                for (key, report) in &self.latest {
                    self.half.report(key.clone(), report.clone());
                }
            }
            Err(error) => tracing::error!(%error, "what is held cannot be read"),
        }
    }

    /// The hub says, by its clock, that the certificate has ended. How long to wait at least before coming back.
    async fn renew_expired(&mut self) -> Duration {
        let Some(identity) = self.own_identity() else { return REFUSED_PAUSE };
        let world = self.world.clone();
        match self.renewed(async move { renew(&world, identity).await }).await {
            Ok(renewed) => self.take_over(renewed),
            Err(Renewal::Refused(status)) => {
                tracing::warn!(reason = status.message(), "the hub does not renew this site's certificate");
                REFUSED_PAUSE
            }
            Err(Renewal::Unreachable(reason)) => {
                tracing::info!(reason, "the certificate could not be renewed yet");
                Duration::ZERO
            }
        }
    }

    /// The identity as the file has it; none when it cannot be read.
    fn own_identity(&self) -> Option<SiteIdentity> {
        match SiteIdentity::load(&*self.world.disk, &self.data_dir) {
            Ok(identity) => identity,
            Err(error) => {
                tracing::error!(%error, "the identity of this site cannot be read");
                None
            }
        }
    }

    fn take_over(&mut self, renewed: SiteIdentity) -> Duration {
        if let Err(error) = renewed.save(&*self.world.disk, &self.data_dir) {
            tracing::error!(%error, "the renewed certificate cannot be kept");
            return REFUSED_PAUSE;
        }
        tracing::info!("the certificate of this site was renewed");
        self.identity = renewed;
        Duration::ZERO
    }

    /// One connection, from its first frame to its end.
    async fn session(&mut self) -> Ended {
        match self.connected().await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn connected(&mut self) -> Result<std::convert::Infallible, Ended> {
        let (outgoing, frames) = mpsc::channel(FRAMES_MAX);
        let (net, certificate) = (self.world.net.clone(), self.own_identity());
        let identity = certificate.ok_or_else(|| Ended::Cut("there is no identity".into()))?;
        let opening = async {
            let channel = connect(&*net, &identity).await.map_err(Ended::Cut)?;
            let mut client = SyncClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
            let incoming = client.link(ReceiverStream::new(frames)).await?.into_inner();
            Ok::<_, Ended>((channel, incoming))
        };
        let opened = self.meanwhile(tokio::time::timeout(CONNECT_MAX, opening)).await;
        let (channel, mut incoming) = opened.map_err(|_| Ended::Cut("the hub does not answer".into()))??;
        self.connections += 1;
        let connection = Connection(self.connections);
        let outputs = self.half.connected(connection);
        self.obey(outputs, &outgoing).await?;
        let mut beat = tokio::time::interval(BEAT_EVERY);
        let mut announced = false;
        loop {
            let outputs = tokio::select! {
                message = incoming.message() => {
                    let Some(message) = message? else { return Err(Ended::Cut("the hub ended the link".into())) };
                    let is_due = matches!(message.frame, Some(proto::from_hub::Frame::RenewalDue(_)));
                    if is_due && self.renew_in_place(channel.clone()).await {
                        return Err(Ended::Renewed);
                    }
                    match from_hub(message).map_err(|error| Ended::Cut(error.to_string()))? {
                        Some(frame) => self.half.received(connection, frame),
                        None => Vec::new(),
                    }
                }
                Some((key, report)) = self.reports.recv() => {
                    self.latest.insert(key.clone(), report.clone());
                    self.half.report(key, report)
                }
                _ = beat.tick() => self.half.beat(self.world.clock.wall().as_millisecond()),
            };
            self.obey(outputs, &outgoing).await?;
            if !announced && self.half.is_connected() {
                announced = true;
                tracing::info!(hub = %self.identity.hub, site = self.identity.site, "connected to the hub");
                beat.reset_immediately();
                self.channel.send_replace(Some(channel.clone()));
            }
        }
    }

    /// Half of the certificate's time has passed. Whether there is a new one.
    async fn renew_in_place(&mut self, channel: Channel) -> bool {
        let Some(identity) = self.own_identity() else { return false };
        match self.renewed(renew_over(channel, identity)).await {
            Ok(renewed) => self.take_over(renewed) == Duration::ZERO,
            Err(Renewal::Refused(status)) => {
                tracing::warn!(reason = status.message(), "the certificate was not renewed");
                false
            }
            Err(Renewal::Unreachable(reason)) => {
                tracing::info!(reason, "the certificate was not renewed");
                false
            }
        }
    }

    /// Waits for a renewal, not for ever, and takes reports over all the time.
    async fn renewed(
        &mut self,
        renewal: impl Future<Output = Result<SiteIdentity, Renewal>>,
    ) -> Result<SiteIdentity, Renewal> {
        let answered = self.meanwhile(tokio::time::timeout(CONNECT_MAX, renewal)).await;
        answered.unwrap_or_else(|_| Err(Renewal::Unreachable("the hub does not answer".into())))
    }

    /// Carries out what the link wants, in its order: nothing is acknowledged before it is durable.
    async fn obey(
        &mut self,
        outputs: Vec<Output<FromSite, HeldChanged>>,
        outgoing: &mpsc::Sender<proto::FromSite>,
    ) -> Result<(), Ended> {
        for output in outputs {
            match output {
                Output::Save(bytes) => {
                    let (disk, path) = (self.world.disk.clone(), state_path(&self.data_dir));
                    let saved = tokio::task::spawn_blocking(move || disk.replace(&path, &bytes)).await;
                    saved.expect("writing a file does not panic").map_err(|error| Ended::Disk(error.to_string()))?;
                }
                Output::Send(frame) => {
                    let sent = outgoing.send(to_hub(frame)).await;
                    sent.map_err(|_| Ended::Cut("the link has ended".into()))?;
                }
                Output::Tell(HeldChanged) => {
                    self.held.send_replace(Arc::new(self.half.saved().clone()));
                }
                Output::Close(violation) => return Err(Ended::Cut(violation.to_string())),
            }
        }
        Ok(())
    }
}
