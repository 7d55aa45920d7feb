//! A device, and another that goes on where it fails.
//!
//! A device may not take a model, or be lost in the middle of a step (a driver that ended, an error of its memory). Then
//! the graph is prepared on the spare, once, and the step is to be run again there; keys and values that the device held
//! are gone. What must hold: only failures of a device move a model, and every one is told; whoever asks where a model is
//! has an answer at once, also while it moves.

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use super::{Backend, Capabilities, Chosen, Prepared, Step, Work};
use crate::EngineError;
use crate::graph::Graph;
use crate::plan::Plan;

/// So many steps one after the other that a device without a usable spare failed: it is lost, and whoever runs it ends, to
/// be started anew.
pub const FAILURES_MAX: u32 = 3;

/// A device with a spare.
pub struct WithSpare {
    device: Box<dyn Backend>,
    spare: Arc<dyn Backend>,
}

impl WithSpare {
    /// That device, with that spare.
    pub fn new(device: Box<dyn Backend>, spare: Arc<dyn Backend>) -> Self {
        Self { device, spare }
    }
}

impl Backend for WithSpare {
    fn capabilities(&self) -> Capabilities {
        self.device.capabilities()
    }

    fn memory_bytes_free(&self) -> u64 {
        self.device.memory_bytes_free()
    }

    fn prepare(&self, graph: Arc<Graph>, pages: usize) -> Result<Box<dyn Prepared>, EngineError> {
        self.device.prepare(graph, pages)
    }

    fn spare(&self) -> Option<Arc<dyn Backend>> {
        Some(self.spare.clone())
    }
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ran {
    /// The answers are there.
    Done,
    /// The device failed, and the graph is on the spare now: the step is to be run again, and pages are empty.
    Moved,
}

/// A graph on a device, or by now on its spare.
pub(crate) struct Placed {
    graph: Arc<Graph>,
    pages: usize,
    /// Written only when the graph has moved, for a moment.
    now: RwLock<Now>,
    /// Where to go from here. Held while the graph moves, which takes as long as packing its weights does.
    spare: Mutex<Option<Arc<dyn Backend>>>,
}

struct Now {
    prepared: Box<dyn Prepared>,
    on: Capabilities,
    /// Why it is not on the device that was wanted.
    moved: Option<String>,
}

impl Placed {
    /// Puts a graph on a device, or where that does not take it on its spare.
    pub(crate) fn new(backend: &dyn Backend, graph: Arc<Graph>, pages: usize) -> Result<Self, EngineError> {
        let (now, spare) = match (backend.prepare(graph.clone(), pages), backend.spare()) {
            (Err(error @ EngineError::Device { .. }), Some(spare)) => {
                let on = spare.capabilities();
                tracing::warn!(%error, instead = on.name, "the device does not take the model");
                let prepared = spare.prepare(graph.clone(), pages)?;
                (Now { prepared, on, moved: Some(error.to_string()) }, None)
            }
            (prepared, spare) => (Now { prepared: prepared?, on: backend.capabilities(), moved: None }, spare),
        };
        Ok(Self { graph, pages, now: RwLock::new(now), spare: Mutex::new(spare) })
    }

    fn now(&self) -> RwLockReadGuard<'_, Now> {
        self.now.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it is on now, and why that is not the device that was wanted, if it is not.
    pub(crate) fn on(&self) -> (Capabilities, Option<String>) {
        let now = self.now();
        (now.on.clone(), now.moved.clone())
    }

    /// See [`Prepared::run`].
    pub(crate) fn run(&self, plan: &Plan, step: &Step, answers: &mut Vec<f32>) -> Result<Ran, EngineError> {
        self.attempt(|prepared| prepared.run(plan, step, answers))
    }

    /// See [`Prepared::choose`].
    pub(crate) fn choose(
        &self,
        work: Work<'_>,
        room: &mut Vec<f32>,
        choices: &mut Vec<Chosen>,
    ) -> Result<Ran, EngineError> {
        self.attempt(|prepared| prepared.choose(work, room, choices))
    }

