//! Ends a node's pods and its containerd, and removes what they leave, by what is keyed to its directories alone:
//! the containerd that its mark names, shims that were started for its socket, processes in its cgroups, loggers whose
//! socket lies in its run directory, mounts below its folders.
#![allow(clippy::disallowed_methods, reason = "a shell: /proc, mounts and the run directory")]

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::process::ProcessMark;
use super::{Paths, PrivateError};
use crate::cgroup::Cgroups;
use crate::layout::Layout;
use crate::logger::{LOGGER_VERB, LoggerTarget};
use crate::mounts;
use crate::runtime::RuntimeError;

/// How long killed processes may take to be gone; a process in a disk's queue takes as long as the disk.
const END_TIME_MAX: Duration = Duration::from_secs(30);

/// How long loggers may take over the last lines of containers that were just ended.
const LOGGER_TIME_MAX: Duration = Duration::from_secs(3);

/// Where containerd's shim lets runc keep its state, a folder for each containerd namespace.
const RUNC_STATE: &str = "/run/containerd/runc";

/// Where shims listen, all containerds' together.
const SHIM_SOCKETS: &str = "/run/containerd/s";

/// Between two attempts to remove a cgroup that still counts a process.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// What [`killall`] ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Killed {
    /// Processes: pods', shims and containerd.
    pub processes: usize,
    /// Mounts.
    pub mounts: usize,
}

/// Ends everything of the node with these directories. Images and data stay. Running it twice is fine.
pub async fn killall(paths: &Paths) -> Result<Killed, PrivateError> {
    let mut killed = Killed::default();
    let layout = paths.layout();
    // containerd first: it would see its shims end and tidy up beside us.
    killed.processes += end_containerds(paths).await?;
    let cgroups = Cgroups::of(&paths.data_dir);
    let ours = || -> Result<Vec<ProcessMark>, PrivateError> {
        let mut pids = shims(&paths.socket);
        pids.extend(cgroups.processes(cgroups.parent()).map_err(of_runtime)?);
        Ok(pids.into_iter().filter_map(|pid| ProcessMark::of(pid).ok()).collect())
    };
    let end = async {
        loop {
            let found: Vec<_> = ours()?.into_iter().filter(ProcessMark::is_alive).collect();
            if found.is_empty() {
                return Ok(());
            }
            killed.processes += found.len();
            for process in &found {
                match kill(Pid::from_raw(process.pid), Signal::SIGKILL) {
                    Ok(()) | Err(nix::Error::ESRCH) => {}
                    Err(e) => return Err(PrivateError::host(format!("end process {}", process.pid), e)),
                }
            }
            for process in &found {
                process.ended().await.map_err(|e| PrivateError::host("wait for a process", e))?;
            }
        }
    };
    let late = |_| PrivateError::host("end the pods' processes", io::Error::from(io::ErrorKind::TimedOut));
    tokio::time::timeout(END_TIME_MAX, end).await.map_err(late)??;
    // They end by themselves when the containers' output does.
    let loggers = loggers(&layout.attach());
    for logger in loggers.into_iter().filter_map(|pid| ProcessMark::of(pid).ok()) {
        let end = async {
            match tokio::time::timeout(LOGGER_TIME_MAX, logger.ended()).await {
                Ok(ended) => ended,
                Err(_) => logger.kill_and_wait().await,
            }
        };
        end.await.map_err(|e| PrivateError::host("end a container's logger", e))?;
        killed.processes += 1;
    }
    for address in shim_addresses(&paths.state) {
        let _ = fs::remove_file(address); // A socket nobody listens on; another look finds nothing more to do.
    }
    let (data_dir, run_dir) = (layout.data_dir.clone(), layout.run_dir.clone());
    let unmount = move || -> Result<usize, RuntimeError> {
        // The node mounts deep inside its folders. A file system mounted at one of them (`<data-dir>/containerd`) was
        // put there by the machine's administrator.
        let is_own = |from_data_dir: &Path| from_data_dir.components().count() > 1;
        Ok(mounts::unmount_below(&data_dir, is_own)? + mounts::unmount_below(&run_dir, |_| true)?)
    };
    killed.mounts += blocking(unmount).await?;
    remove_groups(&cgroups).await?;
    if killed.processes > 0 {
        let mark = layout.killed();
        fs::write(&mark, "").map_err(|e| PrivateError::host(format!("write {}", mark.display()), e))?;
    }
    let runc = Path::new(RUNC_STATE).join(paths.namespace());
    let folders = [layout.containerd(), layout.sandboxes(), layout.attach(), layout.execs(), runc];
    blocking(move || folders.iter().try_for_each(|folder| mounts::remove_tree(folder))).await?;
    Ok(killed)
}

