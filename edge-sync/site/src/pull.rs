//! Brings a model's contents here: the manifest, then every piece that is missing. What came and was right stays,
//! whatever happens next, and is never fetched again.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kedge_content::Turns;
use kedge_models::{Digest, MANIFEST_BYTES_MAX, Manifest, ModelStore, Piece, Staging, StoreError};
use kedge_wire::proto;
use kedge_wire::proto::sync_client::SyncClient;
use kedge_world::{DiskError, World};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::identity::folder;

/// Nothing for this long: the connection is of no use.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Progress is told this often.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Pieces asked for in one request.
const PIECES_MAX: usize = 1024;
/// Pulls that were cut and are remembered; others read what is here again.
const CUT_MAX: usize = 8;
/// A piece with what is around it.
const MESSAGE_BYTES_MAX: usize = 2 << 20;

/// Why contents are not here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PullError {
    /// The way to the hub.
    #[error("the connection to the hub was cut: {0}")]
    Cut(String),
    /// The hub's answer.
    #[error("the hub refused: {0}")]
    Refused(String),
    /// The hub stopped sending.
    #[error("the hub sent nothing for {} s", IDLE_MAX.as_secs())]
    Idle,
    /// What came is not what it should be.
    #[error("what the hub sent is not the model that it signed: {0}")]
    Wrong(String),
    /// The site's own disk.
    #[error("{0}")]
    Disk(String),
}

impl PullError {
    /// The way to the hub was cut: nothing is wrong with the model.
    pub(crate) fn is_a_cut(&self) -> bool {
        matches!(self, Self::Cut(_) | Self::Idle)
    }
}

impl From<Status> for PullError {
    fn from(status: Status) -> Self {
        match status.code() {
            // A certificate that has ended is no word about the model: the link renews it and connects again.
            Code::PermissionDenied | Code::FailedPrecondition | Code::InvalidArgument => {
                Self::Refused(status.message().to_owned())
            }
            _ => Self::Cut(status.message().to_owned()),
        }
    }
}

impl From<DiskError> for PullError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error.to_string())
    }
}

impl From<StoreError> for PullError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Chunk { .. } | StoreError::Manifest(_) => Self::Wrong(error.to_string()),
            other => Self::Disk(other.to_string()),
        }
    }
}

/// What pulls need.
#[derive(Clone)]
pub(crate) struct Puller {
    world: World,
    store: ModelStore,
    manifests: PathBuf,
    /// Pulls that were cut: what is here need not be read again to go on.
    cut: Arc<Mutex<HashMap<Digest, Staging>>>,
    /// Two models may be of the same contents.
    turns: Arc<Turns>,
}

/// How far a pull has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) done: u64,
    pub(crate) total: u64,
}

impl Puller {
    pub(crate) fn new(world: World, store: ModelStore, data_dir: &Path) -> Self {
        Self { world, store, manifests: folder(data_dir).join("manifests"), cut: Arc::default(), turns: Arc::default() }
    }

    /// Removes the manifests that no pull will ask for again.
    pub(crate) fn clean(&self, keep: &BTreeSet<String>) -> Result<(), DiskError> {
        self.world.disk.create_dir_all(&self.manifests)?;
        for name in self.world.disk.list(&self.manifests)? {
            if !keep.contains(&name) {
                self.world.disk.remove(&self.manifests.join(name))?;
            }
        }
        Ok(())
    }

    /// Whether the contents are complete and in their place.
    pub(crate) fn is_active(&self, digest: &Digest) -> bool {
        self.store.active(digest).is_some()
    }

    /// Fetches what is missing and activates the model. `tell` hears of the progress now and then.
    pub(crate) async fn pull(
        &self,
        channel: Channel,
        digest: &Digest,
        mut tell: impl FnMut(Progress),
    ) -> Result<(), PullError> {
        let mut client = SyncClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let _turn = self.turns.take(&BTreeSet::from([digest.clone()])).await;
        if self.is_active(digest) {
            return Ok(());
        }
        let known = self.cut.lock().expect("nobody panics with the lock").remove(digest);
        let mut staging = match known.filter(Staging::is_there) {
            Some(staging) => staging,
            None => {
                let manifest = self.manifest(&mut client, digest).await?;
                let store = self.store.clone();
                blocking(move || store.stage(manifest)).await?
            }
        };
        room(&self.manifests, staging.missing_bytes())?;
        while !staging.missing().is_empty() {
            let (back, fetched) = self.fetch(&mut client, digest, staging, &mut tell).await?;
            staging = back;
            if let Err(error) = fetched {
                if error.is_a_cut() {
                    let mut cut = self.cut.lock().expect("nobody panics with the lock");
                    if cut.len() >= CUT_MAX {
                        cut.clear();
                    }
                    cut.insert(digest.clone(), staging);
                }
                return Err(error);
            }
        }
        self.activate(staging, digest).await
    }

