//! Network namespaces: made, pinned to a file, entered for the length of one call.
//!
//! A namespace belongs to a thread. [`in_namespace`] gives the call a thread of its own, so the process's other
//! threads never change place; what the call opens (a socket, a child process) stays in the namespace afterwards.
#![allow(clippy::disallowed_methods, reason = "a shell: namespaces are files of the kernel")]

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, statfs};

use crate::NetworkError;

/// Where `ip netns` keeps named namespaces.
const NAMED: &str = "/var/run/netns";
/// The file system that pinned namespaces show (`NSFS_MAGIC` in linux/magic.h).
const NSFS: FsType = FsType(0x6e73_6673);

/// Runs `call` on a thread of its own inside the network namespace that the file at `path` pins.
pub fn in_namespace<T: Send>(path: &Path, call: impl FnOnce() -> T + Send) -> Result<T, NetworkError> {
    let file = File::open(path).map_err(|e| NetworkError::kernel("open network namespace", path, e))?;
    let enter = || {
        setns(&file, CloneFlags::CLONE_NEWNET).map_err(|e| NetworkError::kernel("enter network namespace", path, e))?;
        Ok(call())
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, enter);
        let thread = thread.map_err(|e| NetworkError::kernel("start a thread for network namespace", path, e))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Where a node's network is: the process's own namespace, or one pinned to a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace(Option<Arc<PathBuf>>);

impl Namespace {
    /// The namespace the process runs in.
    pub fn own() -> Self {
        Self(None)
    }

    /// The namespace that the file at `path` pins.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(Some(Arc::new(path.into())))
    }

    /// The file; none for the process's own. Pods in the host's network join this.
    pub fn path(&self) -> Option<&Path> {
        self.0.as_ref().map(|path| path.as_path())
    }

    /// Runs `call` inside: directly in the process's own, else on a thread of its own.
    pub fn run<T: Send>(&self, call: impl FnOnce() -> T + Send) -> Result<T, NetworkError> {
        match self.path() {
            None => Ok(call()),
            Some(path) => in_namespace(path, call),
        }
    }

    /// The namespace that `ip netns` calls `name`, made when missing; whether it was made.
    pub fn named(name: &str) -> Result<(Self, bool), NetworkError> {
        let path = Self::path_of(name)?;
        let folder = Path::new(NAMED);
        fs::create_dir_all(folder).map_err(|e| NetworkError::kernel("create folder", folder, e))?;
        share(folder)?;
        let made = pin(&path)?;
        Ok((Self::at(path), made))
    }

    /// The namespace that `ip netns` calls `name`, whether there is one or not.
    pub fn of_name(name: &str) -> Result<Self, NetworkError> {
        Self::path_of(name).map(Self::at)
    }

    /// Where `ip netns` pins the namespace `name`.
    pub(crate) fn path_of(name: &str) -> Result<PathBuf, NetworkError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.starts_with('.') || name.len() > 200 || !name.chars().all(fits) {
            let why = "must be letters, digits, '-', '_' and '.', and not begin with '.'";
            return Err(NetworkError::Invalid(format!("network namespace {name:?}: {why}")));
        }
        Ok(Path::new(NAMED).join(name))
    }
}

/// Pins a new network namespace to the file at `path`, unless one is pinned there; whether it was made.
pub fn pin(path: &Path) -> Result<bool, NetworkError> {
    if is_pinned(path)? {
        return Ok(false);
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(|e| NetworkError::kernel("create folder", folder, e))?;
    File::create(path).map_err(|e| NetworkError::kernel("create", path, e))?;
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| NetworkError::kernel("make network namespace", path, e))?;
        mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|e| NetworkError::kernel("pin network namespace to", path, e))
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, make);
        let thread = thread.map_err(|e| NetworkError::kernel("start a thread for network namespace", path, e))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    Ok(true)
}

/// Makes `folder` a mount of its own that is shared with other mount namespaces, as `ip netns` does before its first
/// namespace (`iproute2/ip/ipnetns.c`). Done later, by `ip`, it would hide a second copy of what is pinned here
/// already, which nobody could unmount.
fn share(folder: &Path) -> Result<(), NetworkError> {
    let nothing = None::<&str>;
    let shared = || mount(nothing, folder, nothing, MsFlags::MS_SHARED | MsFlags::MS_REC, nothing);
    let done = match shared() {
        Err(nix::errno::Errno::EINVAL) => {
            let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(folder), folder, nothing, bind, nothing).and_then(|()| shared())
        }
        other => other,
    };
    done.map_err(|e| NetworkError::kernel("share", folder, e))
}

/// Removes the folder of named namespaces if nothing is in it; who pins the next one makes it again.
pub(crate) fn remove_folder() {
    // The kernel refuses either while something is pinned there, or anything else lies there.
    if pinned_names(Path::new(NAMED)).is_ok_and(|names| names.is_empty()) {
        let _ = umount2(NAMED, MntFlags::empty());
        let _ = fs::remove_dir(NAMED);
    }
}

/// Whether a namespace is pinned to the file at `path`.
pub fn is_pinned(path: &Path) -> Result<bool, NetworkError> {
    match statfs(path) {
        Ok(answer) => Ok(answer.filesystem_type() == NSFS),
        Err(nix::errno::Errno::ENOENT) => Ok(false),
        Err(e) => Err(NetworkError::kernel("look at", path, e)),
    }
}

/// Lets go of the namespace pinned to `path` and removes the file. Nothing there is success.
pub fn unpin(path: &Path) -> Result<(), NetworkError> {
    while is_pinned(path)? {
        umount2(path, MntFlags::MNT_DETACH).map_err(|e| NetworkError::kernel("unmount", path, e))?;
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(NetworkError::kernel("remove", path, e)),
        _ => Ok(()),
    }
}

/// The names of the files in `folder`; none when it is missing.
pub fn pinned_names(folder: &Path) -> Result<Vec<String>, NetworkError> {
    let fail = |e| NetworkError::kernel("list", folder, e);
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(fail)?,
    };
    entries.map(|entry| Ok(entry.map_err(fail)?.file_name().to_string_lossy().into_owned())).collect()
}

/// Sets a value below `/proc/sys/net` for the namespace that the calling thread is in. A value that is already right
/// is not written, so a read-only `/proc/sys` is no fault then.
pub fn set_sysctl(name: &str, value: &str) -> Result<(), NetworkError> {
    let path = Path::new("/proc/sys/net").join(name);
    let now = fs::read_to_string(&path).map_err(|e| NetworkError::kernel("read", &path, e))?;
    if now.trim() == value {
        return Ok(());
    }
    fs::write(&path, value).map_err(|e| NetworkError::kernel("write", &path, e))
}
