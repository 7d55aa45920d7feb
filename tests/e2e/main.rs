//! End to end: the real binary, real kubectl, real processes. Everything listens on loopback, in folders that each
//! test makes and removes.
//!
//! `cargo xtask test` installs what is needed and demands it. Otherwise a test that lacks something says so and which
//! package has it (`needs.rs`).

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test ends where it fails, and starts real processes on real files"
)]

mod api;
mod crash;
mod cut_off;
mod harness;
mod infer;
mod kubectl;
mod models;
mod needs;
mod nodes;
mod pods;
mod pulls;
mod python;
mod refusals;
mod served;
mod services;
mod site;
mod told;
mod uninstall;
mod web;