    /// Fetches the next pieces that are missing; what has come of it is in the first half of the answer.
    async fn fetch(
        &self,
        client: &mut SyncClient<Channel>,
        digest: &Digest,
        mut staging: Staging,
        tell: &mut impl FnMut(Progress),
    ) -> Result<(Staging, Result<(), PullError>), PullError> {
        let total = staging.bytes();
        let mut told = self.world.clock.monotonic();
        tell(Progress { done: total - staging.missing_bytes(), total });
        let ranges = ranges(staging.missing().iter().take(PIECES_MAX).copied());
        let request = proto::FetchRequest { digest: digest.to_string(), ranges };
        let mut pieces = match flat(within(client.fetch(request)).await) {
            Ok(pieces) => pieces.into_inner(),
            Err(error) => return Ok((staging, Err(error))),
        };
        loop {
            let piece = match flat(within(pieces.message()).await) {
                Ok(Some(piece)) => piece,
                Ok(None) => return Ok((staging, Ok(()))),
                Err(error) => return Ok((staging, Err(error))),
            };
            let place = Piece { file: piece.file as usize, index: piece.index as usize };
            let (back, written) = blocking(move || {
                let written = staging.write(place, &piece.data);
                Ok((staging, written))
            })
            .await?;
            staging = back;
            written?;
            let now = self.world.clock.monotonic();
            if now.saturating_sub(told) >= TELL_EVERY {
                told = now;
                tell(Progress { done: total - staging.missing_bytes(), total });
            }
        }
    }

    async fn activate(&self, staging: Staging, digest: &Digest) -> Result<(), PullError> {
        blocking(move || staging.activate()).await?;
        match self.world.disk.remove(&self.manifest_path(digest)) {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn manifest_path(&self, digest: &Digest) -> PathBuf {
        self.manifests.join(digest.hex())
    }

    /// The manifest, kept since an earlier attempt or fetched.
    async fn manifest(&self, client: &mut SyncClient<Channel>, digest: &Digest) -> Result<Manifest, PullError> {
        let path = self.manifest_path(digest);
        let kept = self.world.disk.read(&path).ok().and_then(|bytes| Manifest::read(&bytes, digest).ok());
        if let Some(manifest) = kept {
            return Ok(manifest);
        }
        let request = proto::ManifestRequest { digest: digest.to_string() };
        let mut parts = within(client.manifest(request)).await??.into_inner();
        let mut bytes = Vec::new();
        while let Some(part) = within(parts.message()).await?? {
            if bytes.len() + part.data.len() > MANIFEST_BYTES_MAX {
                return Err(PullError::Wrong("its manifest is too large".into()));
            }
            bytes.extend_from_slice(&part.data);
        }
        let manifest = Manifest::read(&bytes, digest).map_err(|error| PullError::Wrong(error.to_string()))?;
        let disk = self.world.disk.clone();
        let kept = tokio::task::spawn_blocking(move || disk.replace(&path, &bytes));
        kept.await.expect("writing a file does not panic")?;
        Ok(manifest)
    }
}

/// Refuses what would fill the disk, on which the cluster's own state lies too.
fn room(folder: &Path, needed: u64) -> Result<(), PullError> {
    let failed = |error| PullError::Disk(format!("cannot ask how much of {} is free: {error}", folder.display()));
    let free = kedge_content::free_bytes(folder).map_err(failed)?;
    enough(folder, needed, free)
}

fn enough(folder: &Path, needed: u64, free: u64) -> Result<(), PullError> {
    if needed <= free {
        return Ok(());
    }
    let (folder, needed, free) = (folder.display(), needed >> 20, free >> 20);
    Err(PullError::Disk(format!(
        "the model needs {needed} MiB, and the disk of {folder} has {free} MiB to give (at most 1 GiB of it stays free); make room"
    )))
}

/// An answer, or that none came.
async fn within<T>(answer: impl Future<Output = T>) -> Result<T, PullError> {
    tokio::time::timeout(IDLE_MAX, answer).await.map_err(|_| PullError::Idle)
}

/// One way to fail out of two.
fn flat<T>(answer: Result<Result<T, Status>, PullError>) -> Result<T, PullError> {
    Ok(answer??)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, PullError> {
    Ok(tokio::task::spawn_blocking(work).await.expect("writing models does not panic")?)
}

/// Pieces in their order, as ranges.
fn ranges(pieces: impl Iterator<Item = Piece>) -> Vec<proto::PieceRange> {
    let mut ranges: Vec<proto::PieceRange> = Vec::new();
    for piece in pieces {
        let number = |place: usize| u32::try_from(place).expect("a manifest is bounded");
        let (file, index) = (number(piece.file), number(piece.index));
        match ranges.last_mut() {
            Some(last) if last.file == file && last.first + last.count == index => last.count += 1,
            _ => ranges.push(proto::PieceRange { file, first: index, count: 1 }),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_would_fill_the_disk_is_refused_with_figures() {
        let folder = Path::new("/data");
        assert!(enough(folder, 100 << 20, 100 << 20).is_ok());
        let error = enough(folder, 100 << 20, 99 << 20).unwrap_err().to_string();
        assert!(error.contains("100 MiB") && error.contains("99 MiB") && error.contains("/data"), "{error}");
        assert!(enough(folder, u64::MAX, u64::MAX - 1).is_err());
    }

    #[test]
    fn neighbours_are_asked_for_together() {
        let pieces = [(0, 0), (0, 1), (0, 3), (1, 4), (2, 5), (2, 6)];
        let ranges = ranges(pieces.into_iter().map(|(file, index)| Piece { file, index }));
        let plain: Vec<_> = ranges.iter().map(|range| (range.file, range.first, range.count)).collect();
        assert_eq!(plain, [(0, 0, 2), (0, 3, 1), (1, 4, 1), (2, 5, 2)]);
    }
}
