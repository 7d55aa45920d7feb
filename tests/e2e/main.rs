//! End to end: the real binary, real kubectl, real processes. Everything listens on loopback, in folders that each
//! test makes and removes.
//!
//! `cargo xtask test` installs what is needed. A test that lacks something says so and which package has it.

mod crash;
mod harness;
mod kubectl;
