//! Runs NVIDIA's PTX on the CPU, so that the CUDA kernels this project ships are executed by tests on machines without a
//! GPU. Only for tests.
//!
//! A [`Module`] is the text that NVRTC wrote; [`Module::launch`] runs one of its kernels on a [`Memory`]. It is strict
//! where a GPU is silent: every access is checked for bounds, alignment and bytes that nobody wrote; shared memory for
//! races; masks of shuffles, votes and matrix products for lanes that are elsewhere; barriers for warps that never come.
//! What it does not know it refuses when the text is read.
//!
//! How a launch runs: blocks one after the other, in an order that no kernel should count on; the warps of a block one
//! after the other, each up to its next barrier; the lanes of a warp in step, apart only between a branch and the nearest
//! place where its ways meet ([`flow`]). Copies by `cp.async` arrive when they are waited for, not before.
//!
//! Numbers: f32 and f64 as IEEE 754 has them, `fma` rounded once; 16-bit arithmetic rounded once; approximations
//! (`ex2.approx` and the like) right to the last place or so, which is nearer than any GPU promises; sums of `mma`
//! made in f64 and rounded once.
//!
//! Not here: textures, `wgmma`, bulk copies, clusters, recursion, `printf`, `%clock` that means anything; races on
//! global memory are not looked for.

mod alu;
mod block;
mod bytes;
mod collective;
mod error;
mod flow;
mod launch;
mod lex;
mod link;
mod memory;
mod mma;
mod parse;
mod program;
mod shared;
mod space;
mod types;
mod warp;

pub use error::{Error, Fault};
pub use launch::{Kernel, Launch, Module, Param};
pub use memory::Memory;
