//! Fetching one file whose digest is known: resumed where it broke off, verified at its end.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kedge_content::{Digest, Partial, discard, free_bytes};
use kedge_fetch::{Answer, FetchError, Fetcher, Get};
use kedge_world::World;

/// Between two reports of how far it is.
const REPORT: Duration = Duration::from_secs(2);

/// Why a file could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The network or the server.
    #[error("{0}")]
    Fetch(#[from] FetchError),
    /// What came is something else.
    #[error("{url} has the digest {actual}, not {expected}")]
    Digest {
        /// Where it came from.
        url: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// The disk would be full before it is here: some is kept for everybody else.
    #[error("{url} needs {missing} more bytes, and {} has room for {room}", path.display())]
    Room {
        /// Where it comes from.
        url: String,
        /// The file.
        path: PathBuf,
        /// Bytes that are still to come, as far as the server said.
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

/// How far it is.
pub(crate) enum Step {
    /// All of it is here and has the right digest.
    Done,
    /// On the way.
    More {
        /// Bytes that are here.
        done: u64,
        /// Bytes there will be, if the server said.
        total: Option<u64>,
    },
}

/// A download.
pub(crate) struct Progress {
    path: PathBuf,
    world: World,
    running: Option<Running>,
}

struct Running {
    answer: Answer,
    file: Partial,
    total: Option<u64>,
}

impl Progress {
    /// To the file `path`, going on after what it has already.
    pub(crate) fn new(path: &Path, world: &World) -> Self {
        Self { path: path.to_owned(), world: world.clone(), running: None }
    }

    /// Goes on for a few seconds, or to the end. After an error what came so far stays, and is gone on from; only
    /// contents that proved to be wrong are thrown away.
    pub(crate) async fn step(&mut self, fetcher: &Fetcher, url: &str, digest: &Digest) -> Result<Step, DownloadError> {
        let mut running = match self.running.take() {
            Some(running) => running,
            None => {
                let file = Partial::open(&self.path).await.map_err(self.disk())?;
                if file.digest().as_ref() == Some(digest) {
                    return Ok(Step::Done);
                }
                self.begin(file, fetcher, url).await?
            }
        };
        self.check_room(&running, url)?;
        let taken = self.take(&mut running).await;
        running.file.flush().await.map_err(self.disk())?;
        if !taken? {
            let step = Step::More { done: running.file.length(), total: running.total };
            self.running = Some(running);
            return Ok(step);
        }
        let actual = running.file.finish().await.map_err(self.disk())?;
        if actual != *digest {
            discard(&self.path);
            return Err(DownloadError::Digest { url: url.to_owned(), expected: digest.clone(), actual });
        }
        Ok(Step::Done)
    }

    /// Takes what comes until it is time for a report; whether that was all.
    async fn take(&self, running: &mut Running) -> Result<bool, DownloadError> {
        let begin = self.world.clock.monotonic();
        while let Some(bytes) = running.answer.next().await? {
            running.file.append(&bytes).await.map_err(self.disk())?;
            if self.world.clock.monotonic().saturating_sub(begin) >= REPORT {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A server may say nothing of the length, or lie: then each step looks whether there is any room left.
    fn check_room(&self, running: &Running, url: &str) -> Result<(), DownloadError> {
        let missing = running.total.map_or(1, |total| total.saturating_sub(running.file.length()));
        let room = free_bytes(&self.path).map_err(self.disk())?;
        if missing > room {
            return Err(DownloadError::Room { url: url.to_owned(), path: self.path.clone(), missing, room });
        }
        Ok(())
    }

    async fn begin(&self, mut file: Partial, fetcher: &Fetcher, url: &str) -> Result<Running, DownloadError> {
        let answer = match fetcher.get(&Get { from: file.length(), ..Get::new(url) }).await {
            // What is here is longer than the file, or as long and another: once more from its beginning.
            Err(FetchError::Status { status, .. }) if status.as_u16() == 416 => fetcher.get(&Get::new(url)).await?,
            other => other?,
        };
        if answer.offset() != file.length() {
            file.restart().await.map_err(self.disk())?;
        }
        let length = answer.headers.get("content-length").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let total = length.map(|length| length.saturating_add(file.length()));
        Ok(Running { answer, file, total })
    }

    fn disk(&self) -> impl FnOnce(io::Error) -> DownloadError + use<> {
        let path = self.path.clone();
        move |source| DownloadError::Disk { path, source }
    }
}
