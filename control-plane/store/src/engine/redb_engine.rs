//! redb over [`Disk`]: one file, constant size, opens at once after a crash.

use std::io;
use std::path::{Path, PathBuf};

use kedge_world::{Disk, DiskFile};
use redb::{Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};

use super::{Change, Engine, EngineError, Visit};

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("kedge");
/// Memory serves every read, so redb's own cache only has to hold the pages a commit touches.
const CACHE_BYTES: usize = 4 << 20;

/// The default engine.
pub struct RedbEngine {
    database: Database,
    path: PathBuf,
}

impl RedbEngine {
    /// Opens or makes the file at `path`, whose folder exists.
    pub fn open(disk: &dyn Disk, path: &Path) -> Result<Self, EngineError> {
        let file = match disk.open(path, false) {
            Ok(file) => file,
            Err(error) if error.is_not_found() => {
                Self::make(disk, path)?;
                disk.open(path, false).map_err(|e| EngineError::io("open", path, e))?
            }
            Err(error) => return Err(EngineError::io("open", path, error)),
        };
        Self::over(file, path)
    }

    /// A file that is only half made cannot be opened, so that it gets its name when it is whole.
    fn make(disk: &dyn Disk, path: &Path) -> Result<(), EngineError> {
        let fail = |error| EngineError::io("make", path, error);
        let new = path.with_extension("new");
        match disk.remove(&new) {
            Err(error) if !error.is_not_found() => return Err(fail(error)),
            _ => {}
        }
        drop(Self::over(disk.open(&new, true).map_err(fail)?, &new)?);
        disk.open(&new, false).map_err(fail)?.sync().map_err(|source| EngineError::io("make", path, source))?;
        disk.rename(&new, path).map_err(fail)?;
        disk.sync_dir(path.parent().unwrap_or(Path::new("."))).map_err(fail)
    }

    fn over(file: Box<dyn DiskFile>, path: &Path) -> Result<Self, EngineError> {
        let backend = Backend(file);
        let opened = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend);
        let database = opened.map_err(|error| match error {
            DatabaseError::Storage(redb::StorageError::Io(source)) if source.kind() != io::ErrorKind::InvalidData => {
                EngineError::io("open", path, source)
            }
            other => EngineError::damaged(path, &other.to_string()),
        })?;
        Ok(Self { database, path: path.to_owned() })
    }

    fn fail(&self, action: &'static str, error: impl Into<redb::Error>) -> EngineError {
        match error.into() {
            redb::Error::Corrupted(detail) => EngineError::damaged(&self.path, &detail),
            redb::Error::Io(source) => EngineError::io(action, &self.path, source),
            other => EngineError::io(action, &self.path, other),
        }
    }
}

impl Engine for RedbEngine {
    fn load(&self, visit: &mut Visit<'_>) -> Result<(), EngineError> {
        let transaction = self.database.begin_read().map_err(|e| self.fail("read", e))?;
        let table = match transaction.open_table(TABLE) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
            Err(error) => return Err(self.fail("read", error)),
        };
        for pair in table.iter().map_err(|e| self.fail("read", e))? {
            let (key, value) = pair.map_err(|e| self.fail("read", e))?;
            visit(key.value(), value.value())?;
        }
        Ok(())
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), EngineError> {
        let mut transaction = self.database.begin_write().map_err(|e| self.fail("write to", e))?;
        transaction.set_durability(Durability::Immediate).map_err(|e| self.fail("write to", e))?;
        {
            let mut table = transaction.open_table(TABLE).map_err(|e| self.fail("write to", e))?;
            for Change { key, value } in changes {
                match value {
                    Some(value) => table.insert(key.as_slice(), value.as_slice()).map(drop),
                    None => table.remove(key.as_slice()).map(drop),
                }
                .map_err(|e| self.fail("write to", e))?;
            }
        }
        transaction.commit().map_err(|e| self.fail("write to", e))
    }

    fn location(&self) -> &Path {
        &self.path
    }
}

/// redb's idea of a file, on ours.
struct Backend(Box<dyn DiskFile>);

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Backend")
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(out, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(data, offset)
    }
}
