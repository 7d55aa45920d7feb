//! The models that this machine holds, below `<data-dir>/model-store`.
//!
//! ```text
//! <64 digits>/manifest.json    the model's manifest; the folder's name is its digest
//! <64 digits>/files/…          its files, never changed again
//! staging-<64 digits>/…        the same, on the way
//! download-<64 digits>/…       what is being fetched from a source, a file for each part
//! taking-<random>/…            a model being taken in, its digest not yet known
//! trash-<random>/…             on the way out
//! ```
//!
//! A model appears by one rename after everything in it was made durable, and goes by one rename. What a power cut
//! leaves in `staging-…` is read again and only what is missing fetched again; `taking-…` and `trash-…` are cleared at
//! the next start. One process writes ([`ModelStore::clean`] belongs to it); others may read.
#![allow(
    clippy::disallowed_methods,
    reason = "a shell: models are large files in folders with modes, which the Disk seam does not know"
)]

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kedge_content::Digest;
use kedge_world::Random;

use crate::manifest::{CHUNK_BYTES, FileEntry, MANIFEST_BYTES_MAX, Manifest, ManifestError};
use crate::remote::Place;
use crate::source::{self, SourceError};

const MANIFEST: &str = "manifest.json";
const FILES: &str = "files";
const DOWNLOAD: &str = "download-";

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk failed, or is full.
    #[error("{}: {source}", path.display())]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// What is taken in is no model's folder.
    #[error("{0}")]
    Source(#[from] SourceError),
    /// A manifest makes no sense.
    #[error("{0}")]
    Manifest(#[from] ManifestError),
    /// Bytes that were sent have another digest than the manifest says.
    #[error("piece {index} of {path:?} has the wrong digest")]
    Chunk {
        /// The file.
        path: String,
        /// Which piece.
        index: usize,
    },
    /// Something was asked for that the model does not have.
    #[error("the model {digest} has no {what}")]
    Absent {
        /// The model.
        digest: Digest,
        /// What was asked for.
        what: String,
    },
    /// A model whose pieces are not all here cannot be activated.
    #[error("{0} pieces are still missing")]
    Incomplete(usize),
}

fn disk(path: &Path) -> impl FnOnce(io::Error) -> StoreError + '_ {
    move |source| StoreError::Disk { path: path.to_owned(), source }
}

/// A piece of a file of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    /// The file, by its place in the manifest.
    pub file: usize,
    /// The piece, by its place in the file.
    pub index: usize,
}

/// The models that this machine holds.
#[derive(Clone)]
pub struct ModelStore {
    root: PathBuf,
    random: Arc<dyn Random>,
}

impl std::fmt::Debug for ModelStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelStore").field("root", &self.root).finish_non_exhaustive()
    }
}

impl ModelStore {
    /// The store of the node whose data directory is `data_dir`; made when missing.
    pub fn open(data_dir: &Path, random: Arc<dyn Random>) -> Result<Self, StoreError> {
        let root = data_dir.join("model-store");
        make_folder(&root, 0o700)?;
        Ok(Self { root, random })
    }

    /// Removes what a process that ended left half-made. Only the process that writes may call it, before it writes.
    pub fn clean(&self) -> Result<(), StoreError> {
        for name in self.names()? {
            let path = self.root.join(&name);
            // Once a download was one file.
            let is_old = || name.starts_with(DOWNLOAD) && !path.is_dir();
            if name.starts_with("taking-") || name.starts_with("trash-") || is_old() {
                remove_all(&path)?;
            }
        }
        Ok(())
    }

    /// The folder with the files of an active model.
    pub fn active(&self, digest: &Digest) -> Option<PathBuf> {
        let files = self.root.join(digest.hex()).join(FILES);
        files.is_dir().then_some(files)
    }

    /// The digests of all active models.
    pub fn list(&self) -> Result<BTreeSet<Digest>, StoreError> {
        let names = self.names()?;
        Ok(names.iter().filter_map(|name| Digest::parse(&format!("sha256:{name}"))).collect())
    }

