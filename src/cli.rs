//! The command line. Flags follow k3s where it has one; a flag has meaning or is unknown.

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::server;
use crate::settings::ServerFlags;

/// A Kubernetes cluster that serves AI models, in one binary.
#[derive(Debug, Parser)]
#[command(name = "kedge", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the API server, controllers, scheduler and node of a cluster
    #[command(after_help = SERVER_EXAMPLES)]
    Server(ServerFlags),
}

const SERVER_EXAMPLES: &str = "\
Examples:
  # A cluster with everything in its usual place
  kedge server

  # A second one beside it, leaving nothing outside its folders
  kedge server --data-dir /srv/two --run-dir /run/two --https-listen-port 7443 --write-kubeconfig /srv/two/kubeconfig

  # Use it
  kubectl --kubeconfig /etc/kedge/kedge.yaml get nodes";

/// Does what was asked.
pub(crate) fn run(cli: Cli) -> Result<()> {
    match cli.verb {
        Verb::Server(flags) => server::run(flags),
    }
}
