//! What a logger writes down about itself beside its socket: who notices its end knows by it whether it was killed (in
//! order, it takes its folder away), and where the next one reads on.
#![allow(clippy::disallowed_methods, reason = "a shell: a file in the run directory")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::private::process::ProcessMark;

/// The file's name in the logger's folder.
const MARK: &str = "logger";

/// A logger: its process, and the kernel's names of what it reads (`pipe:[4711]`, or the path of a named pipe).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggerMark {
    /// The process.
    pub process: ProcessMark,
    /// The container's output and, where they are apart, its errors.
    pub streams: Vec<PathBuf>,
}

impl LoggerMark {
    /// This very process, which reads `streams`.
    pub fn own(streams: &[File]) -> io::Result<Self> {
        let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        let name = |file: &File| std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let streams = streams.iter().map(name).collect::<io::Result<_>>()?;
        Ok(Self { process: ProcessMark::of(pid)?, streams })
    }

    /// Writes it into its folder.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        std::fs::write(folder.join(MARK), self.to_text())
    }

    /// The one in `folder`; none once the logger has ended in order.
    pub fn read(folder: &Path) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(folder.join(MARK)).ok()?)
    }

    fn to_text(&self) -> String {
        let streams = self.streams.iter().map(|name| format!("{}\n", name.display()));
        self.process.to_text() + &streams.collect::<String>()
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.lines();
        let process = ProcessMark::parse(lines.next()?)?;
        Some(Self { process, streams: lines.map(PathBuf::from).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let (read, _write) = nix::unistd::pipe().unwrap();
        let mark = LoggerMark::own(&[read.into()]).unwrap();
        assert!(mark.process.is_alive() && mark.streams[0].to_string_lossy().starts_with("pipe:["), "{mark:?}");
        assert_eq!(LoggerMark::read(folder.path()), None);
        mark.write(folder.path()).unwrap();
        assert_eq!(LoggerMark::read(folder.path()), Some(mark));
        for half in ["", "77", "77 1", "77 x\n"] {
            assert_eq!(LoggerMark::parse(half), None, "{half:?}");
        }
    }
}
