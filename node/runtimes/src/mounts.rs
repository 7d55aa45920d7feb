//! Mounts below a folder, and the removal of a folder that never leaves its own file system.
//!
//! Below a node's folders lie mounts of folders of the host (a volume with `subPath`). Whoever walks through one of
//! them while removing deletes the host's files, and whoever unmounts one that is still shared with its source takes
//! away what is mounted below the source. Both are prevented here, whatever the caller believes about mounts: each
//! step down is refused by the kernel where another mount begins.
#![allow(clippy::disallowed_methods, reason = "a shell: /proc/self/mountinfo and the folders themselves")]

use std::ffi::{CStr, CString, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::runtime::RuntimeError;

/// Rounds of unmounting: a mount may hide others, which the next round sees.
const ROUNDS_MAX: usize = 16;

/// The mount points below a folder, without its own, in the order they were mounted.
pub fn below(folder: &Path) -> Result<Vec<PathBuf>, RuntimeError> {
    let Some(folder) = resolve(folder)? else { return Ok(Vec::new()) };
    let table = fs::read("/proc/self/mountinfo").map_err(|e| RuntimeError::host("list mounts", e))?;
    let mut points = points(&table);
    points.retain(|point| point.starts_with(&folder) && *point != folder);
    Ok(points)
}

/// The folder as the kernel tells paths, without links; none when there is no such folder.
fn resolve(folder: &Path) -> Result<Option<PathBuf>, RuntimeError> {
    match folder.canonicalize() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).map_err(|e| RuntimeError::host(format!("resolve {}", folder.display()), e)),
    }
}

/// Unmounts what lies below a folder, as far as its path from there on `is_wanted`; how many mounts that were.
pub fn unmount_below(folder: &Path, is_wanted: impl Fn(&Path) -> bool) -> Result<usize, RuntimeError> {
    let Some(folder) = resolve(folder)? else { return Ok(0) };
    let mut count = 0;
    for _ in 0..ROUNDS_MAX {
        let mut wanted = below(&folder)?;
        wanted.retain(|point| point.strip_prefix(&folder).is_ok_and(&is_wanted));
        if wanted.is_empty() {
            return Ok(count);
        }
        for point in &wanted {
            // A mount that is shared with the host's folder would take the mounts below that folder with it. One that
            // another mount hides cannot be reached yet, and is unmounted in the next round.
            let _ = mount(None::<&str>, point, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>);
        }
        let (mut done, mut failed) = (0, None);
        for point in wanted.iter().rev() {
            match umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => done += 1,
                Err(error) => failed = Some((point, error)),
            }
        }
        count += done;
        if let (0, Some((point, error))) = (done, failed) {
            return Err(RuntimeError::host(format!("unmount {}", point.display()), error));
        }
    }
    let error = io::Error::from(Errno::EBUSY);
    Err(RuntimeError::host(format!("unmount what is below {}, where more is mounted again", folder.display()), error))
}

/// Removes a folder or a file with everything below it. Refused, and nothing removed, while something is mounted below
/// it. That there is nothing is success. A folder that is itself a mount is emptied and stays.
pub fn remove_tree(path: &Path) -> Result<(), RuntimeError> {
    let attempt = || format!("remove {}", path.display());
    if let Some(point) = below(path)?.first() {
        let why = format!("{} is mounted there; unmount it first", point.display());
        return Err(RuntimeError::host(attempt(), io::Error::new(io::ErrorKind::ResourceBusy, why)));
    }
    let gone = |e: io::Error| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) };
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return fs::remove_file(path).or_else(gone).map_err(|e| RuntimeError::host(attempt(), e)),
        Err(e) => return gone(e).map_err(|e| RuntimeError::host(attempt(), e)),
    }
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let folder = match open(path, flags, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(()),
        other => other.map_err(|e| RuntimeError::host(attempt(), e))?,
    };
    empty(folder, path)?;
    match fs::remove_dir(path) {
        Err(e) if e.raw_os_error() == Some(nix::libc::EBUSY) => Ok(()),
        other => other.or_else(gone).map_err(|e| RuntimeError::host(attempt(), e)),
    }
}

/// Removes what is in an open folder; `at` is its name for errors.
fn empty(folder: OwnedFd, at: &Path) -> Result<(), RuntimeError> {
    let attempt = |name: &CStr| format!("remove {}", at.join(os(name)).display());
    let fail = |name: &CStr, e: Errno| RuntimeError::host(attempt(name), e);
    let (folder, entries) = list(folder).map_err(|e| RuntimeError::host(format!("list {}", at.display()), e))?;
    for (name, kind) in entries {
        if kind != Some(Type::Directory) {
            match unlinkat(folder.as_fd(), name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => continue,
                Err(Errno::EISDIR) => {}
                Err(e) => return Err(fail(&name, e)),
            }
        }
        match open_below(folder.as_fd(), &name) {
            Ok(inside) => empty(inside, &at.join(os(&name)))?,
            Err(Errno::ENOENT) => continue,
            Err(Errno::EXDEV) => {
                let why = io::Error::new(io::ErrorKind::CrossesDevices, "something is mounted there");
                return Err(RuntimeError::host(attempt(&name), why));
            }
            Err(e) => return Err(fail(&name, e)),
        }
        match unlinkat(folder.as_fd(), name.as_c_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(e) => return Err(fail(&name, e)),
        }
    }
    Ok(())
}

