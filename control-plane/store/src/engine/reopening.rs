//! An engine that is opened again after its disk was full: both engines refuse everything after the first write that
//! failed, and a box where nobody restarts a server must go on by itself once there is room.
//!
//! Only for a full disk, which says no before anything is written. After any other failure the engine's own refusal
//! stands: what a disk holds after a sync that failed, nobody knows.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kedge_world::Disk;

use super::reserve::Reserve;
use super::{Change, Engine, EngineError, Visit};

type Open = Box<dyn Fn() -> Result<Box<dyn Engine>, EngineError> + Send>;

/// An engine, or the way to it.
pub struct Reopening {
    open: Open,
    engine: Option<Box<dyn Engine>>,
    location: PathBuf,
    reserve: Option<Reserve>,
}

impl Reopening {
    /// Opens an engine with `open`, and again whenever its disk was full.
    pub fn new(open: impl Fn() -> Result<Box<dyn Engine>, EngineError> + Send + 'static) -> Result<Self, EngineError> {
        let engine = open()?;
        Ok(Self { location: engine.location().to_owned(), open: Box::new(open), engine: Some(engine), reserve: None })
    }

    /// With room beside it that is kept for when the disk is full.
    pub fn with_reserve(mut self, disk: Arc<dyn Disk>) -> Self {
        self.reserve = Some(Reserve::beside(disk, &self.location));
        self
    }

    fn engine(&mut self) -> Result<&mut Box<dyn Engine>, EngineError> {
        match &mut self.engine {
            Some(engine) => Ok(engine),
            none => Ok(none.insert((self.open)()?)),
        }
    }
}

impl Engine for Reopening {
    fn load(&self, visit: &mut Visit<'_>) -> Result<(), EngineError> {
        match &self.engine {
            Some(engine) => engine.load(visit),
            None => (self.open)()?.load(visit),
        }
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), EngineError> {
        let result = self.engine()?.commit(changes);
        if matches!(result, Err(EngineError::Full { .. })) {
            self.engine = None;
        }
        result
    }

    fn take_reserve(&mut self) -> bool {
        self.reserve.as_mut().is_none_or(Reserve::take)
    }

    fn give_up_reserve(&mut self) -> bool {
        self.reserve.as_mut().is_some_and(Reserve::give_up)
    }

    fn location(&self) -> &Path {
        &self.location
    }
}
