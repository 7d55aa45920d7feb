//! A few threads that work through a list of stages together, and sleep when there is none.
//!
//! A stage is a number of tasks that may run in any order on any thread; the next stage begins when the last task of
//! the one before has ended. Threads wake once for the whole list and wait for each other between stages by looking at
//! counters, so that a stage of microseconds costs no system call; one that was put off the processor without holding
//! a task holds up nobody. What must hold: [`Pool::run`] returns only when no thread can touch the work any more, so
//! the work may borrow; a panic in the work comes out of `run` and leaves the pool usable. One `run` at a time; others
//! wait their turn. Where threads have places ([`super::placement`]) the helpers stay there for good, and the caller while
//! it runs.

#![allow(unsafe_code, reason = "work that borrows is lent to threads that outlive it")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::placement::{Held, Placement};
use crate::EngineError;

/// Looks at a counter before the processor is offered to others: a few microseconds.
const SPINS: u32 = 2_000;

/// The threads. The caller of [`Pool::run`] is one of them.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    turn: Mutex<Vec<Counters>>,
    handles: Vec<JoinHandle<()>>,
    /// Where the caller stays while it runs; none where threads are free.
    home: Option<usize>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    start: Condvar,
    idle: Condvar,
    panicked: AtomicBool,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    generation: u64,
    active: usize,
    stop: bool,
}

/// How far a stage is.
#[derive(Default)]
struct Counters {
    next: AtomicUsize,
    done: AtomicUsize,
}

#[derive(Clone, Copy)]
struct Job {
    work: &'static (dyn Fn(usize, usize) + Sync),
    tasks: &'static [usize],
    counters: &'static [Counters],
}

impl Pool {
    /// A pool of so many threads, the caller included. All have their places or none has.
    pub(crate) fn new(placement: impl Into<Placement>) -> Result<Self, EngineError> {
        let Placement { threads, homes } = placement.into();
        let pool = Self::start(threads, &homes)?;
        if homes.is_empty() || pool.is_placed() {
            return Ok(pool);
        }
        // Those that have a place would keep it, and share it with one that is free.
        drop(pool);
        Self::start(threads, &[])
    }

    /// As many threads; the places are taken until one cannot be had.
    fn start(threads: usize, homes: &[usize]) -> Result<Self, EngineError> {
        let mut pool = Self { shared: Arc::default(), turn: Mutex::default(), handles: Vec::new(), home: None };
        let mut placed = !homes.is_empty();
        for index in 1..threads {
            let shared = pool.shared.clone();
            let named = std::thread::Builder::new().name(format!("kedge-cpu-{index}"));
            // A thread begins where the one is that starts it.
            let held = homes.get(index).map(|home| Held::on(*home));
            placed &= matches!(held, Some(Ok(_)));
            let spawned = named.spawn(move || shared.serve());
            pool.handles.push(spawned.map_err(|source| EngineError::Threads { index, source })?);
        }
        pool.home = homes.first().copied().filter(|_| placed);
        Ok(pool)
    }

    /// Whether each thread has a place where it stays.
    pub(crate) fn is_placed(&self) -> bool {
        self.home.is_some()
    }

