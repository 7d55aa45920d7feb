//! Real namespaces, links, rules and packets. Nothing leaves the namespaces that a test makes.
//!
//! Needs root, `nft`, `nsenter` and `python3`. Without them each test says so and passes, unless
//! `KEDGE_TEST_REQUIRE_NETWORK` is set, as in CI.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests of real namespaces and processes")]

mod dns;
mod follow;
mod lab;
mod pods;
mod services;