    /// The manifest of an active model.
    pub fn manifest(&self, digest: &Digest) -> Result<Manifest, StoreError> {
        self.manifest_in(&self.root.join(digest.hex()), digest)
    }

    /// Bytes of an active model's file, at most `length` from `offset`.
    pub fn read_range(
        &self,
        digest: &Digest,
        file: &FileEntry,
        offset: u64,
        length: u64,
    ) -> Result<Vec<u8>, StoreError> {
        let path = self.root.join(digest.hex()).join(FILES).join(&file.path);
        let length = length.min(file.size.saturating_sub(offset));
        let mut bytes = vec![0; usize::try_from(length).expect("a range fits memory")];
        let opened = File::open(&path).map_err(disk(&path))?;
        opened.read_exact_at(&mut bytes, offset).map_err(disk(&path))?;
        Ok(bytes)
    }

    /// Takes in the folder `path` below `below`: copies it (by reference where the file system can), reads the copy,
    /// makes it durable and activates it. Blocks for as long as reading and writing the model takes.
    pub fn take_folder(&self, below: &Path, path: &str) -> Result<(Digest, Manifest), StoreError> {
        let taking = self.scratch("taking")?;
        self.guarded(&taking, || source::copy_folder(below, path, &taking.join(FILES)).map_err(Into::into))
    }

    /// Takes in what was fetched: files, and archives of files. What it takes may be linked, and must not be written to
    /// afterwards.
    pub(crate) fn take_parts(&self, parts: &[(Place, PathBuf)]) -> Result<(Digest, Manifest), StoreError> {
        let taking = self.scratch("taking")?;
        self.guarded(&taking, || source::assemble(parts, &taking.join(FILES)).map_err(Into::into))
    }

    /// Fills `taking`, then makes it a model. Whatever fails, nothing of it stays.
    fn guarded(
        &self,
        taking: &Path,
        fill: impl FnOnce() -> Result<Vec<String>, StoreError>,
    ) -> Result<(Digest, Manifest), StoreError> {
        let taken = fill().and_then(|names| {
            let manifest = read_all(&taking.join(FILES), names)?;
            let digest = manifest.digest();
            self.finish(taking, &manifest)?;
            Ok((digest, manifest))
        });
        if taken.is_err() {
            // The error that counts is the first; what cannot be removed now is cleared at the next start.
            let _ = remove_all(taking);
        }
        taken
    }

    /// Begins, or goes on with, a model whose pieces come one by one. Reads what is already there, which takes as long
    /// as reading it takes.
    pub fn stage(&self, manifest: Manifest) -> Result<Staging, StoreError> {
        manifest.check()?;
        let digest = manifest.digest();
        let folder = self.root.join(format!("staging-{}", digest.hex()));
        let mut missing = BTreeSet::new();
        make_folder(&folder.join(FILES), 0o755)?;
        for (number, file) in manifest.files.iter().enumerate() {
            let path = folder.join(FILES).join(&file.path);
            make_folder(path.parent().expect("a file is in a folder"), 0o755)?;
            let opened = writable(&path)?;
            opened.set_len(file.size).map_err(disk(&path))?;
            let absent = absent(&opened, file).map_err(disk(&path))?;
            missing.extend(absent.into_iter().map(|index| Piece { file: number, index }));
        }
        Ok(Staging { store: self.clone(), folder, manifest, digest, missing })
    }

