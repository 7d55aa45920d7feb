//! Replaces loggers that are killed, so that a container's log goes on and nothing that it writes is lost.
//!
//! ```text
//! running ──its process ends──> mark gone: the container closed its output ──> done
//!    ^                     └──> mark there: killed ──container runs──> another on the same pipes ──┐
//!    └──────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//! A container never hears of it: of pipes whose only reader is the logger (containerd starts such) this process holds
//! the reading ends, too; of named pipes the shim does. What a container writes meanwhile waits in them. Its input is
//! held open likewise, unless its end is the first client's. With the server dead as well, what writes to a killed
//! logger breaks, as a shell's pipe does. Where the pipes cannot be found any more, the agent is told. One waiting task
//! for each running container, nothing periodic.
#![allow(clippy::disallowed_methods, reason = "a shell: /proc")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Inner;
use crate::logger::door::open_input;
use crate::logger::mark::LoggerMark;
use crate::logger::{LoggerTarget, open_pipe};
use crate::runtime::{ContainerId, ContainerState, RuntimeError, RuntimeEvent};

/// Between a killed logger and the next; twice as long each time, from the start again for one that lived longer than
/// the longest.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Looks after a running container's logger, once, until the container or the backend ends.
pub(super) fn keep(inner: &Arc<Inner>, id: &ContainerId) {
    if inner.kept.lock().insert(id.clone()) {
        let (backend, id) = (Arc::downgrade(inner), id.clone());
        tokio::spawn(async move {
            keep_on(&backend, &id).await;
            if let Some(inner) = backend.upgrade() {
                inner.kept.lock().remove(&id);
            }
        });
    }
}

async fn keep_on(backend: &Weak<Inner>, id: &ContainerId) {
    let (mut pause, mut held) = (PAUSE_MIN, Held::default());
    loop {
        let Some(inner) = backend.upgrade() else { return };
        let Ok(Some(known)) = inner.find_container(id).await else { return };
        let target = inner.logger_target(&known);
        drop(inner);
        let Some(mark) = LoggerMark::read(&target.folder) else { return };
        held = held.and(&mark, &target);
        let began = tokio::time::Instant::now();
        if let Err(error) = mark.process.ended().await {
            return tracing::warn!(container = %id, %error, "nobody looks after the container's logger");
        }
        if began.elapsed() > PAUSE_MAX {
            pause = PAUSE_MIN;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
        let Some(inner) = backend.upgrade() else { return };
        match inner.replace_logger(id, &mark, &held).await {
            Ok(true) => tracing::warn!(container = %id, killed = mark.process.pid, "replaced a killed logger"),
            Ok(false) => return,
            Err(error) => tracing::warn!(container = %id, %error, "cannot replace a killed logger; trying again"),
        }
    }
}

impl Inner {
    /// Starts the next logger of a running container; false when it needs none, or cannot have one.
    async fn replace_logger(&self, id: &ContainerId, killed: &LoggerMark, held: &Held) -> Result<bool, RuntimeError> {
        let Some(known) = self.find_container(id).await? else { return Ok(false) };
        let ContainerState::Running { pid, .. } = self.observe_known(&known).await? else { return Ok(false) };
        let target = self.logger_target(&known);
        if LoggerMark::read(&target.folder).as_ref() != Some(killed) {
            return Ok(false);
        }
        let holders: Vec<u32> = [std::process::id(), pid].into_iter().chain(parent(pid)).collect();
        let streams: Vec<PathBuf> = killed.streams.iter().map_while(|name| find(name, &holders)).collect();
        if streams.is_empty() {
            let (pod, name) = (known.record.pod.uid, known.record.name);
            // Nobody listening: then the next look of whoever comes finds the container without its log, as it is.
            let _ = self.events.send(RuntimeEvent::LogLost { pod, name, id: id.clone() });
            return Ok(false);
        }
        let pipes = target.pipes.filter(|_| held.input.is_some());
        self.spawn_logger(&LoggerTarget { instead: Some(streams), pipes, ..target }).await.map(|()| true)
    }
}

/// What is kept open of a container's streams, for a moment without a logger.
#[derive(Default)]
struct Held {
    /// The reading ends of unnamed pipes.
    streams: Vec<File>,
    /// The container's input.
    input: Option<File>,
}

impl Held {
    /// The same for the next logger.
    fn and(self, mark: &LoggerMark, target: &LoggerTarget) -> Self {
        let holders = [u32::try_from(mark.process.pid).unwrap_or_default(), std::process::id()];
        let unnamed = mark.streams.iter().filter(|name| !name.is_absolute());
        let streams = unnamed.filter_map(|name| open_pipe(&find(name, &holders)?).ok()).collect();
        drop(self.streams); // Not before: they may be what was opened again.
        let goes_on = target.pipes.is_some_and(|pipes| pipes.tty || !pipes.once);
        let open = || open_input(&target.folder).ok().filter(|_| goes_on && mark.process.is_alive());
        Self { streams, input: self.input.or_else(open) }
    }
}

/// A path to open the stream by: its own, or that of a descriptor that one of the processes has of it.
fn find(name: &Path, holders: &[u32]) -> Option<PathBuf> {
    if name.is_absolute() {
        return Some(name.to_owned());
    }
    let descriptors = holders.iter().flat_map(|pid| std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten());
    let mut paths = descriptors.flatten().map(|entry| entry.path());
    paths.find(|path| std::fs::read_link(path).is_ok_and(|found| found == name))
}

/// A container's first process is its shim's child.
pub(super) fn parent(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok().filter(|pid| *pid > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_found_where_somebody_holds_it() {
        use std::os::fd::AsRawFd;
        let (read, _write) = nix::unistd::pipe().unwrap();
        let own = std::process::id();
        let name = std::fs::read_link(format!("/proc/self/fd/{}", read.as_raw_fd())).unwrap();
        let found = find(&name, &[own]).expect("we hold it");
        assert_eq!(std::fs::read_link(found).unwrap(), name);
        assert_eq!(find(Path::new("pipe:[0]"), &[own]), None);
        assert_eq!(find(Path::new("/run/x/out"), &[]), Some("/run/x/out".into()));
        assert_eq!(parent(own), u32::try_from(nix::unistd::getppid().as_raw()).ok());
    }
}
