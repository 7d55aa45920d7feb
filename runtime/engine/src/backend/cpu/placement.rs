//! How many threads compute, and where they run.
//!
//! There is one thread for each core, fewer where a quota gives less. Two threads on the two halves of a core share what
//! they are waiting for: memory when text is made, the vector units and the first cache when a prompt is read; and one that
//! waits for the end of a stage takes turns from the other. The halves are left to the rest of the process.
//!
//! Threads are free to move, but on processors that the kernel was told to leave alone (`isolcpus`, isolated cpusets). There
//! it moves nothing by itself: all threads of a process stay on the processor where the first began, so each is put on one
//! of its own. Elsewhere a fixed place was measured to be no faster when nothing else runs, and 5 to 12 % slower beside
//! a neighbour: everybody waits for the one thread whose processor somebody else wants too, while a free one goes where
//! there is room. With a quota there is room by design. And two pools, in a process or in two pods, cannot crowd the same
//! few processors when neither has chosen any.
//!
//! Reading is the shell's ([`read`]); [`place`] is pure.

#![allow(clippy::disallowed_methods, reason = "asks the kernel for its processors")]

use std::collections::BTreeSet;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Threads at most where none asked for more.
pub(super) const THREADS_MAX: usize = 64;

/// A processor that this process may run on: half a core, where cores have two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Processor {
    number: usize,
    /// Names its core: the same text for all of a core.
    core: String,
    /// The kernel moves no threads to or from it.
    isolated: bool,
}

/// Threads and their places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Placement {
    pub(super) threads: usize,
    /// The processor that each thread stays on, that of the caller first; none at all where threads are free.
    pub(super) homes: Vec<usize>,
}

impl From<usize> for Placement {
    /// So many, which are free.
    fn from(threads: usize) -> Self {
        Self { threads, homes: Vec::new() }
    }
}

/// As many threads as were asked for, or as this process has use for, and where they stay. `bound` is how many processors'
/// time it gets.
pub(super) fn place(processors: &[Processor], bound: usize, asked: Option<usize>) -> Placement {
    // One of each core, then the others.
    let (mut cores, mut order): (BTreeSet<&str>, Vec<usize>) = Default::default();
    let (firsts, others): (Vec<_>, Vec<_>) = processors.iter().partition(|processor| cores.insert(&processor.core));
    order.extend(firsts.into_iter().chain(others).map(|processor| processor.number));
    let useful = if cores.is_empty() { bound } else { bound.min(cores.len()) };
    let threads = asked.unwrap_or(useful.min(THREADS_MAX)).max(1);
    let alone = !processors.is_empty() && processors.iter().all(|processor| processor.isolated);
    let homes = if alone && threads > 1 { order.into_iter().cycle().take(threads).collect() } else { Vec::new() };
    Placement { threads, homes }
}

/// The processors that this process may use, and how many processors' time it gets: fewer under a quota of its cgroup.
pub(super) fn read() -> (Vec<Processor>, usize) {
    let bound = std::thread::available_parallelism().map_or(1, usize::from);
    // Where there are more than the call knows of, nothing is known of any.
    let Ok(allowed) = sched_getaffinity(Pid::from_raw(0)) else { return (Vec::new(), bound) };
    let numbers = (0..CpuSet::count()).filter(|number| allowed.is_set(*number).unwrap_or(false));
    let isolated = std::fs::read_to_string("/sys/devices/system/cpu/isolated").unwrap_or_default();
    let isolated = numbers_of(&isolated);
    let processor = |number: usize| {
        let file = format!("/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list");
        // Where that is not told, a processor is a core.
        let core = std::fs::read_to_string(file).unwrap_or_else(|_| number.to_string());
        Processor { number, core: core.trim().to_owned(), isolated: isolated.contains(&number) }
    };
    (numbers.map(processor).collect(), bound)
}

/// The numbers in a list such as `0,2-4`; what is not understood is nobody's.
fn numbers_of(list: &str) -> BTreeSet<usize> {
    let part = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    list.trim().split(',').filter_map(part).flatten().collect()
}

/// Holds the calling thread, and those that it starts, on a processor until dropped.
pub(super) struct Held {
    before: CpuSet,
}