    /// Removes a model; whoever has its files open or mounted keeps them. That it is not there is as good.
    pub fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        for name in [digest.hex().to_owned(), format!("staging-{}", digest.hex())] {
            let path = self.root.join(name);
            if path.exists() {
                let trash = self.root.join(self.scratch_name("trash"));
                fs::rename(&path, &trash).map_err(disk(&path))?;
                sync_folder(&self.root)?;
                remove_all(&trash)?;
            }
        }
        Ok(())
    }

    /// Removes every model, active or on the way, and every download, that is not in `keep`; says which models.
    pub fn prune(&self, keep: &BTreeSet<Digest>) -> Result<Vec<Digest>, StoreError> {
        let mut removed = BTreeSet::new();
        for name in self.names()? {
            let digits = name.strip_prefix("staging-").or_else(|| name.strip_prefix(DOWNLOAD)).unwrap_or(&name);
            let Some(digest) = Digest::parse(&format!("sha256:{digits}")) else { continue };
            if keep.contains(&digest) {
                continue;
            }
            if name.starts_with(DOWNLOAD) {
                remove_all(&self.root.join(&name))?;
            } else if removed.insert(digest.clone()) {
                self.remove(&digest)?;
            }
        }
        Ok(removed.into_iter().collect())
    }

    /// The folder where what comes from the source `identity` is collected.
    pub(crate) fn download(&self, identity: &Digest) -> PathBuf {
        self.root.join(format!("{DOWNLOAD}{}", identity.hex()))
    }

    /// Throws away what was collected there; that there is nothing is as good.
    pub(crate) fn discard_download(&self, identity: &Digest) -> Result<(), StoreError> {
        remove_all(&self.download(identity))
    }

    fn manifest_in(&self, folder: &Path, digest: &Digest) -> Result<Manifest, StoreError> {
        let path = folder.join(MANIFEST);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Absent { digest: digest.clone(), what: "manifest here".into() });
            }
            Err(error) => return Err(disk(&path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(MANIFEST_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(disk(&path))?;
        Ok(Manifest::read(&bytes, digest)?)
    }

    /// Makes everything in `folder` durable and gives it its name.
    fn finish(&self, folder: &Path, manifest: &Manifest) -> Result<PathBuf, StoreError> {
        let place = self.root.join(manifest.digest().hex());
        if let Some(there) = self.there(folder, &place)? {
            return Ok(there);
        }
        let files = folder.join(FILES);
        let mut folders = BTreeSet::from([files.clone(), folder.to_owned()]);
        for file in &manifest.files {
            let path = files.join(&file.path);
            File::open(&path).and_then(|file| file.sync_all()).map_err(disk(&path))?;
            let above = path.ancestors().skip(1).take_while(|above| above.starts_with(&files));
            folders.extend(above.map(Path::to_owned));
        }
        let path = folder.join(MANIFEST);
        fs::write(&path, manifest.bytes()).map_err(disk(&path))?;
        File::open(&path).and_then(|file| file.sync_all()).map_err(disk(&path))?;
        for folder in &folders {
            sync_folder(folder)?;
        }
        if let Err(error) = fs::rename(folder, &place) {
            // Another Model with the same files may have come to its end meanwhile: then they are here.
            return self.there(folder, &place)?.ok_or_else(|| disk(&place)(error));
        }
        sync_folder(&self.root)?;
        Ok(place.join(FILES))
    }

    /// The files of `place`, if it is there already; `folder`, which has the same, goes then.
    fn there(&self, folder: &Path, place: &Path) -> Result<Option<PathBuf>, StoreError> {
        let files = place.join(FILES);
        if !files.is_dir() {
            return Ok(None);
        }
        remove_all(folder)?;
        Ok(Some(files))
    }

    fn names(&self) -> Result<Vec<String>, StoreError> {
        let entries = fs::read_dir(&self.root).map_err(disk(&self.root))?;
        let names: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.file_name())).collect();
        let names = names.map_err(disk(&self.root))?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    fn scratch_name(&self, kind: &str) -> String {
        let mut bytes = [0; 8];
        self.random.fill(&mut bytes);
        format!("{kind}-{}", hex::encode(bytes))
    }

    fn scratch(&self, kind: &str) -> Result<PathBuf, StoreError> {
        let path = self.root.join(self.scratch_name(kind));
        make_folder(&path.join(FILES), 0o755)?;
        Ok(path)
    }
}

