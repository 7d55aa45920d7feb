//! What can be wrong: with the text, with a launch, with what a thread does.

/// Why PTX could not be read or run. Every variant names the instruction, launch or address at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is no PTX this crate knows; nothing of it was run.
    #[error("line {line}: `{text}`: {reason}")]
    Parse {
        /// Counted from 1.
        line: u32,
        /// The statement as it is written, white space joined.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A launch that a driver would refuse.
    #[error("launch of `{kernel}`: {reason}")]
    Launch {
        /// The kernel asked for.
        kernel: String,
        /// What does not fit.
        reason: String,
    },
    /// A thread did what no program may do.
    #[error("kernel `{kernel}`, block {block:?}, thread {thread:?}, line {line}: `{text}`: {fault}")]
    Run {
        /// The kernel that ran.
        kernel: String,
        /// `%ctaid`.
        block: [u32; 3],
        /// `%tid` of the first thread at fault.
        thread: [u32; 3],
        /// The line of the instruction, counted from 1.
        line: u32,
        /// The instruction as it is written.
        text: Box<str>,
        /// What it did.
        fault: Box<Fault>,
    },
    /// The host touched device memory it may not touch.
    #[error("access by the host: {0}")]
    Host(Fault),
}

/// What a thread did that no program may do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The address belongs to nothing, or to something already freed.
    #[error("{length} bytes at {address:#x} in {space}: nothing is there")]
    Nowhere {
        /// The address space.
        space: &'static str,
        /// The address.
        address: u64,
        /// The length of the access.
        length: u64,
    },
    /// The access begins or ends outside the allocation its address lies next to.
    #[error(
        "{length} bytes at {address:#x} in {space}: outside of the {size} bytes at {start:#x} (offset {})",
        address.wrapping_sub(*start) as i64
    )]
    OutOfBounds {
        /// The address space.
        space: &'static str,
        /// The address.
        address: u64,
        /// The length of the access.
        length: u64,
        /// Where the allocation starts.
        start: u64,
        /// How long it is.
        size: u64,
    },
    /// An address that is no multiple of what is read or written there.
    #[error("{length} bytes at {address:#x} in {space}: not aligned to {length}")]
    Misaligned {
        /// The address space.
        space: &'static str,
        /// The address.
        address: u64,
        /// The length of the access.
        length: u64,
    },
    /// Bytes are read that nobody wrote.
    #[error("{length} bytes at {address:#x} in {space}: read before they were written")]
    Uninitialised {
        /// The address space.
        space: &'static str,
        /// The address.
        address: u64,
        /// The length of the access.
        length: u64,
    },
    /// A write to constants or parameters.
    #[error("{length} bytes at {address:#x} in {space}: cannot be written")]
    ReadOnly {
        /// The address space.
        space: &'static str,
        /// The address.
        address: u64,
        /// The length of the access.
        length: u64,
    },
    /// Two threads met at a byte of shared memory, one of them writing, and no barrier lies between.
    #[error(
        "shared memory at {address:#x}: {what} by thread {other} with no barrier between (this is thread {thread})"
    )]
    Race {
        /// Offset in shared memory.
        address: u64,
        /// This thread, as a flat index in its block.
        thread: u32,
        /// The other one; of several the last one known.
        other: u32,
        /// What the other one did.
        what: &'static str,
    },
    /// Lanes that the mask names are elsewhere, or a lane that the mask does not name is here.
    #[error("the mask is {mask:#010x}, but the lanes here are {active:#010x}")]
    Mask {
        /// The mask of members.
        mask: u32,
        /// Who executes the instruction.
        active: u32,
    },
    /// An instruction for the whole warp in code where the warp is divided.
    #[error("needs all {live:#010x} lanes of the warp, only {active:#010x} are here")]
    Divided {
        /// Lanes that have not exited.
        live: u32,
        /// Who executes the instruction.
        active: u32,
    },
    /// Nobody can go on: every warp waits at a barrier.
    #[error("deadlock: {0}")]
    Deadlock(String),
    /// The warp executed more instructions than any sensible kernel.
    #[error("did not end within {0} instructions of a warp")]
    Endless(u64),
    /// `trap`.
    #[error("the kernel trapped")]
    Trap,
}
