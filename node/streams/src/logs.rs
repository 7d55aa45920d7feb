//! A container's log as clients ask for it. [`Options`] and [`Reader`] are pure; [`stream`] reads the files.
//!
//! Files hold lines in the CRI's form, `<time> <stream> <F|P> <text>`; a long line comes in parts, of which the last is
//! `F`. Rotated files are `NAME.1` (newest) upwards. (`pkg/kubelet/kuberuntime/logs/logs.go`.)

#![allow(clippy::disallowed_methods, reason = "a shell at its end: log files are read as they lie")]

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use futures::{Stream, stream as streams};
use jiff::{SignedDuration, Timestamp};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::NodeRequest;

/// Rotated files that are looked for; the logger keeps fewer.
const FILES_MAX: u32 = 20;

/// What of a log is wanted (`PodLogOptions`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Go on as lines come.
    pub follow: bool,
    /// The container's life before the present one.
    pub previous: bool,
    /// Lines from this moment on.
    pub since: Option<Timestamp>,
    /// Each line begins with its time.
    pub timestamps: bool,
    /// Only the last lines, this many.
    pub tail: Option<u64>,
    /// No more than this many bytes.
    pub limit_bytes: Option<u64>,
}

impl Options {
    /// Reads the query; the error names the parameter.
    pub fn parse(request: &NodeRequest, now: Timestamp) -> Result<Self, String> {
        let number = |key: &str, least: i64| match request.parameter(key) {
            None => Ok(None),
            Some(text) => match text.parse::<i64>() {
                Ok(number) if number >= least => Ok(Some(number)),
                _ => Err(format!("{key}: Invalid value: {text:?}: must be a number of at least {least}")),
            },
        };
        let since_time = match request.parameter("sinceTime") {
            None => None,
            Some(text) => {
                Some(text.parse().map_err(|_| format!("sinceTime: Invalid value: {text:?}: must be RFC 3339"))?)
            }
        };
        let since_seconds = number("sinceSeconds", 1)?;
        if since_time.is_some() && since_seconds.is_some() {
            return Err("sinceTime: Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified".into());
        }
        if let Some(stream) = request.parameter("stream").filter(|stream| *stream != "All") {
            return Err(format!("stream: Unsupported value: {stream:?}: only \"All\" is"));
        }
        let ago = since_seconds.and_then(|seconds| now.checked_sub(SignedDuration::from_secs(seconds)).ok());
        Ok(Self {
            follow: request.flag("follow"),
            previous: request.flag("previous"),
            since: since_time.or(ago),
            timestamps: request.flag("timestamps"),
            tail: number("tailLines", 0)?.map(|n| n as u64),
            limit_bytes: number("limitBytes", 1)?.map(|n| n as u64),
        })
    }
}

/// One piece of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece<'a> {
    time: &'a str,
    /// More of the same line follows.
    partial: bool,
    text: &'a [u8],
}

/// Reads one line of the file, without its end; none for what is no log line.
fn parse(line: &[u8]) -> Option<Piece<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let _stream = parts.next()?;
    let tag = parts.next()?;
    let text = parts.next()?;
    matches!(tag, b"F" | b"P").then_some(Piece { time, partial: tag == b"P", text })
}

/// Turns lines of the file into what the client sees.
#[derive(Debug)]
pub struct Reader {
    options: Options,
    /// The rest of a line whose end has not been read.
    rest: Vec<u8>,
    /// The last piece was a part: what follows belongs to the same line.
    inside: bool,
    sent: u64,
}

impl Reader {
    /// A reader for these options.
    pub fn new(options: Options) -> Self {
        Self { options, rest: Vec::new(), inside: false, sent: 0 }
    }

