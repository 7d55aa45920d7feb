//! The process that writes one container's log and lets clients attach to it, also while the server is dead.
//!
//! containerd starts it (`binary://` in a task's output) with the container's stdout on descriptor 3, stderr on 4, and
//! waits until it closes 5. containerd gives such a container no input; for one that has it, the server starts the
//! logger, and named pipes lead to the container. Lines go out in the CRI's form, `<time> <stream> <F|P> <text>` (kubelet
//! `pkg/kubelet/kuberuntime/logs`), to a file that is rotated by size: `0.log`, `0.log.1` … the oldest dropped.
//! It must never stop reading: a container whose log cannot be written still runs, and what was lost is said in the
//! log as soon as it can be written again.
#![allow(unsafe_code, reason = "three descriptors arrive by number")]
#![allow(clippy::disallowed_methods, reason = "a shell: a process of its own that writes one file")]

pub mod door;
pub mod mark;
pub mod wire;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, signal};
use serde::{Deserialize, Serialize};

use door::{Door, Place};

/// The verb of the binary that runs [`logger_main`].
pub const LOGGER_VERB: &str = "container-logger";
/// The longest line in one piece, as the CRI cuts them.
const LINE_BYTES_MAX: usize = 16 << 10;
/// The kubelet's defaults (`containerLogMaxSize`, `containerLogMaxFiles`).
pub const ROTATION: Rotation = Rotation { bytes_max: 10 << 20, files_max: 5 };

/// How long clients may take to read the last output of a container that has ended.
const DRAIN_TIME_MAX_MS: u16 = 2000;

/// When a log is rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// A file is not written to after it has this many bytes.
    pub bytes_max: u64,
    /// Files kept, the current one included.
    pub files_max: u32,
}

/// The argument after the verb: where to write, when to rotate, where clients attach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggerTarget {
    /// The file.
    pub path: PathBuf,
    /// When to rotate.
    pub rotation: Rotation,
    /// The folder of the socket where clients attach, and of the pipes.
    pub folder: PathBuf,
    /// The container's streams are named pipes in the folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipes: Option<Pipes>,
    /// It takes the place of one that was killed: the container's output and, without a terminal, its errors are read
    /// there; without [`LoggerTarget::pipes`] the container's input ended with that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead: Option<Vec<PathBuf>>,
}

/// The named pipes of a container that has input: `in`, `out` and, without a terminal, `err`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipes {
    /// It has a terminal.
    pub tty: bool,
    /// The end of the first client's input is the end of the container's (`stdinOnce`). Never with a terminal.
    pub once: bool,
}

/// The pipe that the container writes its output to.
pub const STDOUT_PIPE: &str = "out";
/// The pipe that the container writes its errors to.
pub const STDERR_PIPE: &str = "err";
/// What a logger that was started by the server says when clients can attach.
pub const READY: &str = "ready\n";

impl LoggerTarget {
    /// As one argument.
    pub fn to_argument(&self) -> String {
        serde_json::to_string(self).expect("paths of ours are text")
    }

    /// Reads [`LoggerTarget::to_argument`] back.
    pub fn parse(argument: &str) -> Option<Self> {
        let target: Self = serde_json::from_str(argument).ok()?;
        (target.path.is_absolute() && target.folder.is_absolute()).then_some(target)
    }
}

