//! One process of this machine, told apart from a later one with the same number.
#![allow(unsafe_code, reason = "pidfd_open has no safe wrapper in nix")]
#![allow(clippy::disallowed_methods, reason = "a shell: /proc is the kernel's interface")]

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;

/// A process by its number and its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessMark {
    /// Its number.
    pub pid: i32,
    /// Clock ticks from the machine's start to its own (proc(5), stat, field 22).
    start_ticks: u64,
}

impl ProcessMark {
    /// A running process.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_ticks = start_ticks(&stat).ok_or_else(|| io::Error::other("/proc/*/stat has an unknown form"))?;
        Ok(Self { pid, start_ticks })
    }

    /// As [`ProcessMark::to_text`] wrote it; `None` when there is none, or half of one.
    pub fn read(path: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(path).ok()?)
    }

    /// Reads [`ProcessMark::to_text`] back.
    pub fn parse(text: &str) -> Option<Self> {
        let (pid, start_ticks) = text.trim_end().split_once(' ')?;
        Some(Self { pid: pid.parse().ok().filter(|pid| *pid > 1)?, start_ticks: start_ticks.parse().ok()? })
    }

    /// One line, for [`ProcessMark::read`].
    pub fn to_text(self) -> String {
        format!("{} {}\n", self.pid, self.start_ticks)
    }

    /// Whether that very process still runs.
    pub fn is_alive(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        // A zombie has ended; only its parent has not looked.
        start_ticks(&stat) == Some(self.start_ticks) && !stat.contains(") Z ")
    }

    /// Returns when it has ended.
    pub async fn ended(&self) -> io::Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        let descriptor = match pidfd(self.pid) {
            Err(e) if e.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(()),
            other => other?,
        };
        if !self.is_alive() {
            return Ok(()); // The number may have been given to another between the two looks.
        }
        // SAFETY: an owned descriptor's number stays the same and open until it is dropped, after the deregistration.
        let ended = unsafe { AsyncFd::register(descriptor) }?;
        ended.readable().await.map(drop)
    }

    /// Kills it and waits for its end.
    pub async fn kill_and_wait(&self) -> io::Result<()> {
        if self.is_alive() {
            match kill(Pid::from_raw(self.pid), Signal::SIGKILL) {
                Ok(()) | Err(nix::Error::ESRCH) => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.ended().await
    }
}

fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two numbers, gives a new descriptor that nobody else owns, or -1.
    let number = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, nix::libc::O_NONBLOCK) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(number).expect("a descriptor fits")) })
}

/// Field 22, counted after the program's name, which may itself hold spaces and brackets.
fn start_ticks(stat: &str) -> Option<u64> {
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back_and_knows_its_process() {
        let me = ProcessMark::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.is_alive());
        let other = ProcessMark { start_ticks: me.start_ticks + 1, ..me };
        assert!(!other.is_alive());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        fs::write(&path, me.to_text()).unwrap();
        assert_eq!(ProcessMark::read(&path), Some(me));
        for broken in ["", "1 2", "0 2", "-5 2", "77", "x y"] {
            fs::write(&path, broken).unwrap();
            assert_eq!(ProcessMark::read(&path), None, "{broken:?}");
        }
    }

    #[test]
    fn a_program_with_brackets_in_its_name_is_read() {
        let rest = (3..=52).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(start_ticks(&format!("7 (a) b) {rest}")), Some(22));
    }
}
