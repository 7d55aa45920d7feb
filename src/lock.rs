//! One server and one hub for one data directory, and the way to find them.
#![allow(clippy::disallowed_methods, reason = "a shell: an advisory lock is a property of an open file")]

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a server may take to drain.
const DRAIN_MAX: Duration = Duration::from_secs(60);

/// What runs on a data directory, at most once.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    /// `kedge server`.
    Server,
    /// `kedge hub`.
    Hub,
}

impl Role {
    fn name(self) -> &'static str {
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

/// Asks what has a data directory to end, and waits until it has; false when nothing runs.
pub(crate) async fn end(data_dir: &Path, role: Role) -> Result<bool> {
    let path = place(data_dir, role);
    if !path.exists() {
        return Ok(false);
    }
    let mut waited = Duration::ZERO;
    let mut asked = false;
    while let Err((file, _)) = Flock::lock(open(&path)?, FlockArg::LockExclusiveNonblock) {
        if !asked {
            let pid = pid(file).with_context(|| format!("{} names no process", path.display()))?;
            kill(Pid::from_raw(pid), Signal::SIGTERM)
                .with_context(|| format!("cannot end the {}, process {pid}", role.name()))?;
            asked = true;
        }
        if waited >= DRAIN_MAX {
            let (name, seconds) = (role.name(), DRAIN_MAX.as_secs());
            bail!("the {name} of {} has not ended within {seconds} s", data_dir.display());
        }
        let pause = Duration::from_millis(50);
        tokio::time::sleep(pause).await;
        waited += pause;
    }
    Ok(asked)
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
}