/// When [`killall`] last ended what ran, if it did so after `started_at`.
pub(crate) fn killed_since(layout: &Layout, started_at: Timestamp) -> Option<Timestamp> {
    let written = fs::metadata(layout.killed()).and_then(|found| found.modified()).ok()?;
    Timestamp::try_from(written).ok().filter(|killed| *killed >= started_at)
}

/// Removes the folders that containerds share, where none is left that uses them; the next makes them again.
pub fn remove_shared_folders() {
    for folder in [RUNC_STATE, SHIM_SOCKETS, "/run/containerd"] {
        // One that is not empty is somebody's.
        let _ = fs::remove_dir(folder);
    }
}

/// Ends every containerd that runs with this node's configuration, whether its mark says so, was lost or not written yet;
/// how many there were. Two would wait for each other's files for ever.
pub(super) async fn end_containerds(paths: &Paths) -> Result<usize, PrivateError> {
    let marked = ProcessMark::read(&paths.mark).filter(ProcessMark::is_alive);
    let mut found: Vec<ProcessMark> = marked.into_iter().collect();
    let others = processes_like(|line| is_containerd_of(line, &paths.config));
    found.extend(others.into_iter().filter_map(|pid| ProcessMark::of(pid).ok()).filter(|other| Some(*other) != marked));
    for process in &found {
        process.kill_and_wait().await.map_err(|e| PrivateError::host("end containerd", e))?;
    }
    Ok(found.len())
}

