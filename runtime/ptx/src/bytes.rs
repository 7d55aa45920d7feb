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
        let mut raw = [0; 16];
        match length {
            4 => raw[..4].copy_from_slice(&self.data[at..at + 4]),
            2 => raw[..2].copy_from_slice(&self.data[at..at + 2]),
            _ => raw[..length as usize].copy_from_slice(&self.data[at..at + length as usize]),
        }
        u128::from_le_bytes(raw)
    }

    /// Writes such a range.
    pub(crate) fn set(&mut self, offset: u64, length: u64, value: u128) {
        let at = offset as usize;
        self.data[at..at + length as usize].copy_from_slice(&value.to_le_bytes()[..length as usize]);
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
