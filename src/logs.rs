//! What a role tells about itself: lines on standard error, coloured for people only.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Begins to write them, from level info on; `KEDGE_LOG` says otherwise (`debug`, `kedge_api=trace,info`).
pub(crate) fn start() {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("KEDGE_LOG").unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