/// Opens a folder in a folder, which must be the same mount: no link is followed, no mount entered. (Two mounts of one
/// file system have the same device number, so that does not tell them apart.)
fn open_below(folder: BorrowedFd<'_>, name: &CStr) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH;
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat2(folder, name, OpenHow::new().flags(flags).resolve(resolve))
}

type Entries = Vec<(CString, Option<Type>)>;

/// The names in a folder, read before any of them is removed, and the folder itself.
fn list(folder: OwnedFd) -> io::Result<(OwnedFd, Entries)> {
    let mut names = Vec::new();
    let mut open = Dir::from_fd(folder.try_clone()?)?;
    for entry in open.iter() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    Ok((folder, names))
}

fn os(name: &CStr) -> &std::ffi::OsStr {
    std::ffi::OsStr::from_bytes(name.to_bytes())
}

/// The mount points of a mount table (proc(5), `/proc/pid/mountinfo`).
fn points(table: &[u8]) -> Vec<PathBuf> {
    let fields = table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    fields.map(|field| PathBuf::from(OsString::from_vec(unescape(field)))).collect()
}

/// Blanks, line ends and backslashes come as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &after[3..];
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_table_is_read_with_its_escapes() {
        let table = b"1 0 0:1 / / rw - ext4 a rw\n2 1 0:1 / /run/a\\040b\\011\\134\\012/shm rw - tmpfs x rw\n\
            3 1 0:1 / /run/\xff\\04 rw - t x rw\nbroken line\n";
        let expected: [&[u8]; 3] = [b"/", b"/run/a b\t\\\n/shm", b"/run/\xff\\04"];
        let expected: Vec<_> = expected.iter().map(|path| PathBuf::from(OsString::from_vec(path.to_vec()))).collect();
        assert_eq!(points(table), expected);
    }

    #[test]
    fn a_tree_goes_with_its_links_and_not_what_they_point_to() {
        let folder = tempfile::tempdir().unwrap();
        let (tree, other) = (folder.path().join("tree"), folder.path().join("other"));
        fs::create_dir_all(tree.join("a/b c/d")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("kept"), "").unwrap();
        fs::write(tree.join("a/b c/file"), "").unwrap();
        std::os::unix::fs::symlink(&other, tree.join("a/link")).unwrap();
        remove_tree(&tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && other.join("kept").exists());
        remove_tree(&other.join("kept")).unwrap();
        assert!(!other.join("kept").exists());
    }

    /// The mounts of a test, gone with it whatever happens.
    struct Mounted(Vec<PathBuf>);

    impl Mounted {
        fn add(&mut self, source: &Path, target: &Path, kind: Option<&str>, flags: MsFlags) {
            mount(Some(source), target, kind, flags, None::<&str>).unwrap();
            self.0.push(target.to_owned());
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            for point in self.0.iter().rev() {
                let _ = umount2(point, MntFlags::MNT_DETACH); // The test may have done it.
            }
        }
    }

    fn may_mount() -> bool {
        let root = nix::unistd::Uid::effective().is_root();
        assert!(root || std::env::var_os("KEDGE_TEST_REQUIRE_CONTAINERD").is_none(), "mounting needs root");
        if !root {
            println!("skipped: mounting needs root");
        }
        root
    }

    #[test]
    fn nothing_is_removed_through_a_mount_and_nothing_of_the_host_is_unmounted() {
        if !may_mount() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (host, data, link) = (folder.path().join("host"), folder.path().join("a b\\c"), folder.path().join("link"));
        let (disk, inner) = (host.join("disk"), data.join("node/volume"));
        for made in [&disk, &inner] {
            fs::create_dir_all(made).unwrap();
        }
        std::os::unix::fs::symlink(&data, &link).unwrap();
        let mut mounts = Mounted(Vec::new());
        mounts.add(&host, &host, None, MsFlags::MS_BIND);
        mount(None::<&str>, &host, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
        mounts.add(Path::new("disk"), &disk, Some("tmpfs"), MsFlags::empty());
        fs::write(disk.join("letter"), "dear").unwrap();
        mounts.add(&host, &inner, None, MsFlags::MS_BIND | MsFlags::MS_REC);
        assert_eq!(below(&link).unwrap().len(), 2, "the folder and the disk in it");

        let error = remove_tree(&data).unwrap_err().to_string();
        assert!(error.contains("node/volume is mounted there"), "{error}");
        let parent = fs::File::open(data.join("node")).unwrap();
        assert_eq!(open_below(parent.as_fd(), c"volume").unwrap_err(), Errno::EXDEV, "though the device is the same");

        assert_eq!(unmount_below(&link, |path| path.starts_with("else")).unwrap(), 0);
        assert_eq!(unmount_below(&link, |path| path.starts_with("node/volume")).unwrap(), 2);
        assert_eq!(fs::read(disk.join("letter")).unwrap(), b"dear", "the host's disk was unmounted");
        remove_tree(&data).unwrap();
        assert!(!data.exists());
        assert_eq!(fs::read(disk.join("letter")).unwrap(), b"dear");
    }

    #[test]
    fn mounts_over_mounts_all_go() {
        if !may_mount() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("x/y");
        fs::create_dir_all(&deep).unwrap();
        let mut mounts = Mounted(Vec::new());
        for target in [&deep, &deep, &folder.path().join("x")] {
            mounts.add(Path::new("t"), target, Some("tmpfs"), MsFlags::empty());
        }
        assert_eq!(unmount_below(folder.path(), |_| true).unwrap(), 3);
        remove_tree(&folder.path().join("x")).unwrap();
    }
}
