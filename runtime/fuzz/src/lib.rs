//! What the fuzz targets have in common: `cargo xtask fuzz` runs them.

use std::sync::{Mutex, OnceLock, PoisonError};

mod bounded;
mod targets;

use targets::{TARGETS, Target};

/// What the last panic said.
static SAID: Mutex<String> = Mutex::new(String::new());

/// What is run.
static TARGET: OnceLock<Target> = OnceLock::new();

/// Picks the target. A panic is told and ends the process only when it comes out of it: the engine turns those of other
/// people's code into errors. (libFuzzer's hook would end it at once.)
pub fn begin() {
    let wanted = std::env::var("KEDGE_FUZZ_TARGET").unwrap_or_default();
    let target = TARGETS.iter().find(|(name, _)| *name == wanted);
    let (_, target) = target.unwrap_or_else(|| panic!("KEDGE_FUZZ_TARGET names no target: {wanted:?}"));
    TARGET.get_or_init(|| *target);
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        *SAID.lock().unwrap_or_else(PoisonError::into_inner) = format!("{panic}\n{backtrace}");
    }));
}

/// Gives an input to the target, which may take so much memory and no more.
pub fn run(input: &[u8]) {
    let target = TARGET.get().expect("it was picked");
    if std::panic::catch_unwind(|| bounded::run(input.len(), || target(input))).is_err() {
        eprintln!("{}", SAID.lock().unwrap_or_else(PoisonError::into_inner));
        std::process::abort();
    }
}
