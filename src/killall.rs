//! `kedge killall`: ends the server and the hub of a node and everything that the node runs.

use anyhow::{Context, Result};
use kedge_network::Namespace;
use kedge_network::pods::remove_all;
use kedge_runtimes::Layout;
use kedge_runtimes::private::{Paths, killall::killall};
use kedge_world::World;

use crate::lock::{self, Role};
use crate::output::tell;
use crate::settings::Folders;
use crate::{folders, service};

/// Ends the hub and the server first, which would start it all again.
pub(crate) async fn run(given: Folders) -> Result<()> {
    let world = World::real();
    let resolved = folders::resolve(&world, &given)?;
    folders::check_ours(&world, &resolved)?;
    // Neither begins again meanwhile.
    let _turns = (end_role(&resolved, Role::Hub).await?, end_role(&resolved, Role::Server).await?);
    end_pods(&world, &resolved).await
}

/// Ends what has a role on the data directory and takes its place until the value is dropped.
pub(crate) async fn end_role(resolved: &Layout, role: Role) -> Result<lock::Lock> {
    let (lock, ended) = lock::end(&resolved.data_dir, role, service::stop_if_main).await?;
    if let Some(pid) = ended {
        tell!("ended the {}, process {pid}", role.name());
    }
    Ok(lock)
}

/// Ends the pods of a node, its containerd and its network.
pub(crate) async fn end_pods(world: &World, resolved: &Layout) -> Result<()> {
    let killed = killall(&Paths::below(&resolved.data_dir, &resolved.run_dir)?).await?;
    let namespace = match folders::namespace(world, resolved) {
        Some(name) => Namespace::of_name(&name).context("the remembered network namespace")?,
        None => Namespace::own(),
    };
    remove_all(&resolved.data_dir, &resolved.run_dir, &namespace, world.disk.clone()).await?;
    tell!("ended {} processes, unmounted {} mounts", killed.processes, killed.mounts);
    Ok(())
}
