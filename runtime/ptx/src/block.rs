//! Runs a block: its warps one after the other, each until it waits or ends.

mod step;

use crate::bytes::Bytes;
use crate::collective::active;
use crate::flow::NOWHERE;
use crate::program::{Barrier, Initial, Op, Program, Special};
use crate::shared::Shared;
use crate::warp::{Part, State, Warp};
use crate::{Error, Fault, Memory};

/// What a warp may execute before it is taken for one that never ends.
const STEPS: u64 = 1 << 26;

/// What registers hold at the beginning of a launch: something that no result should be made of.
const POISON: u64 = 0x7fc0_dead_7fc0_dead;

/// A launch in progress.
pub(crate) struct Machine<'a> {
    pub(crate) program: &'a Program,
    pub(crate) memory: &'a mut Memory,
    pub(crate) shared: Shared,
    pub(crate) constants: &'a Bytes,
    pub(crate) params: Bytes,
    /// Where the variables of the module begin.
    pub(crate) globals: u64,
    pub(crate) kernel: &'a str,
    pub(crate) grid: [u32; 3],
    pub(crate) threads: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_bytes: u32,
    pub(crate) barriers: Vec<Meeting>,
}

/// Who arrived at a barrier.
#[derive(Clone, Default)]
pub(crate) struct Meeting {
    threads: u32,
    /// Of `bar.red`: threads whose predicate holds.
    hold: u32,
    /// Warps that wait, where they write the outcome, and what it is.
    waiting: Vec<(usize, Barrier, u32)>,
    /// Threads to wait for, where the instruction says it.
    count: Option<u32>,
}

/// The lane at fault.
type Stepped<T> = Result<T, (usize, Fault)>;

