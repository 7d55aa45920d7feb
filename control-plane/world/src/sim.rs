//! The simulated outside: one seed decides everything, and the test moves the clock.
//!
//! [`SimDisk`] is a disk that tells the truth only after `sync`: at [`SimDisk::power_cut`] each unsynced write
//! is kept, lost or torn at a sector by the seed's choice, and unsynced names may go back to what they were.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::{Clock, Disk, DiskError, DiskFile, Random};

/// A disk writes whole sectors or nothing; 512 bytes is the least that hardware promises.
const SECTOR_BYTES: usize = 512;
/// What a file system gives out.
const BLOCK_BYTES: u64 = 4096;

/// A clock that stands still until told otherwise.
#[derive(Debug)]
pub struct SimClock {
    wall: Mutex<jiff::Timestamp>,
    monotonic: Mutex<Duration>,
}

impl SimClock {
    /// A clock at `wall`.
    pub fn at(wall: jiff::Timestamp) -> Self {
        Self { wall: Mutex::new(wall), monotonic: Mutex::new(Duration::ZERO) }
    }

    /// Lets `time` pass on both clocks.
    pub fn advance(&self, time: Duration) {
        let mut wall = self.wall.lock();
        *wall =
            wall.checked_add(jiff::SignedDuration::try_from(time).expect("a short time")).expect("within the calendar");
        *self.monotonic.lock() += time;
    }

    /// Sets the wall clock alone, as a wrong battery or a late NTP answer does.
    pub fn set_wall(&self, wall: jiff::Timestamp) {
        *self.wall.lock() = wall;
    }
}

impl Clock for SimClock {
    fn wall(&self) -> jiff::Timestamp {
        *self.wall.lock()
    }
    fn monotonic(&self) -> Duration {
        *self.monotonic.lock()
    }
}

/// Numbers that follow from a seed (SplitMix64; good enough to explore, never for keys).
#[derive(Debug)]
pub struct SimRandom(Mutex<u64>);

impl SimRandom {
    /// The sequence of `seed`.
    pub fn seeded(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }

    /// True in `percent` of a hundred calls.
    pub fn chance(&self, percent: u64) -> bool {
        self.number() % 100 < percent
    }

    /// A number below `bound` (which is above zero).
    pub fn below(&self, bound: u64) -> u64 {
        self.number() % bound
    }
}