/// A model on the way.
#[derive(Debug)]
pub struct Staging {
    store: ModelStore,
    folder: PathBuf,
    manifest: Manifest,
    digest: Digest,
    missing: BTreeSet<Piece>,
}

impl Staging {
    /// What the model consists of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The model's digest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Bytes of the whole model.
    pub fn bytes(&self) -> u64 {
        self.manifest.size()
    }

    /// Whether its files are still where they were: a model that nobody names any more is removed at any time.
    pub fn is_there(&self) -> bool {
        self.folder.join(FILES).is_dir()
    }

    /// The pieces that are not here yet.
    pub fn missing(&self) -> &BTreeSet<Piece> {
        &self.missing
    }

    /// Bytes of the pieces that are not here yet.
    pub fn missing_bytes(&self) -> u64 {
        self.missing.iter().map(|piece| self.manifest.files[piece.file].chunk_len(piece.index)).sum()
    }

    /// Puts a piece in its place, if its digest is right. Durable when the model is activated; what a power cut loses
    /// before that is missing again.
    pub fn write(&mut self, piece: Piece, bytes: &[u8]) -> Result<(), StoreError> {
        let absent = || StoreError::Absent { digest: self.digest.clone(), what: format!("piece {piece:?}") };
        let file = self.manifest.files.get(piece.file).ok_or_else(absent)?;
        let expected = file.chunks.get(piece.index).ok_or_else(absent)?;
        if Digest::of(bytes) != *expected {
            return Err(StoreError::Chunk { path: file.path.clone(), index: piece.index });
        }
        let path = self.folder.join(FILES).join(&file.path);
        let opened = OpenOptions::new().write(true).open(&path).map_err(disk(&path))?;
        opened.write_all_at(bytes, piece.index as u64 * CHUNK_BYTES).map_err(disk(&path))?;
        self.missing.remove(&piece);
        Ok(())
    }

    /// Makes the model active: durable, complete, at once. Gives the folder of its files.
    pub fn activate(self) -> Result<PathBuf, StoreError> {
        if !self.missing.is_empty() {
            return Err(StoreError::Incomplete(self.missing.len()));
        }
        self.store.finish(&self.folder, &self.manifest)
    }
}

/// Removes a folder with all that is in it, or a file; that there is none is as good.
fn remove_all(path: &Path) -> Result<(), StoreError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(disk(path)(error)),
        _ => Ok(()),
    }
}

fn make_folder(path: &Path, mode: u32) -> Result<(), StoreError> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(disk(path))
}

fn writable(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o644);
    options.open(path).map_err(disk(path))
}

fn sync_folder(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(disk(path))
}

/// What the model in `folder` consists of, without taking it in: its manifest, whose digest is the model's.
pub fn read_folder(folder: &Path) -> Result<Manifest, StoreError> {
    let place = std::path::absolute(folder).map_err(disk(folder))?;
    let name = place.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let mut files = Vec::new();
    source::each_file(place.parent().unwrap_or(&place), &name, &mut |found| {
        if let source::Found::File(path, file) = found {
            let failed = |source| SourceError::Disk { path: place.join(&path), source };
            let size = file.metadata().map_err(failed)?.len();
            let chunks = digests(&file).map_err(failed)?;
            files.push(FileEntry { path, size, chunks });
        }
        Ok(())
    })?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let manifest = Manifest { files };
    manifest.check()?;
    Ok(manifest)
}

/// The manifest of the files `names` below `folder`.
fn read_all(folder: &Path, mut names: Vec<String>) -> Result<Manifest, StoreError> {
    names.sort();
    let mut files = Vec::with_capacity(names.len());
    for name in names {
        let path = folder.join(&name);
        let opened = File::open(&path).map_err(disk(&path))?;
        let size = opened.metadata().map_err(disk(&path))?.len();
        let chunks = digests(&opened).map_err(disk(&path))?;
        files.push(FileEntry { path: name, size, chunks });
    }
    let manifest = Manifest { files };
    manifest.check()?;
    Ok(manifest)
}

