//! Fetching what a listing names: resumed where it broke off, each part verified at its end.
//!
//! Parts are collected in one folder, each under its key, so that whoever comes next goes on with them.
#![allow(clippy::disallowed_methods, reason = "a shell: large files that grow at their end")]

use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kedge_content::{Digest, Partial, discard, free_bytes};
use kedge_fetch::{Answer, FetchError};
use kedge_world::World;

use crate::remote::{Check, Listing, Part, Remote, RemoteError};

/// Between two reports of how far it is.
const REPORT: Duration = Duration::from_secs(2);
/// What has to come in this time: whoever gives less must not keep others from their turn. Links of a few hundred bytes a
/// second are no slower, and a download goes on where it was given up.
const SLOW: Duration = Duration::from_secs(600);
const SLOW_BYTES: u64 = 64 << 10;

/// Why a model could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The source, or the way there.
    #[error("{0}")]
    Remote(#[from] RemoteError),
    /// What came is something else.
    #[error("{part} has the digest {actual}, not {expected}")]
    Digest {
        /// What was asked for.
        part: String,
        /// Its digest.
        expected: String,
        /// What came.
        actual: String,
    },
    /// More came than was said.
    #[error("{part} is longer than the {size} bytes that its source says")]
    Long {
        /// What was asked for.
        part: String,
        /// Its length.
        size: u64,
    },
    /// The disk would be full before it is here: some is kept for everybody else.
    #[error("{location} needs {missing} more bytes, and {} has room for {room}", path.display())]
    Room {
        /// Where it comes from.
        location: String,
        /// The file.
        path: PathBuf,
        /// Bytes that are still to come, as far as the source said.
        missing: u64,
        /// Bytes that may be written.
        room: u64,
    },
    /// It cannot be written.
    #[error("{}: {source}", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

fn disk(path: &Path) -> impl FnOnce(io::Error) -> DownloadError + use<> {
    let path = path.to_owned();
    move |source| DownloadError::Disk { path, source }
}

impl From<FetchError> for DownloadError {
    fn from(error: FetchError) -> Self {
        Self::Remote(error.into())
    }
}

/// How far it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// All of it is here and verified.
    Done,
    /// On the way.
    More {
        /// Bytes that are here.
        done: u64,
        /// Bytes there will be, if the source said.
        total: Option<u64>,
    },
}

/// A download.
pub(crate) struct Download {
    folder: PathBuf,
    listing: Listing,
    world: World,
    /// The part that is on its way.
    next: usize,
    /// Bytes of those before it.
    before: u64,
    running: Option<Running>,
    /// Since when, and with how many bytes here by then, it is looked at whether enough comes.
    watched: (Duration, u64),
}

struct Running {
    answer: Answer,
    file: Partial,
    total: Option<u64>,
}

