//! A containerd of our own: started under the node's directories, outliving the server, adopted by the next one.
//!
//! Its data lies in `<data-dir>/containerd`, everything fleeting in `<run-dir>/containerd`; it runs in a session of
//! its own, so a server's end does not reach it. Whoever starts finds a running one by the pid file, believes it only
//! if the process started when the file says and its socket answers, and otherwise starts another.
//! [`killall::killall`] ends it, its shims and the pods, and touches nothing that belongs to another directory.
#![allow(unsafe_code, reason = "setsid between fork and exec; pidfd_open, to learn of the end of an adopted process")]
#![allow(clippy::disallowed_methods, reason = "a shell: a child process and its files in the run directory")]

pub mod killall;
pub mod process;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};

use crate::layout::{Layout, node_key};
use process::ProcessMark;

/// The most that fits a Unix socket's address, less the `.ttrpc` that containerd appends and the final zero.
const SOCKET_PATH_BYTES_MAX: usize = 108 - 7;
/// A cold start takes a quarter of a second; opening a large image store after a power cut, a few.
const START_TIME_MAX: Duration = Duration::from_secs(60);
/// How long it may take to end when asked.
const END_TIME_MAX: Duration = Duration::from_secs(10);
/// The log of a containerd that runs for years is cut when it starts.
const LOG_BYTES_MAX: u64 = 10 << 20;

/// What is loaded into Debian's containerd and never used here: memory, and folders outside ours.
const DISABLED_PLUGINS: [&str; 9] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.native",
    "io.containerd.snapshotter.v1.zfs",
];

/// Why the private containerd does not run.
#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
    /// The run directory's name is too long for a socket in it.
    #[error("--run-dir {} is too long: the socket {} would have {length} characters, the kernel allows {SOCKET_PATH_BYTES_MAX}; choose a shorter one", run_dir.display(), socket.display())]
    SocketPathTooLong {
        /// The directory.
        run_dir: PathBuf,
        /// The socket in it.
        socket: PathBuf,
        /// Its length.
        length: usize,
    },
    /// The program is not installed.
    #[error(
        "containerd is not installed ({program:?} was not found on the PATH); install it (Debian: containerd), or run no node here with --disable-agent"
    )]
    NotInstalled {
        /// What was looked for.
        program: String,
    },
    /// It ended, or did not get ready, while starting.
    #[error("containerd {what} while starting; its log {} ends: {tail}", log.display())]
    Start {
        /// What it did.
        what: String,
        /// Its log.
        log: PathBuf,
        /// The last lines.
        tail: String,
    },
    /// A step on files or processes.
    #[error("{attempt}: {source}")]
    Host {
        /// The step.
        attempt: String,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
}

impl PrivateError {
    fn host(attempt: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Host { attempt: attempt.into(), source: source.into() }
    }
}

/// Where everything of one private containerd lies.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The node's data directory.
    pub data_dir: PathBuf,
    /// The node's run directory.
    pub run_dir: PathBuf,
    /// Images and snapshots.
    pub root: PathBuf,
    /// Bundles, sockets, and what follows.
    pub state: PathBuf,
    /// Where it answers.
    pub socket: PathBuf,
    config: PathBuf,
    mark: PathBuf,
    ready: PathBuf,
    log: PathBuf,
}

impl Paths {
    /// The paths below a node's two directories, which must be absolute.
    pub fn below(data_dir: &Path, run_dir: &Path) -> Result<Self, PrivateError> {
        let layout = Layout { data_dir: data_dir.to_owned(), run_dir: run_dir.to_owned() };
        let state = layout.containerd();
        let socket = state.join("containerd.sock");
        let length = socket.as_os_str().len();
        if length > SOCKET_PATH_BYTES_MAX {
            return Err(PrivateError::SocketPathTooLong { run_dir: run_dir.to_owned(), socket, length });
        }
        Ok(Self {
            root: layout.images(),
            config: state.join("config.toml"),
            mark: state.join("containerd.pid"),
            ready: state.join("ready.sock"),
            log: layout.containerd_log(),
            data_dir: layout.data_dir,
            run_dir: layout.run_dir,
            state,
            socket,
        })
    }

