//! Bytes that know which of them were written.

use crate::types::ones;

#[derive(Debug, Default, Clone)]
pub(crate) struct Bytes {
    data: Vec<u8>,
    /// One bit a byte.
    written: Vec<u64>,
}

impl Bytes {
    pub(crate) fn new(length: usize) -> Self {
        Self { data: vec![0; length], written: vec![0; length.div_ceil(64)] }
    }

    pub(crate) fn len(&self) -> u64 {
        self.data.len() as u64
    }

    /// Forgets what was written.
    pub(crate) fn clear(&mut self) {
        self.written.fill(0);
    }

    /// Whether the range lies inside.
    pub(crate) fn holds(&self, offset: u64, length: u64) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.len())
    }

    /// Of a range that is aligned to its length, up to 16 bytes and inside: one bit for each byte written.
    pub(crate) fn written(&self, offset: u64, length: u64) -> u64 {
        self.written[offset as usize / 64] >> (offset % 64) & ones(length as u32)
    }

    /// Of such a range, the bytes.
    pub(crate) fn get(&self, offset: u64, length: u64) -> u128 {
        let at = offset as usize;
        let from = &self.data[at..];
        // Fixed lengths are single moves.
        match length {
            1 => u128::from(from[0]),
            2 => u128::from(u16::from_le_bytes(fixed(from))),
            4 => u128::from(u32::from_le_bytes(fixed(from))),
            8 => u128::from(u64::from_le_bytes(fixed(from))),
            _ => u128::from_le_bytes(fixed(from)),
        }
    }

    /// Writes such a range.
    pub(crate) fn set(&mut self, offset: u64, length: u64, value: u128) {
        let at = offset as usize;
        let to = &mut self.data[at..];
        match length {
            1 => to[0] = value as u8,
            2 => to[..2].copy_from_slice(&(value as u16).to_le_bytes()),
            4 => to[..4].copy_from_slice(&(value as u32).to_le_bytes()),
            8 => to[..8].copy_from_slice(&(value as u64).to_le_bytes()),
            _ => to[..16].copy_from_slice(&value.to_le_bytes()),
        }
        self.written[at / 64] |= ones(length as u32) << (at % 64);
    }

    /// Any range inside; nothing where a byte of it was never written.
    pub(crate) fn read(&self, offset: u64, length: u64) -> Option<&[u8]> {
        (offset..offset + length).all(|at| self.written(at, 1) == 1).then(|| self.raw(offset, length))
    }

    /// Any range inside, whatever stands there.
    pub(crate) fn raw(&self, offset: u64, length: u64) -> &[u8] {
        &self.data[offset as usize..(offset + length) as usize]
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let at = offset as usize;
        self.data[at..at + bytes.len()].copy_from_slice(bytes);
        for byte in at..at + bytes.len() {
            self.written[byte / 64] |= 1 << (byte % 64);
        }
    }

    /// Copies inside, with what is known of each byte.
    pub(crate) fn copy(&mut self, from: u64, to: u64, length: u64) {
        for n in 0..length {
            if self.written(from + n, 1) == 1 {
                let byte = self.data[(from + n) as usize];
                self.write(to + n, &[byte]);
            } else {
                let at = (to + n) as usize;
                self.written[at / 64] &= !(1 << (at % 64));
            }
        }
    }
}

/// The first bytes.
fn fixed<const N: usize>(from: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&from[..N]);
    bytes
}