impl Machine<'_> {
    /// Runs all blocks.
    pub(crate) fn run(&mut self) -> Result<(), Error> {
        let total: u32 = self.threads.iter().product();
        let mut warps: Vec<Warp> = (0..total.div_ceil(32)).map(|number| self.warp(number)).collect();
        let [x, y, z] = self.grid.map(u64::from);
        for number in order(x * y * z) {
            self.block = [number % x, number / x % y, number / (x * y)].map(|at| at as u32);
            self.shared.clear();
            self.barriers = vec![Meeting::default(); 16];
            for (number, warp) in warps.iter_mut().enumerate() {
                self.reset(warp, number as u32, total);
            }
            self.block(&mut warps)?;
        }
        Ok(())
    }

    fn warp(&self, number: u32) -> Warp {
        let mut registers = vec![[POISON; 32]; self.program.registers];
        for &(register, initial) in &self.program.initial {
            registers[register as usize] = std::array::from_fn(|lane| self.initial(initial, number, lane as u32));
        }
        Warp {
            registers,
            parts: Vec::new(),
            live: 0,
            calls: Vec::new(),
            state: State::Done,
            local: Bytes::new(32 * self.local_bytes() as usize),
            copies: vec![Default::default(); 32],
            steps: 0,
        }
    }

    pub(crate) fn local_bytes(&self) -> u64 {
        u64::from(self.program.local_bytes.next_multiple_of(16))
    }

    fn reset(&self, warp: &mut Warp, number: u32, total: u32) {
        let here = (total - 32 * number).min(32);
        warp.live = u32::MAX >> (32 - here);
        warp.parts = vec![Part { at: 0, until: NOWHERE, mask: warp.live, depth: 0 }];
        warp.calls.clear();
        warp.state = State::Runs;
        warp.local.clear();
        warp.copies.iter_mut().for_each(|groups| groups.clear());
        warp.steps = 0;
        // Nothing else differs between blocks. Registers that the program writes keep what the last block left.
        for &(register, initial) in &self.program.initial {
            if let Initial::Special(Special::Block(axis)) = initial {
                warp.registers[register as usize] = [u64::from(self.block[axis as usize]); 32];
            }
        }
    }

    fn initial(&self, initial: Initial, warp: u32, lane: u32) -> u64 {
        let special = match initial {
            Initial::Value(value) => return value,
            Initial::Global(offset) => return self.globals.wrapping_add(offset),
            Initial::Dynamic(offset) => return u64::from(dynamic_start(self.program)).wrapping_add(offset),
            Initial::Special(special) => special,
        };
        let total: u32 = self.threads.iter().product();
        let bit = 1u64 << lane;
        u64::from(match special {
            Special::Thread(axis) => self.thread(32 * warp + lane)[axis as usize],
            Special::Threads(axis) => self.threads[axis as usize],
            Special::Block(axis) => self.block[axis as usize],
            Special::Blocks(axis) => self.grid[axis as usize],
            Special::Lane => lane,
            Special::Warp => warp,
            Special::Warps => total.div_ceil(32),
            Special::LanesEqual => bit as u32,
            Special::LanesLess => (bit - 1) as u32,
            Special::LanesLessEqual => (2 * bit - 1) as u32,
            Special::LanesGreater => !(2 * bit - 1) as u32,
            Special::LanesGreaterEqual => !(bit - 1) as u32,
            Special::DynamicShared => self.dynamic_bytes,
            Special::TotalShared => dynamic_start(self.program) + self.dynamic_bytes,
            Special::Zero | Special::Carry => 0,
        })
    }

    /// `%tid` of a thread by its number in the block.
    fn thread(&self, flat: u32) -> [u32; 3] {
        let [x, y, _] = self.threads;
        [flat % x, flat / x % y, flat / (x * y)]
    }

    fn block(&mut self, warps: &mut [Warp]) -> Result<(), Error> {
        loop {
            let mut ran = false;
            for number in 0..warps.len() {
                if warps[number].state != State::Runs {
                    continue;
                }
                ran = true;
                self.go(warps, number)?;
            }
            self.meet(warps);
            if warps.iter().all(|warp| warp.state == State::Done) {
                return Ok(());
            }
            if !ran && !warps.iter().any(|warp| warp.state == State::Runs) {
                return Err(self.deadlock(warps));
            }
        }
    }

    /// Runs a warp until it waits or ends.
    fn go(&mut self, warps: &mut [Warp], number: usize) -> Result<(), Error> {
        let warp = &mut warps[number];
        while warp.state == State::Runs {
            let Some(&mut Part { at, mask, .. }) = warp.settle() else {
                warp.state = State::Done;
                break;
            };
            warp.steps += 1;
            let instruction = &self.program.code[at as usize];
            let mask = match instruction.guard {
                None => mask,
                Some((predicate, unwanted)) => {
                    let predicate = &warp.registers[predicate as usize];
                    let holds = (0..32).fold(0, |set, lane| set | u32::from(predicate[lane] != 0) << lane);
                    mask & if unwanted { !holds } else { holds }
                }
            };
            let result = match &instruction.op {
                Op::Alu(run, slots) => {
                    if mask != 0 {
                        run(&mut warp.registers, slots, mask);
                    }
                    next(warp);
                    Ok(())
                }
                _ if warp.steps > STEPS => Err((0, Fault::Endless(STEPS))),
                op => self.step(op, warp, number, mask),
            };
            result.map_err(|(lane, fault)| self.error(number, lane, at, fault))?;
        }
        Ok(())
    }

    fn error(&self, warp: usize, lane: usize, at: u32, fault: Fault) -> Error {
        let instruction = &self.program.code[at as usize];
        Error::Run {
            kernel: self.kernel.to_owned(),
            block: self.block,
            thread: self.thread((32 * warp + lane) as u32),
            line: instruction.line,
            text: instruction.text.clone(),
            fault: Box::new(fault),
        }
    }

    /// A warp arrives; it goes on when the barrier is complete.
    fn arrive(&mut self, warp: &mut Warp, number: usize, op: &Op, mask: u32) -> Stepped<()> {
        let &Op::Barrier { kind, number: barrier, count, to, from } = op else { return Ok(()) };
        let lane = mask.trailing_zeros() as usize % 32;
        if mask != warp.live {
            return Err((lane, Fault::Divided { live: warp.live, active: mask }));
        }
        let barrier = warp.registers[barrier as usize][lane];
        let Some(meeting) = self.barriers.get_mut(barrier as usize) else {
            return Err((lane, Fault::Deadlock(format!("there is no barrier {barrier}"))));
        };
        if let Some(count) = count {
            let count = warp.registers[count as usize][lane] as u32;
            if count == 0 || !count.is_multiple_of(32) || meeting.count.is_some_and(|other| other != count) {
                return Err((lane, Fault::Deadlock(format!("{count} threads are no count for this barrier"))));
            }
            meeting.count = Some(count);
        }
        // With a count, warps count as whole; without, those who exited are not waited for.
        meeting.threads += 32;
        meeting.hold += active(mask).filter(|&lane| warp.registers[from as usize][lane] != 0).count() as u32;
        if kind != Barrier::Arrive {
            meeting.waiting.push((number, kind, to));
            warp.state = State::Waits(barrier as u32);
        }
        next(warp);
        Ok(())
    }

    /// Lets go the warps whose barrier is complete.
    fn meet(&mut self, warps: &mut [Warp]) {
        for number in 0..self.barriers.len() {
            let live = 32 * warps.iter().filter(|warp| warp.state != State::Done).count() as u32;
            let meeting = &mut self.barriers[number];
            if meeting.threads == 0 || meeting.threads < meeting.count.unwrap_or(live) {
                continue;
            }
            let Meeting { hold, waiting, .. } = std::mem::take(meeting);
            let members: u32 = waiting.iter().map(|(warp, ..)| warps[*warp].live.count_ones()).sum();
            for (warp, kind, to) in waiting {
                let outcome = match kind {
                    Barrier::Count => hold,
                    Barrier::And => u32::from(hold == members),
                    _ => u32::from(hold > 0),
                };
                if !matches!(kind, Barrier::Sync | Barrier::Arrive) {
                    warps[warp].registers[to as usize] = [u64::from(outcome); 32];
                }
                warps[warp].state = State::Runs;
            }
            self.shared.barrier();
        }
    }

    fn deadlock(&self, warps: &[Warp]) -> Error {
        let stuck = warps.iter().enumerate().filter(|(_, warp)| warp.state != State::Done);
        let mut told = Vec::new();
        let mut first = (0, 0);
        for (number, warp) in stuck {
            let State::Waits(barrier) = warp.state else { continue };
            let at = warp.parts.last().map_or(1, |part| part.at).saturating_sub(1);
            let line = self.program.code[at as usize].line;
            if told.is_empty() {
                first = (number, at);
            }
            told.push(format!("warp {number} waits at barrier {barrier} (line {line})"));
        }
        self.error(first.0, 0, first.1, Fault::Deadlock(told.join(", ")))
    }
}