    /// Where the rest of the node lies.
    pub fn layout(&self) -> Layout {
        Layout { data_dir: self.data_dir.clone(), run_dir: self.run_dir.clone() }
    }

    /// The containerd namespace of this node: nothing of another node's is ever in it.
    pub fn namespace(&self) -> String {
        format!("kedge-{}", node_key(&self.data_dir))
    }
}

/// Waits until no other process is looking for or starting this containerd; the turn ends with the value.
async fn take_turn(path: PathBuf) -> Result<Flock<fs::File>, PrivateError> {
    let lock = move || {
        let attempt = || format!("lock {}", path.display());
        let file = fs::File::options().create(true).append(true).mode(0o600).open(&path);
        let file = file.map_err(|e| PrivateError::host(attempt(), e))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| PrivateError::host(attempt(), e))
    };
    tokio::task::spawn_blocking(lock).await.expect("taking a lock does not panic")
}

/// A running private containerd.
#[derive(Debug)]
pub struct PrivateContainerd {
    paths: Paths,
    process: ProcessMark,
    /// Present when this server started it, and then reaps it.
    child: Option<Child>,
}

impl PrivateContainerd {
    /// Adopts the running one, or starts one and waits until it answers.
    pub async fn ensure(paths: Paths) -> Result<Self, PrivateError> {
        make_folder(&paths.root, 0o711)?;
        make_folder(&paths.state, 0o711)?;
        // A server that starts and a verb that imports an image may both find none running: one of them starts it.
        let _turn = take_turn(paths.state.join("ensure.lock")).await?;
        if let Some(process) = ProcessMark::read(&paths.mark).filter(ProcessMark::is_alive) {
            if answers(&paths.socket).await {
                tracing::info!(pid = process.pid, "adopted the running containerd");
                return Ok(Self { paths, process, child: None });
            }
            tracing::warn!(pid = process.pid, "the running containerd does not answer; replacing it");
        }
        let ended = killall::end_containerds(&paths).await?;
        if ended > 0 {
            tracing::warn!(ended, "ended a containerd that nobody could reach any more; pods go on");
        }
        Self::start(paths).await
    }

    /// Its paths.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.process.pid
    }

    /// Whether it was running before.
    pub fn was_adopted(&self) -> bool {
        self.child.is_none()
    }

    /// Ends it, with time to write down what it has; pods go on.
    pub async fn end(mut self) -> Result<(), PrivateError> {
        let failed = |e| PrivateError::host("end containerd", e);
        match nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.process.pid), nix::sys::signal::Signal::SIGTERM) {
            Ok(()) | Err(nix::Error::ESRCH) => {}
            Err(error) => return Err(PrivateError::host("end containerd", error)),
        }
        match tokio::time::timeout(END_TIME_MAX, self.ended()).await {
            Ok(ended) => ended.map_err(failed),
            Err(_) => self.process.kill_and_wait().await.map_err(failed),
        }
    }

    /// Returns when it has ended; pods go on, and [`PrivateContainerd::ensure`] starts the next.
    pub async fn ended(&mut self) -> io::Result<()> {
        match &mut self.child {
            Some(child) => child.wait().await.map(drop),
            None => self.process.ended().await,
        }
    }

    async fn start(paths: Paths) -> Result<Self, PrivateError> {
        let write = |path: &Path, text: &str| {
            fs::write(path, text).map_err(|e| PrivateError::host(format!("write {}", path.display()), e))
        };
        write(&paths.config, &config(&paths))?;
        let ready = listen_for_ready(&paths.ready)?;
        let log = open_log(&paths.log)?;
        let errors = log.try_clone().map_err(|e| PrivateError::host("share the log", e))?;
        let mut command = Command::new("containerd");
        command.arg("--config").arg(&paths.config).stdin(Stdio::null()).stdout(log).stderr(errors);
        command.env("NOTIFY_SOCKET", &paths.ready).env_remove("LISTEN_FDS").current_dir("/");
        // SAFETY: setsid is async-signal-safe and touches no memory of ours.
        unsafe { command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from)) };
        let mut child = command.spawn().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => PrivateError::NotInstalled { program: "containerd".into() },
            _ => PrivateError::host("start containerd", e),
        })?;
        let pid = i32::try_from(child.id().unwrap_or_default()).expect("a pid fits");
        // At once: who clears up after a server that died in this moment must find it.
        let process = ProcessMark::of(pid).map_err(|e| PrivateError::host("look at containerd", e))?;
        write(&paths.mark, &process.to_text())?;
        let what = tokio::select! {
            ready = read_ready(&ready) => ready.err().map(|e| format!("could not say it is ready ({e})")),
            status = child.wait() => Some(match status {
                Ok(status) => format!("ended with {status}"),
                Err(e) => format!("could not be waited for ({e})"),
            }),
            () = tokio::time::sleep(START_TIME_MAX) => Some(format!("was not ready after {START_TIME_MAX:?}")),
        };
        let _ = fs::remove_file(&paths.ready); // It is bound again at the next start, whatever is there.
        if let Some(what) = what {
            let _ = child.kill().await; // It may have ended already; that is what is being reported.
            return Err(PrivateError::Start { what, tail: tail(&paths.log), log: paths.log });
        }
        Ok(Self { paths, process, child: Some(child) })
    }
}

