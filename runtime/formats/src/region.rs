//! Bytes that are filled once and then only read: in a mapped file that outlives the process, or in memory.
//!
//! The file has no name while it is filled ([`Region::create`]); [`Region::keep`] gives it one when every byte of it is
//! on the disk. So a file of that name is whole, whenever power went. Its room is taken before it is mapped, since a
//! mapped write to a full disk would end the process. A folder keeps those that were used last: so many, and so many bytes;
//! one that would take more by itself is refused, and the others stay.
//! Not here: what the bytes are and whether they are still those that were written, and when a file is out of date: its name
//! says what it was made of.

#![allow(unsafe_code, reason = "a file is mapped into memory")]
#![allow(clippy::disallowed_methods, reason = "this file is the shell that maps packed weights")]

use std::fs::{File, FileTimes, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use memmap2::{Advice, Mmap, MmapMut};
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};

/// Names of files of regions end so.
const SUFFIX: &str = "packed";
/// Files of regions that a folder keeps: those that were used last. Together they take at most half of the room that
/// there would be without them, so that a disk which others fill is left to them.
const KEPT_MAX: usize = 8;
/// How long a file that is about to have its name may lie there under another: a process that was ended left it.
const NEW_MAX: Duration = Duration::from_secs(60 * 60);

/// Bytes to fill.
#[derive(Debug)]
pub struct Filling {
    map: MmapMut,
    file: Option<(File, PathBuf)>,
}

/// Bytes that were filled.
#[derive(Debug)]
pub struct Region {
    map: Mmap,
    /// The file that has no name yet, and the one it shall have.
    file: Mutex<Option<(File, PathBuf)>>,
    /// Where it was found, and which file that was: its device and its number there.
    found: Option<(PathBuf, (u64, u64))>,
}

impl Region {
    /// The region that was kept under that name in that folder, if it is there and as long as that. A file of another user
    /// is an error: what its owner writes or cuts is seen by whoever maps it.
    pub fn open(folder: &Path, name: &str, length: usize) -> io::Result<Option<Arc<Self>>> {
        let path = path(folder, name);
        // Something else than a file may let whoever opens it wait.
        let opened = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path);
        let Some(file) = unless_gone(opened)? else { return Ok(None) };
        let about = file.metadata()?;
        if ![0, nix::unistd::geteuid().as_raw()].contains(&about.uid()) {
            let reason = format!("{} belongs to user {}", path.display(), about.uid());
            return Err(io::Error::new(ErrorKind::PermissionDenied, reason));
        }
        if !is_whole(&about, length) {
            return Ok(None);
        }
        // Those used last are kept: when that is not to be written down, as on a disk that is only read, it matters not.
        // Both times, since one alone looks like a write to whoever watches for those.
        let now = SystemTime::now();
        let _ = file.set_times(FileTimes::new().set_accessed(now).set_modified(now));
        // SAFETY: the map is only read, as bytes, and nobody changes a file of that name (see `Mapped::open`).
        let map = unsafe { Mmap::map(&file) }?;
        in_large_pages(|wish| map.advise(wish));
        Ok(Some(Arc::new(Self { map, file: Mutex::new(None), found: Some((path, which(&about))) })))
    }

    /// Room for so many bytes in a file that will lie in that folder under that name. More than half of the room there is an
    /// error, before any other file has to go.
    pub fn create(folder: &Path, name: &str, length: usize) -> io::Result<Filling> {
        std::fs::create_dir_all(folder)?;
        let flags = OFlag::O_TMPFILE.bits();
        let file = File::options().read(true).write(true).mode(0o600).custom_flags(flags).open(folder)?;
        prune(folder, length as u64, SystemTime::now())?;
        nix::fcntl::posix_fallocate(&file, 0, length as i64)?;
        // SAFETY: the file has no name: nobody else can open it.
        let map = unsafe { MmapMut::map_mut(&file) }?;
        in_large_pages(|wish| map.advise(wish));
        Ok(Filling { map, file: Some((file, path(folder, name))) })
    }

    /// Removes the file in which this was found, if that is still what lies there: its path then. Another process may have
    /// put another there, which stays. Whoever maps what is removed keeps it.
    pub fn remove(&self) -> io::Result<Option<&Path>> {
        let Some((path, found)) = &self.found else { return Ok(None) };
        match unless_gone(std::fs::metadata(path))? {
            Some(about) if which(&about) == *found => {
                Ok(unless_gone(std::fs::remove_file(path))?.map(|()| path.as_path()))
            }
            _ => Ok(None),
        }
    }

    /// Room for so many bytes in memory.
    pub fn in_memory(length: usize) -> io::Result<Filling> {
        let map = MmapMut::map_anon(length.max(1))?;
        in_large_pages(|wish| map.advise(wish));
        Ok(Filling { map, file: None })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Writes the file out and gives it its name, unless that was done; then the oldest files too many are removed. This
    /// takes as long as the disk does, and the region can be read meanwhile.
    pub fn keep(&self) -> io::Result<()> {
        let taken = self.file.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((file, path)) = taken else { return Ok(()) };
        file.sync_all()?;
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        let link =
            |path: &Path| nix::unistd::linkat(AT_FDCWD, unnamed.as_str(), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW);
        match link(&path) {
            Ok(()) => {}
            // Another process made the same; or what lies there is not whole, and would stand in the way for ever.
            Err(nix::Error::EEXIST) => {
                if !std::fs::metadata(&path).is_ok_and(|about| is_whole(&about, self.map.len())) {
                    let new = path.with_extension(format!("{}.new", std::process::id()));
                    // One that was killed right here may have left it.
                    unless_gone(std::fs::remove_file(&new))?;
                    link(&new)?;
                    std::fs::rename(&new, &path).inspect_err(|_| drop(std::fs::remove_file(&new)))?;
                }
            }
            Err(error) => return Err(error.into()),
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
        prune(folder, 0, SystemTime::now())
    }
}

impl Filling {
    /// All bytes, to be written; zeros until then.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.map
    }

    /// From now on they are only read.
    pub fn finish(self) -> io::Result<Arc<Region>> {
        Ok(Arc::new(Region { map: self.map.make_read_only()?, file: Mutex::new(self.file), found: None }))
    }
}

