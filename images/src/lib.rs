//! Images that are made here: the one that serves models, from this program itself.
//!
//! Not here: running images, and taking in those that others made (`node/runtimes`).

#![forbid(unsafe_code)]

mod elf;
mod own;

pub use own::{OwnImage, OwnImageError};
