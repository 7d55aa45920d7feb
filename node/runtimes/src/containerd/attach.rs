//! A running container's own streams, from its logger's socket ([`crate::logger::door`]); and the logger of a
//! container with input, which is started here, not by containerd.
#![allow(unsafe_code, reason = "a logger leads a session of its own, so that it outlives the server")]
#![allow(clippy::disallowed_methods, reason = "a shell: sockets and named pipes in the run directory")]

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use containerd_client::services::v1 as api;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Command;
use tokio::task::JoinHandle;

use super::record::Known;
use super::{Inner, rpc};
use crate::logger::door::{STDIN, address};
use crate::logger::mark::LoggerMark;
use crate::logger::wire;
use crate::logger::{LOGGER_VERB, LoggerTarget, Pipes, READY, ROTATION, STDERR_PIPE, STDOUT_PIPE};
use crate::runtime::{ContainerId, ContainerState, ExecControl, ExecSession, RuntimeError};

/// Output on its way to the client.
const BUFFER_BYTES: usize = 64 << 10;
/// A logger says that it is ready within milliseconds.
const READY_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a logger may take over a container's last lines, and the last clients over reading them.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);

impl Inner {
    /// Where a container's socket and pipes are.
    pub(super) fn attach_folder(&self, id: &ContainerId) -> PathBuf {
        self.settings.layout().attach().join(id.as_str())
    }

    pub(super) fn logger_target(&self, known: &Known) -> LoggerTarget {
        let record = &known.record;
        let pipes = record.stdin.then_some(Pipes { tty: record.tty, once: record.stdin_once });
        let folder = self.attach_folder(&known.id);
        LoggerTarget { path: record.log_path.clone(), rotation: ROTATION, folder, pipes, instead: None }
    }

    /// Starts the logger of a container with input; the container's streams as named pipes.
    pub(super) async fn start_logger(&self, known: &Known) -> Result<[String; 3], RuntimeError> {
        let folder = self.attach_folder(&known.id);
        let fail = |e: io::Error| RuntimeError::host(format!("start the logger in {}", folder.display()), e);
        // One that a killed server started waits still; it would take half of the output.
        self.release_logger(&known.id).await?;
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(fail)?;
        let names = if known.record.tty { &[STDIN, STDOUT_PIPE][..] } else { &[STDIN, STDOUT_PIPE, STDERR_PIPE] };
        for name in names {
            mkfifo(&folder.join(name), Mode::S_IRUSR | Mode::S_IWUSR).map_err(|e| fail(e.into()))?;
        }
        self.spawn_logger(&self.logger_target(known)).await?;
        let path = |name: &str| folder.join(name).display().to_string();
        let stderr = if known.record.tty { String::new() } else { path(STDERR_PIPE) };
        Ok([path(STDIN), path(STDOUT_PIPE), stderr])
    }

    /// Starts a logger that says when it is ready, and waits until it does.
    pub(super) async fn spawn_logger(&self, target: &LoggerTarget) -> Result<(), RuntimeError> {
        let fail = |e: io::Error| RuntimeError::host(format!("start the logger in {}", target.folder.display()), e);
        let mut command = Command::new(&self.settings.logger);
        command.arg(LOGGER_VERB).arg(target.to_argument()).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        // SAFETY: setsid is async-signal-safe and touches no memory of ours.
        unsafe { command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from)) };
        let mut child = command.spawn().map_err(fail)?;
        let mut said = String::new();
        if let Some(stdout) = child.stdout.take() {
            let mut stdout = BufReader::new(stdout);
            let read = tokio::time::timeout(READY_TIME_MAX, stdout.read_line(&mut said)).await;
            read.map_err(|_| fail(io::ErrorKind::TimedOut.into()))?.map_err(fail)?;
        }
        // Waited for, or it would stay as a zombie; with the server gone, init does it.
        tokio::spawn(async move { child.wait().await });
        if said != READY {
            return Err(fail(io::Error::other("it ended before it was ready")));
        }
        Ok(())
    }

    /// Ends the logger of a container that never started, and removes what is left of any other.
    pub(super) async fn release_logger(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let folder = self.attach_folder(id);
        let fail = |e: io::Error| RuntimeError::host(format!("remove {}", folder.display()), e);
        if !folder.exists() {
            return Ok(());
        }
        // A writer that comes and goes is the end of the output.
        let both = |name: &str| {
            OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(folder.join(name))
        };
        drop([both(STDOUT_PIPE), both(STDERR_PIPE)]);
        self.wait_for_logger(id).await;
        // What still holds the container's output keeps no logger beyond the container.
        if let Some(mark) = LoggerMark::read(&folder) {
            mark.process.kill_and_wait().await.map_err(fail)?;
        }
        match std::fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(fail(e)),
            _ => Ok(()),
        }
    }

    /// Waits until the logger of a container that has ended has written everything.
    pub(super) async fn wait_for_logger(&self, id: &ContainerId) {
        let wait = async {
            // When nobody listens, there is nothing to wait for.
            let mut socket = connect(&self.attach_folder(id)).await.ok()?;
            socket.write_all(&[wire::OUTPUT_ONLY]).await.ok()?;
            tokio::io::copy(&mut socket, &mut tokio::io::sink()).await.ok()
        };
        if tokio::time::timeout(DRAIN_TIME_MAX, wait).await.is_err() {
            tracing::warn!(container = %id, "a container has ended and its logger has not");
        }
    }

    /// Leaves a container's input to its logger alone. The shim holds the pipe open as well, until it is asked not to;
    /// with the logger's the only end, the input can end while the server is dead.
    pub(super) async fn leave_stdin_to_logger(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let request = api::CloseIoRequest { container_id: id.to_string(), exec_id: String::new(), stdin: true };
        let closed = self.rpc.tasks().close_io(self.rpc.request(request)).await;
        rpc::find("leave a container's input to its logger", closed).map(drop)
    }
}

