//! One more process in a running container, its streams through named pipes in the run directory.
//!
//! Opening a named pipe waits for the other side, so each is opened on a thread of its own before the shim is asked to
//! start, and nothing is ever written or closed before the shim holds its end. When the start fails, opening every
//! pipe once for both directions lets those threads go.
#![allow(clippy::disallowed_methods, reason = "a shell: named pipes in the run directory")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use containerd_client::services::v1 as api;
use futures::FutureExt;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use prost_types::Any;
use tokio::io::AsyncWrite;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use super::{Inner, rpc};
use crate::container::ExecSpec;
use crate::runtime::{ContainerId, ExecControl, ExecSession, RuntimeError};

pub(super) async fn exec(inner: &Arc<Inner>, id: &ContainerId, spec: ExecSpec) -> Result<ExecSession, RuntimeError> {
    let process = container_process(inner, id).await?;
    let handle = Handle { inner: inner.clone(), id: id.clone(), exec_id: inner.world.random.uuid() };
    let pipes = Pipes::create(inner, &handle.exec_id, &spec)?;
    let opening = pipes.open();
    match handle.start(&crate::spec::exec_process(&process, &spec.args, spec.tty), spec.tty, &pipes).await {
        Err(error) => {
            pipes.release(opening).await;
            Err(error)
        }
        Ok(()) => {
            let attempt = |e| RuntimeError::host("open an exec's streams", e);
            let [stdin, stdout, stderr] = opening;
            let stdin = joined(stdin).await.map_err(attempt)?.map(pipe::Sender::from_file).transpose();
            let stdout = joined(stdout).await.map_err(attempt)?.map(pipe::Receiver::from_file).transpose();
            let stderr = joined(stderr).await.map_err(attempt)?.map(pipe::Receiver::from_file).transpose();
            let handle = Arc::new(handle);
            let waiting = handle.clone();
            // In a task: the exit is collected, and the process removed, even if nobody asks for it.
            let exit = tokio::spawn(async move { waiting.exit(pipes).await });
            Ok(ExecSession {
                stdin: stdin.map_err(attempt)?.map(|pipe| Box::new(Stdin { pipe, handle: handle.clone() }) as _),
                stdout: stdout.map_err(attempt)?.map(|pipe| Box::new(pipe) as _),
                stderr: stderr.map_err(attempt)?.map(|pipe| Box::new(pipe) as _),
                exit: exit.map(|joined| joined.expect("waiting for an exec does not panic")).boxed(),
                control: handle,
            })
        }
    }
}

async fn container_process(inner: &Inner, id: &ContainerId) -> Result<serde_json::Value, RuntimeError> {
    let container = inner.find_raw(id).await?.ok_or_else(|| RuntimeError::ContainerNotFound(id.clone()))?;
    let spec = container.spec.unwrap_or_default();
    let spec: serde_json::Value = serde_json::from_slice(&spec.value).unwrap_or_default();
    Ok(spec["process"].clone())
}

struct Handle {
    inner: Arc<Inner>,
    id: ContainerId,
    exec_id: String,
}

impl Handle {
    async fn start(&self, process: &serde_json::Value, tty: bool, pipes: &Pipes) -> Result<(), RuntimeError> {
        let text = |path: &Option<PathBuf>| path.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
        let request = api::ExecProcessRequest {
            container_id: self.id.to_string(),
            exec_id: self.exec_id.clone(),
            stdin: text(&pipes.stdin),
            stdout: text(&pipes.stdout),
            stderr: text(&pipes.stderr),
            terminal: tty,
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
                value: serde_json::to_vec(process).expect("a process has only strings and numbers"),
            }),
        };
        let rpc = &self.inner.rpc;
        let added = rpc.tasks().exec(rpc.request(request)).await;
        if rpc::find("add a process", added)?.is_none() {
            return Err(RuntimeError::WrongState { id: self.id.clone(), actual: "not running", needed: "running" });
        }
        let (container_id, exec_id) = (self.id.to_string(), self.exec_id.clone());
        let started = rpc.tasks().start(rpc.request(api::StartRequest { container_id, exec_id })).await;
        if let Err(status) = started {
            self.forget().await?;
            return Err(rpc::failed("start a process in the container", &status));
        }
        Ok(())
    }

    async fn exit(&self, pipes: Pipes) -> Result<i32, RuntimeError> {
        let (container_id, exec_id) = (self.id.to_string(), self.exec_id.clone());
        let request = self.inner.rpc.stream(api::WaitRequest { container_id, exec_id });
        let waited = rpc::answer("wait for a process", self.inner.rpc.tasks().wait(request).await);
        let forgotten = self.forget().await;
        pipes.remove();
        let status = waited?.exit_status;
        forgotten?;
        Ok(i32::try_from(status).unwrap_or(255))
    }

    async fn forget(&self) -> Result<(), RuntimeError> {
        let (container_id, exec_id) = (self.id.to_string(), self.exec_id.clone());
        let request = self.inner.rpc.request(api::DeleteProcessRequest { container_id, exec_id });
        rpc::find("remove a process", self.inner.rpc.tasks().delete_process(request).await).map(drop)
    }
}