impl Random for SimRandom {
    fn fill(&self, out: &mut [u8]) {
        let mut state = self.0.lock();
        for chunk in out.chunks_mut(8) {
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = *state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let bytes = (z ^ (z >> 31)).to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

#[derive(Clone)]
enum Pending {
    Write { offset: u64, data: Vec<u8> },
    SetLen(u64),
}

#[derive(Default)]
struct Inode {
    /// What a power cut cannot take away.
    durable: Vec<u8>,
    /// What readers see: `durable` with every pending change.
    current: Vec<u8>,
    pending: Vec<Pending>,
    /// The blocks that were ever written: a file that only became longer takes no room.
    blocks: BTreeSet<u64>,
}

type FileRef = Arc<Mutex<Inode>>;

/// A change to names, each all or nothing, as journals of file systems make them.
#[derive(Clone)]
enum Naming {
    Make(PathBuf, FileRef),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

#[derive(Default)]
struct Tree {
    durable: BTreeMap<PathBuf, FileRef>,
    current: BTreeMap<PathBuf, FileRef>,
    /// What leads from `durable` to `current`, in order.
    pending: Vec<Naming>,
    /// Powered off after this many more steps; every call fails from then on.
    steps_left: Option<u64>,
    off: bool,
    /// Bytes that all files together may have.
    room: Option<u64>,
}

impl Tree {
    fn name(&mut self, change: Naming) {
        apply_name(&mut self.current, &change);
        self.pending.push(change);
    }

    /// One more step on the way to the cut.
    fn step(&mut self) -> io::Result<()> {
        match &mut self.steps_left {
            Some(0) => self.off = true,
            Some(left) => *left -= 1,
            None => {}
        }
        if self.off { Err(powered_off()) } else { Ok(()) }
    }

    fn used(&self) -> u64 {
        self.current.values().map(|file| file.lock().blocks.len() as u64 * BLOCK_BYTES).sum()
    }
}

/// A disk in memory that loses what was not synced.
#[derive(Clone)]
pub struct SimDisk {
    tree: Arc<Mutex<Tree>>,
    random: Arc<SimRandom>,
}

impl SimDisk {
    /// An empty disk whose losses follow `random`.
    pub fn new(random: Arc<SimRandom>) -> Self {
        Self { tree: Arc::default(), random }
    }

    /// Switches the power off once `steps` more syncs, renames and removals have been asked for: that last one fails,
    /// half done.
    pub fn cut_after(&self, steps: u64) {
        self.tree.lock().steps_left = Some(steps);
    }

    /// Lets files take `bytes` together and no more; none takes the limit away.
    pub fn limit(&self, bytes: Option<u64>) {
        self.tree.lock().room = bytes;
    }

    /// Bytes that all files take together.
    pub fn used(&self) -> u64 {
        self.tree.lock().used()
    }

    /// Whether the power went off.
    pub fn is_off(&self) -> bool {
        self.tree.lock().off
    }

    /// The power goes and comes back: files become what the medium really holds.
    pub fn power_cut(&self) {
        let mut tree = self.tree.lock();
        // Names not yet synced into their folder may or may not have reached the medium; journals keep their order.
        let mut pending = std::mem::take(&mut tree.pending);
        pending.truncate(self.random.below(pending.len() as u64 + 1) as usize);
        pending.iter().for_each(|change| apply_name(&mut tree.durable, change));
        tree.current = tree.durable.clone();
        for file in tree.current.values() {
            // Handles opened before the cut keep the old inode's lock but find the disk off; new ones see this.
            let mut inode = file.lock();
            let pending = std::mem::take(&mut inode.pending);
            for change in pending {
                match self.random.below(3) {
                    0 => {}
                    1 => apply(&mut inode.durable, &change),
                    _ => apply(&mut inode.durable, &self.torn(change)),
                }
            }
            inode.current = inode.durable.clone();
        }
        tree.off = false;
        tree.steps_left = None;
    }

    fn torn(&self, change: Pending) -> Pending {
        match change {
            Pending::Write { offset, mut data } => {
                let sectors = data.len().div_ceil(SECTOR_BYTES) as u64;
                let kept = self.random.below(sectors + 1) as usize * SECTOR_BYTES;
                data.truncate(kept.min(data.len()));
                Pending::Write { offset, data }
            }
            other => other,
        }
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Pending) {
    match change {
        Pending::SetLen(length) => bytes.resize(*length as usize, 0),
        Pending::Write { offset, data } => {
            let end = *offset as usize + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*offset as usize..end].copy_from_slice(data);
        }
    }
}

fn apply_name(names: &mut BTreeMap<PathBuf, FileRef>, change: &Naming) {
    match change {
        Naming::Make(name, file) => drop(names.insert(name.clone(), file.clone())),
        Naming::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        Naming::Remove(name) => drop(names.remove(name)),
    }
}

fn powered_off() -> io::Error {
    io::Error::other("the simulated power is off")
}

struct SimFile {
    inode: FileRef,
    tree: Arc<Mutex<Tree>>,
}

impl SimFile {
    fn on(&self) -> io::Result<()> {
        if self.tree.lock().off { Err(powered_off()) } else { Ok(()) }
    }

    fn change(&self, change: Pending) -> io::Result<()> {
        self.on()?;
        let touched = match &change {
            Pending::Write { offset, data } if !data.is_empty() => {
                offset / BLOCK_BYTES..(offset + data.len() as u64).div_ceil(BLOCK_BYTES)
            }
            _ => 0..0,
        };
        let tree = self.tree.lock();
        let fresh: Vec<u64> = touched.filter(|block| !self.inode.lock().blocks.contains(block)).collect();
        let growth = fresh.len() as u64 * BLOCK_BYTES;
        if growth > 0 && tree.room.is_some_and(|room| tree.used() + growth > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut inode = self.inode.lock();
        inode.blocks.extend(fresh);
        apply(&mut inode.current, &change);
        inode.pending.push(change);
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        self.on()?;
        let inode = self.inode.lock();
        let range = offset as usize..offset as usize + out.len();
        out.copy_from_slice(inode.current.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.change(Pending::Write { offset, data: data.to_vec() })
    }
    fn len(&self) -> io::Result<u64> {
        self.on()?;
        Ok(self.inode.lock().current.len() as u64)
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.change(Pending::SetLen(length))
    }
    fn sync(&self) -> io::Result<()> {
        let mut tree = self.tree.lock();
        tree.step()?;
        let mut inode = self.inode.lock();
        inode.durable = inode.current.clone();
        inode.pending.clear();
        Ok(())
    }
}

impl SimDisk {
    fn tree_on(&self, action: &'static str, path: &Path) -> Result<parking_lot::MutexGuard<'_, Tree>, DiskError> {
        let tree = self.tree.lock();
        if tree.off { Err(DiskError::new(action, path, powered_off())) } else { Ok(tree) }
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, create: bool) -> Result<Box<dyn DiskFile>, DiskError> {
        let mut tree = self.tree_on("open", path)?;
        let inode = match tree.current.get(path) {
            Some(inode) => inode.clone(),
            None if create => {
                let inode = FileRef::default();
                tree.name(Naming::Make(path.to_owned(), inode.clone()));
                inode
            }
            None => return Err(DiskError::new("open", path, io::ErrorKind::NotFound.into())),
        };
        Ok(Box::new(SimFile { inode, tree: self.tree.clone() }))
    }

    fn create_dir_all(&self, path: &Path) -> Result<(), DiskError> {
        self.tree_on("create folder", path).map(drop)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        let mut tree = self.tree_on("rename to", to)?;
        let done = tree.step();
        // At the moment of the cut the rename may or may not have begun; either way it is not durable.
        if done.is_err() && self.random.chance(50) {
            return done.map_err(|error| DiskError::new("rename to", to, error));
        }
        if !tree.current.contains_key(from) {
            return Err(DiskError::new("rename to", to, io::ErrorKind::NotFound.into()));
        }
        tree.name(Naming::Rename(from.to_owned(), to.to_owned()));
        done.map_err(|error| DiskError::new("rename to", to, error))
    }

    fn remove(&self, path: &Path) -> Result<(), DiskError> {
        let mut tree = self.tree_on("remove", path)?;
        tree.step().map_err(|error| DiskError::new("remove", path, error))?;
        if !tree.current.contains_key(path) {
            return Err(DiskError::new("remove", path, io::ErrorKind::NotFound.into()));
        }
        tree.name(Naming::Remove(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> Result<(), DiskError> {
        let mut tree = self.tree_on("sync folder", path)?;
        tree.step().map_err(|error| DiskError::new("sync folder", path, error))?;
        // What came before the last change in this folder is durable with it; what comes after may not be.
        let here = |name: &PathBuf| name.parent() == Some(path);
        let last = tree.pending.iter().rposition(|change| match change {
            Naming::Make(name, _) | Naming::Remove(name) => here(name),
            Naming::Rename(from, to) => here(from) || here(to),
        });
        let lasting: Vec<Naming> = tree.pending.drain(..last.map_or(0, |last| last + 1)).collect();
        lasting.iter().for_each(|change| apply_name(&mut tree.durable, change));
        Ok(())
    }

    fn list(&self, path: &Path) -> Result<Vec<String>, DiskError> {
        let tree = self.tree_on("list", path)?;
        let names = tree.current.keys().filter(|name| name.parent() == Some(path));
        Ok(names.filter_map(|name| Some(name.file_name()?.to_string_lossy().into_owned())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_cut_takes_only_what_was_not_synced() {
        for seed in 0..200 {
            let disk = SimDisk::new(Arc::new(SimRandom::seeded(seed)));
            let path = Path::new("/data/file");
            disk.replace(path, b"first").unwrap();
            let file = disk.open(path, false).unwrap();
            file.write_at(b"other", 0).unwrap();
            disk.power_cut();
            let kept = disk.read(path).unwrap();
            assert!(kept == b"first" || kept == b"other", "seed {seed}: {kept:?}");
        }
    }

    #[test]
    fn replace_leaves_the_old_or_the_new_bytes() {
        for seed in 0..200 {
            let random = Arc::new(SimRandom::seeded(seed));
            let disk = SimDisk::new(random.clone());
            let path = Path::new("/data/file");
            disk.replace(path, b"old").unwrap();
            disk.cut_after(random.below(4));
            let _ = disk.replace(path, &[7; 4096]);
            disk.power_cut();
            let kept = disk.read(path).unwrap();
            assert!(kept == b"old" || kept == [7; 4096], "seed {seed}: {} bytes", kept.len());
        }
    }
}
