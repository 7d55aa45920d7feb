//! The inference engine's backend for NVIDIA devices.
//!
//! [`Cuda::probe`] is the front door: it finds the driver (which is not needed to build or start the program), takes the
//! first device, gives it the kernels ([`kernels`], committed as PTX), and says by name why it could not. A graph's
//! weights are packed ([`pack`]) and put on the device once, each while the next ones are packed (`feed`); a plan becomes
//! a list of launches ([`launch`], pure), which steps of few rows run as one recording. [`device`] is all that is known of
//! devices.
//!
//! What must hold: a failure is an error with its reason, never a panic, also without a driver; a row's answer has the
//! same bits whatever else is in the step, and a token chosen is the one that the host would choose (`choose`). Not here:
//! several devices, sharing memory with the host.

#![allow(unsafe_code, reason = "launches with addresses of a device")]

mod arguments;
mod block;
mod choose;
mod constants;
pub mod device;
mod driver;
mod feed;
pub mod kernels;
pub mod launch;
mod model;
pub mod pack;
mod places;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use kedge_engine::EngineError;
use kedge_engine::backend::{Backend, Capabilities, Chosen, Prepared, Step, Work, run_and_choose};
use kedge_engine::graph::Graph;
use kedge_engine::plan::{Plan, Shape};

pub use arguments::layouts;
use block::Block;
use choose::Choices;
use device::Recording;
pub use device::{Device, Facts, Fault};
use kernels::Set;
use model::Model;
use places::{Places, Table};

/// The most rows of a plan whose launches are recorded: beyond that a step takes longer than its launches do.
const RECORDED_ROWS_MAX: usize = 64;
/// The least bytes for a step's table and for its pages, so that they do not grow with every token.
const INPUT_BYTES_MIN: usize = 4 << 10;
/// Blocks of a state: the step's table, its pages, and how many come before others.
const TABLE: usize = 0;
const PAGES: usize = 1;
const INPUTS: usize = 2;
/// Bytes kept free for the driver's own needs.
const RESERVE_BYTES: u64 = 256 << 20;

/// Bytes of packed weights that may wait for the device while more are packed.
const PACKED_BYTES_MAX: usize = 256 << 20;

/// Why there is no device to use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The driver's library is not there.
    #[error("no NVIDIA driver: libcuda.so.1 was not found")]
    NoDriver,
    /// The driver sees no device.
    #[error("the NVIDIA driver sees no device{}", detail(.0))]
    NoDevice(String),
    /// The driver is too old.
    #[error(
        "the NVIDIA driver speaks CUDA {}.{}, and the kernels need {}.{} (Linux driver {linux} or newer)",
        .has.0, .has.1, .needs.0, .needs.1
    )]
    OldDriver {
        /// What it speaks.
        has: (u32, u32),
        /// What is needed.
        needs: (u32, u32),
        /// The first Linux driver that has it.
        linux: &'static str,
    },
    /// The device is too old.
    #[error("{name} has compute capability {}.{}, and the kernels need 7.5 or newer", .has.0, .has.1)]
    OldDevice {
        /// Its name.
        name: String,
        /// What it has.
        has: (u32, u32),
    },
    /// The device did not do what was asked.
    #[error("{name}: {fault}")]
    Fault {
        /// The device's name, or the driver.
        name: String,
        /// What it was.
        fault: Fault,
    },
}

