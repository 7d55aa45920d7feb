//! The archive as a file: opened, scanned, and read again blob by blob.
#![allow(
    clippy::disallowed_methods,
    reason = "a shell: image archives are the user's own files, read and never written"
)]

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::{ArchiveError, ArchivePlan, Contents, Entry};
use crate::image::{BlobSource, Digest};

/// A scanned and planned archive on disk.
#[derive(Debug)]
pub struct ArchiveFile {
    path: PathBuf,
    gzip: bool,
    contents: Contents,
    plan: ArchivePlan,
}

impl ArchiveFile {
    /// Reads all of the archive and finds its images. Blocks for as long as that takes.
    pub fn open(path: &Path, architecture: &str) -> Result<Self, ArchiveError> {
        let gzip = is_gzip(path).map_err(ArchiveError::Read)?;
        let contents = super::scan(tar_stream(path, gzip).map_err(ArchiveError::Read)?)?;
        let plan = super::plan(&contents, architecture)?;
        Ok(Self { path: path.to_owned(), gzip, contents, plan })
    }

    /// The images it holds.
    pub fn images(&self) -> &[crate::image::ImagePlan] {
        &self.plan.images
    }
}

impl BlobSource for ArchiveFile {
    fn open(&self, digest: &Digest) -> io::Result<Box<dyn Read + Send + '_>> {
        let entry = self.plan.blobs.get(digest).and_then(|name| self.contents.get(name));
        let Some(Entry::File(file)) = entry else {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("the archive has no blob {digest}")));
        };
        if self.gzip {
            // No way to seek in a gzip stream: what lies before the blob is decompressed and thrown away.
            let mut stream = tar_stream(&self.path, true)?;
            io::copy(&mut stream.by_ref().take(file.offset), &mut io::sink())?;
            return Ok(Box::new(stream.take(file.size)));
        }
        let mut plain = File::open(&self.path)?;
        plain.seek(SeekFrom::Start(file.offset))?;
        Ok(Box::new(plain.take(file.size)))
    }
}

fn is_gzip(path: &Path) -> io::Result<bool> {
    let mut head = Vec::new();
    File::open(path)?.take(2).read_to_end(&mut head)?;
    Ok(head == [0x1f, 0x8b])
}

fn tar_stream(path: &Path, gzip: bool) -> io::Result<Box<dyn Read + Send>> {
    let file = BufReader::with_capacity(256 << 10, File::open(path)?);
    Ok(if gzip { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) })
}
