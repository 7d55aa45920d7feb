//! Memory of a device as a thing that is owned: the only way to copy in this crate, and no copy goes beyond it.

#![allow(unsafe_code, reason = "addresses of a device")]

use std::sync::Arc;

use crate::{Device, Fault};

/// Memory of a device, given back when it is dropped.
pub(crate) struct Block {
    device: Arc<dyn Device>,
    address: u64,
    bytes: usize,
}

impl Block {
    /// So many bytes, at least one.
    pub(crate) fn new(device: &Arc<dyn Device>, bytes: usize) -> Result<Self, Fault> {
        let bytes = bytes.max(1);
        Ok(Self { address: device.allocate(bytes as u64)?, device: device.clone(), bytes })
    }

    /// Where it is, for the arguments of kernels.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// How long it is.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes all of it zero.
    pub(crate) fn clear(&self) -> Result<(), Fault> {
        // SAFETY: it is so long.
        unsafe { self.device.clear(self.address, self.bytes as u64) }
    }

    /// Copies bytes to its beginning.
    pub(crate) fn upload(&self, bytes: &[u8]) -> Result<(), Fault> {
        self.holds(bytes.len())?;
        // SAFETY: it is long enough.
        unsafe { self.device.upload(self.address, bytes) }
    }

    /// Copies bytes from its beginning.
    pub(crate) fn download(&self, bytes: &mut [u8]) -> Result<(), Fault> {
        self.holds(bytes.len())?;
        // SAFETY: it is long enough.
        unsafe { self.device.download(self.address, bytes) }
    }

    fn holds(&self, bytes: usize) -> Result<(), Fault> {
        if bytes <= self.bytes {
            return Ok(());
        }
        let step = format!("copying {bytes} bytes");
        Err(Fault::Failed { step, code: format!("there is room for {}", self.bytes) })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: it came from `allocate`, and goes now. Who launches keeps the blocks that launches use.
        unsafe { self.device.release(self.address) }
    }
}
