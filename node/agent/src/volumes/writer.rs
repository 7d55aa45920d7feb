//! Volumes on disk.
//!
//! Files that change are replaced all at once, as upstream's atomic writer does (`pkg/volume/util/atomic_writer.go`):
//! they lie in a new folder `..<time>`, `..data` is a link to it that is renamed into place, and what containers see
//! are links through `..data`. Everything below a volume is reached from its folder's descriptor and never through a
//! link (openat2), because a container may have written there.
#![allow(clippy::disallowed_methods, reason = "a shell: folders, links and mounts of pods' volumes")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use kedge_runtimes::{RuntimeError, mounts};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat, renameat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{Gid, UnlinkatFlags, fchown, symlinkat, unlinkat};

use super::{FileContent, VolumePlan};
use crate::env::ConfigError;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// A volume that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// What the pod asks for is not there.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A step on the disk.
    #[error("{attempt}: {source}")]
    Disk {
        /// The step.
        attempt: String,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
}

fn disk(attempt: impl Into<String>) -> impl FnOnce(io::Error) -> VolumeError {
    let attempt = attempt.into();
    move |source| VolumeError::Disk { attempt, source }
}

fn kernel(attempt: impl Into<String>) -> impl FnOnce(Errno) -> VolumeError {
    let attempt = attempt.into();
    move |error| VolumeError::Disk { attempt, source: error.into() }
}

/// Makes a volume at `place` (or finds the host's); gives where it lies. `stamp` names a new version of files.
pub fn make(plan: &VolumePlan, place: &Path, fs_group: Option<u32>, stamp: &str) -> Result<PathBuf, VolumeError> {
    match plan {
        VolumePlan::Host { path, kind } => host(path, kind).map(|()| path.clone()),
        VolumePlan::EmptyDir { memory, size_bytes } => {
            empty_dir(place, *memory, *size_bytes, fs_group).map(|()| place.to_owned())
        }
        VolumePlan::Files(files) => {
            fs::create_dir_all(place).map_err(disk(format!("create {}", place.display())))?;
            write_files(place, files, fs_group, stamp).map(|_| place.to_owned())
        }
    }
}

fn host(path: &Path, kind: &str) -> Result<(), VolumeError> {
    use std::os::unix::fs::FileTypeExt;
    let refuse = |what: &str| {
        VolumeError::Config(ConfigError(format!("hostPath type check failed: {} is not a {what}", path.display())))
    };
    let found = fs::metadata(path).ok().map(|meta| meta.file_type());
    let check = |fits: bool, what: &str| if fits { Ok(()) } else { Err(refuse(what)) };
    match (kind, found) {
        ("", _) => Ok(()),
        ("DirectoryOrCreate", None) => fs::create_dir_all(path).map_err(disk(format!("create {}", path.display()))),
        ("FileOrCreate", None) => File::create(path).map(drop).map_err(disk(format!("create {}", path.display()))),
        ("Directory" | "DirectoryOrCreate", found) => check(found.is_some_and(|kind| kind.is_dir()), "directory"),
        ("File" | "FileOrCreate", found) => check(found.is_some_and(|kind| kind.is_file()), "file"),
        ("Socket", found) => check(found.is_some_and(|kind| kind.is_socket()), "socket"),
        ("CharDevice", found) => check(found.is_some_and(|kind| kind.is_char_device()), "character device"),
        ("BlockDevice", found) => check(found.is_some_and(|kind| kind.is_block_device()), "block device"),
        (other, _) => Err(VolumeError::Config(ConfigError(format!("hostPath type {other:?} is unknown")))),
    }
}