    /// Takes in bytes of the file, gives what the client gets for them.
    pub fn feed(&mut self, bytes: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        self.rest.extend_from_slice(bytes);
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = self.rest.drain(..whole).collect();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            self.line(line, &mut out);
        }
        if let Some(limit) = self.options.limit_bytes {
            out.truncate(usize::try_from(limit - self.sent).unwrap_or(usize::MAX).min(out.len()));
        }
        self.sent += out.len() as u64;
        out.freeze()
    }

    fn line(&mut self, line: &[u8], out: &mut BytesMut) {
        let Some(piece) = parse(line) else { return };
        let since = self.options.since;
        if since.is_some_and(|since| piece.time.parse::<Timestamp>().is_ok_and(|time| time < since)) {
            return;
        }
        if self.options.timestamps && !self.inside {
            out.extend_from_slice(piece.time.as_bytes());
            out.extend_from_slice(b" ");
        }
        out.extend_from_slice(piece.text);
        self.inside = piece.partial;
        if !piece.partial {
            out.extend_from_slice(b"\n");
        }
    }

    /// Whether the byte limit is reached.
    pub fn is_full(&self) -> bool {
        self.options.limit_bytes.is_some_and(|limit| self.sent >= limit)
    }
}

/// Where the last `count` lines of `bytes` begin; and how many of them there are.
fn tail(bytes: &[u8], count: u64) -> (usize, u64) {
    let (mut start, mut found) = (bytes.len(), 0);
    // A line ends with an F piece; the ones before it belong to it.
    let mut end = bytes.len();
    while end > 0 {
        let begin = bytes[..end - 1].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let line = bytes[begin..end].strip_suffix(b"\n").unwrap_or(&bytes[begin..end]);
        if parse(line).is_some_and(|piece| !piece.partial) {
            if found == count {
                break;
            }
            found += 1;
        }
        start = begin;
        end = begin;
    }
    (start, found)
}

/// The log at `path` as a stream of chunks. With `follow` it goes on until `ended` turns true and everything is read.
pub async fn stream(
    path: PathBuf,
    options: Options,
    ended: watch::Receiver<bool>,
) -> io::Result<impl Stream<Item = Bytes> + Send> {
    let mut state =
        State { reader: Reader::new(options.clone()), path, position: 0, backlog: Vec::new(), ended, follow: None };
    if options.follow {
        state.follow = Some(Follow::start(&state.path)?);
    }
    state.backlog = backlog(&state.path, options.tail)?;
    state.position = state.backlog.iter().rev().take(1).map(|part| part.1).sum();
    state.backlog.reverse();
    Ok(streams::unfold(state, |mut state| async { state.next().await.map(|chunk| (chunk, state)) }))
}

/// What is in the files already, oldest first: the bytes wanted, and the length of the file they are from.
fn backlog(path: &Path, count: Option<u64>) -> io::Result<Vec<(Vec<u8>, u64)>> {
    let mut parts = Vec::new();
    let mut wanted = count;
    let rotated = (1..FILES_MAX).map(|number| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    });
    for (index, file) in std::iter::once(path.to_owned()).chain(rotated).enumerate() {
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound && index > 0 => break,
            // A container that has said nothing yet has no file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let length = bytes.len() as u64;
        match &mut wanted {
            None => parts.push((bytes, length)),
            Some(left) => {
                let (start, found) = tail(&bytes, *left);
                parts.push((bytes[start..].to_vec(), length));
                *left -= found;
                if *left == 0 {
                    break;
                }
            }
        }
    }
    parts.reverse();
    Ok(parts)
}

struct State {
    reader: Reader,
    path: PathBuf,
    /// How much of the newest file has been read.
    position: u64,
    /// What was there at the start, newest first.
    backlog: Vec<(Vec<u8>, u64)>,
    ended: watch::Receiver<bool>,
    follow: Option<Follow>,
}

impl State {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.reader.is_full() {
                return None;
            }
            if let Some((bytes, _)) = self.backlog.pop() {
                let out = self.reader.feed(&bytes);
                if !out.is_empty() {
                    return Some(out);
                }
                continue;
            }
            self.follow.as_ref()?;
            // Looked at before the file, so that what was written before the end is read after it.
            let over = *self.ended.borrow();
            let fresh = self.fresh().ok()?;
            if !fresh.is_empty() {
                let out = self.reader.feed(&fresh);
                if !out.is_empty() {
                    return Some(out);
                }
                continue;
            }
            if over {
                return None;
            }
            let follow = self.follow.as_mut()?;
            tokio::select! {
                () = follow.changed() => {}
                _ = self.ended.wait_for(|ended| *ended) => {}
            }
        }
    }

    /// What the file holds beyond what was read; of a rotated file the rest first.
    fn fresh(&mut self) -> io::Result<Vec<u8>> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = match std::fs::File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut out = Vec::new();
        if file.metadata()?.len() < self.position {
            let mut name = self.path.as_os_str().to_owned();
            name.push(".1");
            let mut before = std::fs::File::open(&name)?;
            before.seek(SeekFrom::Start(self.position))?;
            before.read_to_end(&mut out)?;
            self.position = 0;
        }
        file.seek(SeekFrom::Start(self.position))?;
        self.position += file.read_to_end(&mut out)? as u64;
        Ok(out)
    }
}

