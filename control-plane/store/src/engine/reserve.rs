//! Room that is kept on the disk for the moment when it is full: given up then, so that what is there can still be
//! changed and deleted, which is how somebody makes room again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kedge_world::{Disk, DiskError};

/// Enough for some thousand changes: an engine uses the pages again that a change made free.
const RESERVE_BYTES: u64 = 4 << 20;
const PIECE_BYTES: usize = 256 << 10;

/// A file that takes room and holds nothing.
pub(super) struct Reserve {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    held: bool,
}

impl Reserve {
    /// The one beside an engine's file or folder; not yet held.
    pub(super) fn beside(disk: Arc<dyn Disk>, location: &Path) -> Self {
        Self { disk, path: location.with_extension("reserve"), held: false }
    }

    /// Takes the room, if it is there; whether it is held.
    pub(super) fn take(&mut self) -> bool {
        if !self.held {
            self.held = self.is_whole() || self.write().is_ok();
            if !self.held {
                let _ = self.disk.remove(&self.path); // A part of it is of use to nobody.
            }
        }
        self.held
    }

    /// Gives it up; whether there was something.
    pub(super) fn give_up(&mut self) -> bool {
        std::mem::take(&mut self.held) && self.disk.remove(&self.path).is_ok()
    }

    fn is_whole(&self) -> bool {
        self.disk
            .open(&self.path, false)
            .and_then(|file| self.length(&*file))
            .is_ok_and(|length| length == RESERVE_BYTES)
    }

    fn length(&self, file: &dyn kedge_world::DiskFile) -> Result<u64, DiskError> {
        file.len().map_err(|e| DiskError::new("read", &self.path, e))
    }

    fn write(&self) -> Result<(), DiskError> {
        let file = self.disk.open(&self.path, true)?;
        let fail = |e| DiskError::new("write", &self.path, e);
        // Written, not only made longer: that would take no room.
        let piece = vec![0; PIECE_BYTES];
        for at in (0..RESERVE_BYTES).step_by(PIECE_BYTES) {
            file.write_at(&piece, at).map_err(fail)?;
        }
        file.sync().map_err(fail)
    }
}
