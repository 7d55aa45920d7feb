//! Fetching one file whose digest is known: resumed where it broke off, verified at its end.
#![allow(clippy::disallowed_methods, reason = "a shell: a large file that grows at its end")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kedge_fetch::{Answer, FetchError, Fetcher, Get};
use kedge_world::World;
use sha2::{Digest as _, Sha256};

use crate::manifest::Digest;

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
    /// It cannot be written.
    #[error("{}: {source}", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

fn disk(path: &Path) -> impl FnOnce(io::Error) -> DownloadError + '_ {
    move |source| DownloadError::Disk { path: path.to_owned(), source }
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
    file: File,
    hash: Sha256,
    done: u64,
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
        let begin = self.world.clock.monotonic();
        let mut running = match self.running.take() {
            Some(running) => running,
            None => self.begin(fetcher, url).await?,
        };
        while let Some(bytes) = running.answer.next().await? {
            running.file.write_all(&bytes).map_err(disk(&self.path))?;
            running.hash.update(&bytes);
            running.done += bytes.len() as u64;
            if self.world.clock.monotonic().saturating_sub(begin) >= REPORT {
                let step = Step::More { done: running.done, total: running.total };
                self.running = Some(running);
                return Ok(step);
            }
        }
        let actual = Digest::from_hash(running.hash.finalize().as_slice());
        if actual != *digest {
            discard(&self.path);
            return Err(DownloadError::Digest { url: url.to_owned(), expected: digest.clone(), actual });
        }
        Ok(Step::Done)
    }

    async fn begin(&self, fetcher: &Fetcher, url: &str) -> Result<Running, DownloadError> {
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.path)
            .map_err(disk(&self.path))?;
        let mut hash = Sha256::new();
        let here = read_all(&mut file, &mut hash).map_err(disk(&self.path))?;
        let answer = match fetcher.get(&Get { from: here, ..Get::new(url) }).await {
            // Everything was here already, or the file became shorter: once more from its beginning.
            Err(FetchError::Status { status, .. }) if status.as_u16() == 416 => fetcher.get(&Get::new(url)).await?,
            other => other?,
        };
        let mut done = here;
        if answer.offset() != here {
            file.set_len(0).map_err(disk(&self.path))?;
            io::Seek::rewind(&mut file).map_err(disk(&self.path))?;
            (hash, done) = (Sha256::new(), 0);
        }
        let length = answer.headers.get("content-length").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        Ok(Running { answer, file, hash, done, total: length.map(|length| length + done) })
    }
}

/// Throws a download away; that there is none is as good, and what cannot be removed now goes when nobody wants it.
pub(crate) fn discard(path: &Path) {
    let _ = std::fs::remove_file(path);
}

fn read_all(file: &mut File, hash: &mut Sha256) -> io::Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut all = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(all),
            read => {
                hash.update(&buffer[..read]);
                all += read as u64;
            }
        }
    }
}
