//! The command line. Flags follow k3s where it has one; a flag has meaning or is unknown.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::hub::{self, HubFlags};
use crate::images::{self, ImageVerb};
use crate::infer::{self, InferCommand};
use crate::models::{self, ModelVerb};
use crate::settings::{Folders, ServerFlags};
use crate::site::{self, SiteVerb};
use crate::uninstall::{self, UninstallFlags};
use crate::{killall, logs, server};

/// How long the process stays for work that nobody waits for.
const LEFT_OVER_MAX: Duration = Duration::from_secs(2);

/// A Kubernetes cluster that serves AI models, in one binary.
#[derive(Debug, Parser)]
#[command(name = "kedge", version, propagate_version = true, arg_required_else_help = true)]
#[command(args_override_self = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the API server, controllers, scheduler and node of a cluster
    #[command(after_help = SERVER_EXAMPLES)]
    Server(Box<ServerFlags>),
    /// Serve a model over HTTP, talk with one, or measure it
    Infer(Box<InferCommand>),
    /// Take in, list and remove images
    #[command(subcommand, after_help = IMAGE_EXAMPLES)]
    Image(ImageVerb),
    /// End this node's server, hub, pods and containerd, and nothing of any other node's; images and data stay
    #[command(after_help = KILLALL_EXAMPLES)]
    Killall(Folders),
    /// Look at models
    #[command(subcommand, after_help = MODEL_EXAMPLES)]
    Model(ModelVerb),
    /// Let other clusters be sites of this one: runs beside a server with the same data directory
    #[command(after_help = HUB_EXAMPLES)]
    Hub(HubFlags),
    /// Invite sites (at a hub), or become one
    #[command(subcommand, after_help = SITE_EXAMPLES)]
    Site(SiteVerb),
    /// End the server and all pods of a node and remove everything it left on the machine
    #[command(after_help = UNINSTALL_EXAMPLES)]
    Uninstall(UninstallFlags),
}

const SERVER_EXAMPLES: &str = "\
Examples:
  # A cluster with everything in its usual place
  kedge server

  # A trial that leaves the machine's network alone
  kedge server --network-namespace try --https-listen-port 7443 \\
    --data-dir /srv/try --run-dir /run/try \\
    --write-kubeconfig /srv/try/kubeconfig

  # Use it
  kubectl --kubeconfig /etc/kedge/kedge.yaml get nodes";

const IMAGE_EXAMPLES: &str = "\
Examples:
  kedge image import web.tar
  kedge image list
  kedge image remove --unused";

const MODEL_EXAMPLES: &str = "\
Examples:
  # What to write into spec.digest of a Model
  kedge model digest ./all-MiniLM-L6-v2";

const HUB_EXAMPLES: &str = "\
Examples:
  kedge hub
  kedge hub --data-dir /srv/try --listen 0.0.0.0:6445";

const SITE_EXAMPLES: &str = "\
Examples:
  # At the hub: a token for one site, which can be used once
  kedge site token create --name shop-1 --label city=bonn

  # At the cluster that is to become the site; its server notices
  kedge site join --hub https://hub.example:6445 --token K10...

  # At the hub
  kubectl get sites

  # At the site: what came from the hub stays
  kedge site leave";

const UNINSTALL_EXAMPLES: &str = "\
Examples:
  kedge uninstall
  kedge uninstall --data-dir /var/lib/kedge-demo --yes
  kedge uninstall --keep-data";

const KILLALL_EXAMPLES: &str = "\
Stopping the server leaves pods running; this ends both, the server first (by systemctl where it is a service), and the \
hub beside it. Whatever is in the API stays, and runs again when the server is started again.

Examples:
  kedge killall
  kedge killall --data-dir /srv/try";

/// Does what was asked.
pub(crate) fn run(cli: Cli) -> Result<()> {
    match cli.verb {
        Verb::Server(flags) => server::run(*flags),
        Verb::Infer(command) => block_on(infer::run(*command)),
        Verb::Image(verb) => block_on(images::run(verb)),
        Verb::Killall(folders) => block_on(killall::run(folders)),
        Verb::Model(verb) => models::run(verb),
        Verb::Hub(flags) => {
            logs::start();
            block_on(hub::run(flags))
        }
        Verb::Site(verb) => block_on(site::run(verb)),
        Verb::Uninstall(flags) => block_on(uninstall::run(flags)),
    }
}

fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let result = runtime.block_on(work);
    // What was waited for is done; work on another thread that never ends must not keep the process.
    runtime.shutdown_timeout(LEFT_OVER_MAX);
    result
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Lines are broken where a terminal ends: prose has to leave that to clap, and examples have to be shorter.
    #[test]
    fn help_is_broken_nowhere_but_where_it_should_be() {
        let mut commands = vec![Cli::command()];
        while let Some(command) = commands.pop() {
            let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            for (line, next) in lines.iter().zip(lines.iter().skip(1).chain([&""])) {
                let whole = line.is_empty() || next.is_empty() || line.ends_with(':');
                let fits = if line.starts_with("  ") { line.len() < 80 } else { whole };
                assert!(fits, "{}: {line}", command.get_name());
            }
            commands.extend(command.get_subcommands().cloned());
        }
    }
}
