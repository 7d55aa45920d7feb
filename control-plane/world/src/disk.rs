//! Files that must survive a power cut, as a trait narrow enough to lie about in a simulation.
//!
//! The rules are POSIX's, at their weakest: a write lasts once `sync` returned; a created, renamed or removed
//! name lasts once its folder was synced. [`Disk::replace`] does that dance in the right order.

use std::io;
use std::path::{Path, PathBuf};

/// What went wrong with which file.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}: {source}", path.display())]
pub struct DiskError {
    /// The step attempted, as a verb: "open", "rename".
    pub action: &'static str,
    /// The file or folder at fault.
    pub path: PathBuf,
    /// The operating system's answer.
    #[source]
    pub source: io::Error,
}

impl DiskError {
    /// Wraps `source` with what was attempted on which path.
    pub fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self { action, path: path.to_owned(), source }
    }

    /// Whether the file simply is not there.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// An open file, read and written at offsets.
#[allow(clippy::len_without_is_empty, reason = "nobody asks whether a file is empty")]
pub trait DiskFile: Send + Sync + 'static {
    /// Fills `out` from `offset`; a short file is `UnexpectedEof`.
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `data` at `offset`; lasting only after [`DiskFile::sync`].
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Cuts or extends with zeroes to `length` bytes.
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Returns once everything written so far would survive a power cut.
    fn sync(&self) -> io::Result<()>;
}

/// A file system.
pub trait Disk: Send + Sync + 'static {
    /// Opens `path` for reading and writing, making it (mode 0600) when missing and `create` is set.
    fn open(&self, path: &Path, create: bool) -> Result<Box<dyn DiskFile>, DiskError>;
    /// Makes `path` and its parents (mode 0700).
    fn create_dir_all(&self, path: &Path) -> Result<(), DiskError>;
    /// Renames; lasting only after [`Disk::sync_dir`] of the folder.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError>;
    /// Removes a file; lasting only after [`Disk::sync_dir`] of the folder.
    fn remove(&self, path: &Path) -> Result<(), DiskError>;
    /// Returns once the names in folder `path` would survive a power cut.
    fn sync_dir(&self, path: &Path) -> Result<(), DiskError>;
    /// The names in folder `path`, in no order.
    fn list(&self, path: &Path) -> Result<Vec<String>, DiskError>;

    /// All of a file's bytes.
    fn read(&self, path: &Path) -> Result<Vec<u8>, DiskError> {
        let file = self.open(path, false)?;
        let fail = |source| DiskError::new("read", path, source);
        let mut bytes = vec![0; usize::try_from(file.len().map_err(fail)?).expect("a file fits the address space")];
        file.read_at(&mut bytes, 0).map_err(fail)?;
        Ok(bytes)
    }

    /// Puts `data` at `path` so that a power cut leaves either the old bytes or the new ones, never a mixture.
    fn replace(&self, path: &Path, data: &[u8]) -> Result<(), DiskError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let staged = path.with_file_name(name);
        let fail = |source| DiskError::new("write", &staged, source);
        let file = self.open(&staged, true)?;
        file.set_len(0).map_err(fail)?;
        file.write_at(data, 0).map_err(fail)?;
        file.sync().map_err(fail)?;
        drop(file);
        self.rename(&staged, path)?;
        self.sync_dir(path.parent().unwrap_or(Path::new(".")))
    }
}

/// The operating system's file system.
#[derive(Debug)]
pub struct RealDisk;

struct RealFile(std::fs::File);

impl DiskFile for RealFile {
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0, out, offset)
    }
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.0, data, offset)
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[allow(clippy::disallowed_methods, reason = "this is the one place that opens real files")]
impl Disk for RealDisk {
    fn open(&self, path: &Path, create: bool) -> Result<Box<dyn DiskFile>, DiskError> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).create(create).truncate(false).mode(0o600);
        let file = options.open(path).map_err(|e| DiskError::new("open", path, e))?;
        Ok(Box::new(RealFile(file)))
    }

    fn create_dir_all(&self, path: &Path) -> Result<(), DiskError> {
        use std::os::unix::fs::DirBuilderExt;
        let fresh: Vec<&Path> = path.ancestors().take_while(|folder| !folder.exists()).collect();
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(path).map_err(|e| DiskError::new("create folder", path, e))?;
        // A folder's own name must last as well as what is put into it.
        for parent in fresh.into_iter().filter_map(Path::parent) {
            self.sync_dir(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?;
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        std::fs::rename(from, to).map_err(|e| DiskError::new("rename to", to, e))
    }

    fn remove(&self, path: &Path) -> Result<(), DiskError> {
        std::fs::remove_file(path).map_err(|e| DiskError::new("remove", path, e))
    }

    fn sync_dir(&self, path: &Path) -> Result<(), DiskError> {
        let folder = std::fs::File::open(path).map_err(|e| DiskError::new("open folder", path, e))?;
        folder.sync_all().map_err(|e| DiskError::new("sync folder", path, e))
    }

    fn list(&self, path: &Path) -> Result<Vec<String>, DiskError> {
        let fail = |e| DiskError::new("list", path, e);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path).map_err(fail)? {
            names.push(entry.map_err(fail)?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }
}