fn empty_dir(place: &Path, memory: bool, size: Option<i64>, fs_group: Option<u32>) -> Result<(), VolumeError> {
    use std::os::unix::fs::PermissionsExt;
    let attempt = || format!("make emptyDir {}", place.display());
    let existed = place.exists();
    fs::create_dir_all(place).map_err(disk(attempt()))?;
    if memory && !is_mount(place) {
        let options = size.map_or("mode=0777".to_owned(), |bytes| format!("mode=0777,size={bytes}"));
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), place, Some("tmpfs"), flags, Some(options.as_str())).map_err(kernel(attempt()))?;
    } else if existed {
        return Ok(()); // Of an earlier start; what containers wrote stays.
    }
    std::os::unix::fs::chown(place, None, fs_group).map_err(disk(attempt()))?;
    let mode = if fs_group.is_some() { 0o2777 } else { 0o777 };
    fs::set_permissions(place, fs::Permissions::from_mode(mode)).map_err(disk(attempt()))
}

fn is_mount(place: &Path) -> bool {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let place = place.to_string_lossy().replace(' ', "\\040");
    text.lines().any(|line| line.split(' ').nth(4) == Some(&place))
}

/// Opens a path below `folder` without following a link anywhere.
fn open_below(folder: impl AsFd, path: &Path, flags: OFlag, mode: Mode) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    openat2(folder, path, OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode).resolve(resolve))
}

/// Replaces the files of a volume; tells whether anything changed.
pub fn write_files(
    place: &Path,
    files: &BTreeMap<PathBuf, FileContent>,
    fs_group: Option<u32>,
    stamp: &str,
) -> Result<bool, VolumeError> {
    let attempt = |what: &str| format!("{what} in volume {}", place.display());
    let root = File::open(place).map_err(disk(attempt("open the folder")))?;
    // A link of ours names a version beside it; another one is replaced, and what it leads to is not ours.
    let is_version = |path: &PathBuf| matches!(path.components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
    let current = readlinkat(&root, DATA).ok().map(PathBuf::from).filter(is_version);
    if current.as_ref().is_some_and(|version| holds(&place.join(version), files)) {
        return Ok(false);
    }
    forget_versions(place, current.as_deref()).map_err(disk(attempt("remove what an earlier attempt left")))?;
    let version = format!("..{stamp}");
    mkdirat(&root, version.as_str(), Mode::from_bits_truncate(0o755)).map_err(kernel(attempt("make a version")))?;
    let folder = open_below(&root, Path::new(&version), OFlag::O_DIRECTORY, Mode::empty())
        .map_err(kernel(attempt("open a version")))?;
    own(&folder, fs_group).map_err(kernel(attempt("own a version")))?;
    let mut files_of_it = files.iter();
    let written = files_of_it.try_for_each(|(path, content)| {
        write_one(&folder, path, content, fs_group).map_err(disk(attempt(&format!("write {}", path.display()))))
    });
    if let Err(error) = written {
        // A disk that is full gets no fuller with every attempt; why it failed is what counts.
        if let Err(error) = fs::remove_dir_all(place.join(&version)) {
            tracing::warn!(volume = %place.display(), %error, "what was written stays behind");
        }
        return Err(error);
    }
    match unlinkat(&root, DATA_NEW, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(e) => return Err(kernel(attempt("remove an old link"))(e)),
    }
    symlinkat(version.as_str(), &root, DATA_NEW).map_err(kernel(attempt("link the version")))?;
    renameat(&root, DATA_NEW, &root, DATA).map_err(kernel(attempt("show the version")))?;
    show(&root, place, files).map_err(disk(attempt("link files")))?;
    if let Some(old) = current {
        fs::remove_dir_all(place.join(old)).map_err(disk(attempt("remove the old version")))?;
    }
    Ok(true)
}

/// Removes versions that are not shown: a process that ended while it wrote one left it.
fn forget_versions(place: &Path, current: Option<&Path>) -> io::Result<()> {
    for entry in fs::read_dir(place)? {
        let name = entry?.file_name();
        let is_version = name.to_string_lossy().starts_with("..") && name != DATA && name != DATA_NEW;
        if is_version && current != Some(Path::new(&name)) {
            fs::remove_dir_all(place.join(&name))?;
        }
    }
    Ok(())
}

fn own(what: impl AsFd, fs_group: Option<u32>) -> Result<(), Errno> {
    match fs_group {
        Some(gid) => fchown(what, None, Some(Gid::from_raw(gid))),
        None => Ok(()),
    }
}

fn write_one(folder: &OwnedFd, path: &Path, content: &FileContent, fs_group: Option<u32>) -> io::Result<()> {
    let mut above = PathBuf::new();
    for part in path.parent().into_iter().flat_map(Path::components) {
        above.push(part);
        match mkdirat(folder, &above, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY;
    let mut file = File::from(open_below(folder, path, flags, Mode::from_bits_truncate(0o600))?);
    file.write_all(&content.bytes)?;
    own(&file, fs_group)?;
    // The group that the volume is shared with must be able to read it.
    let mode = if fs_group.is_some() { content.mode | 0o040 } else { content.mode };
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))
}

/// Whether a version has exactly these files.
fn holds(version: &Path, files: &BTreeMap<PathBuf, FileContent>) -> bool {
    fn count(folder: &Path) -> usize {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| if entry.path().is_dir() { count(&entry.path()) } else { 1 }).sum()
    }
    files.iter().all(|(path, content)| fs::read(version.join(path)).is_ok_and(|bytes| bytes == content.bytes))
        && count(version) == files.len()
}

