//! What models are taken in from: folders that an administrator filled, files and archives that were fetched.
//!
//! No name found there is followed out of its folder: folders are walked by file descriptors with `openat2`
//! (`RESOLVE_BENEATH`, no symbolic links), archives may hold nothing but plain files and folders.
#![allow(clippy::disallowed_methods, reason = "a shell: the user's own files, read, and their copies in a new folder")]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use kedge_content::free_bytes;
use nix::dir::{Dir, Type};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::manifest::{FILES_MAX, check_path};
use crate::remote::Place;

/// Folders in folders; published models have two or three.
const DEPTH_MAX: usize = 16;
/// The largest model, unpacked (an upper bound, not a promise of space).
const BYTES_MAX: u64 = 4 << 40;

/// Why something is no model's folder or archive.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The path is not below the folder for models.
    #[error("the path {0:?} is not below the folder for models")]
    Outside(String),
    /// There is no such folder.
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    /// It is a file, a device or something else.
    #[error("{0:?} is {1}; a model consists of plain files in folders")]
    Kind(String, &'static str),
    /// There is more than a model has.
    #[error("{0}")]
    Large(String),
    /// A file's name cannot be used.
    #[error("the file name {0:?} is not allowed")]
    Name(String),
    /// A file's name is there twice.
    #[error("the file {0:?} is there twice")]
    Twice(String),
    /// The archive cannot be read to its end.
    #[error("the archive cannot be read as a tar or tar.gz: {0}")]
    Archive(io::Error),
    /// The disk would be full: some is kept for everybody else.
    #[error("{name:?} has {size} bytes, and there is room for {room} on the disk")]
    Room {
        /// The file that does not fit any more.
        name: String,
        /// Its bytes.
        size: u64,
        /// Bytes that may be written.
        room: u64,
    },
    /// Reading or writing failed.
    #[error("{}: {source}", path.display())]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

fn disk(path: &Path) -> impl FnOnce(io::Error) -> SourceError + '_ {
    move |source| SourceError::Disk { path: path.to_owned(), source }
}

/// Copies all files of the folder `path` below `below` into the new folder `target`; gives their names.
pub(crate) fn copy_folder(below: &Path, path: &str, target: &Path) -> Result<Vec<String>, SourceError> {
    let mut names = Vec::new();
    each_file(below, path, &mut |found| {
        match found {
            Found::Folder(name) => {
                let to = target.join(name);
                std::fs::DirBuilder::new().mode(0o755).create(&to).map_err(disk(&to))?;
            }
            Found::File(name, mut file) => {
                let to = target.join(&name);
                check_room(&name, file.metadata().map_err(disk(&to))?.len(), target)?;
                // Between two regular files this is copy_file_range, which shares the blocks where it can.
                io::copy(&mut file, &mut new_file(&to)?).map_err(disk(&to))?;
                names.push(name);
            }
        }
        Ok(())
    })?;
    Ok(names)
}

/// What a walk comes across: names below the folder that was asked for.
pub(crate) enum Found {
    Folder(String),
    File(String, File),
}

type Visit<'a> = &'a mut dyn FnMut(Found) -> Result<(), SourceError>;

/// Shows `visit` everything in the folder `path` below `below`, folders before what they hold.
pub(crate) fn each_file(below: &Path, path: &str, visit: Visit<'_>) -> Result<(), SourceError> {
    if check_path(path).is_err() {
        return Err(SourceError::Outside(path.to_owned()));
    }
    let root = File::open(below).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => SourceError::Missing(below.to_owned()),
        _ => disk(below)(error),
    })?;
    let place = below.join(path);
    let folder = open_below(&root, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(|errno| match errno {
        nix::Error::ENOENT => SourceError::Missing(place.clone()),
        nix::Error::ENOTDIR => SourceError::Kind(path.to_owned(), "no folder"),
        nix::Error::ELOOP | nix::Error::EXDEV => SourceError::Kind(path.to_owned(), "reached by a symbolic link"),
        other => disk(&place)(other.into()),
    })?;
    let mut files = 0;
    walk(folder, "", &place, &mut files, 0, visit)
}

fn open_below(folder: &impl std::os::fd::AsFd, name: &str, flags: OFlag) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).resolve(resolve);
    openat2(folder, name, how)
}