/// Every number below `count` once, the last first, none followed by the next one: a GPU promises no order of blocks, so
/// a kernel that counts on the usual one should be found out.
fn order(count: u64) -> impl Iterator<Item = u64> {
    let common = |mut a: u64, mut b: u64| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let stride = (count / 8 * 5 + count % 8 * 5 / 8 + 1..).find(|&stride| common(stride, count) == 1).unwrap_or(1);
    std::iter::successors(Some(count - 1), move |at| Some((at + stride) % count)).take(count as usize)
}

/// On to the next instruction.
fn next(warp: &mut Warp) {
    if let Some(part) = warp.parts.last_mut() {
        part.at += 1;
    }
}

/// Where the shared memory begins that the launch adds.
pub(crate) fn dynamic_start(program: &Program) -> u32 {
    program.shared_bytes.next_multiple_of(program.dynamic_align)
}

#[cfg(test)]
mod tests {
    use super::order;

    #[test]
    fn every_block_runs_once() {
        for count in 1..200 {
            let mut all: Vec<u64> = order(count).collect();
            assert_eq!(all[0], count - 1);
            assert!(all.windows(2).all(|pair| pair[0] + 1 != pair[1]), "{all:?}");
            all.sort_unstable();
            assert!(all.into_iter().eq(0..count));
        }
    }
}
