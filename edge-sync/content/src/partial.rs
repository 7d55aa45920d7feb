//! A file that grows at its end, its hash growing along: what came before a cut is gone on from.
#![allow(clippy::disallowed_methods, reason = "a shell: a large file that grows at its end")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use tokio::task::spawn_blocking;

use crate::Digest;

/// Bytes written and hashed at once, away from the threads that serve others. A power cut loses at most these and what
/// the system had not written yet; a broken link loses nothing.
const BLOCK_BYTES: usize = 256 << 10;

/// A file on its way. One writer at a time may hold it.
#[derive(Debug)]
pub struct Partial {
    /// None only while a block is being written, or after that was given up half-way.
    written: Option<Written>,
    /// What came and is not written yet.
    block: Vec<u8>,
}

#[derive(Debug)]
struct Written {
    file: File,
    hash: Sha256,
    length: u64,
}

impl Partial {
    /// Opens `path`, made if missing, readable by its owner alone; what it holds is read once for its hash.
    pub async fn open(path: &Path) -> io::Result<Self> {
        let path = path.to_owned();
        let written = away(move || {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
            let mut written = Written { file, hash: Sha256::new(), length: 0 };
            written.take_in()?;
            Ok(written)
        })
        .await?;
        Ok(Self { written: Some(written), block: Vec::new() })
    }

    /// Bytes that are here.
    pub fn length(&self) -> u64 {
        self.written.as_ref().map_or(0, |written| written.length) + self.block.len() as u64
    }

    /// The digest of what was written so far.
    pub fn digest(&self) -> Option<Digest> {
        let written = self.written.as_ref().filter(|_| self.block.is_empty())?;
        Some(Digest::from_hash(written.hash.clone().finalize().as_slice()))
    }

    /// Throws away what is here.
    pub async fn restart(&mut self) -> io::Result<()> {
        self.block.clear();
        self.with(|written| {
            written.file.set_len(0)?;
            written.file.rewind()?;
            (written.hash, written.length) = (Sha256::new(), 0);
            Ok(())
        })
        .await
    }

    /// Adds `bytes` at the end.
    pub async fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.block.extend_from_slice(bytes);
        if self.block.len() >= BLOCK_BYTES { self.flush().await } else { Ok(()) }
    }

    /// Writes what was added so far.
    pub async fn flush(&mut self) -> io::Result<()> {
        let block = std::mem::take(&mut self.block);
        self.with(move |written| {
            written.file.write_all(&block)?;
            written.hash.update(&block);
            written.length += block.len() as u64;
            Ok(())
        })
        .await
    }

    /// The digest of all that is here, written out.
    pub async fn finish(mut self) -> io::Result<Digest> {
        self.flush().await?;
        let written = self.written.expect("there after a flush that did not fail");
        Ok(Digest::from_hash(written.hash.finalize().as_slice()))
    }

    async fn with(&mut self, work: impl FnOnce(&mut Written) -> io::Result<()> + Send + 'static) -> io::Result<()> {
        let mut written = self.written.take().ok_or_else(|| io::Error::other("an earlier write was given up"))?;
        let (written, result) = away(move || {
            let result = work(&mut written);
            Ok((written, result))
        })
        .await?;
        self.written = Some(written);
        result
    }
}

impl Written {
    /// Reads the file from where it stands to its end.
    fn take_in(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; BLOCK_BYTES];
        loop {
            match self.file.read(&mut buffer)? {
                0 => return Ok(()),
                read => {
                    self.hash.update(&buffer[..read]);
                    self.length += read as u64;
                }
            }
        }
    }
}

/// Throws a file away; that there is none is as good, and what cannot be removed now goes when nobody wants it.
pub fn discard(path: &Path) {
    let _ = std::fs::remove_file(path);
}

/// The most that is kept free of a large file system: room for the cluster's own state and its logs.
const KEPT_BYTES_MAX: u64 = 1 << 30;

/// Bytes that may still be written to the file system of `path`: a twentieth of it, and at most 1 GiB, is kept free
/// for everybody else.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let found = nix::sys::statvfs::statvfs(path)?;
    let size = found.fragment_size();
    Ok(to_give(found.blocks() * size, found.blocks_available() * size))
}

fn to_give(all: u64, free: u64) -> u64 {
    free.saturating_sub((all / 20).min(KEPT_BYTES_MAX))
}

/// Does `work` on a thread that may wait for the disk.
async fn away<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(|_| io::Error::other("the process is ending"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_gone_on_from_where_it_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part");
        let all: Vec<u8> = (0..3 * BLOCK_BYTES + 5).map(|index| (index % 251) as u8).collect();
        for cut in [0, 1, BLOCK_BYTES, BLOCK_BYTES + 7, all.len()] {
            discard(&path);
            let mut first = Partial::open(&path).await.unwrap();
            for piece in all[..cut].chunks(1000) {
                first.append(piece).await.unwrap();
            }
            first.flush().await.unwrap();
            drop(first);
            let mut second = Partial::open(&path).await.unwrap();
            assert_eq!((second.length(), second.digest()), (cut as u64, Some(Digest::of(&all[..cut]))));
            second.append(&all[cut..]).await.unwrap();
            assert_eq!(second.length(), all.len() as u64);
            assert_eq!(second.finish().await.unwrap(), Digest::of(&all));
            assert_eq!(std::fs::read(&path).unwrap(), all);
        }
    }

    #[tokio::test]
    async fn a_restart_forgets_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part");
        std::fs::write(&path, "old and long").unwrap();
        let mut partial = Partial::open(&path).await.unwrap();
        partial.append(b"er").await.unwrap();
        partial.restart().await.unwrap();
        partial.append(b"new").await.unwrap();
        assert_eq!(partial.finish().await.unwrap(), Digest::of(b"new"));
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn some_of_a_file_system_is_kept_free() {
        const GIB: u64 = 1 << 30;
        assert_eq!(to_give(10 * GIB, 4 * GIB), 4 * GIB - GIB / 2);
        assert_eq!(to_give(250 * GIB, 4 * GIB), 3 * GIB, "of a large disk no more than 1 GiB");
        assert_eq!(to_give(10 * GIB, GIB / 4), 0);
        let free = free_bytes(Path::new("/")).unwrap();
        let all = nix::sys::statvfs::statvfs("/").unwrap();
        assert!(free <= all.blocks_available() * all.fragment_size());
        assert!(free_bytes(Path::new("/no/such/place")).is_err());
    }
}