/// All of a region is read again and again from one end to the other, which large pages make 5 to 9 % faster. A kernel that has
/// none, or none of files, refuses the wish: it is read in small ones then.
fn in_large_pages(advise: impl FnOnce(Advice) -> io::Result<()>) {
    let _ = advise(Advice::HugePage);
}

/// Whether that is a region's file with every byte of it.
fn is_whole(about: &Metadata, length: usize) -> bool {
    about.is_file() && about.len() == length as u64
}

fn path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.{SUFFIX}"))
}

/// Which file that is.
fn which(about: &Metadata) -> (u64, u64) {
    (about.dev(), about.ino())
}

/// Removes files of regions until only those are left that a folder keeps, a coming one of so many bytes among them; refuses
/// one that is too large before any is removed. Whoever maps one keeps it; one that is gone meanwhile was removed by another
/// process that does the same.
fn prune(folder: &Path, coming: u64, now: SystemTime) -> io::Result<()> {
    let (mut all, mut gone) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let (is_kept, is_new) = (path.extension().is_some_and(|suffix| suffix == SUFFIX), is_new(&path));
        if (is_kept || is_new)
            && let Some(about) = unless_gone(std::fs::symlink_metadata(&path))?
        {
            // It had that name no earlier than its node was changed last.
            let changed = UNIX_EPOCH + Duration::from_secs(about.ctime().max(0) as u64);
            if is_kept {
                all.push((about.modified()?, about.len(), path));
            } else if now.duration_since(changed).is_ok_and(|since| since > NEW_MAX) {
                gone.push(path);
            }
        }
    }
    all.sort();
    let disk = nix::sys::statvfs::statvfs(folder)?;
    let free = disk.blocks_available() as u64 * disk.fragment_size() as u64;
    let lengths: Vec<u64> = all.iter().map(|(_, length, _)| *length).collect();
    let room = room(&lengths, free);
    if coming > room {
        let reason = format!("its {coming} bytes are more than the {room} that it may have: half of the room there");
        return Err(io::Error::new(ErrorKind::StorageFull, reason));
    }
    gone.extend(all.into_iter().take(too_many(&lengths, coming, room)).map(|(_, _, path)| path));
    gone.into_iter().try_for_each(|path| unless_gone(std::fs::remove_file(path)).map(drop))
}

