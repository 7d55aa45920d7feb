//! What a role tells about itself: lines on standard error, coloured for people only.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// A peer can have the library of HTTP/2 warn as often as it likes.
const DEFAULT: &str = "info,h2=error";

/// Begins to write them, from level info on; `KEDGE_LOG` says otherwise (`debug`, `kedge_api=trace,info`).
pub(crate) fn start() {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("KEDGE_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT)))
        .with_writer(std::io::stderr)
        // Told on standard error, and a panic where that cannot be written: a full disk or a reader that is gone.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
