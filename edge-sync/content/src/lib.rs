//! Contents named by their digest: the digest itself, files that grow until they have it, and whose turn it is to
//! write one.
//!
//! Models, images and what hub and site exchange are all named this way. Not here: where bytes come from.

#![forbid(unsafe_code)]

mod digest;
mod partial;
mod turns;

pub use digest::Digest;
pub use partial::{Partial, discard, free_bytes};
pub use turns::{Taken, Turns};
