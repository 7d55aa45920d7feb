//! sled, selectable with `--datastore sled`.
//!
//! sled 0.34's own flush asks the kernel to start writing but does not wait for the medium, so each commit is
//! followed by an fdatasync of sled's log through a handle of ours. A group is one sled batch, which is atomic.

#![allow(clippy::disallowed_methods, reason = "sled opens its own files; the simulated disk is redb's")]

use std::fs::File;
use std::path::{Path, PathBuf};

use super::{Change, Engine, EngineError, Visit};

/// Memory serves every read; this only has to hold what a commit touches.
const CACHE_BYTES: u64 = 8 << 20;

/// The alternative engine: a folder of sled's.
pub struct SledEngine {
    database: sled::Db,
    log: File,
    path: PathBuf,
}

impl SledEngine {
    /// Opens or makes the folder at `path`.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let database = config.open().map_err(|e| fail("open", path, e))?;
        let log = File::options()
            .read(true)
            .write(true)
            .open(path.join("db"))
            .map_err(|e| EngineError::io("open the log of", path, e))?;
        for folder in [path, path.parent().unwrap_or(Path::new("."))] {
            File::open(folder).and_then(|f| f.sync_all()).map_err(|e| EngineError::io("sync", folder, e))?;
        }
        Ok(Self { database, log, path: path.to_owned() })
    }
}

fn fail(action: &'static str, path: &Path, error: sled::Error) -> EngineError {
    match error {
        sled::Error::Corruption { .. } | sled::Error::ReportableBug(_) => {
            EngineError::damaged(path, &error.to_string())
        }
        sled::Error::Io(source) => EngineError::io(action, path, source),
        other => EngineError::io(action, path, other),
    }
}

impl Engine for SledEngine {
    fn load(&self, visit: &mut Visit<'_>) -> Result<(), EngineError> {
        for pair in self.database.iter() {
            let (key, value) = pair.map_err(|e| fail("read", &self.path, e))?;
            visit(&key, &value)?;
        }
        Ok(())
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), EngineError> {
        let mut batch = sled::Batch::default();
        for Change { key, value } in changes {
            match value {
                Some(value) => batch.insert(key.as_slice(), value.as_slice()),
                None => batch.remove(key.as_slice()),
            }
        }
        self.database.apply_batch(batch).map_err(|e| fail("write to", &self.path, e))?;
        self.database.flush().map_err(|e| fail("write to", &self.path, e))?;
        self.log.sync_data().map_err(|e| EngineError::io("sync", &self.path, e))
    }

    fn location(&self) -> &Path {
        &self.path
    }
}
