//! `kedge uninstall`: ends everything of a node and removes what it left on the machine.
#![allow(clippy::disallowed_methods, reason = "a shell: removes the files that installation and the node made")]

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use kedge_runtimes::mounts;
use kedge_world::World;

use crate::settings::{DATA_DIR, Folders, KUBECONFIG};
use crate::{cli, folders, lock};

/// What the installer puts on a machine beside the program.
const UNIT: &str = "/etc/systemd/system/kedge.service";

/// What to remove.
#[derive(Args, Debug)]
pub(crate) struct UninstallFlags {
    #[command(flatten)]
    folders: Folders,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Leave the data directory: objects, images and models
    #[arg(long)]
    keep_data: bool,
}

/// Removes it.
pub(crate) async fn run(flags: UninstallFlags) -> Result<()> {
    let world = World::real();
    let resolved = folders::resolve(&world, &flags.folders)?;
    let data_dir = resolved.data_dir.clone();
    // Only a directory that a node remembers its run directory in is one of ours to remove.
    if !folders::is_ours(&world, &data_dir) {
        bail!("{} is not a data directory of kedge; name the right one with --data-dir", data_dir.display());
    }
    let is_installed = data_dir == Path::new(DATA_DIR);
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let mut doomed = vec![resolved.run_dir.clone()];
    if !flags.keep_data {
        doomed.push(data_dir.clone());
    }
    if is_installed {
        doomed.extend([KUBECONFIG, UNIT].map(PathBuf::from));
        // A program that was not installed, such as one being developed, is its owner's to remove.
        doomed.extend(program.starts_with("/usr/local/bin").then(|| program.clone()));
    }
    let doomed: Vec<PathBuf> = doomed.into_iter().filter(|path| path.exists()).collect();
    println!("This ends the server and all pods of {}, and removes:", data_dir.display());
    for path in &doomed {
        println!("  {}", path.display());
    }
    if !flags.yes && !agreed()? {
        println!("nothing was changed");
        return Ok(());
    }
    if is_installed && Path::new(UNIT).exists() {
        systemctl(&["disable", "--now", "kedge.service"]);
    }
    for (role, name) in [(lock::Role::Hub, "hub"), (lock::Role::Server, "server")] {
        if lock::end(&data_dir, role).await? {
            println!("ended the {name}");
        }
    }
    let namespace = folders::namespace(&world, &resolved);
    cli::end_all(flags.folders).await?;
    // Others may hold on to a namespace; what is ours alone goes all the same, and the failure is told at the end.
    let unpinned = namespace.map_or(Ok(()), |name| {
        kedge_network::node::delete(&name).with_context(|| format!("cannot remove the network namespace {name}"))?;
        println!("removed the network namespace {name}");
        anyhow::Ok(())
    });
    // All of it is looked at before any of it goes.
    let left = doomed.iter().map(|path| mounts::below(path)).collect::<Result<Vec<_>, _>>()?.concat();
    if let Some(mount) = left.first() {
        bail!("nothing was removed: {} is mounted; unmount it and try again", mount.display());
    }
    for path in &doomed {
        mounts::remove_tree(path)?;
        println!("removed {}", path.display());
    }
    if is_installed && Path::new("/run/systemd/system").exists() {
        systemctl(&["daemon-reload"]);
    }
    unpinned
}

fn agreed() -> Result<bool> {
    if !io::stdin().is_terminal() {
        bail!("nobody can be asked here; say --yes");
    }
    print!("Go on? [y/N] ");
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// systemd may not be there at all; what it says is shown, and what follows ends the server anyway.
fn systemctl(arguments: &[&str]) {
    match Command::new("systemctl").args(arguments).status() {
        Ok(status) if status.success() => {}
        Ok(status) => eprintln!("kedge: systemctl {} ended with {status}", arguments.join(" ")),
        Err(error) => eprintln!("kedge: cannot run systemctl: {error}"),
    }
}