/// Whether that is the name under which a file lies for the moment before it replaces another: see [`Region::keep`].
fn is_new(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".new"));
    let process = name.and_then(|name| name.rsplit_once('.')).map(|(_, process)| process);
    process.is_some_and(|process| process.parse::<u32>().is_ok())
}

/// What files of those lengths may take together: see [`KEPT_MAX`].
fn room(lengths: &[u64], free: u64) -> u64 {
    lengths.iter().fold(free, |sum, length| sum.saturating_add(*length)) / 2
}

/// How many files, of those lengths and the oldest first, have to go.
fn too_many(lengths: &[u64], coming: u64, room: u64) -> usize {
    let (mut kept, mut bytes) = (usize::from(coming > 0), coming);
    for (index, length) in lengths.iter().enumerate().rev() {
        (kept, bytes) = (kept + 1, bytes.saturating_add(*length));
        if kept > KEPT_MAX || bytes > room {
            return index + 1;
        }
    }
    0
}

fn unless_gone<T>(done: io::Result<T>) -> io::Result<Option<T>> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_there_again_once_it_was_kept() {
        let folder = tempfile::tempdir().unwrap();
        let folder = &folder.path().join("deeper");
        let mut filling = Region::create(folder, "abc", 10_000).unwrap();
        filling.bytes()[9_999] = 7;
        let region = filling.finish().unwrap();
        assert_eq!(region.bytes()[9_999], 7);
        assert!(Region::open(folder, "abc", 10_000).unwrap().is_none(), "nothing has that name before it is kept");
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);
        region.keep().unwrap();
        region.keep().unwrap();
        assert_eq!(Region::open(folder, "abc", 10_000).unwrap().unwrap().bytes(), region.bytes());
        assert!(Region::open(folder, "abc", 9_999).unwrap().is_none(), "one of another length is another's");
        assert!(Region::open(folder, "abd", 10_000).unwrap().is_none());
    }

    #[test]
    fn one_that_two_made_is_kept_once_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "a", "b", "c", "d", "e", "f", "g", "h", "i"] {
            let region = Region::create(folder.path(), name, 1).unwrap().finish().unwrap();
            region.keep().unwrap();
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), KEPT_MAX);
        assert!(Region::open(folder.path(), "i", 1).unwrap().is_some());
    }

    #[test]
    fn a_folder_keeps_so_many_files_and_half_of_the_room() {
        for (what, lengths, coming, free, expected) in [
            ("nothing", &[][..], 0, 100, 0),
            ("few and small", &[1, 1, 1], 0, 100, 0),
            ("too many", &[1; 10], 0, 100, 2),
            ("too many with the coming one", &[1; 8], 1, 100, 1),
            ("half of the room", &[30, 30, 30], 0, 90, 0),
            ("more than half", &[30, 30, 30], 0, 60, 1),
            ("the newest are kept", &[10, 40, 20, 20], 0, 0, 2),
            ("a disk that others filled", &[30, 30, 30], 0, 0, 2),
            ("one alone that takes more than half", &[90], 0, 60, 1),
            ("one alone that takes half", &[90], 0, 90, 0),
            ("none beside a large one that comes", &[30, 30], 75, 100, 2),
            ("room for one beside it", &[30, 30], 30, 80, 1),
            ("lengths beyond all", &[1, u64::MAX], 1, 0, 2),
        ] {
            let lengths: Vec<u64> = lengths.to_vec();
            assert_eq!(too_many(&lengths, coming, room(&lengths, free)), expected, "{what}");
        }
    }

    #[test]
    fn what_was_found_can_be_removed_and_what_came_in_its_place_stays() {
        let folder = tempfile::tempdir().unwrap();
        let make = || {
            let region = Region::create(folder.path(), "a", 10).unwrap().finish().unwrap();
            region.keep().unwrap();
            region
        };
        let find = || Region::open(folder.path(), "a", 10).unwrap();
        let path = path(folder.path(), "a");
        assert_eq!(make().remove().unwrap(), None, "it was made, not found");
        let (one, again) = (find().unwrap(), find().unwrap());
        assert_eq!(one.remove().unwrap(), Some(path.as_path()));
        assert_eq!(again.remove().unwrap(), None, "it is gone");
        let other = make();
        assert_eq!(again.remove().unwrap(), None, "another lies there");
        assert_eq!(find().unwrap().bytes(), other.bytes());
    }

    #[test]
    fn one_that_is_too_large_is_refused_and_the_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            Region::create(folder.path(), name, 10).unwrap().finish().unwrap().keep().unwrap();
        }
        let disk = nix::sys::statvfs::statvfs(folder.path()).unwrap();
        let free = disk.blocks_available() as usize * disk.fragment_size() as usize;
        for length in [1 << 60, free - free / 4] {
            let error = Region::create(folder.path(), "c", length).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StorageFull);
            assert!(error.to_string().contains("half of the room"), "{error}");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        }
    }

    #[test]
    fn what_a_process_that_was_ended_left_goes_after_an_hour() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let names = ["a.17.new", "a.new", "a.b.new", "17.new", "a.17.new.old", "a.17.packed"];
        names.iter().for_each(|name| std::fs::write(folder.path().join(name), "").unwrap());
        let there = || names.iter().filter(|name| folder.path().join(name).exists()).copied().collect::<Vec<_>>();
        for soon in [Duration::ZERO, NEW_MAX - Duration::from_secs(60)] {
            prune(folder.path(), 0, now + soon).unwrap();
            assert_eq!(there(), names);
        }
        prune(folder.path(), 0, now - 2 * NEW_MAX).unwrap();
        assert_eq!(there(), names, "the clock was set back");
        prune(folder.path(), 0, now + NEW_MAX + Duration::from_secs(60)).unwrap();
        assert_eq!(there(), names[1..]);
    }

    #[test]
    fn two_that_remove_old_ones_at_once_do_not_stumble_over_each_other() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..20 {
            (0..40).for_each(|n| std::fs::write(folder.path().join(format!("{round}-{n}.{SUFFIX}")), "").unwrap());
            std::thread::scope(|scope| {
                let both = [(); 2].map(|()| scope.spawn(|| prune(folder.path(), 0, SystemTime::now())));
                both.into_iter().for_each(|one| one.join().unwrap().unwrap());
            });
        }
    }

    #[test]
    fn what_is_no_whole_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let there = path(folder.path(), "a");
        let keep = || Region::create(folder.path(), "a", 100).unwrap().finish().unwrap().keep();
        for wrong in ["cut", "fifo", "link to nothing"] {
            match wrong {
                "cut" => std::fs::write(&there, "a").unwrap(),
                "fifo" => nix::unistd::mkfifo(&there, nix::sys::stat::Mode::S_IRWXU).unwrap(),
                _ => std::os::unix::fs::symlink("nowhere", &there).unwrap(),
            }
            assert!(Region::open(folder.path(), "a", 100).unwrap().is_none(), "{wrong}");
            keep().unwrap();
            assert!(Region::open(folder.path(), "a", 100).unwrap().is_some(), "{wrong}");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "{wrong}");
            std::fs::remove_file(&there).unwrap();
        }
        std::fs::create_dir(&there).unwrap();
        assert!(Region::open(folder.path(), "a", 100).unwrap().is_none());
        assert!(keep().is_err(), "a folder is nobody's to remove");
    }

    #[test]
    fn a_file_of_another_user_is_not_mapped() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        Region::create(folder.path(), "a", 100).unwrap().finish().unwrap().keep().unwrap();
        nix::unistd::chown(&path(folder.path(), "a"), Some(12_345.into()), None).unwrap();
        let error = Region::open(folder.path(), "a", 100).unwrap_err();
        assert!(error.to_string().contains("belongs to user 12345"), "{error}");
    }

    #[test]
    fn room_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Region::create(folder.path(), "a", 1 << 60).is_err());
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(Region::create(&folder.path().join("file"), "a", 1).is_err());
    }

    #[test]
    fn memory_needs_no_folder() {
        let mut filling = Region::in_memory(3).unwrap();
        filling.bytes().copy_from_slice(b"abc");
        let region = filling.finish().unwrap();
        region.keep().unwrap();
        assert_eq!(region.bytes(), b"abc");
    }
}