/// Makes the links that containers see, one for each name at the top, and removes those of files that went.
fn show(root: &File, place: &Path, files: &BTreeMap<PathBuf, FileContent>) -> io::Result<()> {
    let tops: BTreeSet<&Path> = files
        .keys()
        .filter_map(|path| path.components().next())
        .filter_map(|part| match part {
            Component::Normal(name) => Some(Path::new(name)),
            _ => None,
        })
        .collect();
    for top in &tops {
        match symlinkat(&Path::new(DATA).join(top), root, *top) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(e.into()),
        }
    }
    for entry in fs::read_dir(place)? {
        let name = entry?.file_name();
        if !name.to_string_lossy().starts_with("..") && !tops.contains(Path::new(&name)) {
            unlinkat(root, Path::new(&name), UnlinkatFlags::NoRemoveDir)?;
        }
    }
    Ok(())
}

/// Binds what lies at `path` inside `volume` to `target`, links resolved inside the volume, so that swapping one later
/// changes nothing. A folder is made when nothing is there. What an earlier start bound is replaced when another thing is
/// at `path` by now, as a ConfigMap's file is after each change. (`pkg/volume/util/subpath/subpath_linux.go`.)
pub fn bind_sub_path(volume: &Path, path: &str, target: &Path) -> Result<(), VolumeError> {
    let attempt = || format!("find subPath {path:?} in {}", volume.display());
    let root = File::open(volume).map_err(disk(attempt()))?;
    let mode = root.metadata().map_err(disk(attempt()))?.mode();
    let mode = Mode::from_bits_truncate(mode & 0o7777);
    let inside = |path: &Path| {
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        openat2(&root, path, OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve))
    };
    let found = match inside(Path::new(path)) {
        Err(Errno::ENOENT) => {
            let mut above = PathBuf::new();
            for part in Path::new(path).components() {
                let parent = if above.as_os_str().is_empty() { inside(Path::new(".")) } else { inside(&above) };
                let parent = parent.map_err(kernel(attempt()))?;
                match mkdirat(&parent, part.as_os_str(), mode) {
                    // As open as the volume, whatever our umask is: the container may be anybody.
                    // Through its own descriptor: a name may be a link by now.
                    Ok(()) => open_below(&parent, Path::new(&part), OFlag::O_DIRECTORY, Mode::empty())
                        .and_then(|made| fchmod(made, mode))
                        .map_err(kernel(attempt()))?,
                    Err(Errno::EEXIST) => {}
                    Err(e) => return Err(kernel(attempt())(e)),
                }
                above.push(part);
            }
            inside(Path::new(path))
        }
        other => other,
    };
    let found = found.map_err(kernel(attempt()))?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    let meta = fs::metadata(&source).map_err(disk(attempt()))?;
    if is_mount(target) {
        let bound = fs::metadata(target).map_err(disk(attempt()))?;
        if (bound.dev(), bound.ino()) == (meta.dev(), meta.ino()) {
            return Ok(());
        }
        while is_mount(target) {
            umount2(target, MntFlags::MNT_DETACH).map_err(kernel(attempt()))?;
        }
        match bound.is_dir() {
            true => fs::remove_dir(target).map_err(disk(attempt()))?,
            false => fs::remove_file(target).map_err(disk(attempt()))?,
        }
    }
    if meta.is_dir() {
        fs::create_dir_all(target).map_err(disk(attempt()))?;
    } else {
        fs::create_dir_all(target.parent().unwrap_or(Path::new("/"))).map_err(disk(attempt()))?;
        File::create(target).map_err(disk(attempt()))?;
    }
    mount(Some(&source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(kernel(attempt()))
}

/// Unmounts everything below a pod's folder and removes it.
pub fn remove(folder: &Path) -> Result<(), VolumeError> {
    let removed = mounts::unmount_below(folder, |_| true).and_then(|_| mounts::remove_tree(folder));
    removed.map_err(|error| match error {
        RuntimeError::Host { attempt, source } => VolumeError::Disk { attempt, source },
        other => disk(format!("remove {}", folder.display()))(io::Error::other(other)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn files(list: &[(&str, &str, u32)]) -> BTreeMap<PathBuf, FileContent> {
        let file = |(path, text, mode): &(&str, &str, u32)| {
            (PathBuf::from(path), FileContent { bytes: text.as_bytes().to_vec(), mode: *mode })
        };
        list.iter().map(file).collect()
    }

    #[test]
    fn files_change_all_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path();
        assert!(write_files(place, &files(&[("a", "1", 0o644), ("d/e", "2", 0o400)]), None, "v1").unwrap());
        assert_eq!(fs::read_to_string(place.join("d/e")).unwrap(), "2");
        assert_eq!(fs::metadata(place.join("d/e")).unwrap().permissions().mode() & 0o777, 0o400);
        assert_eq!(fs::read_link(place.join("a")).unwrap(), Path::new("..data/a"));
        assert!(!write_files(place, &files(&[("a", "1", 0o644), ("d/e", "2", 0o400)]), None, "v2").unwrap());
        assert!(write_files(place, &files(&[("a", "3", 0o644)]), None, "v3").unwrap());
        assert_eq!(fs::read_to_string(place.join("a")).unwrap(), "3");
        assert_eq!(fs::read_link(place.join("..data")).unwrap(), Path::new("..v3"));
        let mut names: Vec<_> =
            fs::read_dir(place).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["..data", "..v3", "a"]);
    }

    #[test]
    fn a_version_that_cannot_be_written_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path();
        let names = || {
            let entries = fs::read_dir(place).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            entries.collect::<BTreeSet<_>>()
        };
        let shown = ["..data", "..v1", "a"].map(str::to_owned).into();
        assert!(write_files(place, &files(&[("a", "1", 0o644)]), None, "v1").unwrap());
        for version in ["v2", "v3"] {
            // A file cannot be a folder, too.
            write_files(place, &files(&[("b", "1", 0o644), ("b/c", "2", 0o644)]), None, version).unwrap_err();
            assert_eq!(names(), shown, "{version}");
        }
        // What a process that was killed left goes with the next version.
        fs::create_dir_all(place.join("..v4/d")).unwrap();
        assert!(write_files(place, &files(&[("a", "2", 0o644)]), None, "v5").unwrap());
        assert_eq!(names(), ["..data", "..v5", "a"].map(str::to_owned).into());
    }

    #[test]
    fn a_link_in_the_volume_leads_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let (place, outside) = (folder.path().join("v"), folder.path().join("outside"));
        fs::create_dir(&place).unwrap();
        fs::create_dir(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, place.join("..v1")).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        write_files(&place, &files(&[("a", "1", 0o644)]), None, "v1").unwrap();
        assert!(!fs::symlink_metadata(place.join("..v1")).unwrap().is_symlink(), "the link went, not what it led to");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        // Nor is what the other link leads to taken for an old version.
        fs::remove_file(place.join("..data")).unwrap();
        std::os::unix::fs::symlink(&outside, place.join("..data")).unwrap();
        write_files(&place, &files(&[("b", "1", 0o644)]), None, "v2").unwrap();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }

    #[test]
    fn host_paths_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "").unwrap();
        for (name, kind, fits) in [
            ("file", "File", true),
            ("file", "Directory", false),
            ("none", "", true),
            ("none", "Directory", false),
            ("new", "DirectoryOrCreate", true),
            ("new2", "FileOrCreate", true),
            ("file", "Socket", false),
            ("file", "Nonsense", false),
        ] {
            assert_eq!(host(&at(name), kind).is_ok(), fits, "{name} {kind}");
        }
        assert!(at("new").is_dir() && at("new2").is_file());
    }

    #[test]
    fn an_empty_dir_is_made_once_and_belongs_to_the_group() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("v");
        let group = Some(nix::unistd::getgid().as_raw());
        let plan = VolumePlan::EmptyDir { memory: false, size_bytes: None };
        make(&plan, &place, group, "x").unwrap();
        assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o7777, 0o2777);
        fs::write(place.join("kept"), "").unwrap();
        make(&plan, &place, group, "x").unwrap();
        assert!(place.join("kept").exists());
        remove(&place).unwrap();
        assert!(!place.exists());
    }

    #[test]
    fn a_sub_path_is_bound_again_when_another_file_is_there() {
        if !nix::unistd::Uid::effective().is_root() {
            return; // Mounting needs root.
        }
        let folder = tempfile::tempdir().unwrap();
        let (volume, target) = (folder.path().join("v"), folder.path().join("t/0"));
        fs::create_dir(&volume).unwrap();
        let points = || {
            let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
            text.lines().filter(|line| line.contains(target.to_str().unwrap())).count()
        };
        for (version, text) in [("v1", "old"), ("v2", "new"), ("v3", "new")] {
            write_files(&volume, &files(&[("a", text, 0o644)]), None, version).unwrap();
            for _start in 0..2 {
                bind_sub_path(&volume, "a", &target).unwrap();
                assert_eq!((fs::read_to_string(&target).unwrap().as_str(), points()), (text, 1), "{version}");
            }
        }
        // And a folder in the place of the file.
        write_files(&volume, &files(&[("a/b", "deep", 0o644)]), None, "v4").unwrap();
        bind_sub_path(&volume, "a", &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("b")).unwrap(), "deep");
        remove(&folder.path().join("t")).unwrap();
    }

    #[test]
    fn a_sub_path_stays_inside_whatever_links_say() {
        if !nix::unistd::Uid::effective().is_root() {
            return; // Mounting needs root.
        }
        let folder = tempfile::tempdir().unwrap();
        let (volume, outside) = (folder.path().join("v"), folder.path().join("outside"));
        fs::create_dir(&volume).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, volume.join("link")).unwrap();
        let target = folder.path().join("t/0");
        assert!(bind_sub_path(&volume, "link", &target).is_err() || !target.join("secret").exists());
        let target = folder.path().join("t/1");
        bind_sub_path(&volume, "new/deep", &target).unwrap();
        fs::write(target.join("f"), "y").unwrap();
        assert_eq!(fs::read_to_string(volume.join("new/deep/f")).unwrap(), "y");
        remove(&folder.path().join("t")).unwrap();
        assert!(volume.join("new/deep/f").exists(), "the volume itself stays");
    }
}
