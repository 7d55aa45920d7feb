//! What keeps bytes on the disk: a narrow trait, two engines, one suite that both must pass.

use std::io;
use std::path::{Path, PathBuf};

mod redb_engine;
mod reopening;
mod reserve;
mod sled_engine;
#[cfg(test)]
mod suite;

pub use redb_engine::RedbEngine;
pub use reopening::Reopening;
pub use sled_engine::SledEngine;

/// One key's new value; none removes it.
#[derive(Clone, Debug)]
pub struct Change {
    /// The key.
    pub key: Vec<u8>,
    /// The value, if the key is to stay.
    pub value: Option<Vec<u8>>,
}

/// Called with each key and value at load.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), EngineError> + 'a;

/// A durable ordered map, used by one writer. Reads happen only at start: memory serves the rest.
pub trait Engine: Send {
    /// Hands every key and value to `visit`, in key order.
    fn load(&self, visit: &mut Visit<'_>) -> Result<(), EngineError>;
    /// Makes all changes, or none, and returns once they would survive a power cut. After an error it is open whether
    /// they were made.
    fn commit(&mut self, changes: &[Change]) -> Result<(), EngineError>;
    /// Takes the room that is kept for when the disk is full; false where there is none of it left.
    fn take_reserve(&mut self) -> bool {
        true
    }
    /// Gives that room up to the commits that follow; whether there was any.
    fn give_up_reserve(&mut self) -> bool {
        false
    }
    /// The file or folder that an error should name.
    fn location(&self) -> &Path;
}

/// What went wrong with which file, and the way out.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The file is there but cannot be understood.
    #[error("{} is damaged ({detail}); restore it from a snapshot, or move it away to start empty", location.display())]
    Damaged {
        /// The file or folder.
        location: PathBuf,
        /// What did not make sense.
        detail: String,
    },
    /// There is no room for what was to be written.
    #[error("no space left on the disk for {}: make room; nothing that was acknowledged is lost", location.display())]
    Full {
        /// The file or folder.
        location: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", location.display())]
    Io {
        /// The step attempted.
        action: &'static str,
        /// The file or folder.
        location: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl EngineError {
    pub(crate) fn damaged(location: &Path, detail: &str) -> Self {
        Self::Damaged { location: location.to_owned(), detail: detail.to_owned() }
    }

    pub(crate) fn io(
        action: &'static str,
        location: &Path,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        let mut causes = std::iter::successors(Some(&*source as &(dyn std::error::Error + 'static)), |e| e.source());
        if causes.any(|cause| cause.downcast_ref::<io::Error>().is_some_and(is_full)) {
            return Self::Full { location: location.to_owned() };
        }
        Self::Io { action, location: location.to_owned(), source }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
