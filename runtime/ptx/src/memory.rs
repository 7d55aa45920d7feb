//! The memory of the device: allocations so far apart that no overrun of one reaches another.

use std::collections::HashMap;

use crate::bytes::Bytes;
use crate::{Error, Fault};

/// An address says by its upper bits which allocation it is near.
const SLOT_BITS: u32 = 28;
/// Addresses begin above what fits 32 bits, so that a truncated one is found.
const FIRST_SLOT: usize = 1 << (33 - SLOT_BITS);
/// Each allocation is followed by at least this much that belongs to nobody.
const GAP_BYTES: usize = 1 << 16;

/// What global addresses point at. Never reused: an address that was freed stays invalid.
#[derive(Debug, Default)]
pub struct Memory {
    regions: Vec<Region>,
    /// Which region (plus one) owns a slot of addresses.
    slots: Vec<u32>,
    /// Where the variables of a module stand, once it was launched.
    pub(crate) variables: HashMap<u64, u64>,
}

#[derive(Debug)]
struct Region {
    start: u64,
    bytes: Option<Bytes>,
}

const SPACE: &str = "global memory";

impl Memory {
    /// Nothing allocated.
    pub fn new() -> Self {
        Self::default()
    }

    /// Room for that many bytes, none of them written; the address is a multiple of 256 and never 0.
    pub fn alloc(&mut self, bytes: usize) -> u64 {
        let first = FIRST_SLOT + self.slots.len();
        self.regions.push(Region { start: (first as u64) << SLOT_BITS, bytes: Some(Bytes::new(bytes)) });
        let count = (bytes + GAP_BYTES).div_ceil(1 << SLOT_BITS);
        self.slots.extend(std::iter::repeat_n(self.regions.len() as u32, count));
        (first as u64) << SLOT_BITS
    }

    /// Gives back what [`alloc`](Self::alloc) gave.
    pub fn free(&mut self, address: u64) -> Result<(), Error> {
        let region = self.region(address, 0).map_err(Error::Host)?;
        if self.regions[region].start != address {
            return Err(Error::Host(Fault::Nowhere { space: SPACE, address, length: 0 }));
        }
        self.regions[region].bytes = None;
        Ok(())
    }

    /// Writes bytes, as the host does.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let (found, offset) = self.find(address, bytes.len() as u64).map_err(Error::Host)?;
        found.write(offset, bytes);
        Ok(())
    }

    /// Reads bytes, as the host does; every one must have been written.
    pub fn read(&self, address: u64, length: usize) -> Result<Vec<u8>, Error> {
        let (found, offset) = self.look(address, length as u64).map_err(Error::Host)?;
        match found.read(offset, length as u64) {
            Some(bytes) => Ok(bytes.to_vec()),
            None => Err(Error::Host(Fault::Uninitialised { space: SPACE, address, length: length as u64 })),
        }
    }

    /// Reads bytes; those never written are zero.
    pub fn peek(&self, address: u64, length: usize) -> Result<Vec<u8>, Error> {
        let (found, offset) = self.look(address, length as u64).map_err(Error::Host)?;
        Ok(found.raw(offset, length as u64).to_vec())
    }

    fn region(&self, address: u64, length: u64) -> Result<usize, Fault> {
        let slot = (address >> SLOT_BITS) as usize;
        let owner = slot.checked_sub(FIRST_SLOT).and_then(|slot| self.slots.get(slot));
        match owner {
            Some(&owner) if self.regions[owner as usize - 1].bytes.is_some() => Ok(owner as usize - 1),
            _ => Err(Fault::Nowhere { space: SPACE, address, length }),
        }
    }

    fn look(&self, address: u64, length: u64) -> Result<(&Bytes, u64), Fault> {
        let Region { start, bytes } = &self.regions[self.region(address, length)?];
        match bytes {
            Some(bytes) if bytes.holds(address - start, length) => Ok((bytes, address - start)),
            Some(bytes) => Err(Fault::OutOfBounds { space: SPACE, address, length, start: *start, size: bytes.len() }),
            None => Err(Fault::Nowhere { space: SPACE, address, length }),
        }
    }

    fn find(&mut self, address: u64, length: u64) -> Result<(&mut Bytes, u64), Fault> {
        let (_, offset) = self.look(address, length)?;
        let region = self.region(address, length)?;
        match &mut self.regions[region].bytes {
            Some(bytes) => Ok((bytes, offset)),
            None => Err(Fault::Nowhere { space: SPACE, address, length }),
        }
    }

    /// What a thread reads: 1 to 16 bytes, a power of two, aligned.
    pub(crate) fn load(&self, address: u64, length: u64) -> Result<u128, Fault> {
        aligned(SPACE, address, length)?;
        let (found, offset) = self.look(address, length)?;
        if found.written(offset, length).count_ones() != length as u32 {
            return Err(Fault::Uninitialised { space: SPACE, address, length });
        }
        Ok(found.get(offset, length))
    }

    /// What a thread writes.
    pub(crate) fn store(&mut self, address: u64, length: u64, value: u128) -> Result<(), Fault> {
        aligned(SPACE, address, length)?;
        let (found, offset) = self.find(address, length)?;
        found.set(offset, length, value);
        Ok(())
    }
}

/// Refuses an address that is no multiple of the length.
pub(crate) fn aligned(space: &'static str, address: u64, length: u64) -> Result<(), Fault> {
    if address & (length - 1) == 0 { Ok(()) } else { Err(Fault::Misaligned { space, address, length }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_of_the_host() {
        let mut memory = Memory::new();
        let (a, b) = (memory.alloc(10), memory.alloc(16));
        assert!(a != 0 && a % 256 == 0 && b > a);
        memory.write(a + 2, &[1, 2, 3]).expect("inside");
        assert_eq!(memory.read(a + 2, 3).expect("written"), [1, 2, 3]);
        assert_eq!(memory.peek(a, 4).expect("inside"), [0, 0, 1, 2]);
        assert!(matches!(memory.read(a, 3), Err(Error::Host(Fault::Uninitialised { .. }))));
        assert!(matches!(memory.write(a + 8, &[0; 3]), Err(Error::Host(Fault::OutOfBounds { .. }))));
        assert!(matches!(memory.read(0, 1), Err(Error::Host(Fault::Nowhere { .. }))));
        memory.free(a).expect("allocated");
        assert!(matches!(memory.read(a + 2, 3), Err(Error::Host(Fault::Nowhere { .. }))));
        assert!(memory.free(a).is_err() && memory.free(b + 1).is_err());
    }

    #[test]
    fn accesses_of_a_thread() {
        let mut memory = Memory::new();
        let a = memory.alloc(80);
        memory.store(a + 64, 16, 7 << 64).expect("inside");
        assert_eq!(memory.load(a + 72, 8), Ok(7));
        assert!(matches!(memory.load(a + 66, 4), Err(Fault::Misaligned { .. })));
        assert!(matches!(memory.load(a + 60, 4), Err(Fault::Uninitialised { .. })));
        assert!(matches!(memory.store(a + 80, 4, 0), Err(Fault::OutOfBounds { .. })));
    }
}
