//! Images: the one that serves models, made from this program itself; those that are pulled from registries; archives
//! for tests and benchmarks.
//!
//! Not here: running images, and taking in archives that others made (`node/runtimes`).

#![forbid(unsafe_code)]

mod archive;
mod elf;
mod own;
mod pull;

pub use archive::write_archive;
pub use kedge_registry::Login;
pub use own::{OwnImage, OwnImageError};
pub use pull::{PullError, Puller};