    /// How many threads work, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Calls `work` with each stage and each number below that stage's count of tasks, stage by stage.
    pub(crate) fn run(&self, tasks: &[usize], work: &(dyn Fn(usize, usize) + Sync)) {
        if self.handles.is_empty() {
            return tasks.iter().enumerate().for_each(|(stage, count)| (0..*count).for_each(|task| work(stage, task)));
        }
        let mut counters = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // One that may not be there works where it is.
        let _held = self.home.map(Held::on);
        counters.clear();
        counters.resize_with(tasks.len(), Counters::default);
        // SAFETY: the borrows end no earlier than this function returns. A thread reaches them only through `state.job`,
        // and counts itself in `state.active` under the same lock; below, the job is taken away and the count has come
        // to zero before this function returns or unwinds (`work_on` catches panics).
        let job = unsafe {
            Job {
                work: std::mem::transmute::<&(dyn Fn(usize, usize) + Sync), &'static (dyn Fn(usize, usize) + Sync)>(
                    work,
                ),
                tasks: std::mem::transmute::<&[usize], &'static [usize]>(tasks),
                counters: std::mem::transmute::<&[Counters], &'static [Counters]>(&counters),
            }
        };
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
            for (stage, (total, counters)) in job.tasks.iter().zip(job.counters).enumerate() {
                loop {
                    let task = counters.next.fetch_add(1, Ordering::Relaxed);
                    if task >= *total {
                        break;
                    }
                    (job.work)(stage, task);
                    counters.done.fetch_add(1, Ordering::Release);
                }
                let mut looked = 0;
                // What the others wrote is seen once their tasks are counted.
                while counters.done.load(Ordering::Acquire) < *total {
                    if self.panicked.load(Ordering::Relaxed) {
                        return;
                    }
                    looked += 1;
                    if looked < SPINS {
                        std::hint::spin_loop();
                    } else {
                        std::thread::yield_now();
                    }
                }
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
    fn every_task_of_a_stage_runs_once_and_after_the_stage_before() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            for tasks in [vec![], vec![1], vec![3, 0, 7, 1, 40]] {
                let counts: Vec<AtomicUsize> = tasks.iter().map(|_| AtomicUsize::new(0)).collect();
                pool.run(&tasks, &|stage, task| {
                    assert!(task < tasks[stage]);
                    for before in 0..stage {
                        assert_eq!(counts[before].load(Ordering::Relaxed), tasks[before]);
                    }
                    counts[stage].fetch_add(1, Ordering::Relaxed);
                });
                let counted: Vec<usize> = counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
                assert_eq!(counted, tasks);
            }
        }
    }

    /// The processors that the thread may use.
    fn here() -> Vec<usize> {
        use nix::sched::{CpuSet, sched_getaffinity};
        let set = sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
        (0..CpuSet::count()).filter(|number| set.is_set(*number).unwrap()).collect()
    }

    /// Those of each thread of a pool.
    fn of_each(pool: &Pool) -> Vec<Vec<usize>> {
        let (threads, there, found) = (pool.threads(), AtomicUsize::new(0), Mutex::new(Vec::new()));
        // Each waits for the others, so that each has one task.
        pool.run(&[threads], &|_, _| {
            found.lock().unwrap().push(here());
            there.fetch_add(1, Ordering::Relaxed);
            while there.load(Ordering::Relaxed) < threads {
                std::thread::yield_now();
            }
        });
        found.into_inner().unwrap()
    }

    #[test]
    fn threads_with_places_stay_there_and_the_caller_goes_back() {
        let before = here();
        // As many threads as there are processors, or two on one.
        let mut homes = before.clone();
        homes.resize(before.len().max(2), before[0]);
        let threads = homes.len();
        let pool = Pool::new(Placement { threads, homes: homes.clone() }).unwrap();
        assert!(pool.is_placed() && !Pool::new(threads).unwrap().is_placed());
        assert_eq!(here(), before);
        let mut found = of_each(&pool).concat();
        found.sort();
        homes.sort();
        assert_eq!(found, homes);
        assert_eq!(here(), before);
    }

    #[test]
    fn where_one_cannot_have_its_place_all_are_free() {
        let before = here();
        let nowhere = 1023;
        for homes in [vec![before[0], before[0], nowhere], vec![before[0], nowhere, before[0]]] {
            let pool = Pool::new(Placement { threads: 3, homes }).unwrap();
            assert!(!pool.is_placed() && pool.threads() == 3);
            assert_eq!(of_each(&pool), [(); 3].map(|()| before.clone()));
        }
    }

    #[test]
    fn a_panic_comes_out_and_the_pool_works_on() {
        let pool = Pool::new(3).unwrap();
        let panicked =
            catch_unwind(AssertUnwindSafe(|| pool.run(&[4, 4], &|stage, task| assert!(stage == 0 || task != 2))));
        assert!(panicked.is_err());
        let count = AtomicUsize::new(0);
        pool.run(&[5, 6], &|_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 11);
    }
}
