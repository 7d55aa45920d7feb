//! What the fuzz targets have in common: `cargo xtask fuzz` runs them.

use std::sync::{Mutex, PoisonError};

pub mod bounded;
pub mod targets;

/// What the last panic said.
static SAID: Mutex<String> = Mutex::new(String::new());

/// A panic is told and ends the process only when it comes out of a target: the engine turns those of other people's code
/// into errors. (libFuzzer's hook would end it at once.)
pub fn begin() {
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        *SAID.lock().unwrap_or_else(PoisonError::into_inner) = format!("{panic}\n{backtrace}");
    }));
}

/// Gives an input to a target, which may take so much memory and no more.
pub fn run(target: fn(&[u8]), input: &[u8]) {
    if std::panic::catch_unwind(|| bounded::run(input.len(), || target(input))).is_err() {
        eprintln!("{}", SAID.lock().unwrap_or_else(PoisonError::into_inner));
        std::process::abort();
    }
}