#[async_trait]
impl ExecControl for Handle {
    async fn resize(&self, width: u16, height: u16) -> Result<(), RuntimeError> {
        let request = api::ResizePtyRequest {
            container_id: self.id.to_string(),
            exec_id: self.exec_id.clone(),
            width: width.into(),
            height: height.into(),
        };
        let resized = self.inner.rpc.tasks().resize_pty(self.inner.rpc.request(request)).await;
        rpc::find("resize a terminal", resized).map(drop)
    }

    async fn kill(&self, signal: i32) -> Result<(), RuntimeError> {
        let signal = u32::try_from(signal).map_err(|_| RuntimeError::Config(format!("{signal} is no signal")))?;
        let (container_id, exec_id) = (self.id.to_string(), self.exec_id.clone());
        let request = self.inner.rpc.request(api::KillRequest { container_id, exec_id, signal, all: false });
        match self.inner.rpc.tasks().kill(request).await {
            Err(status) if status.message().contains("already finished") => Ok(()),
            other => rpc::find("signal a process", other).map(drop),
        }
    }
}

/// The writing end of an exec's input. The shim holds one too, so that a client may come and go, and must be asked
/// to close it before the process sees the end.
struct Stdin {
    pipe: pipe::Sender,
    handle: Arc<Handle>,
}

impl AsyncWrite for Stdin {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

impl Drop for Stdin {
    fn drop(&mut self) {
        let handle = self.handle.clone();
        tokio::spawn(async move {
            let (container_id, exec_id) = (handle.id.to_string(), handle.exec_id.clone());
            let request = api::CloseIoRequest { container_id, exec_id, stdin: true };
            let closed = handle.inner.rpc.tasks().close_io(handle.inner.rpc.request(request)).await;
            if let Err(error) = rpc::find("close a process's input", closed) {
                tracing::warn!(%error, "a process may wait for input for ever");
            }
        });
    }
}

struct Pipes {
    folder: PathBuf,
    stdin: Option<PathBuf>,
    stdout: Option<PathBuf>,
    stderr: Option<PathBuf>,
}

type Opening = Option<JoinHandle<io::Result<File>>>;

impl Pipes {
    fn create(inner: &Inner, exec_id: &str, spec: &ExecSpec) -> Result<Self, RuntimeError> {
        let folder = inner.settings.layout().execs().join(exec_id);
        let fail = |e: io::Error| RuntimeError::host(format!("make streams in {}", folder.display()), e);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(fail)?;
        let make = |name: &str, wanted: bool| -> Result<Option<PathBuf>, RuntimeError> {
            let path = folder.join(name);
            if wanted {
                mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|e| fail(e.into()))?;
            }
            Ok(wanted.then_some(path))
        };
        let (stdin, stdout, stderr) = (make("in", spec.stdin)?, make("out", true)?, make("err", !spec.tty)?);
        Ok(Self { folder, stdin, stdout, stderr })
    }

    fn open(&self) -> [Opening; 3] {
        let open = |path: &Option<PathBuf>, write: bool| {
            let path = path.clone()?;
            Some(tokio::task::spawn_blocking(move || OpenOptions::new().read(!write).write(write).open(path)))
        };
        [open(&self.stdin, true), open(&self.stdout, false), open(&self.stderr, false)]
    }

    /// Lets every thread that waits in [`Pipes::open`] go, and waits until it has.
    async fn release(&self, opening: [Opening; 3]) {
        // Reading and writing at once never waits, and is the other side for whoever does.
        let both = |path| OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
        let held: Vec<_> = [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten().map(both).collect();
        if held.iter().all(Result::is_ok) {
            for waiting in opening.into_iter().flatten() {
                let _ = waiting.await; // What it opened is not wanted any more.
            }
        }
        self.remove();
    }

    fn remove(&self) {
        if let Err(error) = remove_folder(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "cannot remove an exec's streams");
        }
    }
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

async fn joined(opening: Opening) -> io::Result<Option<File>> {
    match opening {
        None => Ok(None),
        Some(handle) => handle.await.expect("opening a pipe does not panic").map(Some),
    }
}