fn walk(
    folder: OwnedFd,
    prefix: &str,
    place: &Path,
    files: &mut usize,
    depth: usize,
    visit: Visit<'_>,
) -> Result<(), SourceError> {
    if depth > DEPTH_MAX {
        return Err(SourceError::Large(format!("{prefix:?} is more than {DEPTH_MAX} folders deep")));
    }
    let failed = |error: nix::Error| disk(place)(error.into());
    let copy = folder.try_clone().map_err(disk(place))?;
    let mut entries = Vec::new();
    for entry in Dir::from_fd(folder).map_err(failed)?.iter() {
        let entry = entry.map_err(failed)?;
        let name = OsString::from(entry.file_name().to_string_lossy().into_owned());
        let text = name.to_str().unwrap_or_default().to_owned();
        if text == "." || text == ".." {
            continue;
        }
        if entry.file_name().to_str().is_err() {
            return Err(SourceError::Name(format!("{prefix}{text}")));
        }
        entries.push((text, entry.file_type()));
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, kind) in entries {
        let full = format!("{prefix}{name}");
        check_path(&full).map_err(|_| SourceError::Name(full.clone()))?;
        let from = place.join(&name);
        let kind = match kind {
            Some(kind) => kind,
            None => kind_of(&copy, &name).map_err(|error| disk(&from)(error.into()))?,
        };
        match kind {
            Type::Directory => {
                let inner = open_below(&copy, &name, OFlag::O_RDONLY | OFlag::O_DIRECTORY);
                let inner = inner.map_err(|error| disk(&from)(error.into()))?;
                visit(Found::Folder(full.clone()))?;
                walk(inner, &format!("{full}/"), &from, files, depth + 1, visit)?;
            }
            Type::File => {
                *files += 1;
                if *files > FILES_MAX {
                    return Err(SourceError::Large(format!("there are more than {FILES_MAX} files")));
                }
                let opened = open_below(&copy, &name, OFlag::O_RDONLY).map_err(|error| disk(&from)(error.into()))?;
                visit(Found::File(full, File::from(opened)))?;
            }
            Type::Symlink => return Err(SourceError::Kind(full, "a symbolic link")),
            _ => return Err(SourceError::Kind(full, "neither a file nor a folder")),
        }
    }
    Ok(())
}

/// What `name` is, where the file system's directory entries do not say.
fn kind_of(folder: &OwnedFd, name: &str) -> nix::Result<Type> {
    let stat = nix::sys::stat::fstatat(folder, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(match stat.st_mode & nix::libc::S_IFMT {
        nix::libc::S_IFDIR => Type::Directory,
        nix::libc::S_IFREG => Type::File,
        nix::libc::S_IFLNK => Type::Symlink,
        _ => Type::Fifo,
    })
}

fn new_file(path: &Path) -> Result<File, SourceError> {
    OpenOptions::new().write(true).create_new(true).mode(0o644).open(path).map_err(disk(path))
}

/// Puts fetched files, and what fetched archives hold, into the new folder `target`; gives their names. When everything
/// comes out of archives and lies in one top folder, as archives of projects are packed, that folder is left out.
pub(crate) fn assemble(parts: &[(Place, PathBuf)], target: &Path) -> Result<Vec<String>, SourceError> {
    let common = top_folder(parts)?;
    let mut names = BTreeSet::new();
    let mut total = 0_u64;
    let mut claim = |name: &str, size: u64| {
        total = total.saturating_add(size);
        if total > BYTES_MAX || names.len() >= FILES_MAX {
            return Err(SourceError::Large("there is more in it than a model has".into()));
        }
        check_path(name).map_err(|_| SourceError::Name(name.to_owned()))?;
        if !names.insert(name.to_owned()) {
            return Err(SourceError::Twice(name.to_owned()));
        }
        let to = target.join(name);
        let folder = to.parent().expect("a file is in a folder");
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(disk(folder))?;
        Ok(to)
    };
    for (place, path) in parts {
        match place {
            Place::File(name) => {
                let size = path.metadata().map_err(disk(path))?.len();
                let to = claim(name, size)?;
                if std::fs::hard_link(path, &to).is_err() {
                    // Not every file system has links.
                    check_room(name, size, target)?;
                    std::fs::copy(path, &to).map_err(disk(&to))?;
                }
                std::fs::set_permissions(&to, Permissions::from_mode(0o644)).map_err(disk(&to))?;
            }
            Place::Archive => for_each_file(path, |name, size, content| {
                let name = common.as_ref().and_then(|top| name.strip_prefix(top)).unwrap_or(&name);
                check_room(name, size, target)?;
                let to = claim(name, size)?;
                let mut file = new_file(&to)?;
                let written = io::copy(content, &mut file).map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                        SourceError::Archive(error)
                    }
                    _ => disk(&to)(error),
                })?;
                if written != size {
                    return Err(SourceError::Archive(io::ErrorKind::UnexpectedEof.into()));
                }
                Ok(())
            })?,
        }
    }
    Ok(names.into_iter().collect())
}

