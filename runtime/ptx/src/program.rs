//! A kernel ready to run: instructions with their registers, branches with their targets, and what to fill in first.

use crate::alu::{Run, Slots};
use crate::collective::{Reduce, Shuffle, Vote};
use crate::mma::Mma;
use crate::space::Space;
use crate::types::Type;

/// The register that nobody reads (`_`).
pub(crate) const SINK: u32 = 0;

/// A kernel and the functions it calls, in one piece. Registers of all of them lie side by side: no function calls
/// itself.
pub(crate) struct Program {
    pub(crate) code: Vec<Instruction>,
    pub(crate) registers: usize,
    /// What registers hold before the first instruction.
    pub(crate) initial: Vec<(u32, Initial)>,
    /// Static shared memory, and what the dynamic part is aligned to.
    pub(crate) shared_bytes: u32,
    pub(crate) dynamic_align: u32,
    /// Memory of each thread.
    pub(crate) local_bytes: u32,
    /// Length of the parameter block.
    pub(crate) param_bytes: u32,
}

pub(crate) struct Instruction {
    pub(crate) op: Op,
    /// The predicate, and the value it must not have.
    pub(crate) guard: Option<(u32, bool)>,
    pub(crate) line: u32,
    pub(crate) text: Box<str>,
}

/// What a register holds before the first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Initial {
    Value(u64),
    /// The address of a variable of the module.
    Global(u64),
    /// Somewhere in the shared memory that the launch adds.
    Dynamic(u64),
    Special(Special),
}

/// `%tid.x` and the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Thread(u8),
    Threads(u8),
    Block(u8),
    Blocks(u8),
    Lane,
    Warp,
    Warps,
    LanesEqual,
    LanesLess,
    LanesLessEqual,
    LanesGreater,
    LanesGreaterEqual,
    DynamicShared,
    TotalShared,
    Zero,
    /// The carry of long sums, which no name stands for.
    Carry,
}

impl Special {
    pub(crate) fn named(name: &str) -> Option<Special> {
        let (name, axis) = match name.split_once('.') {
            Some((name, "x")) => (name, 0),
            Some((name, "y")) => (name, 1),
            Some((name, "z")) => (name, 2),
            Some(_) => return None,
            None => (name, 3),
        };
        Some(match (name, axis) {
            ("%tid", 0..3) => Special::Thread(axis),
            ("%ntid", 0..3) => Special::Threads(axis),
            ("%ctaid", 0..3) => Special::Block(axis),
            ("%nctaid", 0..3) => Special::Blocks(axis),
            ("%laneid", 3) => Special::Lane,
            ("%warpid", 3) => Special::Warp,
            ("%nwarpid", 3) => Special::Warps,
            ("%lanemask_eq", 3) => Special::LanesEqual,
            ("%lanemask_lt", 3) => Special::LanesLess,
            ("%lanemask_le", 3) => Special::LanesLessEqual,
            ("%lanemask_gt", 3) => Special::LanesGreater,
            ("%lanemask_ge", 3) => Special::LanesGreaterEqual,
            ("%dynamic_smem_size", 3) => Special::DynamicShared,
            ("%total_smem_size", 3) => Special::TotalShared,
            ("%smid" | "%gridid", 3) => Special::Zero,
            _ => return None,
        })
    }
}

/// An address: a register and a distance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) space: Space,
    pub(crate) base: u32,
    pub(crate) offset: i64,
}

pub(crate) enum Op {
    Alu(Run, Slots),
    /// One register from several narrower ones, low bits first.
    Pack {
        to: u32,
        from: Vec<u32>,
        bits: u32,
    },
    Unpack {
        to: Vec<u32>,
        from: u32,
        bits: u32,
    },
    /// The number of the instruction stands for time.
    Clock {
        to: u32,
    },
    Load {
        place: Place,
        of: Type,
        to: Vec<(u32, u64)>,
    },
    Store {
        place: Place,
        of: Type,
        from: Vec<u32>,
    },
    Atomic {
        place: Place,
        how: Atomic,
        of: Type,
        to: Option<u32>,
        from: [u32; 2],
    },
    Branch {
        target: u32,
        meeting: u32,
    },
    Indexed {
        index: u32,
        targets: Vec<u32>,
        meeting: u32,
    },
    /// Memory of the thread: arguments to where the function looks for them, and back.
    Pass {
        from: u32,
        to: u32,
        length: u32,
    },
    Call {
        target: u32,
    },
    Return,
    Exit,
    Barrier {
        kind: Barrier,
        number: u32,
        count: Option<u32>,
        to: u32,
        from: u32,
    },
    WarpBarrier {
        mask: u32,
    },
    Shuffle {
        mode: Shuffle,
        to: [u32; 2],
        from: [u32; 4],
    },
    Vote {
        vote: Vote,
        to: u32,
        predicate: u32,
        mask: u32,
    },
    Match {
        all: bool,
        to: [u32; 2],
        from: u32,
        mask: u32,
    },
    Reduce {
        how: Reduce,
        signed: bool,
        to: u32,
        from: u32,
        mask: u32,
    },
    ActiveMask {
        to: u32,
    },
    Mma(Box<Mma>),
    /// `ldmatrix`
    Matrices {
        place: Place,
        to: Vec<u32>,
        transposed: bool,
    },
    CopyAsync {
        to: Place,
        from: Place,
        length: u32,
        source_length: Option<u32>,
    },
    CopyCommit,
    /// All but that many groups; nothing: all, committed or not.
    CopyWait(Option<u32>),
    Trap,
    Nothing,
}

/// What `atom` and `red` do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Atomic {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
    CompareAndSwap,
    Increment,
    Decrement,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Barrier {
    Sync,
    Arrive,
    Count,
    And,
    Or,
}
