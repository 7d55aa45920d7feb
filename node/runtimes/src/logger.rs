//! The process that writes one container's log, and goes on writing it while the server is dead.
//!
//! containerd starts it (`binary://` in a task's output) with the container's stdout on descriptor 3, stderr on 4, and
//! waits until it closes 5. Lines go out in the CRI's form, `<time> <stream> <F|P> <text>` (kubelet
//! `pkg/kubelet/kuberuntime/logs`), to a file that is rotated by size: `0.log`, `0.log.1` … the oldest dropped.
//! It must never stop reading: a container whose log cannot be written still runs, and what was lost is said in the
//! log as soon as it can be written again.
#![allow(unsafe_code, reason = "three descriptors arrive by number")]
#![allow(clippy::disallowed_methods, reason = "a shell: a process of its own that writes one file")]

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, signal};

/// The verb of the binary that runs [`logger_main`].
pub const LOGGER_VERB: &str = "container-logger";
/// The longest line in one piece, as the CRI cuts them.
const LINE_BYTES_MAX: usize = 16 << 10;
/// The kubelet's defaults (`containerLogMaxSize`, `containerLogMaxFiles`).
pub const ROTATION: Rotation = Rotation { bytes_max: 10 << 20, files_max: 5 };

/// When a log is rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// A file is not written to after it has this many bytes.
    pub bytes_max: u64,
    /// Files kept, the current one included.
    pub files_max: u32,
}

/// The argument after the verb: where to write and when to rotate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggerTarget {
    /// The file.
    pub path: PathBuf,
    /// When to rotate.
    pub rotation: Rotation,
}

impl LoggerTarget {
    /// As one argument.
    pub fn to_argument(&self) -> String {
        format!("{}:{}:{}", self.rotation.bytes_max, self.rotation.files_max, self.path.display())
    }

    /// Reads [`LoggerTarget::to_argument`] back.
    pub fn parse(argument: &str) -> Option<Self> {
        let mut fields = argument.splitn(3, ':');
        let bytes_max = fields.next()?.parse().ok()?;
        let files_max = fields.next()?.parse().ok()?;
        let path = PathBuf::from(fields.next().filter(|path| path.starts_with('/'))?);
        Some(Self { path, rotation: Rotation { bytes_max, files_max } })
    }
}

/// Runs the logger with the arguments after its verb. Returns when the container has closed its output.
pub fn logger_main(arguments: &[OsString]) -> io::Result<()> {
    let target = match arguments {
        [argument] => argument.to_str().and_then(LoggerTarget::parse),
        _ => None,
    };
    let Some(target) = target else {
        let usage = format!("usage: kedge {LOGGER_VERB} MAX-BYTES:MAX-FILES:/PATH (started by containerd only)");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, usage));
    };
    // containerd asks it to end while output may still be in the pipes; end of file is the end.
    // SAFETY: ignoring a signal installs no handler of ours.
    unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) }?;
    let mut log = LogFile::open(target)?;
    // SAFETY: containerd passes these three descriptors to a logger, and nothing else in this process has them.
    let [stdout, stderr, ready] = [3, 4, 5].map(|number| unsafe { OwnedFd::from_raw_fd(number) });
    drop(ready);
    copy(&mut [Source::new("stdout", stdout), Source::new("stderr", stderr)], &mut log)
}

struct Source {
    file: Option<File>,
    splitter: Splitter,
}

impl Source {
    fn new(stream: &'static str, descriptor: OwnedFd) -> Self {
        Self { file: Some(File::from(descriptor)), splitter: Splitter { stream, rest: Vec::new() } }
    }
}

fn copy(sources: &mut [Source], log: &mut LogFile) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    while sources.iter().any(|source| source.file.is_some()) {
        let mut ready = Vec::new();
        {
            let open = |(index, source): (usize, &'_ Source)| source.file.as_ref().map(|_| index);
            let indexes: Vec<usize> = sources.iter().enumerate().filter_map(open).collect();
            let files = indexes.iter().filter_map(|index| sources[*index].file.as_ref());
            let mut waiting: Vec<_> = files.map(|file| PollFd::new(file.as_fd(), PollFlags::POLLIN)).collect();
            match poll(&mut waiting, PollTimeout::NONE) {
                Err(nix::Error::EINTR) => continue,
                other => other?,
            };
            let any = waiting.iter().zip(indexes).filter(|(fd, _)| fd.any().unwrap_or(true));
            ready.extend(any.map(|(_, index)| index));
        }
        for index in ready {
            let source = &mut sources[index];
            let Some(file) = &mut source.file else { continue };
            let now = jiff::Timestamp::now();
            match file.read(&mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => {
                    source.file = None;
                    log.append(&source.splitter.finish(now));
                }
                Ok(read) => log.append(&source.splitter.feed(&buffer[..read], now)),
            }
        }
    }
    Ok(())
}

/// Cuts a stream into log lines.
#[derive(Debug)]
struct Splitter {
    stream: &'static str,
    rest: Vec<u8>,
}

