//! What runs a plan. A backend takes the weights once, in the form it likes, and then runs plans on them.
//!
//! What must hold: every backend gives the same result as [`reference::Reference`] within the tolerance its tests
//! name. Both traits are object-safe: schedulers and servers hold a `Box<dyn Prepared>` and never a device type.

pub mod cpu;
pub mod reference;

use crate::EngineError;
use crate::model::EncoderWeights;
use crate::plan::Plan;

/// What a backend is and can do, for logs and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Its name, such as `cpu`.
    pub name: &'static str,
    /// The instructions or device it was found to have.
    pub features: &'static str,
    /// How many threads work on one plan.
    pub threads: usize,
}

/// A kind of device.
pub trait Backend: Send + Sync {
    /// What it is and can do.
    fn capabilities(&self) -> Capabilities;
    /// Takes the weights, packed or uploaded as it needs them.
    fn prepare(&self, weights: EncoderWeights) -> Result<Box<dyn Prepared>, EngineError>;
}

/// Weights on a device, ready to run plans.
pub trait Prepared: Send + Sync {
    /// Runs the plan; the answer is `batch × hidden`.
    fn run(&self, plan: &Plan, input: &Input) -> Result<Vec<f32>, EngineError>;
}

/// What a plan is run on. Every text is padded to the plan's sequence, at its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Token ids, `batch × sequence`; what stands in the padding does not matter but must be a known id.
    pub ids: Vec<u32>,
    /// Token types, the same shape.
    pub types: Vec<u32>,
    /// Tokens of each text that are not padding: the attention mask, at least 1 and at most the sequence.
    pub lengths: Vec<usize>,
}

impl Input {
    /// Refuses an input that would make a backend read outside its tables.
    pub(crate) fn check(&self, plan: &Plan, weights: Tables) -> Result<(), EngineError> {
        let expected = format!("{} texts of {} tokens", plan.batch, plan.sequence);
        let shape = |actual| Err(EngineError::Shape { expected: expected.clone(), actual });
        if self.ids.len() != plan.rows() || self.types.len() != plan.rows() || self.lengths.len() != plan.batch {
            return shape(format!(
                "{} ids, {} types, {} lengths",
                self.ids.len(),
                self.types.len(),
                self.lengths.len()
            ));
        }
        if plan.sequence > weights.positions {
            return shape(format!("a table of {} positions", weights.positions));
        }
        if let Some(length) = self.lengths.iter().find(|length| **length == 0 || **length > plan.sequence) {
            return shape(format!("a text of {length} tokens"));
        }
        if let Some(id) = self.ids.iter().find(|id| **id as usize >= weights.words) {
            return shape(format!("token id {id} of {}", weights.words));
        }
        match self.types.iter().find(|kind| **kind as usize >= weights.types) {
            Some(kind) => shape(format!("token type {kind} of {}", weights.types)),
            None => Ok(()),
        }
    }
}

/// How many rows each embedding table has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tables {
    words: usize,
    positions: usize,
    types: usize,
}

impl Tables {
    pub(crate) fn of(weights: &EncoderWeights) -> Self {
        let rows = |table: &[f32]| table.len() / weights.embedding_norm.gamma.len();
        Self { words: rows(&weights.words), positions: rows(&weights.positions), types: rows(&weights.types) }
    }
}
