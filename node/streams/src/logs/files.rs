//! The files of a log, read oldest first in blocks. A file is known by its inode: a rotation gives it another name, and
//! who reads it goes on with it to its end, then with those that came after it.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::BLOCK_BYTES;
use super::tail::TailScan;

/// Rotated files that are looked for; the logger keeps fewer.
const FILES_MAX: u32 = 20;

/// A log on the disk. Its methods block.
#[derive(Debug)]
pub(super) struct Files {
    path: PathBuf,
    /// The one that is being read; none before there is any.
    current: Option<LogFile>,
    /// Those that came after it, oldest first.
    next: VecDeque<LogFile>,
}

/// An open file of a log. As long as it is open no other file can have its inode.
#[derive(Debug)]
struct LogFile {
    file: File,
    inode: (u64, u64),
    position: u64,
}

impl Files {
    /// Opens the log at `path` where its last `tail` lines begin, or at its beginning.
    pub(super) fn open(path: PathBuf, tail: Option<u64>) -> io::Result<Self> {
        let mut next = newer_than(&path, None)?;
        if let Some(mut wanted) = tail {
            let mut kept = VecDeque::new();
            while let Some(mut newest) = next.pop_back() {
                let (start, found) = tail_of(&newest.file, wanted)?;
                newest.position = start;
                kept.push_front(newest);
                wanted -= found;
                if wanted == 0 {
                    break;
                }
            }
            next = kept;
        }
        Ok(Self { path, current: next.pop_front(), next })
    }

    /// The next bytes; none when all that there is was read.
    pub(super) fn read(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(current) = &mut self.current {
                let bytes = current.read()?;
                if !bytes.is_empty() {
                    return Ok(bytes);
                }
            }
            match self.next.pop_front() {
                Some(next) => self.current = Some(next),
                None => return Ok(Vec::new()),
            }
        }
    }

    /// Looks for files that came after the one that was read; whether there is more to read now. What was still
    /// written to it before it got another name is read before them.
    pub(super) fn advance(&mut self) -> io::Result<bool> {
        if self.next.is_empty() {
            self.next = newer_than(&self.path, self.current.as_ref().map(|current| current.inode))?;
        }
        Ok(!self.next.is_empty())
    }
}

impl LogFile {
    fn open(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => {
                let meta = file.metadata()?;
                Ok(Some(Self { file, inode: (meta.dev(), meta.ino()), position: 0 }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut block = vec![0; BLOCK_BYTES];
        let count = self.file.read_at(&mut block, self.position)?;
        block.truncate(count);
        if count == 0 && self.file.metadata()?.len() < self.position {
            self.position = 0; // Somebody emptied it; what it says from now on is new.
        }
        self.position += count as u64;
        Ok(block)
    }
}

/// The files that came after the one with this inode, oldest first; all of them when it is none of them. They are
/// opened newest first, so that a rotation meanwhile gives one of them twice instead of leaving one out.
fn newer_than(path: &Path, inode: Option<(u64, u64)>) -> io::Result<VecDeque<LogFile>> {
    let mut found: VecDeque<LogFile> = VecDeque::new();
    let mut gaps = 0;
    for number in 0..FILES_MAX {
        let mut name = path.as_os_str().to_owned();
        if number > 0 {
            name.push(format!(".{number}"));
        }
        match LogFile::open(Path::new(&name))? {
            Some(file) if Some(file.inode) == inode => break,
            Some(file) if found.iter().any(|other| other.inode == file.inode) => {}
            Some(file) => found.push_front(file),
            // In the middle of a rotation one name is free, the newest's if it is at its end.
            None if gaps == 0 => gaps += 1,
            None => break,
        }
    }
    Ok(found)
}

fn tail_of(file: &File, count: u64) -> io::Result<(u64, u64)> {
    let mut end = file.metadata()?.len();
    let mut scan = TailScan::new(count, end);
    let mut block = vec![0; BLOCK_BYTES];
    while end > 0 {
        let begin = end.saturating_sub(BLOCK_BYTES as u64);
        let block = &mut block[..usize::try_from(end - begin).expect("a block is small")];
        file.read_exact_at(block, begin)?;
        if scan.block(begin, block) {
            break;
        }
        end = begin;
    }
    Ok(scan.result())
}
