//! What the process says when a file that it has mapped cannot be read any more, which ends it.

#![allow(unsafe_code, reason = "a signal handler is installed")]

use std::ffi::c_int;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction, signal};

/// What is said; made beforehand, since a handler may not.
static LINE: OnceLock<String> = OnceLock::new();

/// Whether a thread says it. All that compute meet the missing bytes at once, and one that died of them would end the
/// process before another has said why.
static SAYING: AtomicBool = AtomicBool::new(false);

/// How long whoever reads standard error may take before the process ends without a word.
const PATIENCE: u16 = 5_000; // milliseconds

/// Has SIGBUS end the process with a line that names the model, whose weights are what is mapped.
pub(super) fn tell_of(model: &Path) -> Result<()> {
    LINE.get_or_init(|| {
        let model = model.display();
        format!(
            "kedge: a mapped file was cut or cannot be read any more: the weights of {model}, or what is kept of them\n"
        )
    });
    let action = SigAction::new(SigHandler::Handler(tell), SaFlags::SA_ONSTACK, SigSet::empty());
    // SAFETY: the handler reads what was set before, and calls what a handler may (signal-safety(7)): poll, write, signal,
    // raise and pause.
    unsafe { sigaction(Signal::SIGBUS, &action) }.context("listening for SIGBUS")?;
    Ok(())
}

extern "C" fn tell(_: c_int) {
    if SAYING.swap(true, Ordering::Relaxed) {
        // The process ends under it.
        loop {
            nix::unistd::pause();
        }
    }
    // Whoever closed it, or does not read, is told nothing, and there is nobody else.
    let errors = io::stderr();
    if poll(&mut [PollFd::new(errors.as_fd(), PollFlags::POLLOUT)], PollTimeout::from(PATIENCE))
        .is_ok_and(|ready| ready > 0)
    {
        let _ = nix::unistd::write(&errors, LINE.get().map_or(&[], |line| line.as_bytes()));
    }
    // It comes when this returns; without it a signal that was sent, and no fault, would be forgotten.
    // SAFETY: the default action runs no code of the process.
    let _ = unsafe { signal(Signal::SIGBUS, SigHandler::SigDfl) };
    let _ = raise(Signal::SIGBUS);
}
