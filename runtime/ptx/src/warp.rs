//! Thirty-two threads that go together as long as they go the same way.
//!
//! A warp has a stack of parts: lanes, where they are, and where they wait for the others. Only the topmost runs. Lanes
//! that part at a branch become parts of their own, above one that stands for all of them at the place where the ways
//! meet; a part that gets there is done.

use std::collections::VecDeque;

use crate::alu::Lane;
use crate::bytes::Bytes;
use crate::flow::NOWHERE;

/// Lanes that run together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) at: u32,
    /// Where this part ends.
    pub(crate) until: u32,
    pub(crate) mask: u32,
    /// How many functions deep it is.
    pub(crate) depth: u32,
}

/// What keeps a warp from running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Runs,
    /// At the barrier of that number.
    Waits(u32),
    Done,
}

/// One `cp.async` not yet waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copy {
    pub(crate) to: u64,
    pub(crate) from: u64,
    pub(crate) length: u64,
    /// What is not copied is zero.
    pub(crate) source_length: u64,
}

pub(crate) struct Warp {
    pub(crate) registers: Vec<Lane>,
    pub(crate) parts: Vec<Part>,
    /// Lanes that have not exited.
    pub(crate) live: u32,
    /// Where the functions being run return to.
    pub(crate) calls: Vec<u32>,
    pub(crate) state: State,
    /// The memory of each thread, one after the other.
    pub(crate) local: Bytes,
    /// Of each lane: groups of copies, the last one still open.
    pub(crate) copies: Vec<VecDeque<Vec<Copy>>>,
    pub(crate) steps: u64,
}

impl Warp {
    /// The part that runs, after those are left that have ended.
    pub(crate) fn settle(&mut self) -> Option<&mut Part> {
        while self.parts.last().is_some_and(|part| part.mask == 0 || part.at == part.until) {
            self.parts.pop();
        }
        self.parts.last_mut()
    }

    /// Some lanes of the topmost part go to each place; they meet again at `meeting`.
    pub(crate) fn split(&mut self, ways: &[(u32, u32)], meeting: u32) {
        let Some(top) = self.parts.last_mut() else { return };
        let mut ways = ways.iter().filter(|(mask, _)| *mask != 0);
        if let (Some(&(_, at)), None) = (ways.clone().next(), ways.clone().nth(1)) {
            top.at = at;
            return;
        }
        let depth = top.depth;
        let until = if meeting == NOWHERE { top.until } else { meeting };
        if until == top.until {
            self.parts.pop();
        } else {
            top.at = meeting;
        }
        self.parts.extend(ways.by_ref().filter(|(_, at)| *at != until).map(|&(mask, at)| Part {
            at,
            until,
            mask,
            depth,
        }));
    }

    /// Goes into a function.
    pub(crate) fn call(&mut self, target: u32) {
        let Some(part) = self.parts.last_mut() else { return };
        // What lies above was left by lanes that ended inside of a function.
        self.calls.truncate(part.depth as usize);
        self.calls.push(part.at + 1);
        part.at = target;
        part.depth += 1;
    }

    /// Comes back from one.
    pub(crate) fn come_back(&mut self) {
        let Some(part) = self.parts.last_mut() else { return };
        part.depth = part.depth.saturating_sub(1);
        part.at = self.calls.get(part.depth as usize).copied().unwrap_or(part.until);
    }

    /// Lanes that end here.
    pub(crate) fn exit(&mut self, lanes: u32) {
        self.live &= !lanes;
        for part in &mut self.parts {
            part.mask &= !lanes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warp() -> Warp {
        Warp {
            registers: Vec::new(),
            parts: vec![Part { at: 0, until: NOWHERE, mask: 0xf, depth: 0 }],
            live: 0xf,
            calls: Vec::new(),
            state: State::Runs,
            local: Bytes::new(0),
            copies: Vec::new(),
            steps: 0,
        }
    }

    #[test]
    fn parts_split_and_meet() {
        let mut warp = warp();
        warp.split(&[(0x3, 5), (0xc, 1)], 7);
        assert_eq!(
            warp.parts,
            [
                Part { at: 7, until: NOWHERE, mask: 0xf, depth: 0 },
                Part { at: 5, until: 7, mask: 0x3, depth: 0 },
                Part { at: 1, until: 7, mask: 0xc, depth: 0 }
            ]
        );
        // One way leads where the ways meet: nobody has to go it. A loop does not let the stack grow.
        warp.split(&[(0x4, 7), (0x8, 1)], 7);
        assert_eq!(warp.parts.last(), Some(&Part { at: 1, until: 7, mask: 0x8, depth: 0 }));
        assert_eq!(warp.parts.len(), 3);
        warp.exit(0x8);
        assert_eq!(warp.settle(), Some(&mut Part { at: 5, until: 7, mask: 0x3, depth: 0 }));
        warp.parts[1].at = 7;
        assert_eq!(warp.settle(), Some(&mut Part { at: 7, until: NOWHERE, mask: 0x7, depth: 0 }));
    }
}
