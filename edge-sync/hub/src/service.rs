//! The gRPC services. Who calls is told by the certificate alone; a call without one can do nothing but join.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::Stream;
use jiff::Timestamp;
use kedge_client::{Informers, Key};
use kedge_link::Connection;
use kedge_models::{Digest, Manifest, ModelStore, StoreError};
use kedge_own::Site;
use kedge_wire::proto::enrolment_server::Enrolment as EnrolmentService;
use kedge_wire::proto::sync_server::Sync as SyncService;
use kedge_wire::{Peer, from_site, proto};
use kedge_world::World;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::enrol::Enrolment;
use crate::keys::{HubKeys, RENEW_AFTER_END, until_renewal_is_due};
use crate::site::{Event, FRAMES_MAX, Handle};
use crate::sites::Sites;

/// A manifest is sent in parts of this size.
const PART_BYTES: usize = 256 << 10;
/// Pieces read ahead of what the connection takes.
const PIECES_AHEAD: usize = 2;
/// Ranges in one request.
const RANGES_MAX: usize = 4096;

/// Who is at the other end of a connection; none when no certificate was shown.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub(crate) Option<Peer>);

/// The hub as its sites see it.
#[derive(Clone)]
pub(crate) struct Service(Arc<Inner>);

struct Inner {
    world: World,
    client: kube::Client,
    informers: Informers,
    keys: Arc<HubKeys>,
    sites: Sites,
    models: ModelStore,
    connections: AtomicU64,
}

/// Whether a certificate that has ended still counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Refused,
    ToRenew,
}

impl Service {
    pub(crate) fn new(
        world: World,
        client: kube::Client,
        informers: Informers,
        keys: Arc<HubKeys>,
        sites: Sites,
        models: ModelStore,
    ) -> Self {
        let connections = AtomicU64::new(1);
        Self(Arc::new(Inner { world, client, informers, keys, sites, models, connections }))
    }

    fn now(&self) -> Timestamp {
        self.0.world.clock.wall()
    }

    /// The site that calls.
    async fn caller<T>(&self, request: &Request<T>, ended: Ended) -> Result<(Peer, Handle), Status> {
        let caller = request.extensions().get::<Caller>().and_then(|caller| caller.0.clone());
        let peer = caller.ok_or_else(|| Status::unauthenticated("this call needs the certificate of a site"))?;
        let site = self.site(&peer).await?;
        let over = self.now().as_second() - peer.ends;
        if over > 0 && ended == Ended::Refused {
            return Err(Status::unauthenticated("the certificate has ended; renew it"));
        }
        if over > RENEW_AFTER_END.as_secs() {
            let message = "the certificate ended too long ago to be renewed; join again with a new token";
            return Err(Status::permission_denied(message));
        }
        Ok((peer, self.0.sites.of(&site)))
    }

    /// The Site that a certificate was made for, if it is still the same.
    async fn site(&self, peer: &Peer) -> Result<Arc<Site>, Status> {
        self.0.informers.of::<Site>().synced().await;
        let site = self.0.informers.of::<Site>().get(&Key::new("", &peer.site));
        let same = site.filter(|site| site.metadata.uid.as_deref() == Some(&peer.uid));
        let site = same.ok_or_else(|| {
            Status::permission_denied(format!(
                "the site {} was removed at the hub; join again with a new token",
                peer.site
            ))
        })?;
        let key = site.status.as_ref().and_then(|status| status.identity.as_ref()).map(|identity| &identity.key);
        if key != Some(&peer.key) {
            return Err(Status::permission_denied(format!(
                "another cluster has joined as {} since; join again with a new token",
                peer.site
            )));
        }
        Ok(site)
    }

    async fn manifest_of(&self, handle: &Handle, digest: &str) -> Result<(Digest, Manifest), Status> {
        let digest = Digest::parse(digest).ok_or_else(|| Status::invalid_argument("that is no digest"))?;
        if !handle.may_fetch(digest.as_str()) {
            return Err(Status::permission_denied(format!("the model {digest} is not assigned to this site")));
        }
        let (store, of) = (self.0.models.clone(), digest.clone());
        let manifest = blocking(move || store.manifest(&of)).await?;
        Ok((digest, manifest))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await.expect("reading models does not panic");
    done.map_err(|error| Status::failed_precondition(format!("the hub cannot read the model: {error}")))
}

#[tonic::async_trait]
impl EnrolmentService for Service {
    async fn join(&self, request: Request<proto::JoinRequest>) -> Result<Response<proto::JoinAnswer>, Status> {
        let Inner { client, informers, keys, .. } = &*self.0;
        informers.of::<Site>().synced().await;
        let enrolment = Enrolment { client, informers, keys, now: self.now() };
        enrolment.join(request.get_ref()).await.map(Response::new)
    }

