//! `kedge uninstall`: ends everything of a node and removes what it left on the machine.
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use kedge_runtimes::mounts;
use kedge_runtimes::private::killall::remove_shared_folders;
use kedge_world::World;

use crate::lock::Role;
use crate::output::{self, tell};
use crate::settings::{DATA_DIR, Folders, KUBECONFIG};
use crate::{folders, infer, killall, service};

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
    let is_installed = data_dir == Path::new(DATA_DIR);
    // Installed and never started, or all of it removed but the program.
    let has_node = !is_installed || data_dir.exists();
    if has_node {
        folders::check_ours(&world, &resolved)?;
    }
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let mut doomed = Vec::new();
    if has_node {
        doomed.push(resolved.run_dir.clone());
    }
    if has_node && !flags.keep_data {
        doomed.push(data_dir.clone());
    }
    if is_installed {
        doomed.push(PathBuf::from(KUBECONFIG));
        doomed.extend(service::files());
        // A program that was not installed, such as one being developed, is its owner's to remove.
        doomed.extend(program.starts_with("/usr/local/bin").then(|| program.clone()));
    }
    doomed.extend(infer::cache_dir().filter(|_| is_installed));
    let doomed: Vec<PathBuf> = doomed.into_iter().filter(|path| path.exists()).collect();
    tell!("This ends the server and all pods of {}, and removes:", data_dir.display());
    for path in &doomed {
        tell!("  {}", path.display());
    }
    if !flags.yes && !agreed()? {
        tell!("nothing was changed");
        return Ok(());
    }
    if is_installed {
        service::disable();
    }
    // Neither begins again meanwhile.
    let _turns = if has_node {
        Some((killall::end_role(&resolved, Role::Hub).await?, killall::end_role(&resolved, Role::Server).await?))
    } else {
        None
    };
    // One that was there before belongs to whoever made it.
    let namespace = folders::namespace(&world, &resolved);
    let namespace =
        namespace.filter(|name| folders::made_namespace(&world, &resolved, name) && folders::is_there(name));
    if has_node {
        killall::end_pods(&world, &resolved).await?;
        remove_shared_folders();
    }
    // Others may hold on to a namespace; what is ours alone goes all the same, and the failure is told at the end.
    let unpinned = namespace.map_or(Ok(()), |name| {
        kedge_network::node::delete(&name).with_context(|| format!("cannot remove the network namespace {name}"))?;
        tell!("removed the network namespace {name}");
        anyhow::Ok(())
    });
    // All of it is looked at before any of it goes.
    let left = doomed.iter().map(|path| mounts::below(path)).collect::<Result<Vec<_>, _>>()?.concat();
    if let Some(mount) = left.first() {
        bail!("nothing was removed: {} is mounted; unmount it and try again", mount.display());
    }
    for path in &doomed {
        mounts::remove_tree(path)?;
        tell!("removed {}", path.display());
    }
    if is_installed {
        service::reload();
    } else if program.starts_with("/usr/local/bin") {
        tell!("{} stays, for others may use it; `kedge uninstall` removes it", program.display());
    }
    unpinned
}

fn agreed() -> Result<bool> {
    if !io::stdin().is_terminal() {
        bail!("nobody can be asked here; say --yes");
    }
    output::write(format_args!("Go on? [y/N] "))?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
