//! What runs a plan. A backend takes a graph's weights once, in the form it likes, and then runs plans on them.
//!
//! What must hold: every backend gives the same answers as [`reference::Reference`] within the tolerance its tests
//! name, and an answer does not depend on what else is in the step. Both traits are object-safe: schedulers and servers
//! hold a `Box<dyn Prepared>` and never a device type.

pub mod cpu;
pub mod reference;
pub mod spare;

use std::sync::Arc;

use crate::EngineError;
use crate::generate::sample::{self, Choice, Draw, NotFinite, VOCABULARY_MAX};
use crate::graph::{Graph, Op, PAGE_TOKENS};
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
    /// Whether each of them stays on a processor of its own.
    pub pinned: bool,
}

/// A kind of device.
pub trait Backend: Send + Sync {
    /// What it is and can do.
    fn capabilities(&self) -> Capabilities;
    /// Bytes that weights and pages may still take.
    fn memory_bytes_free(&self) -> u64;
    /// Takes a graph, its weights packed or uploaded as it needs them, with room for so many pages.
    fn prepare(&self, graph: Arc<Graph>, pages: usize) -> Result<Box<dyn Prepared>, EngineError>;
    /// Where a graph goes when this device does not take it or is lost.
    fn spare(&self) -> Option<Arc<dyn Backend>> {
        None
    }
}

/// A graph on a device, ready to run plans.
pub trait Prepared: Send + Sync {
    /// Runs a plan of the graph; `answers` becomes one vector for each output of the step.
    fn run(&self, plan: &Plan, step: &Step, answers: &mut Vec<f32>) -> Result<(), EngineError>;

    /// Runs a plan whose answers are logits, and makes of each the choice that its draw says. What must hold: a choice is
    /// that of [`sample::choose`] for these logits, and there is a draw for each answer ([`Work::check`]). `room` is kept for
    /// the next step.
    fn choose(&self, work: Work<'_>, room: &mut Vec<f32>, choices: &mut Vec<Chosen>) -> Result<(), EngineError> {
        run_and_choose(self, work, room, choices)
    }
}

/// What is to be run, and how its answers are chosen from.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The tokens to run it on.
    pub step: &'a Step,
    /// A draw for each answer.
    pub draws: &'a [Draw],
}

impl Work<'_> {
    /// Refuses draws that are not one for each answer.
    pub fn check(&self) -> Result<(), EngineError> {
        match self.step.answers_of(&self.plan.ops) {
            answers if answers == self.draws.len() => Ok(()),
            answers => {
                let (expected, actual) = (format!("{answers} draws"), self.draws.len().to_string());
                Err(EngineError::Shape { expected, actual })
            }
        }
    }
}

/// A choice, or why there is none.
pub type Chosen = Result<Choice, NotFinite>;

/// Runs a plan, and chooses here: what a backend does that has no better way.
pub fn run_and_choose<P: Prepared + ?Sized>(
    prepared: &P,
    work: Work<'_>,
    room: &mut Vec<f32>,
    choices: &mut Vec<Chosen>,
) -> Result<(), EngineError> {
    work.check()?;
    let Work { plan, step, draws } = work;
    prepared.run(plan, step, room)?;
    let width = room.len() / draws.len().max(1);
    if width > VOCABULARY_MAX {
        let expected = format!("at most {VOCABULARY_MAX} logits for each draw");
        return Err(EngineError::Shape { expected, actual: width.to_string() });
    }
    choices.clear();
    choices.extend(
        draws.iter().zip(room.chunks_exact_mut(width.max(1))).map(|(draw, logits)| sample::choose(logits, draw)),
    );
    Ok(())
}

/// Tokens to run a plan on: the new ones of a few sequences, one sequence after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Token types (segments); empty when all are zero.
    pub types: Vec<u32>,
    /// The sequences.
    pub sequences: Vec<Sequence>,
    /// For graphs that take rows: the rows whose answers are wanted, ascending. Others answer for each sequence.
    pub outputs: Vec<u32>,
}

/// One sequence of a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sequence {
    /// How many of the step's tokens are its.
    pub rows: usize,
    /// Tokens that its pages hold already: the first new one has this position.
    pub past: usize,
    /// Its pages, [`PAGE_TOKENS`] tokens each: enough for the past and the new ones. Empty for graphs without pages.
    pub pages: Vec<u32>,
}

impl Step {
    /// For each row its sequence and its position in it.
    pub fn places(&self) -> impl Iterator<Item = (usize, usize)> {
        let each = |(index, sequence): (usize, &Sequence)| {
            let past = sequence.past;
            (0..sequence.rows).map(move |row| (index, past + row))
        };
        self.sequences.iter().enumerate().flat_map(each)
    }

    /// Refuses a step that would make a backend read or write outside its tables.
    pub fn check(&self, graph: &Graph, plan: &Plan, pages: usize) -> Result<(), EngineError> {
        let expected = || format!("at most {} rows and {} outputs", plan.shape.rows, plan.shape.outputs);
        let wrong = |actual: String| Err(EngineError::Shape { expected: expected(), actual });
        let rows = self.ids.len();
        let counted: usize = self.sequences.iter().map(|sequence| sequence.rows).sum();
        if rows == 0 || rows > plan.shape.rows || counted != rows {
            return wrong(format!("{rows} ids, {counted} rows in sequences"));
        }
        if !self.types.is_empty() && self.types.len() != rows {
            return wrong(format!("{} types for {rows} ids", self.types.len()));
        }
        if self.answers(graph) > plan.shape.outputs || self.outputs.iter().any(|row| *row as usize >= rows) {
            return wrong(format!("{} answers of {rows} rows", self.answers(graph)));
        }
        for sequence in &self.sequences {
            let length = sequence.past + sequence.rows;
            if sequence.rows == 0 {
                return wrong("a sequence without tokens".into());
            }
            if graph.pages.is_some()
                && (sequence.pages.len() * PAGE_TOKENS < length || sequence.pages.iter().any(|p| *p as usize >= pages))
            {
                return wrong(format!("{length} tokens in pages {:?} of {pages}", sequence.pages));
            }
        }
        for op in &graph.ops {
            if let Op::Embed { words, positions, types, .. } = op {
                let bound = |weight: &usize| graph.weights[*weight].rows();
                if let Some(id) = self.ids.iter().find(|id| **id as usize >= bound(words)) {
                    return wrong(format!("token id {id} of {}", bound(words)));
                }
                let last = self.places().map(|(_, position)| position).max().unwrap_or_default();
                if positions.as_ref().is_some_and(|table| last >= bound(table)) {
                    return wrong(format!("position {last}"));
                }
                if types.as_ref().is_some_and(|table| self.types.iter().any(|kind| *kind as usize >= bound(table))) {
                    return wrong("an unknown token type".into());
                }
            }
        }
        Ok(())
    }

    /// How many answers it asks for.
    pub fn answers(&self, graph: &Graph) -> usize {
        self.answers_of(&graph.ops)
    }

    fn answers_of(&self, ops: &[Op]) -> usize {
        let takes_rows = ops.iter().any(|op| matches!(op, Op::Take { .. }));
        if takes_rows { self.outputs.len() } else { self.sequences.len() }
    }
}
