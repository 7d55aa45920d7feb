//! What the backend needs of a device. `driver` drives a real one; tests have one that interprets PTX.

use crate::launch::Launch;
use crate::{Reason, driver};

/// What a device did not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// There is no room.
    #[error("out of memory: {asked_bytes} bytes were asked for, {free_bytes} are free")]
    OutOfMemory {
        /// What was asked for.
        asked_bytes: u64,
        /// What there was.
        free_bytes: u64,
    },
    /// The kernels were not taken.
    #[error("the driver refused the kernels ({code}): {log}")]
    Refused {
        /// The error's name.
        code: String,
        /// What the driver's compiler said.
        log: String,
    },
    /// Anything else.
    #[error("{step} failed: {code}")]
    Failed {
        /// What was attempted.
        step: String,
        /// The error's name, and what is known besides.
        code: String,
    },
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Its compute capability, major and minor.
    pub capability: (u32, u32),
    /// The CUDA version that its driver speaks, major and minor.
    pub driver: (u32, u32),
}

/// The first device of this machine, or why there is none.
pub fn first() -> Result<Box<dyn Device>, Reason> {
    Ok(Box::new(driver::Driver::open()?))
}

/// The index of a recording.
pub type Recording = usize;

/// A device with one queue of work: calls are carried out in order, and only [`Device::download`] waits for them. Memory
/// is named by address: who calls answers for addresses, and in this crate only blocks and launches have any.
pub trait Device: Send + Sync {
    /// What it is.
    fn facts(&self) -> &Facts;
    /// Bytes that are free, and all.
    fn memory_bytes(&self) -> Result<(u64, u64), Fault>;
    /// Room for so many bytes, at least one; what is in it is not said.
    fn allocate(&self, bytes: u64) -> Result<u64, Fault>;
    /// Gives room back, once all work before it is done.
    ///
    /// # Safety
    /// The address came from [`Device::allocate`] and was not given back; nothing that is asked for later uses it, nor a
    /// recording that is replayed later.
    unsafe fn release(&self, address: u64);
    /// Makes so many bytes zero.
    ///
    /// # Safety
    /// The bytes lie in one room that was allocated and not given back.
    unsafe fn clear(&self, address: u64, bytes: u64) -> Result<(), Fault>;
    /// Copies bytes to the device. They may change as soon as this returns.
    ///
    /// # Safety
    /// So many bytes from there on lie in one room that was allocated and not given back.
    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), Fault>;
    /// Copies bytes from the device, after waiting for everything before.
    ///
    /// # Safety
    /// So many bytes from there on lie in one room that was allocated and not given back.
    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), Fault>;
    /// Takes kernels as PTX, to be launched by name from then on.
    fn load(&self, ptx: &str) -> Result<(), Fault>;
    /// Launches a kernel.
    ///
    /// # Safety
    /// The arguments are the kernel's parameters, and the addresses in them those of rooms as long as it reads and writes,
    /// which are not given back before it is asked for.
    unsafe fn launch(&self, launch: &Launch) -> Result<(), Fault>;
    /// Makes one unit of work of many launches, where the device can. Nothing is launched yet.
    fn record(&self, launches: &[Launch]) -> Result<Option<Recording>, Fault>;
    /// Launches a recording.
    ///
    /// # Safety
    /// Of each of its launches what [`Device::launch`] asks for, now.
    unsafe fn replay(&self, recording: Recording) -> Result<(), Fault>;
    /// Forgets a recording.
    fn forget(&self, recording: Recording);
}
