//! A few threads that share one piece of work at a time, and sleep in between.
//!
//! What must hold: [`Pool::run`] returns only when no thread can touch the work any more, so the work may borrow;
//! a panic in the work comes out of `run` and leaves the pool usable. One `run` at a time; others wait their turn.

#![allow(unsafe_code, reason = "work that borrows is lent to threads that outlive it")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::EngineError;

/// The threads. The caller of [`Pool::run`] is one of them.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    turn: Mutex<()>,
    handles: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    start: Condvar,
    idle: Condvar,
    next: AtomicUsize,
    panicked: AtomicBool,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    generation: u64,
    active: usize,
    stop: bool,
}

#[derive(Clone, Copy)]
struct Job {
    work: &'static (dyn Fn(usize) + Sync),
    total: usize,
}

impl Pool {
    /// A pool of `threads`, the caller included.
    pub(crate) fn new(threads: usize) -> Result<Self, EngineError> {
        let mut pool = Self { shared: Arc::default(), turn: Mutex::new(()), handles: Vec::new() };
        for index in 1..threads {
            let shared = pool.shared.clone();
            let named = std::thread::Builder::new().name(format!("kedge-cpu-{index}"));
            let spawned = named.spawn(move || shared.serve());
            pool.handles.push(spawned.map_err(|source| EngineError::Threads { index, source })?);
        }
        Ok(pool)
    }

    /// How many threads work, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Calls `work` once for each number below `total`, on any of the threads.
    pub(crate) fn run(&self, total: usize, work: &(dyn Fn(usize) + Sync)) {
        if self.handles.is_empty() || total < 2 {
            return (0..total).for_each(work);
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the borrow ends no earlier than this function returns. A thread reaches the work only through
        // `state.job`, and counts itself in `state.active` under the same lock; below, the job is taken away and the
        // count has come to zero before this function returns or unwinds (`work_on` catches panics).
        let work: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(work) };
        let job = Job { work, total };
        self.shared.next.store(0, Ordering::Relaxed);
        let mut state = self.shared.lock();
        state.job = Some(job);
        state.generation += 1;
        drop(state);
        self.shared.start.notify_all();
        self.shared.work_on(job);
        let mut state = self.shared.lock();
        state.job = None;
        while state.active > 0 {
            state = self.shared.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        assert!(
            !self.shared.panicked.swap(false, Ordering::Relaxed),
            "work on the pool panicked; its message is above"
        );
    }

    /// Cuts `out` into chunks of `length` (the last may be shorter) and calls `work` with each and its index.
    pub(crate) fn chunks(&self, out: &mut [f32], length: usize, work: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let chunks: Vec<Mutex<&mut [f32]>> = out.chunks_mut(length).map(Mutex::new).collect();
        self.run(chunks.len(), &|index| work(index, &mut chunks[index].lock().unwrap_or_else(PoisonError::into_inner)));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.start.notify_all();
        for handle in self.handles.drain(..) {
            handle.join().expect("a worker catches the panics of its work");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker's life.
    fn serve(&self) {
        let mut seen = 0;
        let mut state = self.lock();
        while !state.stop {
            if state.generation == seen {
                state = self.start.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            seen = state.generation;
            let Some(job) = state.job else { continue };
            state.active += 1;
            drop(state);
            self.work_on(job);
            state = self.lock();
            state.active -= 1;
            if state.active == 0 {
                self.idle.notify_all();
            }
        }
    }

    fn work_on(&self, job: Job) {
        let all = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let index = self.next.fetch_add(1, Ordering::Relaxed);
                if index >= job.total {
                    return;
                }
                (job.work)(index);
            }
        }));
        if all.is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_worked_on_once() {
        let pool = Pool::new(3).unwrap();
        for total in [0, 1, 2, 7, 100] {
            let counts: Vec<AtomicUsize> = (0..total).map(|_| AtomicUsize::new(0)).collect();
            pool.run(total, &|index| {
                counts[index].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn a_panic_comes_out_and_the_pool_works_on() {
        let pool = Pool::new(2).unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| pool.run(4, &|index| assert_ne!(index, 2))));
        assert!(panicked.is_err());
        let mut out = [0.0; 5];
        pool.chunks(&mut out, 2, &|index, chunk: &mut [f32]| chunk.fill(index as f32));
        assert_eq!(out, [0.0, 0.0, 1.0, 1.0, 2.0]);
    }
}