/// Runs the logger with the arguments after its verb. Returns when the container has closed its output.
pub fn logger_main(arguments: &[OsString]) -> io::Result<()> {
    let target = match arguments {
        [argument] => argument.to_str().and_then(LoggerTarget::parse),
        _ => None,
    };
    let Some(target) = target else {
        let usage = format!("usage: kedge {LOGGER_VERB} TARGET (started by kedge and containerd only)");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, usage));
    };
    // containerd asks it to end while output may still be in the pipes; end of file is the end.
    // SAFETY: ignoring a signal installs no handler of ours.
    unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) }?;
    let mut log = LogFile::open(target.clone())?;
    let (stdin, once) = (target.pipes.is_some(), target.pipes.is_some_and(|pipes| pipes.once && !pipes.tty));
    // A container whose clients cannot attach still runs, and says so in its log.
    let door = Door::open(&target.folder, stdin, once).map_err(|e| log.note(&format!("nobody can attach: {e}"))).ok();
    let streams: Vec<File> = match (&target.instead, target.pipes) {
        (Some(paths), _) => paths.iter().map(|path| open_left(path)).collect::<io::Result<_>>()?,
        (None, None) => {
            // SAFETY: containerd passes these two descriptors to a logger, and nothing else in this process has them.
            [3, 4].map(|number| unsafe { OwnedFd::from_raw_fd(number) }.into()).into()
        }
        (None, Some(pipes)) => {
            let names = if pipes.tty { &[STDOUT_PIPE][..] } else { &[STDOUT_PIPE, STDERR_PIPE] };
            names.iter().map(|name| open_pipe(&target.folder.join(name))).collect::<io::Result<_>>()?
        }
    };
    // Before anybody may look for it. Without a door there is no folder, and nobody will.
    let marked = door.as_ref().map_or(Ok(()), |_| mark::LoggerMark::own(&streams)?.write(&target.folder));
    if let Err(error) = marked {
        log.note(&format!("nobody will notice if this log's process is killed: {error}"));
    }
    if target.instead.is_some() {
        log.note("the process that wrote this log was killed; another goes on, and a line or two may be missing here");
    }
    if target.instead.is_none() && target.pipes.is_none() {
        // SAFETY: the third of containerd's descriptors; it waits until this is closed.
        drop(unsafe { OwnedFd::from_raw_fd(5) });
    } else {
        io::stdout().write_all(READY.as_bytes())?;
        io::stdout().flush()?;
    }
    let kinds = [wire::STDOUT, wire::STDERR];
    let mut sources: Vec<Source> = kinds.into_iter().zip(streams).map(|(kind, file)| Source::new(kind, file)).collect();
    copy(&mut sources, &mut log, door)
}

/// Opens a stream that a killed logger read. A writer that comes and goes makes sure that its end is seen even if the
/// container ends in this moment.
fn open_left(path: &Path) -> io::Result<File> {
    let fail = |e: io::Error| io::Error::new(e.kind(), format!("open {}: {e}", path.display()));
    let file = open_pipe(path).map_err(fail)?;
    drop(OpenOptions::new().write(true).custom_flags(nix::libc::O_NONBLOCK).open(path).map_err(fail)?);
    Ok(file)
}

/// Opens a named pipe for reading without waiting for its writer; until one comes there is nothing to read.
pub(crate) fn open_pipe(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)
}

struct Source {
    kind: u8,
    file: Option<File>,
    splitter: Splitter,
}

impl Source {
    fn new(kind: u8, file: File) -> Self {
        let stream = if kind == wire::STDOUT { "stdout" } else { "stderr" };
        Self { kind, file: Some(file), splitter: Splitter { stream, rest: Vec::new() } }
    }
}

