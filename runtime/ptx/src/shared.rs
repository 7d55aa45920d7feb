//! The memory a block shares, and who touched what since the last barrier.
//!
//! Each byte remembers its last writer and its readers. Two stamps tell whether a barrier lies between two accesses:
//! the count of barriers of the block, and the count of `bar.warp.sync` of the warp. Lenient in two ways: a barrier for a
//! part of the block counts as one for all, and a write that does not change the value races with nobody.

use crate::Fault;
use crate::bytes::Bytes;
use crate::memory::aligned;

const SPACE: &str = "shared memory";
/// Set beside a thread in a stamp: the write was atomic.
const ATOMIC: u64 = 0x400;
/// Set beside a thread in a stamp: other threads of its warp read, too.
const SEVERAL: u64 = 0x800;
/// Instead of a thread in a stamp: threads of several warps read.
const MANY: u64 = 0xfff;

#[derive(Clone, Copy, Default, Debug)]
struct Touched {
    /// Count of the block's barriers (28 bits), of the warp's (24), thread with marks (12).
    write: u64,
    read: u64,
}

/// How a byte is touched.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Touch {
    Read,
    Write,
    Atomic,
}

#[derive(Debug)]
pub(crate) struct Shared {
    bytes: Bytes,
    touched: Vec<Touched>,
    barriers: u64,
    warp_barriers: [u64; 32],
}

impl Shared {
    pub(crate) fn new(length: usize) -> Self {
        Self {
            bytes: Bytes::new(length),
            touched: vec![Touched::default(); length],
            barriers: 1,
            warp_barriers: [0; 32],
        }
    }

    /// For the next block: nothing written, nothing touched.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.barrier();
    }

    /// The block has met.
    pub(crate) fn barrier(&mut self) {
        self.barriers += 1;
        self.warp_barriers = [0; 32];
    }

    /// A warp has met.
    pub(crate) fn warp_barrier(&mut self, warp: usize) {
        self.warp_barriers[warp] += 1;
    }

    fn check(&self, address: u64, length: u64) -> Result<(), Fault> {
        aligned(SPACE, address, length)?;
        if self.bytes.holds(address, length) {
            return Ok(());
        }
        Err(Fault::OutOfBounds { space: SPACE, address, length, start: 0, size: self.bytes.len() })
    }

    fn stamp(&self, thread: u32) -> u64 {
        self.barriers << 36 | self.warp_barriers[thread as usize / 32] << 12 | u64::from(thread)
    }

    /// Whether the thread of the stamp may be doing that at the same time.
    fn meets(&self, stamp: u64, thread: u32) -> bool {
        if stamp >> 36 != self.barriers {
            return false;
        }
        let who = stamp & 0xfff;
        let other = (who & 0x3ff) as u32;
        if who == MANY || other / 32 != thread / 32 {
            return true;
        }
        let now = self.warp_barriers[thread as usize / 32];
        stamp >> 12 & 0xff_ffff == now && (other != thread || who & SEVERAL != 0)
    }

    /// Notes the access and says with whom it races. `same`: a write that changes nothing.
    pub(crate) fn touch(
        &mut self,
        address: u64,
        length: u64,
        thread: u32,
        touch: Touch,
        same: bool,
    ) -> Result<(), Fault> {
        self.check(address, length)?;
        let stamp = self.stamp(thread);
        for at in address..address + length {
            let Touched { write, read } = self.touched[at as usize];
            let race = |stamp: u64, what| Err(Fault::Race { address: at, thread, other: (stamp & 0x3ff) as u32, what });
            if same {
                continue;
            }
            let atomics = touch == Touch::Atomic && write & ATOMIC != 0;
            if !atomics && self.meets(write, thread) {
                return race(write, "written");
            }
            if touch == Touch::Read {
                let ours = read >> 36 == self.barriers;
                let who = if !ours || read & 0x3ff == u64::from(thread) && read & SEVERAL == 0 {
                    stamp
                } else if who_is_many(read) || (read & 0x3ff) as u32 / 32 != thread / 32 {
                    stamp | MANY
                } else if read >> 12 == stamp >> 12 {
                    stamp | SEVERAL
                } else {
                    stamp
                };
                self.touched[at as usize].read = who;
                continue;
            }
            if self.meets(read, thread) {
                return race(read, "read");
            }
            self.touched[at as usize].write = stamp | if touch == Touch::Atomic { ATOMIC } else { 0 };
        }
        Ok(())
    }

    /// What a thread reads: 1 to 16 bytes, a power of two, aligned.
    pub(crate) fn load(&mut self, address: u64, length: u64, thread: u32, touch: Touch) -> Result<u128, Fault> {
        self.check(address, length)?;
        if self.bytes.written(address, length).count_ones() != length as u32 {
            return Err(Fault::Uninitialised { space: SPACE, address, length });
        }
        self.touch(address, length, thread, touch, false)?;
        Ok(self.bytes.get(address, length))
    }

    /// What a thread writes.
    pub(crate) fn store(
        &mut self,
        address: u64,
        length: u64,
        value: u128,
        thread: u32,
        touch: Touch,
    ) -> Result<(), Fault> {
        self.check(address, length)?;
        let whole = self.bytes.written(address, length).count_ones() == length as u32;
        let bits = 8 * length as u32;
        let cut = if bits == 128 { value } else { value & ((1 << bits) - 1) };
        let same = whole && self.bytes.get(address, length) == cut;
        self.touch(address, length, thread, touch, same)?;
        self.bytes.set(address, length, value);
        Ok(())
    }
}