impl Splitter {
    fn feed(&mut self, bytes: &[u8], now: jiff::Timestamp) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 64);
        self.rest.extend_from_slice(bytes);
        let mut start = 0;
        loop {
            let rest = &self.rest[start..];
            let window = &rest[..rest.len().min(LINE_BYTES_MAX)];
            match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.line(&mut out, 'F', &rest[..end], now);
                    start += end + 1;
                }
                None if window.len() == LINE_BYTES_MAX => {
                    self.line(&mut out, 'P', window, now);
                    start += LINE_BYTES_MAX;
                }
                None => break,
            }
        }
        self.rest.drain(..start);
        out
    }

    /// What is left without a newline is still a line.
    fn finish(&mut self, now: jiff::Timestamp) -> Vec<u8> {
        let mut out = Vec::new();
        let rest = std::mem::take(&mut self.rest);
        if !rest.is_empty() {
            self.line(&mut out, 'F', &rest, now);
        }
        out
    }

    fn line(&self, out: &mut Vec<u8>, tag: char, text: &[u8], now: jiff::Timestamp) {
        out.extend_from_slice(format!("{now:.9} {} {tag} ", self.stream).as_bytes());
        out.extend_from_slice(text);
        out.push(b'\n');
    }
}

struct LogFile {
    target: LoggerTarget,
    file: File,
    bytes: u64,
    lost: u64,
}

impl LogFile {
    fn open(target: LoggerTarget) -> io::Result<Self> {
        let file = open_log(&target.path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { target, file, bytes, lost: 0 })
    }

    /// Writes whole lines, in one call where the disk lets it. Never fails: what cannot be written is counted.
    fn append(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        if self.bytes >= self.target.rotation.bytes_max {
            // If that fails the old file grows on; better a long log than none.
            if let Ok(file) = rotate(&self.target) {
                (self.file, self.bytes) = (file, 0);
            }
        }
        if self.lost > 0 {
            let now = jiff::Timestamp::now();
            let note = format!("{now:.9} stderr F kedge: {} bytes of log could not be written\n", self.lost);
            if self.write(note.as_bytes()) {
                self.lost = 0;
            }
        }
        if self.lost > 0 || !self.write(lines) {
            self.lost += lines.len() as u64;
        }
    }

    fn write(&mut self, bytes: &[u8]) -> bool {
        let written = self.file.write_all(bytes).is_ok();
        self.bytes += if written { bytes.len() as u64 } else { 0 };
        written
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    let fail = |e: io::Error| io::Error::new(e.kind(), format!("open log {}: {e}", path.display()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(fail)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o640).open(path).map_err(fail)
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// Shifts every file by one and opens a new one.
fn rotate(target: &LoggerTarget) -> io::Result<File> {
    let last = target.rotation.files_max.saturating_sub(1);
    if last == 0 {
        std::fs::remove_file(&target.path)?;
    }
    for number in (0..last).rev() {
        let from = if number == 0 { target.path.clone() } else { numbered(&target.path, number) };
        match std::fs::rename(&from, numbered(&target.path, number + 1)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    open_log(&target.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: jiff::Timestamp = jiff::Timestamp::UNIX_EPOCH;

    fn check(chunks: &[&[u8]], expected: &[(char, usize)]) {
        let mut splitter = Splitter { stream: "stdout", rest: Vec::new() };
        let mut out: Vec<u8> = chunks.iter().flat_map(|chunk| splitter.feed(chunk, AT)).collect();
        out.extend(splitter.finish(AT));
        let prefix = "1970-01-01T00:00:00.000000000Z stdout ";
        let lines: Vec<(char, usize)> = std::str::from_utf8(&out)
            .unwrap()
            .lines()
            .map(|line| line.strip_prefix(prefix).unwrap())
            .map(|line| (line.chars().next().unwrap(), line.len() - 2))
            .collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn streams_become_lines() {
        check(&[b"one\ntwo\n"], &[('F', 3), ('F', 3)]);
        check(&[b"on", b"e\n", b"\n"], &[('F', 3), ('F', 0)]);
        check(&[b"no newline"], &[('F', 10)]);
        check(&[], &[]);
        let long = vec![b'x'; LINE_BYTES_MAX + 5];
        check(&[&long, b"\n"], &[('P', LINE_BYTES_MAX), ('F', 5)]);
        let exact = vec![b'x'; LINE_BYTES_MAX];
        check(&[&exact, b"\n"], &[('P', LINE_BYTES_MAX), ('F', 0)]);
    }

    #[test]
    fn a_target_survives_being_an_argument() {
        let target = LoggerTarget { path: "/a:b/c d.log".into(), rotation: ROTATION };
        assert_eq!(LoggerTarget::parse(&target.to_argument()), Some(target));
        for bad in ["", "1:2", "x:2:/p", "1:2:relative"] {
            assert_eq!(LoggerTarget::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn files_are_rotated_by_size_and_the_oldest_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let rotation = Rotation { bytes_max: 10, files_max: 3 };
        let mut log = LogFile::open(LoggerTarget { path, rotation }).unwrap();
        for text in ["first line\n", "second line\n", "third line\n", "fourth line\n"] {
            log.append(text.as_bytes());
        }
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
        assert_eq!(
            [read("0.log"), read("0.log.1"), read("0.log.2")],
            ["fourth line\n", "third line\n", "second line\n"]
        );
        assert_eq!(read("0.log.3"), "");
    }

    #[test]
    fn both_streams_are_copied_to_their_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/0.log");
        let mut log = LogFile::open(LoggerTarget { path: path.clone(), rotation: ROTATION }).unwrap();
        let (out_read, out_write) = nix::unistd::pipe().unwrap();
        let (err_read, err_write) = nix::unistd::pipe().unwrap();
        File::from(out_write).write_all(b"hello\n").unwrap();
        File::from(err_write).write_all(b"oops").unwrap();
        copy(&mut [Source::new("stdout", out_read), Source::new("stderr", err_read)], &mut log).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains(" stdout F hello\n") && text.contains(" stderr F oops\n"), "{text}");
    }
}
