//! What the process says when a file that it has mapped cannot be read any more, which ends it.

#![allow(unsafe_code, reason = "a signal handler is installed")]

use std::ffi::c_int;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};

/// What is said; made beforehand, since a handler may not.
static LINE: OnceLock<String> = OnceLock::new();

/// Has SIGBUS end the process with a line that names the model, whose weights are what is mapped.
pub(super) fn tell_of(model: &Path) -> Result<()> {
    LINE.get_or_init(|| {
        let model = model.display();
        format!(
            "kedge: a mapped file was cut or cannot be read any more: the weights of {model}, or what is kept of them\n"
        )
    });
    // With the flag the default action is back when the handler begins.
    let flags = SaFlags::SA_RESETHAND | SaFlags::SA_ONSTACK;
    let action = SigAction::new(SigHandler::Handler(tell), flags, SigSet::empty());
    // SAFETY: the handler reads what was set before, and calls write and raise, which a handler may (signal-safety(7)).
    unsafe { sigaction(Signal::SIGBUS, &action) }.context("listening for SIGBUS")?;
    Ok(())
}

extern "C" fn tell(_: c_int) {
    // Whoever closed it is told nothing, and there is nobody else.
    let _ = nix::unistd::write(io::stderr(), LINE.get().map_or(&[], |line| line.as_bytes()));
    // It comes when this returns; without it a signal that was sent, and no fault, would be forgotten.
    let _ = raise(Signal::SIGBUS);
}
