//! `kedge image`: the images that this machine's pods run from.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;
use kedge_runtimes::Runtime;
use kedge_runtimes::containerd::{self, Containerd};
use kedge_runtimes::private::{Paths, PrivateContainerd};
use kedge_world::World;

use crate::folders;
use crate::settings::Folders;

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    /// Take in an image archive (docker save, or OCI layout; tar or tar.gz), whether the server runs or not
    Import {
        /// The archive
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        folders: Folders,
    },
    /// List the images that are here
    List {
        #[command(flatten)]
        folders: Folders,
    },
}

/// Does it.
pub(crate) async fn run(verb: ImageVerb) -> Result<()> {
    match verb {
        ImageVerb::Import { file, folders } => {
            let runtime = connect(&folders).await?;
            let images = runtime.import_archive(&file).await?;
            for image in images {
                println!("{}", image.names.first().unwrap_or(&image.id));
            }
        }
        ImageVerb::List { folders } => {
            let runtime = connect(&folders).await?;
            for image in runtime.list_images().await? {
                println!("{}\t{}", image.names.join(","), image.id);
            }
        }
    }
    Ok(())
}

/// The node's own containerd: the running one, else one that is started and stays for the server to adopt.
async fn connect(folders: &Folders) -> Result<Containerd> {
    let world = World::real();
    let resolved = folders::resolve(&world, folders)?;
    world.disk.create_dir_all(&resolved.data_dir)?;
    folders::claim(&world, &resolved)?;
    folders::remember(&world, &resolved)?;
    let paths = Paths::below(&resolved.data_dir, &resolved.run_dir)?;
    let settings = containerd::Settings {
        socket: paths.socket.clone(),
        namespace: paths.namespace(),
        data_dir: resolved.data_dir,
        run_dir: resolved.run_dir,
        logger: std::env::current_exe().context("cannot tell where this program is")?,
    };
    PrivateContainerd::ensure(paths).await?;
    Ok(Containerd::connect(settings, world).await?)
}