/// Asked for each file: what came before, and what others write, counts too.
fn check_room(name: &str, size: u64, folder: &Path) -> Result<(), SourceError> {
    let room = free_bytes(folder).map_err(disk(folder))?;
    if size > room {
        return Err(SourceError::Room { name: name.to_owned(), size, room });
    }
    Ok(())
}

/// The one folder that all files lie in, with its slash; none when there is no such, or when some have a name of their
/// own.
fn top_folder(parts: &[(Place, PathBuf)]) -> Result<Option<String>, SourceError> {
    let mut top: Option<Option<String>> = None;
    for (place, path) in parts {
        if matches!(place, Place::File(_)) {
            return Ok(None);
        }
        for_each_file(path, |name, _, _| {
            let first = name.split_once('/').map(|(first, _)| format!("{first}/"));
            top = Some(match top.take() {
                None => first,
                Some(known) => known.filter(|known| Some(known) == first.as_ref()),
            });
            Ok(())
        })?;
    }
    Ok(top.flatten())
}

fn for_each_file(
    archive: &Path,
    mut each: impl FnMut(String, u64, &mut dyn Read) -> Result<(), SourceError>,
) -> Result<(), SourceError> {
    let mut head = Vec::new();
    let open = || File::open(archive).map_err(disk(archive));
    open()?.take(4).read_to_end(&mut head).map_err(disk(archive))?;
    let file = BufReader::with_capacity(256 << 10, open()?);
    let stream: Box<dyn Read> = match head[..] {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let error = io::Error::other("it is compressed with zstd, which is not supported");
            return Err(SourceError::Archive(error));
        }
        _ => Box::new(file),
    };
    let mut tar = tar::Archive::new(stream);
    for entry in tar.entries().map_err(SourceError::Archive)? {
        let mut entry = entry.map_err(SourceError::Archive)?;
        let bytes = entry.path_bytes().into_owned();
        let name = String::from_utf8(bytes).map_err(|error| SourceError::Name(error.to_string()))?;
        let name = name.trim_start_matches("./").to_owned();
        match entry.header().entry_type() {
            tar::EntryType::Directory | tar::EntryType::XGlobalHeader => {}
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                check_path(&name).map_err(|_| SourceError::Name(name.clone()))?;
                // (OCI image spec, layer.md, "Whiteouts".)
                if name.rsplit('/').next().is_some_and(|name| name.starts_with(".wh.")) {
                    return Err(SourceError::Kind(name, "the mark of a file that a layer deletes"));
                }
                let size = entry.size();
                each(name, size, &mut entry)?;
            }
            tar::EntryType::Symlink | tar::EntryType::Link => return Err(SourceError::Kind(name, "a link")),
            _ => return Err(SourceError::Kind(name, "neither a file nor a folder")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(folder: &Path, files: &[(&str, &[u8])]) -> PathBuf {
        let path = folder.join("a.tar");
        let mut builder = tar::Builder::new(File::create(&path).unwrap());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            // Hostile names are not what the builder lets through, so they are put in place by hand.
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(bytes.len() as u64);
            header.set_mode(0o600);
            header.set_cksum();
            builder.append(&header, *bytes).unwrap();
        }
        builder.into_inner().unwrap();
        path
    }

    fn unpack(archive: &Path, target: &Path) -> Result<Vec<String>, SourceError> {
        assemble(&[(Place::Archive, archive.to_owned())], target)
    }

    #[test]
    fn a_common_top_folder_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = archive(folder.path(), &[("m/config.json", b"{}"), ("m/sub/x", b"y")]);
        let target = folder.path().join("t");
        std::fs::create_dir(&target).unwrap();
        assert_eq!(unpack(&path, &target).unwrap(), ["config.json", "sub/x"]);
        let path = archive(folder.path(), &[("m/config.json", b"{}"), ("x", b"y")]);
        let target = folder.path().join("u");
        std::fs::create_dir(&target).unwrap();
        assert_eq!(unpack(&path, &target).unwrap(), ["m/config.json", "x"]);
    }

    #[test]
    fn names_that_leave_the_folder_and_broken_archives_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("t");
        std::fs::create_dir(&target).unwrap();
        for name in ["../x", "/etc/x", "a/../../x"] {
            let path = archive(folder.path(), &[(name, b"1")]);
            assert!(matches!(unpack(&path, &target), Err(SourceError::Name(_))), "{name}");
        }
        let path = archive(folder.path(), &[("model", &[7; 5000])]);
        let cut = std::fs::read(&path).unwrap();
        std::fs::write(&path, &cut[..3000]).unwrap();
        assert!(matches!(unpack(&path, &target), Err(SourceError::Archive(_))));
        std::fs::write(&path, b"no tar at all").unwrap();
        assert!(matches!(unpack(&path, &target), Err(SourceError::Archive(_))));
    }

    #[test]
    fn files_and_archives_come_together_and_no_name_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = archive(folder.path(), &[("m/config.json", b"{}"), ("m/x", b"y")]);
        let file = folder.path().join("part");
        std::fs::write(&file, "weights").unwrap();
        let fill = |number: usize, parts: &[(Place, PathBuf)]| {
            let target = folder.path().join(number.to_string());
            std::fs::create_dir(&target).unwrap();
            assemble(parts, &target)
        };
        let named = |name: &str| (Place::File(name.to_owned()), file.clone());
        let packed = (Place::Archive, path);
        let together = fill(1, &[named("sub/weights"), packed.clone()]).unwrap();
        assert_eq!(together, ["m/config.json", "m/x", "sub/weights"]);
        assert_eq!(std::fs::read(folder.path().join("1/sub/weights")).unwrap(), b"weights");
        assert!(matches!(fill(2, &[named("m/x"), packed.clone()]), Err(SourceError::Twice(_))));
        assert!(matches!(fill(3, &[packed.clone(), packed]), Err(SourceError::Twice(_))));
        assert!(matches!(fill(4, &[named("../x")]), Err(SourceError::Name(_))));
        let marked = archive(folder.path(), &[("m/.wh.x", b"")]);
        assert!(matches!(fill(5, &[(Place::Archive, marked)]), Err(SourceError::Kind(..))));
    }

    #[test]
    fn what_is_compressed_with_zstd_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("packed");
        std::fs::write(&path, [0x28, 0xb5, 0x2f, 0xfd, 0, 0]).unwrap();
        let error = unpack(&path, &folder.path().join("t")).unwrap_err().to_string();
        assert!(error.contains("zstd"), "{error}");
    }

    #[test]
    fn what_would_fill_the_disk_is_refused_with_figures() {
        let folder = tempfile::tempdir().unwrap();
        let error = check_room("model.safetensors", u64::MAX, folder.path()).unwrap_err().to_string();
        assert!(error.contains("model.safetensors") && error.contains(&u64::MAX.to_string()), "{error}");
        assert!(check_room("x", 1, folder.path()).is_ok());
    }

    #[test]
    fn paths_outside_and_links_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let models = folder.path().join("models");
        std::fs::create_dir_all(models.join("real")).unwrap();
        std::fs::write(models.join("file"), "x").unwrap();
        std::os::unix::fs::symlink("real", models.join("link")).unwrap();
        let target = folder.path().join("t");
        for path in ["../models", "/etc", "a/../b", ""] {
            assert!(matches!(copy_folder(&models, path, &target), Err(SourceError::Outside(_))), "{path:?}");
        }
        let error = |path: &str| copy_folder(&models, path, &target).unwrap_err().to_string();
        assert!(error("link").contains("symbolic link"), "{}", error("link"));
        assert!(error("file").contains("no folder"), "{}", error("file"));
        assert!(error("gone").contains("does not exist"), "{}", error("gone"));
    }
}