fn detail(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

/// The CUDA backend.
pub struct Cuda {
    device: Arc<dyn Device>,
    set: Set,
}

impl Cuda {
    /// The first device of this machine with the newest kernels that it runs, or why there is none.
    pub fn probe() -> Result<Self, Reason> {
        Self::on(device::first()?)
    }

    /// That device, if it takes the kernels.
    pub fn on(device: Box<dyn Device>) -> Result<Self, Reason> {
        let Facts { name, capability: has, .. } = device.facts().clone();
        match kernels::of(has) {
            Some(set) => Self::with(device, set),
            None => Err(Reason::OldDevice { name, has }),
        }
    }

    /// That device with one of the sets of kernels that it runs.
    pub fn with(device: Box<dyn Device>, set: Set) -> Result<Self, Reason> {
        for text in set.texts {
            let name = || device.facts().name.clone();
            device.load(text).map_err(|fault| Reason::Fault { name: name(), fault })?;
        }
        Ok(Self { device: device.into(), set })
    }

    /// What the device is.
    pub fn facts(&self) -> &Facts {
        self.device.facts()
    }
}

impl Backend for Cuda {
    fn capabilities(&self) -> Capabilities {
        Capabilities { name: "cuda", features: self.set.name, threads: 1, pinned: false }
    }

    fn memory_bytes_free(&self) -> u64 {
        self.device.memory_bytes().map_or(0, |(free, _)| free.saturating_sub(RESERVE_BYTES))
    }

    fn prepare(&self, graph: Arc<Graph>, pages: usize) -> Result<Box<dyn Prepared>, EngineError> {
        let device = &self.device;
        let wrong = |reason: String| EngineError::Device { device: device.facts().name.clone(), reason };
        if let Some(reason) = model::refusal(&graph) {
            return Err(wrong(format!("the model has {reason}")));
        }
        let mut weights = Vec::new();
        let upload = |block: Arc<Block>, bytes: &[u8]| block.upload(bytes);
        let model = feed::feed(PACKED_BYTES_MAX, upload, |feed| {
            Model::new(&graph, &mut |bytes| {
                let block = Arc::new(Block::new(device, bytes.len())?);
                weights.push(block.clone());
                let address = block.address();
                feed.send(block, bytes).map(|()| address)
            })
        });
        let model = model.map_err(|fault| wrong(format!("weights: {fault}")))?;
        let numbers = graph.pages.map_or(0, places::page_numbers) * pages;
        // Kernels multiply what is in a page by zero where there is no token: it must be a number.
        let store = Block::new(device, 2 * numbers)
            .and_then(|store| store.clear().map(|()| store))
            .map_err(|fault| wrong(format!("room for keys and values of {pages} pages: {fault}")))?;
        let loaded =
            Loaded { device: device.clone(), graph, model, pages, store, state: Mutex::default(), _weights: weights };
        Ok(Box::new(loaded))
    }
}

/// A graph on a device.
struct Loaded {
    device: Arc<dyn Device>,
    graph: Arc<Graph>,
    model: Model,
    pages: usize,
    store: Block,
    /// What a run works in. Held for a whole run: one at a time.
    state: Mutex<State>,
    _weights: Vec<Arc<Block>>,
}

#[derive(Default)]
struct State {
    /// The step's table and its pages, the scratch parts, and then the plan's buffers: as large as any plan needed yet.
    blocks: Vec<Block>,
    /// Plans that ran on these blocks. A plan that comes again is recorded.
    plans: HashMap<Shape, Seen>,
    /// Draws, and what was found. Not part of any recorded launch, so these may be reallocated between steps.
    draws: Option<Block>,
    found: Option<Block>,
}

enum Seen {
    Once,
    Recorded(Recording),
    /// The device does not record.
    Never,
}

impl Prepared for Loaded {
    fn run(&self, plan: &Plan, step: &Step, answers: &mut Vec<f32>) -> Result<(), EngineError> {
        self.whole(plan, step, |state| {
            let result = self.compute(state, plan, step)?;
            let mut raw = vec![0; 4 * step.answers(&self.graph) * self.graph.result_width()];
            state.blocks[result].download(&mut raw)?;
            answers.clear();
            answers.extend(raw.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            Ok(())
        })
    }

    fn choose(&self, work: Work<'_>, room: &mut Vec<f32>, choices: &mut Vec<Chosen>) -> Result<(), EngineError> {
        work.check()?;
        let Work { plan, step, draws } = work;
        let wanted = match Choices::of(draws, self.graph.result_width()) {
            Some(wanted) if !draws.is_empty() => wanted,
            _ => return run_and_choose(self, work, room, choices),
        };
        self.whole(plan, step, |state| {
            let logits = self.compute(state, plan, step)?;
            let mut found = vec![0; wanted.found_bytes()];
            let table = self.room(&mut state.draws, 4 * wanted.table.len())?;
            let answers = self.room(&mut state.found, found.len())?;
            table.upload(&bytes(&wanted.table))?;
            let launch = wanted.launch(state.blocks[logits].address(), table.address(), answers.address());
            // SAFETY: the blocks are as long as draws and answers are, and the plan has made room for its logits.
            unsafe { self.device.launch(&launch)? };
            answers.download(&mut found)?;
            choices.clear();
            choices.extend(wanted.read(draws, &found).map(|found| found.map(Into::into)));
            Ok(())
        })
    }
}

impl Loaded {
    /// Does the work of a step: one at a time.
    fn whole(
        &self,
        plan: &Plan,
        step: &Step,
        work: impl FnOnce(&mut State) -> Result<(), Fault>,
    ) -> Result<(), EngineError> {
        step.check(&self.graph, plan, self.pages)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut state).map_err(|fault| EngineError::Device {
            device: self.device.facts().name.clone(),
            reason: format!("running {} rows: {fault}", step.ids.len()),
        })
    }

    /// Makes a block that nothing else knows at least so large.
    fn room<'a>(&self, block: &'a mut Option<Block>, bytes: usize) -> Result<&'a Block, Fault> {
        let kept = match block.take() {
            Some(kept) if kept.bytes() >= bytes => kept,
            old => {
                drop(old);
                Block::new(&self.device, bytes.next_power_of_two().max(INPUT_BYTES_MIN))?
            }
        };
        Ok(block.insert(kept))
    }

    /// Runs a plan's launches: which block has its answers.
    fn compute(&self, state: &mut State, plan: &Plan, step: &Step) -> Result<usize, Fault> {
        let count = step.answers(&self.graph);
        let (table, pages) = Table::new(plan.shape).of(step, count);
        let places = self.make_room(state, plan, table.len(), pages.len())?;
        state.blocks[TABLE].upload(&bytes(&table))?;
        if !pages.is_empty() {
            state.blocks[PAGES].upload(&bytes(&pages))?;
        }
        let write = |most: Shape| launch::launches(&self.graph, &self.model, plan, most, &places);
        let exact = Shape { rows: step.ids.len(), outputs: count };
        let may_record = self.graph.pages.is_some() && plan.shape.rows <= RECORDED_ROWS_MAX;
        match (state.plans.get(&plan.shape), may_record) {
            // SAFETY (and below): launches are written for blocks that this holds, as long as the plan needs them; a
            // recording is forgotten before its blocks go.
            (Some(Seen::Recorded(recording)), _) => unsafe { self.device.replay(*recording)? },
            (Some(Seen::Once), true) => {
                let recorded = self.device.record(&write(plan.shape)).unwrap_or_else(|fault| {
                    // What really is wrong with the device is wrong with the launches below, too.
                    tracing::warn!(%fault, "steps are launched kernel by kernel");
                    None
                });
                let seen = match recorded {
                    Some(recording) => {
                        // SAFETY: see above.
                        unsafe { self.device.replay(recording)? };
                        Seen::Recorded(recording)
                    }
                    None => {
                        self.launch(&write(exact))?;
                        Seen::Never
                    }
                };
                state.plans.insert(plan.shape, seen);
            }
            (seen, _) => {
                let is_new = seen.is_none() && may_record;
                self.launch(&write(exact))?;
                if is_new {
                    state.plans.insert(plan.shape, Seen::Once);
                }
            }
        }
        Ok(INPUTS + places.scratch.len() + plan.result)
    }

    fn launch(&self, launches: &[launch::Launch]) -> Result<(), Fault> {
        // SAFETY: see `compute`.
        launches.iter().try_for_each(|launch| unsafe { self.device.launch(launch) })
    }

    /// Makes the blocks as large as a plan needs, and says where they are. What was recorded on smaller ones is forgotten.
    fn make_room(&self, state: &mut State, plan: &Plan, table: usize, pages: usize) -> Result<Places, Fault> {
        let buffers = plan.buffers.iter().map(|length| 4 * length);
        let scratch = places::scratch(&self.graph, &self.model, plan);
        // The table and the pages come first, so that their place does not depend on the plan.
        let inputs = [4 * table, 4 * pages].map(|size| size.next_power_of_two().max(INPUT_BYTES_MIN));
        let sizes: Vec<usize> = inputs.into_iter().chain(scratch.iter().copied()).chain(buffers).collect();
        let fits = |state: &State| {
            state.blocks.len() >= sizes.len()
                && state.blocks.iter().zip(&sizes).all(|(block, size)| block.bytes() >= *size)
        };
        if !fits(state) {
            self.forget(state);
            for (index, size) in sizes.iter().enumerate() {
                match state.blocks.get(index) {
                    Some(block) if block.bytes() >= *size => {}
                    Some(_) => {
                        // The old one is given back first, and stays as one byte if there is no room for the new one.
                        state.blocks[index] = Block::new(&self.device, 1)?;
                        state.blocks[index] = Block::new(&self.device, *size)?;
                    }
                    None => state.blocks.push(Block::new(&self.device, *size)?),
                }
            }
        }
        let mut addresses = state.blocks.iter().map(Block::address);
        let mut next = |count: usize| addresses.by_ref().take(count).collect::<Vec<u64>>();
        let (inputs, scratch) = (next(INPUTS), next(scratch.len()));
        let buffers = next(plan.buffers.len());
        Ok(Places { buffers, table: inputs[TABLE], pages: inputs[PAGES], store: self.store.address(), scratch })
    }

    fn forget(&self, state: &mut State) {
        for (_, seen) in state.plans.drain() {
            if let Seen::Recorded(recording) = seen {
                self.device.forget(recording);
            }
        }
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let mut state = std::mem::take(self.state.get_mut().unwrap_or_else(PoisonError::into_inner));
        self.forget(&mut state);
    }
}

fn bytes(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}