fn who_is_many(stamp: u64) -> bool {
    stamp & 0xfff == MANY
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(shared: &mut Shared, thread: u32, value: u128) -> Result<(), Fault> {
        shared.store(8, 4, value, thread, Touch::Write)
    }

    fn read(shared: &mut Shared, thread: u32) -> Result<u128, Fault> {
        shared.load(8, 4, thread, Touch::Read)
    }

    fn fresh() -> Shared {
        let mut shared = Shared::new(64);
        write(&mut shared, 0, 1).expect("alone");
        shared.barrier();
        shared
    }

    #[test]
    fn races() {
        let race = |result: Result<(), Fault>| matches!(result, Err(Fault::Race { .. }));
        let mut s = fresh();
        assert!(write(&mut s, 1, 2).is_ok() && race(read(&mut s, 70).map(drop)), "written, then read by another warp");
        let mut s = fresh();
        assert!(write(&mut s, 1, 2).is_ok() && race(read(&mut s, 2).map(drop)), "by another lane");
        s.warp_barrier(0);
        assert!(read(&mut s, 2).is_ok(), "after the warp has met");
        assert!(race(read(&mut s, 40).map(drop)), "which is no barrier for other warps");
        let mut s = fresh();
        assert!(read(&mut s, 1).is_ok() && read(&mut s, 70).is_ok() && race(write(&mut s, 1, 3)), "read by two warps");
        s.barrier();
        assert!(write(&mut s, 1, 3).is_ok());
        let mut s = fresh();
        assert!(read(&mut s, 1).is_ok() && read(&mut s, 1).is_ok() && write(&mut s, 1, 3).is_ok(), "one thread alone");
        assert!(write(&mut s, 50, 3).is_ok(), "the same value");
        assert!(race(write(&mut s, 51, 4)), "another value");
        let mut s = fresh();
        assert!(s.store(8, 4, 1, 1, Touch::Atomic).is_ok() && s.store(8, 4, 2, 99, Touch::Atomic).is_ok());
        assert!(race(read(&mut s, 3).map(drop)), "atomic, then read");
    }

    #[test]
    fn bounds_and_bytes_never_written() {
        let mut s = fresh();
        assert!(matches!(s.load(62, 4, 0, Touch::Read), Err(Fault::Misaligned { .. })));
        assert!(matches!(s.load(64, 4, 0, Touch::Read), Err(Fault::OutOfBounds { .. })));
        assert!(matches!(s.load(0, 4, 0, Touch::Read), Err(Fault::Uninitialised { .. })));
        s.clear();
        assert!(matches!(read(&mut s, 0), Err(Fault::Uninitialised { .. })), "the next block begins anew");
    }
}
