//! One server and one hub for one data directory, and the way to find them.
#![allow(clippy::disallowed_methods, reason = "a shell: an advisory lock is a property of an open file")]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kedge_runtimes::private::process::ProcessMark;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a server may take to drain before it is killed.
const DRAIN_MAX: Duration = Duration::from_secs(60);
/// How long a killed one may take to be gone.
const KILL_MAX: Duration = Duration::from_secs(10);

/// How long the kernel may take to put a killed process away.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// What runs on a data directory, at most once.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    /// `kedge server`.
    Server,
    /// `kedge hub`.
    Hub,
}

impl Role {
    /// Its verb.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Hub => "hub",
        }
    }
}

/// Held as long as the process runs; the kernel lets go of it however the process ends.
#[derive(Debug)]
pub(crate) struct Lock(#[allow(dead_code, reason = "held, not read")] Flock<File>);

fn place(data_dir: &Path, role: Role) -> PathBuf {
    data_dir.join(format!("{}.pid", role.name()))
}

fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    opened.with_context(|| format!("cannot open {}", path.display()))
}

/// Takes the data directory for this process; refused while another one of its role has it.
pub(crate) fn take(data_dir: &Path, role: Role) -> Result<Lock> {
    let path = place(data_dir, role);
    match Flock::lock(open(&path)?, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            lock.set_len(0)
                .and_then(|()| lock.rewind())
                .and_then(|()| writeln!(lock, "{}", std::process::id()))
                .with_context(|| format!("cannot write {}", path.display()))?;
            Ok(Lock(lock))
        }
        Err((file, _)) => {
            let pid = pid(file).map(|pid| format!(", process {pid}")).unwrap_or_default();
            bail!(
                "another kedge {}{pid} uses --data-dir {}; end it or choose another directory",
                role.name(),
                data_dir.display()
            )
        }
    }
}

/// Ends what has a data directory and takes its place; its process, if anything ran. `stop` may end it in its own way
/// first.
pub(crate) async fn end(data_dir: &Path, role: Role, stop: impl FnOnce(i32)) -> Result<(Lock, Option<i32>)> {
    let path = place(data_dir, role);
    let (file, name) = match Flock::lock(open(&path)?, FlockArg::LockExclusiveNonblock) {
        Ok(free) => {
            drop(free);
            return Ok((take(data_dir, role)?, None));
        }
        Err((file, _)) => (file, role.name()),
    };
    let pid = pid(file).with_context(|| format!("{} names no process; end the {name} by hand", path.display()))?;
    // The number in the file is believed only of a process that has the lock. One that was just killed has let go of it,
    // or will in a moment.
    let process = match ProcessMark::of(pid).ok().filter(|_| has_lock(pid, &path)) {
        Some(process) => process,
        None => {
            tokio::time::sleep(LAST_MOMENT).await;
            return match take(data_dir, role) {
                Ok(lock) => Ok((lock, None)),
                Err(_) => {
                    bail!("{} names process {pid}, which does not run with it; end the {name} by hand", path.display())
                }
            };
        }
    };
    stop(pid);
    match kill(Pid::from_raw(pid), Signal::SIGTERM) {
        Ok(()) | Err(nix::Error::ESRCH) => {}
        Err(error) => return Err(error).with_context(|| format!("cannot end the {name}, process {pid}")),
    }
    let waiting = || format!("cannot wait for the end of the {name}, process {pid}");
    match tokio::time::timeout(DRAIN_MAX, process.ended()).await {
        Ok(ended) => ended.with_context(waiting)?,
        Err(_) => {
            let killed = tokio::time::timeout(KILL_MAX, process.kill_and_wait()).await;
            killed.map_err(anyhow::Error::new).and_then(|ended| Ok(ended?)).with_context(waiting)?;
        }
    }
    Ok((take(data_dir, role)?, Some(pid)))
}

/// Whether a process of this role has a data directory now.
pub(crate) fn is_taken(data_dir: &Path, role: Role) -> bool {
    let path = place(data_dir, role);
    File::open(&path).ok().and_then(pid).is_some_and(|pid| has_lock(pid, &path))
}

/// Whether one of a process's open files is this one, and locked (proc(5), `/proc/pid/fdinfo`).
fn has_lock(pid: i32, path: &Path) -> bool {
    let Ok(wanted) = fs::metadata(path) else { return false };
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let same = |entry: &fs::DirEntry| {
        fs::metadata(entry.path()).is_ok_and(|found| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()))
    };
    entries.filter(same).any(|entry| {
        let info = Path::new("/proc").join(pid.to_string()).join("fdinfo").join(entry.file_name());
        fs::read_to_string(info).is_ok_and(|text| text.lines().any(|line| line.starts_with("lock:")))
    })
}

fn pid(mut file: File) -> Option<i32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok().filter(|pid| *pid > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_server_and_one_hub() {
        let folder = tempfile::tempdir().unwrap();
        let first = take(folder.path(), Role::Server).unwrap();
        let _hub = take(folder.path(), Role::Hub).unwrap();
        let error = take(folder.path(), Role::Server).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()) && error.contains("--data-dir"), "{error}");
        drop(first);
        take(folder.path(), Role::Server).unwrap();
        assert!(take(folder.path(), Role::Hub).unwrap_err().to_string().contains("another kedge hub"));
    }

    #[test]
    fn who_has_the_lock_is_seen_by_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let (path, me) = (place(folder.path(), Role::Server), i32::try_from(std::process::id()).unwrap());
        assert!(!has_lock(me, &path), "there is no such file");
        let open = open(&path).unwrap();
        assert!(!has_lock(me, &path), "open, but not locked");
        drop(open);
        let lock = take(folder.path(), Role::Server).unwrap();
        assert!(has_lock(me, &path) && !has_lock(1, &path) && is_taken(folder.path(), Role::Server));
        drop(lock);
        assert!(!has_lock(me, &path) && !is_taken(folder.path(), Role::Server));
    }
}