/// The digest of each piece of a file.
fn digests(file: &File) -> io::Result<Vec<Digest>> {
    let mut buffer = vec![0; CHUNK_BYTES as usize];
    let mut all = Vec::new();
    loop {
        let filled = read_piece(file, all.len(), &mut buffer)?;
        if filled > 0 {
            all.push(Digest::of(&buffer[..filled]));
        }
        if filled < buffer.len() {
            return Ok(all);
        }
    }
}

/// The pieces of a file that are not what they should be. Where nothing was ever written nothing is read.
fn absent(opened: &File, file: &FileEntry) -> io::Result<Vec<usize>> {
    let mut buffer = vec![0; CHUNK_BYTES as usize];
    let mut absent = Vec::new();
    for (index, expected) in file.chunks.iter().enumerate() {
        let start = index as u64 * CHUNK_BYTES;
        let is_hole = next_data(opened, start)?.is_none_or(|data| data >= start + file.chunk_len(index));
        let read = if is_hole { 0 } else { read_piece(opened, index, &mut buffer)? };
        if Digest::of(&buffer[..read]) != *expected {
            absent.push(index);
        }
    }
    Ok(absent)
}

/// Where the first byte that was written lies from `start` on; file systems that do not know say `start`.
fn next_data(file: &File, start: u64) -> io::Result<Option<u64>> {
    let offset = i64::try_from(start).map_err(io::Error::other)?;
    match nix::unistd::lseek(file, offset, nix::unistd::Whence::SeekData) {
        Ok(found) => Ok(u64::try_from(found).ok()),
        Err(nix::Error::ENXIO) => Ok(None),
        Err(nix::Error::EINVAL) => Ok(Some(start)),
        Err(error) => Err(error.into()),
    }
}