fn make_folder(path: &Path, mode: u32) -> Result<(), PrivateError> {
    let made = fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|e| PrivateError::host(format!("create folder {}", path.display()), e))
}

fn config(paths: &Paths) -> String {
    let text = |path: &Path| serde_json::Value::from(path.to_string_lossy()).to_string();
    let disabled = DISABLED_PLUGINS.map(|plugin| format!("{plugin:?}")).join(", ");
    format!(
        "# Written by kedge at each start; changes are lost.\n\
         version = 2\n\
         root = {root}\n\
         state = {state}\n\
         disabled_plugins = [{disabled}]\n\n\
         [grpc]\n  address = {socket}\n\n\
         [debug]\n  level = \"warn\"\n",
        root = text(&paths.root),
        state = text(&paths.state),
        socket = text(&paths.socket),
    )
}

fn listen_for_ready(path: &Path) -> Result<UnixDatagram, PrivateError> {
    let attempt = || format!("listen on {}", path.display());
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(PrivateError::host(attempt(), e)),
        _ => {}
    }
    UnixDatagram::bind(path).map_err(|e| PrivateError::host(attempt(), e))
}

/// containerd tells systemd when it answers (sd_notify(3)); we listen in systemd's place.
async fn read_ready(socket: &UnixDatagram) -> io::Result<()> {
    let mut message = [0; 512];
    loop {
        let length = socket.recv(&mut message).await?;
        if message[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
            return Ok(());
        }
    }
}

fn open_log(path: &Path) -> Result<fs::File, PrivateError> {
    let attempt = || format!("open {}", path.display());
    let too_long = fs::metadata(path).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX);
    let mut options = fs::OpenOptions::new();
    let file =
        options.append(true).create(true).mode(0o600).open(path).map_err(|e| PrivateError::host(attempt(), e))?;
    if too_long {
        file.set_len(0).map_err(|e| PrivateError::host(attempt(), e))?;
    }
    Ok(file)
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}

/// Whether somebody serves containerd's API there.
async fn answers(socket: &Path) -> bool {
    let ask = async {
        let client = containerd_client::Client::from_path(socket).await.ok()?;
        client.version().version(()).await.ok()
    };
    tokio::time::timeout(Duration::from_secs(5), ask).await.is_ok_and(|answer| answer.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_directory_too_long_for_a_socket_is_named() {
        let long = format!("/run/{}", "x".repeat(90));
        let error = Paths::below(Path::new("/d"), Path::new(&long)).unwrap_err().to_string();
        assert!(error.contains(&long) && error.contains("choose a shorter one"), "{error}");
        assert!(Paths::below(Path::new("/d"), Path::new("/run/kedge")).is_ok());
    }

    #[test]
    fn the_configuration_quotes_what_must_be_quoted() {
        let paths = Paths::below(Path::new("/d \"x\""), Path::new("/run/k")).unwrap();
        let config = config(&paths);
        assert!(config.contains(r#"root = "/d \"x\"/containerd""#), "{config}");
        assert!(config.contains("io.containerd.grpc.v1.cri"));
    }
}
