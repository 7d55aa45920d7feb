//! Runs the target that `KEDGE_FUZZ_TARGET` names: `cargo xtask fuzz` builds and starts it.

#![no_main]

libfuzzer_sys::fuzz_target!(init: kedge_fuzz::begin(), |input: &[u8]| kedge_fuzz::run(input));