    fn attempt(&self, work: impl FnOnce(&dyn Prepared) -> Result<(), EngineError>) -> Result<Ran, EngineError> {
        let now = self.now();
        let (ran, was_moved) = (work(&*now.prepared), now.moved.is_some());
        drop(now);
        let (device, reason) = match ran {
            Err(EngineError::Device { device, reason }) => (device, reason),
            ran => return ran.map(|()| Ran::Done),
        };
        let lost = |and: &str| EngineError::Device { device: device.clone(), reason: format!("{reason}{and}") };
        let mut left = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if self.now().moved.is_some() && !was_moved {
            // Another step has found out first.
            return Ok(Ran::Moved);
        }
        let Some(spare) = left.clone() else { return Err(lost("")) };
        let on = spare.capabilities();
        tracing::error!(error = %lost(""), instead = on.name, "the device was lost; the model goes on elsewhere");
        // A spare that does not take the graph now is asked again when the next step fails. It is the device's failure,
        // whatever the spare lacks: whoever runs the steps counts those.
        let prepared = spare.prepare(self.graph.clone(), self.pages);
        let prepared = prepared.map_err(|error| lost(&format!("; its spare: {error}")))?;
        let new = Now { prepared, on, moved: Some(lost("").to_string()) };
        // What the device held is given back after the lock.
        let _old = std::mem::replace(&mut *self.now.write().unwrap_or_else(PoisonError::into_inner), new);
        *left = None;
        Ok(Ran::Moved)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::graph::{Builder, Op};
    use crate::plan::Shape;

    /// Works for so many steps.
    struct Frail(Arc<AtomicUsize>);

    struct Steps(Arc<AtomicUsize>);

    fn lost() -> EngineError {
        EngineError::Device { device: "frail".into(), reason: "it fell off the bus".into() }
    }

    impl Backend for Frail {
        fn capabilities(&self) -> Capabilities {
            Capabilities { name: "frail", features: "", threads: 1, pinned: false }
        }

        fn memory_bytes_free(&self) -> u64 {
            1 << 30
        }

        fn prepare(&self, _: Arc<Graph>, _: usize) -> Result<Box<dyn Prepared>, EngineError> {
            let left = self.0.load(Ordering::Relaxed);
            if left == 0 { Err(lost()) } else { Ok(Box::new(Steps(self.0.clone()))) }
        }
    }

    impl Prepared for Steps {
        fn run(&self, _: &Plan, _: &Step, answers: &mut Vec<f32>) -> Result<(), EngineError> {
            let left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            *answers = vec![7.0];
            left.map(drop).map_err(|_| lost())
        }
    }

    fn graph() -> Arc<Graph> {
        let mut g = Builder::default();
        let words = g.weight(kedge_formats::Tensor::of_f32(&[1, 1], &[3.0]));
        let x = g.per_row(1);
        g.push(Op::Embed { words, positions: None, types: None, scale: 1.0, out: x });
        let out = g.take(x);
        Arc::new(g.finish(out, None))
    }

    /// A spare that asks where the model is while it takes it, and does not take it the first time.
    #[derive(Default)]
    struct Slow {
        placed: std::sync::OnceLock<std::sync::Weak<Placed>>,
        asked: AtomicUsize,
    }

    impl Backend for Slow {
        fn capabilities(&self) -> Capabilities {
            crate::Reference.capabilities()
        }

        fn memory_bytes_free(&self) -> u64 {
            1 << 30
        }

        fn prepare(&self, graph: Arc<Graph>, pages: usize) -> Result<Box<dyn Prepared>, EngineError> {
            let placed = self.placed.get().and_then(std::sync::Weak::upgrade).unwrap();
            let (sender, told) = std::sync::mpsc::channel();
            std::thread::spawn(move || sender.send(placed.on().0.name));
            assert_eq!(told.recv_timeout(std::time::Duration::from_secs(60)), Ok("frail"), "who asks need not wait");
            if self.asked.fetch_add(1, Ordering::Relaxed) == 0 {
                return Err(EngineError::Memory { bytes: 7, source: std::io::ErrorKind::OutOfMemory.into() });
            }
            crate::Reference.prepare(graph, pages)
        }
    }

    fn frail(steps: usize) -> WithSpare {
        let spare = Arc::new(crate::Reference);
        WithSpare::new(Box::new(Frail(Arc::new(AtomicUsize::new(steps)))), spare)
    }

    fn step(placed: &Placed, answers: &mut Vec<f32>) -> Result<Ran, EngineError> {
        let plan = Plan::new(&placed.graph, Shape { rows: 1, outputs: 1 });
        let sequences = vec![super::super::Sequence { rows: 1, past: 0, pages: vec![] }];
        placed.run(&plan, &Step { ids: vec![0], types: vec![], sequences, outputs: vec![0] }, answers)
    }

    #[test]
    fn a_model_moves_once_when_its_device_is_lost() {
        let placed = Placed::new(&frail(2), graph(), 0).unwrap();
        let mut answers = Vec::new();
        assert_eq!(placed.on().0.name, "frail");
        for (ran, answer) in [(Ran::Done, 7.0), (Ran::Done, 7.0), (Ran::Moved, 7.0), (Ran::Done, 3.0)] {
            assert_eq!(step(&placed, &mut answers).unwrap(), ran);
            assert_eq!(answers, [answer]);
        }
        let (on, why) = placed.on();
        assert_eq!((on.name, why.as_deref()), ("reference", Some("frail: it fell off the bus")));
    }

    #[test]
    fn a_device_that_does_not_take_a_model_is_passed_over_and_without_a_spare_it_is_an_error() {
        assert_eq!(Placed::new(&frail(0), graph(), 0).unwrap().on().0.name, "reference");
        let alone = Frail(Arc::new(AtomicUsize::new(0)));
        assert_eq!(Placed::new(&alone, graph(), 0).err().unwrap().to_string(), "frail: it fell off the bus");
        let alone = Frail(Arc::new(AtomicUsize::new(1)));
        let placed = Placed::new(&alone, graph(), 0).unwrap();
        let mut answers = Vec::new();
        assert_eq!(step(&placed, &mut answers).unwrap(), Ran::Done);
        assert_eq!(step(&placed, &mut answers).err().unwrap().to_string(), "frail: it fell off the bus");
    }

    #[test]
    fn a_spare_takes_its_time_and_is_asked_again_when_it_had_no_room() {
        let spare = Arc::new(Slow::default());
        let device = WithSpare::new(Box::new(Frail(Arc::new(AtomicUsize::new(1)))), spare.clone());
        let placed = Arc::new(Placed::new(&device, graph(), 0).unwrap());
        spare.placed.set(Arc::downgrade(&placed)).unwrap();
        let mut answers = Vec::new();
        assert_eq!(step(&placed, &mut answers).unwrap(), Ran::Done);
        let refused = step(&placed, &mut answers).unwrap_err();
        let said = "frail: it fell off the bus; its spare: taking 7 bytes of memory for weights: out of memory";
        assert!(matches!(refused, EngineError::Device { .. }), "whoever runs it counts lost devices");
        assert_eq!(refused.to_string(), said);
        assert_eq!((step(&placed, &mut answers).unwrap(), placed.on().0.name), (Ran::Moved, "reference"));
        assert_eq!((step(&placed, &mut answers).unwrap(), answers), (Ran::Done, vec![3.0]));
    }
}