/// Reads piece `index` of a file; how many bytes there are of it.
fn read_piece(file: &File, index: usize, buffer: &mut [u8]) -> io::Result<usize> {
    let start = index as u64 * CHUNK_BYTES;
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], start + filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use kedge_world::World;

    use super::*;

    fn store() -> (tempfile::TempDir, ModelStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = ModelStore::open(folder.path(), World::real().random).unwrap();
        (folder, store)
    }

    fn a_model(folder: &Path) -> PathBuf {
        let models = folder.join("models");
        fs::create_dir_all(models.join("m/1_Pooling")).unwrap();
        let weights: Vec<u8> = (0..CHUNK_BYTES * 2 + 5).map(|n| (n % 251) as u8).collect();
        fs::write(models.join("m/model.safetensors"), weights).unwrap();
        fs::write(models.join("m/config.json"), "{}").unwrap();
        fs::write(models.join("m/1_Pooling/config.json"), "{}").unwrap();
        fs::write(models.join("m/empty"), "").unwrap();
        models
    }

    #[test]
    fn a_folder_is_taken_in_and_known_by_its_digest() {
        let (folder, store) = store();
        let models = a_model(folder.path());
        let (digest, manifest) = store.take_folder(&models, "m").unwrap();
        assert_eq!(store.manifest(&digest).unwrap(), manifest);
        assert_eq!(read_folder(&models.join("m")).unwrap(), manifest);
        let files = store.active(&digest).unwrap();
        assert_eq!(fs::read(files.join("1_Pooling/config.json")).unwrap(), b"{}");
        // What changes at the source afterwards does not change the model.
        fs::write(models.join("m/config.json"), "{\"a\":1}").unwrap();
        assert_eq!(fs::read(files.join("config.json")).unwrap(), b"{}");
        let (other, _) = store.take_folder(&models, "m").unwrap();
        assert_ne!(digest, other);
        assert_eq!(store.list().unwrap(), BTreeSet::from([digest.clone(), other.clone()]));
        assert_eq!(store.prune(&BTreeSet::from([other.clone()])).unwrap(), vec![digest.clone()]);
        assert_eq!(store.active(&digest), None);
        assert_eq!(store.names().unwrap(), [other.hex()]);
    }

    #[test]
    fn pieces_come_in_any_order_and_only_the_missing_ones_are_asked_for_again() {
        let (folder, store) = store();
        let (digest, manifest) = store.take_folder(&a_model(folder.path()), "m").unwrap();
        let (other_folder, other) = self::store();
        let mut staging = other.stage(manifest.clone()).unwrap();
        assert_eq!((staging.missing().len(), staging.missing_bytes()), (5, manifest.size()));
        let read = |piece: Piece| {
            let file = &manifest.files[piece.file];
            store.read_range(&digest, file, piece.index as u64 * CHUNK_BYTES, CHUNK_BYTES).unwrap()
        };
        let pieces: Vec<Piece> = staging.missing().iter().rev().copied().collect();
        for piece in &pieces[..3] {
            staging.write(*piece, &read(*piece)).unwrap();
        }
        let error = staging.write(pieces[3], b"something else").unwrap_err();
        assert!(matches!(error, StoreError::Chunk { .. }), "{error}");
        drop(staging);
        // A new process finds what is there; a piece that was torn is missing again.
        let torn = other_folder.path().join(format!("model-store/staging-{}/files/model.safetensors", digest.hex()));
        OpenOptions::new().write(true).open(&torn).unwrap().write_all_at(b"torn", 10).unwrap();
        let mut staging = other.stage(manifest.clone()).unwrap();
        assert!(matches!(other.stage(manifest.clone()).unwrap().activate(), Err(StoreError::Incomplete(_))));
        assert!(staging.missing().contains(&Piece { file: 3, index: 0 }));
        for piece in staging.missing().clone() {
            staging.write(piece, &read(piece)).unwrap();
        }
        let files = staging.activate().unwrap();
        assert_eq!(other.active(&digest), Some(files));
        assert_eq!(other.names().unwrap(), [digest.hex()]);
    }

    #[test]
    fn downloads_stay_as_long_as_somebody_wants_them() {
        let (_folder, store) = store();
        let wanted = Digest::of(b"source");
        fs::create_dir(store.download(&wanted)).unwrap();
        fs::write(store.download(&wanted).join("part"), "half").unwrap();
        // As they were kept before there were sources of several parts.
        fs::write(store.download(&Digest::of(b"other")), "half").unwrap();
        store.clean().unwrap();
        assert!(store.download(&wanted).exists() && !store.download(&Digest::of(b"other")).exists());
        store.prune(&BTreeSet::from([wanted.clone()])).unwrap();
        assert!(store.download(&wanted).exists());
        assert_eq!(store.prune(&BTreeSet::new()).unwrap(), vec![]);
        assert_eq!(store.names().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn two_that_take_in_the_same_at_once_both_have_it() {
        let (folder, store) = store();
        let models = a_model(folder.path());
        for _ in 0..20 {
            let takers = || (0..4).map(|_| store.take_folder(&models, "m").unwrap()).collect::<Vec<_>>();
            let taken = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(takers)).collect();
                threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            });
            assert!(taken.iter().all(|other| other == &taken[0]));
            let names = store.names().unwrap();
            assert_eq!(names.len(), 1, "{names:?}");
            fs::remove_dir_all(store.root.join(&names[0])).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_taken_in_leaves_nothing() {
        let (folder, store) = store();
        let models = a_model(folder.path());
        std::os::unix::fs::symlink("/etc/passwd", models.join("m/link")).unwrap();
        assert!(store.take_folder(&models, "m").unwrap_err().to_string().contains("link"));
        assert_eq!(store.names().unwrap(), Vec::<String>::new());
        fs::create_dir_all(store.root.join("taking-0011223344556677/files")).unwrap();
        store.clean().unwrap();
        assert_eq!(store.names().unwrap(), Vec::<String>::new());
    }
}
