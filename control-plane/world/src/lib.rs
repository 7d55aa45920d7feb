//! Clock, randomness, disk and network: the one door to everything a simulation replaces.
//!
//! Every part of Kedge that needs the outside takes a [`World`] (or the one trait of it that it uses) as a value.
//! The real ones are made once, in `main`; tests hand in [`sim`]'s, which are driven by a seed and a clock moved
//! by hand. `clippy.toml` refuses the direct calls, with the reason beside each.
//!
//! Sleeping is `tokio::time`, which tests pause; only *reading* a clock goes through [`Clock`].
//! What is not here: processes, mounts and netlink. Those belong to the node's shells, behind its own traits.

mod clock;
mod disk;
mod net;
mod random;
pub mod sim;

pub use clock::{Clock, SystemClock, later};
pub use disk::{Disk, DiskError, DiskFile, RealDisk};
pub use net::{BoxedListener, BoxedStream, Listener, Net, RealNet, Stream};
pub use random::{Random, SystemRandom};

use std::sync::Arc;

/// Everything a part may use of the outside. Cheap to clone.
#[derive(Clone)]
pub struct World {
    /// Wall and monotonic time.
    pub clock: Arc<dyn Clock>,
    /// Unpredictable bytes (keys, uids) and jitter.
    pub random: Arc<dyn Random>,
    /// Files that must survive a power cut.
    pub disk: Arc<dyn Disk>,
    /// Streams to other processes and machines.
    pub net: Arc<dyn Net>,
}

impl World {
    /// The real one: the operating system's clock, random numbers, file system and sockets.
    pub fn real() -> Self {
        Self {
            clock: Arc::new(SystemClock::default()),
            random: Arc::new(SystemRandom::default()),
            disk: Arc::new(RealDisk),
            net: Arc::new(RealNet),
        }
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("World")
    }
}