impl Held {
    /// On that one, which must be one of those that the thread may use now.
    pub(super) fn on(home: usize) -> nix::Result<Self> {
        let before = sched_getaffinity(Pid::from_raw(0))?;
        // A thread that was put somewhere else stays there.
        if !before.is_set(home)? {
            return Err(nix::Error::EPERM);
        }
        let mut set = CpuSet::new();
        set.set(home)?;
        sched_setaffinity(Pid::from_raw(0), &set)?;
        Ok(Self { before })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // It was so before; if that is gone, the kernel has chosen something else already.
        let _ = sched_setaffinity(Pid::from_raw(0), &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processors(all: &[(usize, &str)], isolated: bool) -> Vec<Processor> {
        all.iter().map(|(number, core)| Processor { number: *number, core: (*core).into(), isolated }).collect()
    }

    #[test]
    fn there_is_a_thread_for_each_core_and_a_place_where_the_kernel_moves_none() {
        let plain = [(0, "0"), (1, "1"), (2, "2"), (3, "3")];
        let halves = [(0, "0,4"), (4, "0,4"), (1, "1,5"), (5, "1,5")];
        let some = [(5, "5"), (9, "9")];
        let one = [(3, "3,7"), (7, "3,7")];
        for (what, all, bound, asked, threads, homes) in [
            ("one for each", &plain[..], 4, None, 4, vec![0, 1, 2, 3]),
            ("only those that are allowed", &some, 2, None, 2, vec![5, 9]),
            ("a quota", &plain, 2, None, 2, vec![0, 1]),
            ("fewer were asked for", &plain, 4, Some(3), 3, vec![0, 1, 2]),
            ("more were asked for", &plain, 2, Some(5), 5, vec![0, 1, 2, 3, 0]),
            ("none were asked for", &plain, 4, Some(0), 1, vec![]),
            ("a core has two halves", &halves, 4, None, 2, vec![0, 1]),
            ("a quota of one", &halves, 1, None, 1, vec![]),
            ("all halves were asked for", &halves, 4, Some(4), 4, vec![0, 1, 4, 5]),
            ("something between was asked for", &halves, 4, Some(3), 3, vec![0, 1, 4]),
            ("one core", &one, 2, None, 1, vec![]),
            ("both halves of one", &one, 2, Some(2), 2, vec![3, 7]),
            ("nothing is known", &[], 6, None, 6, vec![]),
        ] {
            assert_eq!(place(&processors(all, true), bound, asked), Placement { threads, homes }, "{what}");
            assert_eq!(place(&processors(all, false), bound, asked), threads.into(), "{what}, among others");
        }
        let mut mixed = processors(&plain, true);
        mixed[3].isolated = false;
        assert_eq!(place(&mixed, 4, None), 4.into(), "a free thread finds the one that is not isolated");
        let many: Vec<Processor> = (0..200).flat_map(|n| processors(&[(n, &n.to_string())], false)).collect();
        assert_eq!(place(&many, 200, None), THREADS_MAX.into());
        assert_eq!(place(&many, 200, Some(128)), 128.into(), "what was asked for is not cut");
    }

    #[test]
    fn lists_of_processors_are_read() {
        for (list, numbers) in [
            ("", vec![]),
            ("\n", vec![]),
            ("3\n", vec![3]),
            ("0-2,7,9-10\n", vec![0, 1, 2, 7, 9, 10]),
            ("x,2-,5", vec![5]),
        ] {
            assert_eq!(numbers_of(list).into_iter().collect::<Vec<_>>(), numbers, "{list:?}");
        }
    }

    #[test]
    fn a_thread_is_held_and_let_go() {
        let here = || sched_getaffinity(Pid::from_raw(0)).unwrap();
        let (all, bound) = read();
        assert!(bound >= 1 && bound <= all.len());
        let (before, last) = (here(), all.last().unwrap().number);
        let held = Held::on(last).unwrap();
        let only = here();
        assert_eq!((0..CpuSet::count()).filter(|n| only.is_set(*n).unwrap()).collect::<Vec<_>>(), [last]);
        assert!(all.len() == 1 || Held::on(all[0].number).is_err(), "another place than it may be in");
        assert_eq!(here(), only);
        let started = std::thread::spawn(here).join().unwrap();
        assert_eq!(started, only, "a thread is where the one is that started it");
        drop(held);
        assert_eq!(here(), before);
    }
}
