//! `kedge hub`: lets other clusters be sites of the one whose server runs with the same data directory.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use kedge_hub::HubOptions;
use kedge_world::World;

use crate::folders;
use crate::lock;
use crate::server::stopped;
use crate::settings::{DATA_DIR, host_port};

/// Settings of `kedge hub`.
#[derive(Args, Clone, Debug)]
pub(crate) struct HubFlags {
    /// Data directory of the server that runs beside it
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    data_dir: PathBuf,
    /// Where sites connect to
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port, default_value = "0.0.0.0:6445")]
    listen: String,
}

/// Runs until a signal says to stop.
pub(crate) async fn run(flags: HubFlags) -> Result<()> {
    let world = World::real();
    let data_dir = folders::absolute(&flags.data_dir)?;
    let api = folders::api(&world, &data_dir)?;
    let _lock = lock::take(&data_dir, lock::Role::Hub)?;
    Ok(kedge_hub::run(world, HubOptions { data_dir, listen: flags.listen, api }, stopped()).await?)
}
