//! Where clients attach to a container: a unix socket that the container's logger owns, so that they come back after
//! the server was killed.
//!
//! Each has a queue with a bound, and who is that far behind is told so and gets nothing more: a container never stands
//! still because of a client. One that has input was made for its clients, and is slowed down to those that do read, so
//! that they hear everything; it waits [`PATIENCE_MS`] for one that does not, once, and then never again.
//! Input waits for the container: while it does not read, nobody is read from.
#![allow(clippy::disallowed_methods, reason = "a shell: a socket and a pipe in the run directory")]

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::wire;

/// Attached at a time; more are turned away.
const ATTACHERS_MAX: usize = 8;
/// How far an attacher may be behind.
const QUEUE_BYTES_MAX: usize = 4 << 20;
/// How far an attacher may be behind before a container with input is slowed down.
const PATIENT_BYTES: usize = 256 << 10;
/// How long a container with input waits for an attacher that reads nothing, in milliseconds.
const PATIENCE_MS: u16 = 2000;
const INPUT_BYTES: usize = 16 << 10;

/// The socket's name in its folder.
pub const SOCKET: &str = "socket";
/// The pipe that the container reads from.
pub const STDIN: &str = "in";

/// The address of the socket in `folder`, short enough for any folder: through the open folder's number.
pub fn address(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))
}

/// Opens a container's input, for both directions: it opens at once, and does not end when attachers leave.
pub(crate) fn open_input(folder: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(folder.join(STDIN))
}

pub(super) struct Door {
    folder: PathBuf,
    listener: UnixListener,
    attachers: Vec<Attacher>,
    /// The container's input; none when it has none, or when it is over.
    stdin: Option<File>,
    /// Input that the container has not taken yet.
    pending: Vec<u8>,
    /// The first attacher's end of input is the container's.
    once: bool,
    closing: bool,
    /// The container is slowed down to its attachers.
    patient: bool,
}

struct Attacher {
    socket: UnixStream,
    greeted: bool,
    /// More input may come.
    input_open: bool,
    output_open: bool,
    /// Nothing more is queued; it is let go when the queue is empty.
    leaving: bool,
    queue: Vec<u8>,
    sent: usize,
}

/// What a descriptor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Listener,
    Stdin,
    Attacher(usize),
}

