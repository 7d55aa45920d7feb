//! The CPU backend: packed weights, whole-number products where weights are quantised, and a few threads that sleep when
//! there is nothing to do.
//!
//! An operation is one or two stages of tasks ([`run`], [`pool`]) on weights in a form of their own ([`weights`]); a task
//! computes a few rows, heads or panels of outputs. What must hold: what a task computes does not depend on which thread it
//! runs on, on how many there are, or on what else is in the step, so the same tokens give the same bits every time. Not
//! here: NUMA placement.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod dense;
mod experts;
mod packed;
mod pages;
mod placement;
mod pool;
mod quant;
mod run;
mod simd;
mod weights;

use std::path::PathBuf;
use std::sync::Arc;

use super::{Backend, Capabilities, Prepared};
use crate::EngineError;
use crate::graph::Graph;
use pool::Pool;
use run::Loaded;
use simd::Simd;

/// The CPU backend.
pub struct Cpu {
    pool: Arc<Pool>,
    simd: Simd,
    folder: Option<PathBuf>,
}

impl Cpu {
    /// Threads at most, where no number is asked for; whoever asks users should take no more.
    pub const THREADS_MAX: usize = placement::THREADS_MAX;

    /// With that many threads, or one for each core that this process may use (which respects affinity and cgroup quotas).
    /// Where the kernel moves no threads, each has a processor of its own.
    pub fn new(threads: Option<usize>) -> Result<Self, EngineError> {
        Self::with(threads, *Simd::available().last().expect("there is always a portable level"))
    }

    /// One for each level of instructions that this machine has, the plainest first; tests compare them.
    pub fn levels(threads: Option<usize>) -> Result<Vec<Self>, EngineError> {
        Simd::available().into_iter().map(|simd| Self::with(threads, simd)).collect()
    }

    fn with(threads: Option<usize>, simd: Simd) -> Result<Self, EngineError> {
        let (processors, bound) = placement::read();
        let pool = Pool::new(placement::place(&processors, bound, threads))?;
        Ok(Self { pool: Arc::new(pool), simd, folder: None })
    }

    /// Keeps packed weights in files in that folder, where the next start finds them; without one they are packed into
    /// memory at each.
    pub fn keep_packed(mut self, folder: Option<PathBuf>) -> Self {
        self.folder = folder;
        self
    }
}

impl Backend for Cpu {
    fn capabilities(&self) -> Capabilities {
        let (threads, pinned) = (self.pool.threads(), self.pool.is_placed());
        Capabilities { name: "cpu", features: self.simd.name(), threads, pinned }
    }

    fn memory_bytes_free(&self) -> u64 {
        crate::memory::bytes_free()
    }

    fn prepare(&self, graph: Arc<Graph>, pages: usize) -> Result<Box<dyn Prepared>, EngineError> {
        let weights = weights::prepare(&graph, &self.pool, self.folder.as_deref())?;
        Ok(Box::new(Loaded::new(graph, weights, pages, self.pool.clone(), self.simd)))
    }
}