impl Download {
    /// Into the folder `folder`, going on with what it has already.
    pub(crate) fn new(folder: &Path, listing: Listing, world: &World) -> Result<Self, DownloadError> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(disk(folder))?;
        let download = Self {
            folder: folder.to_owned(),
            listing,
            world: world.clone(),
            next: 0,
            before: 0,
            running: None,
            watched: (world.clock.monotonic(), 0),
        };
        download.check_room(None)?;
        Ok(download)
    }

    /// How people call what is downloaded.
    pub(crate) fn location(&self) -> &str {
        &self.listing.location
    }

    /// Goes on for a few seconds, or to the end. After an error what came so far stays, and is gone on from; only
    /// contents that proved to be wrong are thrown away.
    pub(crate) async fn step(&mut self, remote: &mut dyn Remote) -> Result<Step, DownloadError> {
        let begin = self.world.clock.monotonic();
        while let Some(part) = self.listing.parts.get(self.next).cloned() {
            let path = part_file(&self.folder, &part);
            let running = match self.running.take() {
                Some(running) => Some(running),
                None => self.begin(&part, &path, remote).await?,
            };
            if let Some(mut running) = running {
                self.check_room(Some(&running))?;
                let taken = self.take(&mut running, &part, begin).await;
                running.file.flush().await.map_err(disk(&path))?;
                match taken {
                    Err(error) => {
                        if matches!(error, DownloadError::Long { .. }) {
                            discard(&path);
                        }
                        return Err(error);
                    }
                    Ok(false) => {
                        let (done, total) = (self.before + running.file.length(), self.total(&running));
                        self.watched = watch(self.watched, self.world.clock.monotonic(), done).ok_or_else(|| {
                            let reason = format!("less than {SLOW_BYTES} bytes came in {} s", SLOW.as_secs());
                            FetchError::Network { url: running.answer.url.clone(), reason }
                        })?;
                        self.running = Some(running);
                        return Ok(Step::More { done, total });
                    }
                    Ok(true) => finish(&part, &path, running.file).await?,
                }
            }
            self.before += std::fs::metadata(&path).map_err(disk(&path))?.len();
            self.next += 1;
        }
        Ok(Step::Done)
    }

    /// Bytes there will be in all, if everybody says so.
    fn total(&self, running: &Running) -> Option<u64> {
        match self.listing.parts.iter().all(|part| part.size.is_some()) {
            true => Some(self.listing.bytes()),
            false => running.total.filter(|_| self.listing.parts.len() == 1),
        }
    }

    /// Asks for what is missing of `part`; none when it is all here.
    async fn begin(&self, part: &Part, path: &Path, remote: &mut dyn Remote) -> Result<Option<Running>, DownloadError> {
        let mut file = Partial::open(path).await.map_err(disk(path))?;
        if verify(part, path, &file).await? {
            return Ok(None);
        }
        // What is complete may be a link to a file that was taken in, and such a file is never written to.
        let linked = std::fs::metadata(path).map_err(disk(path))?.nlink() > 1;
        if linked || part.size.is_some_and(|size| file.length() >= size) {
            discard(path);
            file = Partial::open(path).await.map_err(disk(path))?;
            // A part of no bytes is here as soon as its file is.
            if part.size == Some(0) && verify(part, path, &file).await? {
                return Ok(None);
            }
        }
        let answer = match remote.get(part, file.length()).await {
            // What is here is longer than the file, or as long and another: once more from its beginning.
            Err(RemoteError::Fetch(FetchError::Status { status, .. })) if status.as_u16() == 416 => {
                remote.get(part, 0).await?
            }
            other => other?,
        };
        if answer.offset() != file.length() {
            file.restart().await.map_err(disk(path))?;
            if answer.offset() != 0 {
                let reason = format!("the server answers from byte {} on, which nobody asked for", answer.offset());
                return Err(FetchError::Network { url: answer.url, reason }.into());
            }
        }
        let length = answer.headers.get("content-length").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let total = part.size.or(length.map(|length| length.saturating_add(file.length())));
        Ok(Some(Running { answer, file, total }))
    }

    /// Takes what comes until it is time for a report; whether that was all.
    async fn take(&self, running: &mut Running, part: &Part, begin: Duration) -> Result<bool, DownloadError> {
        let path = part_file(&self.folder, part);
        while let Some(bytes) = running.answer.next().await? {
            let here = running.file.length() + bytes.len() as u64;
            if let Some(size) = part.size.filter(|size| here > *size) {
                return Err(DownloadError::Long { part: part.name.clone(), size });
            }
            running.file.append(&bytes).await.map_err(disk(&path))?;
            if self.world.clock.monotonic().saturating_sub(begin) >= REPORT {
                return Ok(false);
            }
        }
        if let Some(size) = part.size.filter(|size| running.file.length() < *size) {
            let reason = format!("the transfer ended after {} of {size} bytes", running.file.length());
            return Err(FetchError::Network { url: running.answer.url.clone(), reason }.into());
        }
        Ok(true)
    }

    /// Before the first byte, whether all of it fits. A source may say nothing of the length, or lie: then each step
    /// looks whether there is any room left.
    fn check_room(&self, running: Option<&Running>) -> Result<(), DownloadError> {
        let here = |part: &Part| std::fs::metadata(part_file(&self.folder, part)).map_or(0, |found| found.len());
        let missing = match running {
            None => self.listing.parts.iter().map(|part| part.size.unwrap_or(0).saturating_sub(here(part))).sum(),
            Some(running) => running.total.map_or(1, |total| total.saturating_sub(running.file.length())),
        };
        let room = free_bytes(&self.folder).map_err(disk(&self.folder))?;
        if missing > room {
            let (location, path) = (self.listing.location.clone(), self.folder.clone());
            return Err(DownloadError::Room { location, path, missing, room });
        }
        Ok(())
    }
}