impl Door {
    /// A door to a container with (`stdin`) or without input.
    pub(super) fn open(folder: &Path, stdin: bool, once: bool) -> io::Result<Self> {
        let fail = |e: io::Error| io::Error::new(e.kind(), format!("make a socket in {}: {e}", folder.display()));
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(fail)?;
        match std::fs::remove_file(folder.join(SOCKET)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail(e)),
            _ => {}
        }
        let open = File::open(folder).map_err(fail)?;
        let listener = UnixListener::bind(address(&open)).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        let stdin = if stdin { Some(open_input(folder).map_err(fail)?) } else { None };
        let (folder, patient) = (folder.to_owned(), stdin.is_some());
        Ok(Self { folder, listener, attachers: Vec::new(), stdin, pending: Vec::new(), once, closing: false, patient })
    }

    /// What is waited for.
    pub(super) fn interests(&self) -> Vec<(Place, PollFd<'_>)> {
        let mut all = vec![(Place::Listener, PollFd::new(self.listener.as_fd(), PollFlags::POLLIN))];
        if let Some(stdin) = self.stdin.as_ref().filter(|_| !self.pending.is_empty()) {
            all.push((Place::Stdin, PollFd::new(stdin.as_fd(), PollFlags::POLLOUT)));
        }
        for (index, attacher) in self.attachers.iter().enumerate() {
            if let Some(flags) = attacher.interest(self.pending.is_empty()) {
                all.push((Place::Attacher(index), PollFd::new(attacher.fd(), flags)));
            }
        }
        all
    }

    /// Something happened at `place`.
    pub(super) fn act(&mut self, place: Place, flags: PollFlags) {
        match place {
            Place::Listener => self.accept(),
            Place::Stdin => self.feed(),
            Place::Attacher(index) => {
                let Some(attacher) = self.attachers.get_mut(index) else { return };
                if flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
                    attacher.output_open = false;
                }
                attacher.flush();
                if attacher.input_open && self.pending.is_empty() {
                    self.take_input(index);
                }
            }
        }
    }

    /// Lets go of who is done. After all of a round's [`Door::act`]s: places are numbers.
    pub(super) fn tidy(&mut self) {
        self.attachers.retain(|attacher| !attacher.is_done());
    }

    fn accept(&mut self) {
        // The next round tells of the next one.
        let Ok((socket, _)) = self.listener.accept() else { return };
        if self.attachers.len() < ATTACHERS_MAX && socket.set_nonblocking(true).is_ok() {
            self.attachers.push(Attacher::new(socket));
        }
    }

    fn take_input(&mut self, index: usize) {
        let Some(attacher) = self.attachers.get_mut(index) else { return };
        let mut buffer = vec![0; INPUT_BYTES];
        let count = match attacher.socket.read(&mut buffer) {
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return,
            Err(_) => 0,
            Ok(count) => count,
        };
        let mut bytes = &buffer[..count];
        if !attacher.greeted
            && let Some((first, rest)) = bytes.split_first()
        {
            (attacher.greeted, bytes) = (true, rest);
            if *first != wire::WITH_INPUT {
                attacher.input_open = false;
                return;
            }
        }
        if count == 0 {
            attacher.input_open = false;
            if attacher.greeted && self.once {
                self.closing = true;
                self.feed();
            } else {
                // Whoever has said everything is done (containerd `internal/cri/io`, `Attach`).
                attacher.leaving = true;
            }
        } else if self.stdin.is_some() && !self.closing {
            self.pending.extend_from_slice(bytes);
            self.feed();
        }
    }

    /// Gives the container what it takes of its input.
    fn feed(&mut self) {
        while let Some(stdin) = self.stdin.as_mut().filter(|_| !self.pending.is_empty()) {
            match stdin.write(&self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // Nobody will ever read it.
                Err(_) => self.pending.clear(),
            }
        }
        if self.closing {
            self.stdin = None;
        }
    }

    /// Copies output to everybody.
    pub(super) fn send(&mut self, kind: u8, bytes: &[u8]) {
        for attacher in &mut self.attachers {
            for piece in bytes.chunks(wire::CONTENT_BYTES_MAX) {
                attacher.queue(kind, piece);
            }
            attacher.flush();
            if self.patient {
                attacher.wait();
            }
        }
    }

    /// Nothing more comes: who is still there gets what is queued, as far as it takes it. Returns whether all is sent.
    pub(super) fn is_drained(&mut self) -> bool {
        self.attachers.iter_mut().for_each(Attacher::flush);
        self.attachers.retain(|attacher| attacher.output_open && !attacher.queue.is_empty());
        self.attachers.is_empty()
    }

    /// Those who still have something to get.
    pub(super) fn waiting(&self) -> Vec<PollFd<'_>> {
        self.attachers.iter().map(|attacher| PollFd::new(attacher.fd(), PollFlags::POLLOUT)).collect()
    }

    /// Removes the socket and whatever else is in its folder.
    pub(super) fn close(self) -> io::Result<()> {
        match std::fs::remove_dir_all(&self.folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

impl Attacher {
    fn new(socket: UnixStream) -> Self {
        let (greeted, input_open, output_open, leaving) = (false, true, true, false);
        Self { socket, greeted, input_open, output_open, leaving, queue: Vec::new(), sent: 0 }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn interest(&self, input_is_taken: bool) -> Option<PollFlags> {
        let reads = self.input_open && input_is_taken;
        let writes = self.output_open && !self.queue.is_empty();
        // Without input, it is only waited for until it leaves.
        let watches = self.output_open && !self.input_open;
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, reads);
        flags.set(PollFlags::POLLOUT, writes);
        (reads || writes || watches).then_some(flags)
    }

    fn is_done(&self) -> bool {
        let heard = !self.output_open || (self.leaving && self.queue.is_empty());
        heard && !self.input_open
    }

    fn queue(&mut self, kind: u8, piece: &[u8]) {
        if !self.output_open || self.leaving {
            return;
        }
        if self.behind() + piece.len() > QUEUE_BYTES_MAX {
            self.refuse();
            return;
        }
        self.queue.extend(wire::head(kind, piece.len()));
        self.queue.extend_from_slice(piece);
    }

    /// Bytes that the client has not taken.
    fn behind(&self) -> usize {
        self.queue.len() - self.sent
    }

    /// Cuts off a client that does not read.
    fn refuse(&mut self) {
        let reason = format!("the client was {} bytes behind the container's output", self.behind());
        self.queue.extend(wire::head(wire::REFUSED, reason.len()));
        self.queue.extend(reason.bytes());
        (self.leaving, self.input_open) = (true, false);
    }

    /// Waits until the client has read most of what is queued, as long as it reads.
    fn wait(&mut self) {
        while self.output_open && !self.leaving && self.behind() > PATIENT_BYTES {
            let mut waiting = [PollFd::new(self.fd(), PollFlags::POLLOUT)];
            match poll(&mut waiting, PollTimeout::from(PATIENCE_MS)) {
                Err(nix::Error::EINTR) => {}
                Ok(0) | Err(_) => self.refuse(),
                Ok(_) => self.flush(),
            }
        }
    }

    fn flush(&mut self) {
        while self.output_open && self.sent < self.queue.len() {
            match self.socket.write(&self.queue[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    // Moved only when it is worth it.
                    if self.sent > QUEUE_BYTES_MAX / 4 {
                        self.queue.drain(..self.sent);
                        self.sent = 0;
                    }
                    return;
                }
                Err(_) => self.output_open = false,
            }
        }
        self.queue.clear();
        self.sent = 0;
    }
}