async fn connect(folder: &std::path::Path) -> io::Result<UnixStream> {
    let folder = File::open(folder)?;
    UnixStream::connect(address(&folder)).await
}

pub(super) async fn attach(inner: &Arc<Inner>, id: &ContainerId, stdin: bool) -> Result<ExecSession, RuntimeError> {
    let known = inner.known(id).await?;
    let observed = inner.observe_known(&known).await?;
    if !matches!(observed, ContainerState::Running { .. }) {
        return Err(RuntimeError::WrongState { id: id.clone(), actual: "not running", needed: "running" });
    }
    let (tty, with_input) = (known.record.tty, stdin && known.record.stdin);
    let attempt = |e| RuntimeError::host("attach to the container's logger", e);
    let mut socket = connect(&inner.attach_folder(id)).await.map_err(attempt)?;
    let first = if with_input { wire::WITH_INPUT } else { wire::OUTPUT_ONLY };
    socket.write_all(&[first]).await.map_err(attempt)?;
    let (read, write) = socket.into_split();
    let (stdout, to_stdout) = tokio::io::duplex(BUFFER_BYTES);
    let (stderr, to_stderr) = tokio::io::duplex(BUFFER_BYTES);
    let reading = Reading(tokio::spawn(read_output(read, to_stdout, to_stderr)));
    let stdin = with_input.then(|| {
        let (near, far) = tokio::io::duplex(BUFFER_BYTES);
        // In a task of its own: what the client wrote last arrives even when it has gone.
        tokio::spawn(write_input(far, write));
        Box::new(near) as _
    });
    Ok(ExecSession {
        stdin,
        stdout: Some(Box::new(stdout)),
        stderr: (!tty).then(|| Box::new(stderr) as _),
        exit: Box::pin(reading.ended()),
        control: Arc::new(Control { inner: inner.clone(), id: id.clone() }),
    })
}

/// The task that reads the socket; it ends with who waits for it.
struct Reading(JoinHandle<io::Result<Option<String>>>);

impl Reading {
    async fn ended(mut self) -> Result<i32, RuntimeError> {
        let attempt = |e| RuntimeError::host("read the container's output", e);
        match (&mut self.0).await.map_err(|e| attempt(io::Error::other(e)))?.map_err(attempt)? {
            None => Ok(0),
            Some(reason) => Err(RuntimeError::Backend { attempt: "attach to the container".into(), reason }),
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Copies until the logger says nothing more; its reason, when it gives one.
async fn read_output(
    mut socket: OwnedReadHalf,
    mut stdout: DuplexStream,
    mut stderr: DuplexStream,
) -> io::Result<Option<String>> {
    let mut content = vec![0; wire::CONTENT_BYTES_MAX];
    loop {
        let mut head = [0; wire::HEAD_BYTES];
        match socket.read_exact(&mut head).await {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => drop(other?),
        }
        let (kind, length) =
            wire::read_head(head).ok_or_else(|| io::Error::other("the logger does not speak our language"))?;
        let content = &mut content[..length];
        if let Err(error) = socket.read_exact(content).await {
            let cut = "the container has ended, and the client had not read all of its output";
            return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(Some(cut.to_owned())) } else { Err(error) };
        }
        match kind {
            wire::STDOUT => stdout.write_all(content).await?,
            wire::STDERR => stderr.write_all(content).await?,
            _ => return Ok(Some(String::from_utf8_lossy(content).into_owned())),
        }
    }
}

async fn write_input(mut client: DuplexStream, mut socket: OwnedWriteHalf) {
    let copied = tokio::io::copy(&mut client, &mut socket).await;
    let shut = socket.shutdown().await;
    if let Err(error) = copied.map(drop).and(shut) {
        tracing::debug!(%error, "a container's input ended early");
    }
}

struct Control {
    inner: Arc<Inner>,
    id: ContainerId,
}

#[async_trait]
impl ExecControl for Control {
    async fn resize(&self, width: u16, height: u16) -> Result<(), RuntimeError> {
        let request = api::ResizePtyRequest {
            container_id: self.id.to_string(),
            exec_id: String::new(),
            width: width.into(),
            height: height.into(),
        };
        let resized = self.inner.rpc.tasks().resize_pty(self.inner.rpc.request(request)).await;
        rpc::find("resize a terminal", resized).map(drop)
    }

    async fn kill(&self, signal: i32) -> Result<(), RuntimeError> {
        self.inner.kill_container(&self.id, signal).await
    }
}