/// From when on to watch what comes, at `now` with `done` bytes here; none when too little came.
fn watch((since, before): (Duration, u64), now: Duration, done: u64) -> Option<(Duration, u64)> {
    match done.saturating_sub(before) >= SLOW_BYTES {
        true => Some((now, done)),
        false => (now.saturating_sub(since) < SLOW).then_some((since, before)),
    }
}

/// Where `part` is collected in `folder`.
pub(crate) fn part_file(folder: &Path, part: &Part) -> PathBuf {
    folder.join(part.key().hex())
}

/// Whether what is here is the whole part, by what it is known by.
async fn verify(part: &Part, path: &Path, file: &Partial) -> Result<bool, DownloadError> {
    if part.size.is_some_and(|size| size != file.length()) {
        return Ok(false);
    }
    let Some(digest) = file.digest() else { return Ok(false) };
    Ok(actual(part, path, &digest).await?.is_none())
}

/// Believes a part that came to its end, or throws it away.
async fn finish(part: &Part, path: &Path, file: Partial) -> Result<(), DownloadError> {
    let digest = file.finish().await.map_err(disk(path))?;
    if let Check::Entity { .. } = part.check {
        // Nothing will tell later whether a power cut spoilt it.
        let file = path.to_owned();
        let sync = move || std::fs::File::open(file)?.sync_all();
        tokio::task::spawn_blocking(sync).await.expect("waiting for a disk does not panic").map_err(disk(path))?;
    }
    match actual(part, path, &digest).await? {
        None => Ok(()),
        Some((expected, actual)) => {
            discard(path);
            Err(DownloadError::Digest { part: part.name.clone(), expected, actual })
        }
    }
}

/// What the file at `path`, whose SHA-256 is `digest`, should have been and is instead; none if it is right.
async fn actual(part: &Part, path: &Path, digest: &Digest) -> Result<Option<(String, String)>, DownloadError> {
    let (expected, actual) = match &part.check {
        Check::Sha256(expected) => (expected.to_string(), digest.to_string()),
        Check::GitBlob(expected) => {
            let file = path.to_owned();
            let read = tokio::task::spawn_blocking(move || git_blob_of(&file)).await.expect("hashing does not panic");
            (expected.clone(), read.map_err(disk(path))?)
        }
        Check::Entity { .. } => return Ok(None),
    };
    Ok((expected != actual).then_some((expected, actual)))
}

/// What Git calls a blob of these bytes. (Its documentation, "Git Objects".)
#[cfg(test)]
pub(crate) fn git_blob(bytes: &[u8]) -> String {
    git_blob_read(bytes.len() as u64, bytes).expect("bytes can be read")
}

fn git_blob_of(path: &Path) -> io::Result<String> {
    let file = std::fs::File::open(path)?;
    git_blob_read(file.metadata()?.len(), file)
}

fn git_blob_read(length: u64, mut bytes: impl Read) -> io::Result<String> {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(format!("blob {length}\0").as_bytes());
    let mut buffer = vec![0; 256 << 10];
    loop {
        match bytes.read(&mut buffer)? {
            0 => return Ok(hex::encode(hash.finish())),
            read => hash.update(&buffer[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gives_almost_nothing_is_given_up() {
        let at = Duration::from_secs;
        let from = (at(100), 1000);
        assert_eq!(watch(from, at(699), 1001), Some(from));
        assert_eq!(watch(from, at(700), 1000 + SLOW_BYTES - 1), None);
        assert_eq!(watch(from, at(699), 1000 + SLOW_BYTES), Some((at(699), 1000 + SLOW_BYTES)));
    }

    #[test]
    fn blobs_have_the_names_that_git_gives_them() {
        // As `git hash-object` prints them.
        assert_eq!(git_blob(b""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(git_blob(b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
    }
}