/// Removes the node's cgroups. A process counts until the kernel has put it away, which is later than its end.
async fn remove_groups(cgroups: &Cgroups) -> Result<(), PrivateError> {
    let mut waited = Duration::ZERO;
    loop {
        match cgroups.remove(cgroups.parent()).map_err(of_runtime) {
            Err(PrivateError::Host { source, .. })
                if source.kind() == io::ErrorKind::ResourceBusy && waited < END_TIME_MAX =>
            {
                tokio::time::sleep(BUSY_PAUSE).await;
                waited += BUSY_PAUSE;
            }
            done => {
                cgroups.remove_shared();
                return done;
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, PrivateError> {
    tokio::task::spawn_blocking(work).await.expect("clearing folders does not panic").map_err(of_runtime)
}

fn of_runtime(error: RuntimeError) -> PrivateError {
    match error {
        RuntimeError::Host { attempt, source } => PrivateError::Host { attempt, source },
        other => PrivateError::host("sweep cgroups", io::Error::other(other)),
    }
}

/// Shims say on their command line which socket they report to.
fn shims(socket: &Path) -> Vec<i32> {
    processes_like(|line| is_shim_of(line, socket))
}

/// Loggers say on theirs where clients attach.
fn loggers(folder: &Path) -> Vec<i32> {
    processes_like(|line| logger_of(line, folder).is_some())
}

fn processes_like(is_wanted: impl Fn(&[u8]) -> bool) -> Vec<i32> {
    let pids = processes().into_iter().filter_map(|pid| i32::try_from(pid).ok());
    pids.filter(|pid| is_wanted(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default())).collect()
}

/// Every process of this machine.
pub(crate) fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Whose logger this command line is, if clients attach to it below `folder`.
pub(crate) fn logger_of(command_line: &[u8], folder: &Path) -> Option<String> {
    let mut arguments = command_line.split(|byte| *byte == 0).skip(1);
    let (verb, target) = (arguments.next()?, std::str::from_utf8(arguments.next()?).ok()?);
    let target = LoggerTarget::parse(target).filter(|_| verb == LOGGER_VERB.as_bytes())?;
    Some(target.folder.strip_prefix(folder).ok()?.to_str()?.to_owned())
}

fn is_containerd_of(command_line: &[u8], config: &Path) -> bool {
    let mut arguments = command_line.split(|byte| *byte == 0);
    let program = arguments.next().unwrap_or_default();
    let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let rest: Vec<_> = arguments.collect();
    let configured = rest.windows(2).any(|pair| pair[0] == b"--config" && pair[1] == config.as_os_str().as_bytes());
    name == b"containerd" && configured
}

fn is_shim_of(command_line: &[u8], socket: &Path) -> bool {
    let program = command_line.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    name.starts_with(b"containerd-shim") && flag(command_line, b"-address") == Some(socket.as_os_str().as_bytes())
}

/// Whose shim this command line is, if it reports to `socket` and to `namespace` there.
pub(crate) fn shim_of(command_line: &[u8], socket: &Path, namespace: &str) -> Option<String> {
    let is_ours = is_shim_of(command_line, socket) && flag(command_line, b"-namespace") == Some(namespace.as_bytes());
    String::from_utf8(flag(command_line, b"-id").filter(|_| is_ours)?.to_vec()).ok()
}

fn flag<'a>(command_line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    command_line.split(|byte| *byte == 0).skip(1).skip_while(|argument| *argument != name).nth(1)
}

/// The shims' own sockets lie in a folder that all containerds share, by names that only their bundles know.
fn shim_addresses(state: &Path) -> Vec<PathBuf> {
    let list = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let bundles = list(state.join("io.containerd.runtime.v2.task")).flat_map(list);
    let addresses = bundles.filter_map(|bundle| fs::read_to_string(bundle.join("address")).ok());
    let paths = addresses.filter_map(|address| Some(PathBuf::from(address.trim().strip_prefix("unix://")?)));
    paths.filter(|path| path.starts_with(SHIM_SOCKETS)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shims_of_this_socket_are_ours() {
        let socket = Path::new("/run/k/containerd/containerd.sock");
        for (line, expected) in [
            (&b"/usr/bin/containerd-shim-runc-v2\0-namespace\0n\0-id\0x\0-address\0/run/k/containerd/containerd.sock\0"[..], true),
            (b"/usr/bin/containerd-shim-runc-v2\0-namespace\0n\0-id\0x\0-address\0/run/k2/containerd/containerd.sock\0", false),
            (b"/usr/bin/containerd-shim-runc-v2\0-id\0/run/k/containerd/containerd.sock\0", false),
            (b"vi\0-address\0/run/k/containerd/containerd.sock\0", false),
            (b"", false),
        ] {
            assert_eq!(is_shim_of(line, socket), expected, "{}", String::from_utf8_lossy(line));
        }
        let line = b"containerd-shim-runc-v2\0-namespace\0n\0-id\0x\0-address\0/run/k/containerd/containerd.sock\0";
        assert_eq!(shim_of(line, socket, "n"), Some("x".to_owned()));
        assert_eq!(shim_of(line, socket, "other"), None);
    }

    #[test]
    fn only_a_containerd_of_this_configuration_is_ours() {
        let config = Path::new("/run/k/containerd/config.toml");
        for (line, expected) in [
            (&b"containerd\0--config\0/run/k/containerd/config.toml\0"[..], true),
            (b"/usr/bin/containerd\0--config\0/run/k/containerd/config.toml\0", true),
            (b"containerd\0--config\0/run/k2/containerd/config.toml\0", false),
            (b"containerd\0", false),
            (b"vi\0--config\0/run/k/containerd/config.toml\0", false),
        ] {
            assert_eq!(is_containerd_of(line, config), expected, "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn loggers_are_known_by_their_folder() {
        let target = LoggerTarget {
            path: "/log".into(),
            rotation: crate::logger::ROTATION,
            folder: "/run/kedge/attach/0f".into(),
            pipes: None,
            instead: None,
        };
        let line = format!("/usr/bin/kedge\0{LOGGER_VERB}\0{}\0", target.to_argument());
        assert_eq!(logger_of(line.as_bytes(), Path::new("/run/kedge/attach")), Some("0f".to_owned()));
        assert_eq!(logger_of(line.as_bytes(), Path::new("/run/other/attach")), None);
        assert_eq!(logger_of(b"/bin/sh\0-c\0true\0", Path::new("/")), None);
    }
}