fn copy(sources: &mut [Source], log: &mut LogFile, mut door: Option<Door>) -> io::Result<()> {
    let mut buffer = vec![0; wire::CONTENT_BYTES_MAX];
    while sources.iter().any(|source| source.file.is_some()) {
        let mut readable = Vec::new();
        let mut visited: Vec<(Place, PollFlags)> = Vec::new();
        {
            let open = |(index, source): (usize, &'_ Source)| source.file.as_ref().map(|_| index);
            let indexes: Vec<usize> = sources.iter().enumerate().filter_map(open).collect();
            let files = indexes.iter().filter_map(|index| sources[*index].file.as_ref());
            let mut waiting: Vec<_> = files.map(|file| PollFd::new(file.as_fd(), PollFlags::POLLIN)).collect();
            let (places, descriptors): (Vec<_>, Vec<_>) = door.iter().flat_map(|door| door.interests()).unzip();
            waiting.extend(descriptors);
            match poll(&mut waiting, PollTimeout::NONE) {
                Err(nix::Error::EINTR) => continue,
                other => other?,
            };
            // What is not understood is looked at as well: reading then says what is wrong.
            let flags = |fd: &PollFd<'_>| fd.revents().unwrap_or(PollFlags::POLLIN);
            let (own, others) = waiting.split_at(indexes.len());
            let any = own.iter().zip(indexes).filter(|(fd, _)| !flags(fd).is_empty());
            readable.extend(any.map(|(_, index)| index));
            let any = places.into_iter().zip(others.iter().map(flags)).filter(|(_, flags)| !flags.is_empty());
            visited.extend(any);
        }
        for index in readable {
            let source = &mut sources[index];
            let Some(file) = &mut source.file else { continue };
            let now = jiff::Timestamp::now();
            match file.read(&mut buffer) {
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Ok(0) | Err(_) => {
                    source.file = None;
                    log.append(&source.splitter.finish(now));
                }
                Ok(read) => {
                    log.append(&source.splitter.feed(&buffer[..read], now));
                    if let Some(door) = &mut door {
                        door.send(source.kind, &buffer[..read]);
                    }
                }
            }
        }
        if let Some(door) = &mut door {
            for (place, flags) in visited {
                door.act(place, flags);
            }
            door.tidy();
        }
    }
    door.map_or(Ok(()), drain)
}

/// Lets clients read the last output, for a while.
fn drain(mut door: Door) -> io::Result<()> {
    while !door.is_drained() {
        match poll(&mut door.waiting(), DRAIN_TIME_MAX_MS) {
            Err(nix::Error::EINTR) => {}
            Ok(0) => break,
            other => drop(other?),
        }
    }
    door.close()
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

    /// What is left without a newline is a part of a line that never ends, as containerd's CRI writes it.
    fn finish(&mut self, now: jiff::Timestamp) -> Vec<u8> {
        let mut out = Vec::new();
        let rest = std::mem::take(&mut self.rest);
        if !rest.is_empty() {
            self.line(&mut out, 'P', &rest, now);
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

    /// A line of our own.
    fn note(&mut self, text: &str) {
        self.append(format!("{:.9} stderr F kedge: {text}\n", jiff::Timestamp::now()).as_bytes());
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
        check(&[b"no newline"], &[('P', 10)]);
        check(&[], &[]);
        let long = vec![b'x'; LINE_BYTES_MAX + 5];
        check(&[&long, b"\n"], &[('P', LINE_BYTES_MAX), ('F', 5)]);
        let exact = vec![b'x'; LINE_BYTES_MAX];
        check(&[&exact, b"\n"], &[('P', LINE_BYTES_MAX), ('F', 0)]);
    }

    fn target(path: PathBuf, rotation: Rotation) -> LoggerTarget {
        LoggerTarget { path, rotation, folder: "/nowhere".into(), pipes: None, instead: None }
    }

    #[test]
    fn a_target_survives_being_an_argument() {
        let plain = target("/a:b/c d.log".into(), ROTATION);
        let piped = LoggerTarget { pipes: Some(Pipes { tty: true, once: false }), ..plain.clone() };
        let next = LoggerTarget { instead: Some(vec!["/proc/1/fd/7".into()]), ..plain.clone() };
        for target in [plain, piped, next] {
            assert_eq!(LoggerTarget::parse(&target.to_argument()), Some(target));
        }
        for bad in ["", "1:2:/p", "{}", &target("relative".into(), ROTATION).to_argument()] {
            assert_eq!(LoggerTarget::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn files_are_rotated_by_size_and_the_oldest_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let rotation = Rotation { bytes_max: 10, files_max: 3 };
        let mut log = LogFile::open(target(path, rotation)).unwrap();
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
        let mut log = LogFile::open(target(path.clone(), ROTATION)).unwrap();
        let (out_read, out_write) = nix::unistd::pipe().unwrap();
        let (err_read, err_write) = nix::unistd::pipe().unwrap();
        File::from(out_write).write_all(b"hello\n").unwrap();
        File::from(err_write).write_all(b"oops").unwrap();
        let mut sources = [Source::new(wire::STDOUT, out_read.into()), Source::new(wire::STDERR, err_read.into())];
        copy(&mut sources, &mut log, None).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains(" stdout F hello\n") && text.contains(" stderr P oops\n"), "{text}");
    }

    /// A logger on a thread: its container's ends, its folder, and the log.
    struct Logged {
        folder: tempfile::TempDir,
        out: File,
        stdin: File,
        thread: std::thread::JoinHandle<io::Result<()>>,
    }

    impl Logged {
        fn start(once: bool) -> Self {
            Self::with_input(true, once)
        }

        fn with_input(stdin: bool, once: bool) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let place = folder.path().join("attach");
            std::fs::create_dir(&place).unwrap();
            nix::unistd::mkfifo(&place.join(door::STDIN), nix::sys::stat::Mode::S_IRWXU).unwrap();
            let input = open_pipe(&place.join(door::STDIN)).unwrap();
            let door = Door::open(&place, stdin, once).unwrap();
            let mut log = LogFile::open(target(folder.path().join("0.log"), ROTATION)).unwrap();
            let (read, out) = nix::unistd::pipe().unwrap();
            let thread =
                std::thread::spawn(move || copy(&mut [Source::new(wire::STDOUT, read.into())], &mut log, Some(door)));
            Self { folder, out: out.into(), stdin: input, thread }
        }

        fn attach(&self, first: u8) -> std::os::unix::net::UnixStream {
            let folder = File::open(self.folder.path().join("attach")).unwrap();
            let mut socket = std::os::unix::net::UnixStream::connect(door::address(&folder)).unwrap();
            socket.write_all(&[first]).unwrap();
            socket
        }

        /// The container's input up to `expected`; true when it then ends.
        fn takes(&mut self, expected: &str) -> bool {
            let mut all = Vec::new();
            loop {
                let mut waiting = [PollFd::new(self.stdin.as_fd(), PollFlags::POLLIN)];
                let found = poll(&mut waiting, 200_u16).unwrap();
                let mut buffer = [0; 4096];
                match if found == 0 { Ok(usize::MAX) } else { self.stdin.read(&mut buffer) }.unwrap() {
                    usize::MAX if all.len() >= expected.len() => break,
                    usize::MAX => {}
                    0 => {
                        assert_eq!(String::from_utf8_lossy(&all), expected);
                        return true;
                    }
                    count => all.extend_from_slice(&buffer[..count]),
                }
            }
            assert_eq!(String::from_utf8_lossy(&all), expected);
            false
        }

        fn end(self) {
            drop(self.out);
            self.thread.join().unwrap().unwrap();
            assert!(!self.folder.path().join("attach").exists(), "the socket goes with its logger");
        }
    }

    fn frame(socket: &mut impl Read) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; wire::HEAD_BYTES];
        socket.read_exact(&mut head).ok()?;
        let (kind, length) = wire::read_head(head).unwrap();
        let mut content = vec![0; length];
        socket.read_exact(&mut content).unwrap();
        Some((kind, content))
    }

    /// Waits until the logger has taken the attacher in: what is said after it comes through.
    fn greet(logged: &mut Logged, sockets: &mut [&mut std::os::unix::net::UnixStream]) {
        std::thread::sleep(std::time::Duration::from_millis(100));
        logged.out.write_all(b"hello").unwrap();
        for socket in sockets {
            assert_eq!(frame(socket), Some((wire::STDOUT, b"hello".to_vec())));
        }
    }

    #[test]
    fn clients_hear_the_container_and_speak_to_it() {
        let mut logged = Logged::start(false);
        let (mut silent, mut speaking) = (logged.attach(wire::OUTPUT_ONLY), logged.attach(wire::WITH_INPUT));
        greet(&mut logged, &mut [&mut silent, &mut speaking]);
        speaking.write_all(b"an answer").unwrap();
        assert!(!logged.takes("an answer"), "the input goes on");
        // Who has said everything is let go; the container's input is for the next one.
        speaking.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(frame(&mut speaking), None);
        let mut next = logged.attach(wire::WITH_INPUT);
        next.write_all(b"another").unwrap();
        assert!(!logged.takes("another"));
        drop(next);
        logged.out.write_all(b"bye").unwrap();
        assert_eq!(frame(&mut silent), Some((wire::STDOUT, b"bye".to_vec())));
        logged.end();
        assert_eq!(frame(&mut silent), None);
    }

    #[test]
    fn the_first_clients_end_can_be_the_containers() {
        let mut logged = Logged::start(true);
        let mut client = logged.attach(wire::WITH_INPUT);
        client.write_all(b"all there is").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(logged.takes("all there is"), "the input ends");
        logged.out.write_all(b"heard").unwrap();
        assert_eq!(frame(&mut client), Some((wire::STDOUT, b"heard".to_vec())), "the output goes on");
        logged.end();
    }

    #[test]
    fn a_client_that_does_not_read_never_stalls_the_container() {
        for stdin in [false, true] {
            check_stalled(stdin);
        }
    }

    fn check_stalled(stdin: bool) {
        let mut logged = Logged::with_input(stdin, false);
        let mut slow = logged.attach(wire::OUTPUT_ONLY);
        greet(&mut logged, &mut [&mut slow]);
        let much = vec![b'x'; 1 << 20];
        for _ in 0..32 {
            logged.out.write_all(&much).unwrap();
        }
        let (mut heard, mut last) = (0, None);
        while let Some((kind, content)) = frame(&mut slow) {
            heard += content.len();
            last = Some((kind, content));
        }
        let (kind, reason) = last.unwrap();
        assert_eq!(kind, wire::REFUSED);
        assert!(String::from_utf8_lossy(&reason).contains("behind") && heard < 8 << 20, "{heard} bytes");
        logged.end();
    }

    #[test]
    fn a_container_with_input_is_slowed_down_to_a_client_that_reads() {
        let mut logged = Logged::start(false);
        let mut client = logged.attach(wire::OUTPUT_ONLY);
        greet(&mut logged, &mut [&mut client]);
        let reading = std::thread::spawn(move || {
            let mut heard = 0;
            while let Some((kind, content)) = frame(&mut client) {
                assert_eq!(kind, wire::STDOUT);
                heard += content.len();
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            heard
        });
        for _ in 0..32 {
            logged.out.write_all(&vec![b'x'; 1 << 20]).unwrap();
        }
        logged.end();
        assert_eq!(reading.join().unwrap(), 32 << 20);
    }

    #[test]
    fn a_container_that_does_not_read_is_waited_for_with_a_bound() {
        let mut logged = Logged::start(true);
        let mut client = logged.attach(wire::WITH_INPUT);
        let much = "y".repeat(1 << 20);
        let sending = std::thread::spawn({
            let (mut client, much) = (client.try_clone().unwrap(), much.clone());
            move || {
                client.write_all(much.as_bytes()).unwrap();
                client.shutdown(std::net::Shutdown::Write).unwrap();
            }
        });
        greet(&mut logged, &mut [&mut client]);
        assert!(!sending.is_finished(), "a megabyte is more than pipe, socket and queue hold");
        assert!(logged.takes(&much));
        sending.join().unwrap();
        logged.end();
    }
}
