//! A container's log as clients ask for it. [`Options`], [`Reader`] and `tail` are pure; [`stream`] reads
//! the files, a block at a time.
//!
//! Files hold lines in the CRI's form, `<time> <stream> <F|P> <text>`; a long line comes in parts, of which the last is
//! `F`. Rotated files are `NAME.1` (newest) upwards. (`pkg/kubelet/kuberuntime/logs/logs.go`.)

#![allow(clippy::disallowed_methods, reason = "a shell at its end: log files are read as they lie")]

mod files;
mod tail;

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
use files::Files;

/// How much of a file is read at a time.
const BLOCK_BYTES: usize = 64 << 10;
/// The logger's pieces are shorter by far; what is longer is no line of a log, and is left out.
const LINE_BYTES_MAX: usize = 256 << 10;

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
    /// That line is too long, and goes with its end.
    skipping: bool,
    /// The last piece was a part: what follows belongs to the same line.
    inside: bool,
    sent: u64,
}

impl Reader {
    /// A reader for these options.
    pub fn new(options: Options) -> Self {
        Self { options, rest: Vec::new(), skipping: false, inside: false, sent: 0 }
    }

    /// Takes in bytes of the file, gives what the client gets for them.
    pub fn feed(&mut self, bytes: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        self.rest.extend_from_slice(bytes);
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = self.rest.drain(..whole).collect();
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            if !std::mem::take(&mut self.skipping) {
                self.line(&line[..line.len() - 1], &mut out);
            }
        }
        if self.rest.len() > LINE_BYTES_MAX {
            self.rest.clear();
            self.skipping = true;
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

/// The log at `path` as a stream of chunks. With `follow` it goes on until `ended` turns true and everything is read.
pub async fn stream(
    path: PathBuf,
    options: Options,
    ended: watch::Receiver<bool>,
) -> io::Result<impl Stream<Item = Bytes> + Send> {
    // Before the files are looked at, so that no change is missed.
    let follow = if options.follow { Some(Follow::start(&path)?) } else { None };
    let tail = options.tail;
    let files = away(move || Files::open(path, tail)).await?;
    let state = State { reader: Reader::new(options), files: Some(files), ended, follow };
    Ok(streams::unfold(state, |mut state| async { state.next().await.map(|chunk| (chunk, state)) }))
}

struct State {
    reader: Reader,
    /// None only while a thread that may wait for the disk has them, or after that failed.
    files: Option<Files>,
    ended: watch::Receiver<bool>,
    follow: Option<Follow>,
}

impl State {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.reader.is_full() {
                return None;
            }
            // Looked at before the files, so that what was written before the end is read after it.
            let over = *self.ended.borrow();
            let bytes = self.with(Files::read).await?;
            if !bytes.is_empty() {
                let out = self.reader.feed(&bytes);
                if !out.is_empty() {
                    return Some(out);
                }
                continue;
            }
            self.follow.as_ref()?;
            if self.with(Files::advance).await? {
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

    async fn with<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Files) -> io::Result<T> + Send + 'static,
    ) -> Option<T> {
        let mut files = self.files.take()?;
        let done = away(move || {
            let result = work(&mut files)?;
            Ok((files, result))
        });
        match done.await {
            Ok((files, result)) => {
                self.files = Some(files);
                Some(result)
            }
            Err(error) => {
                tracing::warn!(%error, "a log cannot be read any further");
                None
            }
        }
    }
}

/// Does `work` on a thread that may wait for the disk.
async fn away<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| io::Error::other("the process is ending"))?
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
        let mut reader = Reader::new(Options::default());
        let endless = [&LOG[..40], &vec![b'x'; LINE_BYTES_MAX]].concat();
        assert_eq!([reader.feed(&endless), reader.feed(b"\n"), reader.feed(&LOG[..44])].concat(), b"one\n");
    }

    #[test]
    fn a_line_may_come_in_any_number_of_pieces() {
        for cut in 0..LOG.len() {
            let mut reader = Reader::new(Options::default());
            let whole = [reader.feed(&LOG[..cut]), reader.feed(&LOG[cut..])].concat();
            assert_eq!(whole, b"one\ntwo\nthree\n", "cut at {cut}");
        }
    }

    /// A line of the file that says `text`.
    fn said(text: &str) -> String {
        format!("2026-01-01T00:00:04.000000000Z stdout F {text}\n")
    }

    async fn all(path: &Path, options: Options) -> String {
        let chunks: Vec<_> = stream(path.to_owned(), options, watch::channel(true).1).await.unwrap().collect().await;
        assert!(chunks.iter().all(|chunk| chunk.len() <= BLOCK_BYTES), "a chunk is as large as a file");
        String::from_utf8(chunks.concat()).unwrap()
    }

    #[tokio::test]
    async fn large_logs_come_in_small_pieces_however_much_is_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        assert_eq!(all(&path, Options::default()).await, "", "it has said nothing yet");
        let lines =
            |from: u32| (from..from + 5000).map(|number| said(&format!("line {number:>50}"))).collect::<String>();
        for (name, from) in [("0.log", 10_000), ("0.log.1", 5000), ("0.log.2", 0)] {
            std::fs::write(folder.path().join(name), lines(from)).unwrap();
        }
        let whole = all(&path, Options::default()).await;
        assert_eq!(whole.lines().count(), 15_000);
        assert!(whole.starts_with(&format!("line {:>50}\n", 0)) && whole.ends_with(&format!("line {:>50}\n", 14_999)));
        for count in [0, 1, 700, 4999, 5000, 5001, 14_999, 15_000, 20_000] {
            let tail = all(&path, Options { tail: Some(count), ..Options::default() }).await;
            assert_eq!(tail.lines().count(), usize::try_from(count).unwrap().min(15_000), "tail of {count}");
            assert!(whole.ends_with(&tail), "tail of {count}");
        }
        let limited = all(&path, Options { limit_bytes: Some(100_000), ..Options::default() }).await;
        assert_eq!(limited, whole[..100_000]);
        let both = all(&path, Options { tail: Some(6000), limit_bytes: Some(60), ..Options::default() }).await;
        assert!(whole.contains(&both) && both.len() == 60 && both.contains(" 9000\n"), "{both}");
    }

    #[tokio::test]
    async fn who_follows_slowly_loses_nothing_to_rotations() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let rotate = || {
            for number in (0..4).rev() {
                let name =
                    |number| folder.path().join(if number == 0 { "0.log".into() } else { format!("0.log.{number}") });
                let _ = std::fs::rename(name(number), name(number + 1)); // Some are not there yet.
            }
        };
        let write = |text: &str| {
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
            std::io::Write::write_all(&mut file, said(text).as_bytes()).unwrap();
        };
        write("1");
        let (end, ended) = watch::channel(false);
        let mut stream =
            Box::pin(stream(path.clone(), Options { follow: true, ..Options::default() }, ended).await.unwrap());
        assert_eq!(stream.next().await.unwrap(), "1\n");
        // Each file is longer than what was read of the one before, and the first grew before it was rotated.
        write("2");
        rotate();
        write("3, longer than all before");
        rotate();
        write("4, which is longer still than that");
        rotate();
        write("5, and this is the longest of them all, by far");
        end.send(true).unwrap();
        let rest: Vec<_> = stream.collect().await;
        let rest = String::from_utf8(rest.concat()).unwrap();
        let starts: Vec<_> = rest.lines().map(|line| &line[..1]).collect();
        assert_eq!(starts, ["2", "3", "4", "5"], "{rest}");
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