/// Wakes when the log's folder changes.
struct Follow(AsyncFd<OwnedFd>);

impl Follow {
    fn start(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(folder, flags)?;
        #[allow(deprecated, reason = "sound here: the registration owns the descriptor, so it cannot be closed before")]
        Ok(Self(AsyncFd::new(OwnedFd::from(inotify))?))
    }

    async fn changed(&mut self) {
        if let Ok(mut ready) = self.0.readable().await {
            // What changed does not matter: the reader looks for itself.
            let mut events = [0; 4096];
            let _ = nix::unistd::read(ready.get_inner(), &mut events);
            ready.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    const LOG: &[u8] = b"2026-01-01T00:00:01.000000000Z stdout F one\n2026-01-01T00:00:02.000000000Z stderr P tw\n\
                         2026-01-01T00:00:02.000000000Z stderr F o\n2026-01-01T00:00:03.000000000Z stdout F three\n";

    fn read(options: Options, bytes: &[u8]) -> String {
        String::from_utf8(Reader::new(options).feed(bytes).to_vec()).unwrap()
    }

    #[test]
    fn lines_come_out_as_the_container_wrote_them() {
        assert_eq!(read(Options::default(), LOG), "one\ntwo\nthree\n");
        let stamped = read(Options { timestamps: true, ..Options::default() }, LOG);
        assert_eq!(stamped.lines().nth(1), Some("2026-01-01T00:00:02.000000000Z two"));
        let since = Some("2026-01-01T00:00:02Z".parse().unwrap());
        assert_eq!(read(Options { since, ..Options::default() }, LOG), "two\nthree\n");
        assert_eq!(read(Options { limit_bytes: Some(5), ..Options::default() }, LOG), "one\nt");
        assert_eq!(read(Options::default(), b"garbage\n\n2026 x F\n"), "");
    }

    #[test]
    fn a_line_may_come_in_any_number_of_pieces() {
        for cut in 0..LOG.len() {
            let mut reader = Reader::new(Options::default());
            let whole = [reader.feed(&LOG[..cut]), reader.feed(&LOG[cut..])].concat();
            assert_eq!(whole, b"one\ntwo\nthree\n", "cut at {cut}");
        }
    }

    #[test]
    fn the_tail_counts_whole_lines() {
        for (count, expected) in [(0, ""), (1, "three\n"), (2, "two\nthree\n"), (9, "one\ntwo\nthree\n")] {
            let (start, found) = tail(LOG, count);
            assert_eq!(read(Options::default(), &LOG[start..]), expected);
            assert_eq!(found, count.min(3));
        }
    }

    #[tokio::test]
    async fn following_goes_over_a_rotation_and_ends_with_the_container() {
        let folder = std::env::temp_dir().join(format!("kedge-logs-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("0.log");
        std::fs::write(&path, &LOG[..44]).unwrap();
        let (end, ended) = watch::channel(false);
        let mut stream =
            Box::pin(stream(path.clone(), Options { follow: true, ..Options::default() }, ended).await.unwrap());
        assert_eq!(stream.next().await.unwrap(), "one\n");
        std::fs::rename(&path, folder.join("0.log.1")).unwrap();
        std::fs::write(&path, b"2026-01-01T00:00:04.000000000Z stdout F x\n").unwrap();
        assert_eq!(stream.next().await.unwrap(), "x\n");
        end.send(true).unwrap();
        assert_eq!(stream.next().await, None);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