    async fn renew(&self, request: Request<proto::RenewRequest>) -> Result<Response<proto::RenewAnswer>, Status> {
        let (peer, _) = self.caller(&request, Ended::ToRenew).await?;
        // The key stays: an answer that is lost costs nothing.
        let certificate = self.0.keys.issue(&peer.public_key, &peer.site, &peer.uid, self.now());
        let certificate = certificate.map_err(|error| Status::internal(error.to_string()))?;
        tracing::info!(site = peer.site, "a certificate was renewed");
        Ok(Response::new(proto::RenewAnswer { certificate: certificate.to_vec().into() }))
    }
}

type Sent<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SyncService for Service {
    type LinkStream = Sent<proto::FromHub>;
    type ManifestStream = Sent<proto::Part>;
    type FetchStream = Sent<proto::Piece>;

    async fn link(&self, request: Request<Streaming<proto::FromSite>>) -> Result<Response<Self::LinkStream>, Status> {
        let (peer, handle) = self.caller(&request, Ended::Refused).await?;
        let connection = Connection(self.0.connections.fetch_add(1, Ordering::Relaxed));
        let (frames, outgoing) = mpsc::channel(FRAMES_MAX);
        let mut until_due = Some(until_renewal_is_due(peer.ends, self.now()));
        let renewals = frames.clone();
        if !handle.tell(Event::Opened(connection, frames)).await {
            return Err(Status::permission_denied("the site was removed at the hub"));
        }
        let mut incoming = request.into_inner();
        tokio::spawn(async move {
            loop {
                let due = async {
                    match until_due {
                        Some(wait) => tokio::time::sleep(wait).await,
                        None => std::future::pending().await,
                    }
                };
                let message = tokio::select! {
                    message = incoming.message() => message,
                    () = due => {
                        until_due = None;
                        let due = proto::from_hub::Frame::RenewalDue(proto::Renewal {});
                        if renewals.send(Ok(proto::FromHub { frame: Some(due) })).await.is_err() {
                            break;
                        }
                        continue;
                    }
                };
                let message = match message {
                    Ok(Some(message)) => message,
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(site = peer.site, %error, "a link broke");
                        break;
                    }
                };
                match from_site(message) {
                    Ok(frame) => {
                        if !handle.tell(Event::Frame(connection, frame)).await {
                            break;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(site = peer.site, %error, "a site sent what is no frame");
                        break;
                    }
                }
            }
            handle.tell(Event::Closed(connection)).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn manifest(
        &self,
        request: Request<proto::ManifestRequest>,
    ) -> Result<Response<Self::ManifestStream>, Status> {
        let (_, handle) = self.caller(&request, Ended::Refused).await?;
        let (_, manifest) = self.manifest_of(&handle, &request.get_ref().digest).await?;
        let bytes = bytes_of(&manifest);
        let parts = (0..bytes.len()).step_by(PART_BYTES).map(move |start| {
            let end = bytes.len().min(start + PART_BYTES);
            Ok(proto::Part { data: bytes.slice(start..end) })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }

    async fn fetch(&self, request: Request<proto::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let (peer, handle) = self.caller(&request, Ended::Refused).await?;
        let proto::FetchRequest { digest, ranges } = request.into_inner();
        let (digest, manifest) = self.manifest_of(&handle, &digest).await?;
        if ranges.len() > RANGES_MAX {
            return Err(Status::invalid_argument(format!("more than {RANGES_MAX} ranges in one request")));
        }
        let within = |range: &proto::PieceRange| {
            let pieces = manifest.files.get(range.file as usize).map_or(0, |file| file.chunks.len() as u64);
            u64::from(range.first) + u64::from(range.count) <= pieces
        };
        if !ranges.iter().all(within) {
            return Err(Status::invalid_argument("the model has no such pieces"));
        }
        let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
        let models = self.0.models.clone();
        tokio::spawn(async move {
            let pieces = ranges
                .iter()
                .flat_map(|range| (range.first..range.first + range.count).map(|index| (range.file, index)));
            for (file, index) in pieces {
                let entry = manifest.files[file as usize].clone();
                let (store, of) = (models.clone(), digest.clone());
                let read = blocking(move || {
                    let chunk = kedge_models::CHUNK_BYTES;
                    store.read_range(&of, &entry, u64::from(index) * chunk, chunk)
                });
                let piece = read.await.map(|data| proto::Piece { file, index, data: data.into() });
                let failed = piece.is_err();
                if sender.send(piece).await.is_err() || failed {
                    tracing::debug!(site = peer.site, %digest, "a transfer ended early");
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

fn bytes_of(manifest: &Manifest) -> bytes::Bytes {
    manifest.bytes().into()
}
