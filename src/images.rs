//! `kedge image`: the images that this machine's pods run from.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use kedge_runtimes::containerd::{self, Containerd};
use kedge_runtimes::private::{Paths, PrivateContainerd};
use kedge_runtimes::reference::Reference;
use kedge_runtimes::{Image, Runtime};
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
    /// List the images that are here, with their sizes
    List {
        #[command(flatten)]
        folders: Folders,
    },
    /// Remove images that no container uses; nothing else ever removes one
    #[command(
        after_help = "Examples:\n  kedge image remove docker.io/library/nginx:1.27\n  kedge image remove --unused"
    )]
    Remove {
        /// Their names, or ids as `kedge image list` shows them
        #[arg(value_name = "NAME", required_unless_present = "unused")]
        names: Vec<String>,
        /// All that no container uses; what was imported has to be imported again
        #[arg(long, conflicts_with = "names")]
        unused: bool,
        #[command(flatten)]
        folders: Folders,
    },
}

/// Does it.
pub(crate) async fn run(verb: ImageVerb) -> Result<()> {
    match verb {
        ImageVerb::Import { file, folders } => {
            if let Err(error) = folders::api(&World::real(), &folders::absolute(&folders.data_dir)?) {
                eprintln!("kedge: {error}; the images wait there for it");
            }
            let runtime = connect(&folders).await?;
            let images = runtime.import_archive(&file).await?;
            for image in images {
                println!("{}", image.names.first().unwrap_or(&image.id));
            }
        }
        ImageVerb::List { folders } => {
            let runtime = connect(&folders).await?;
            for image in runtime.list_images().await? {
                println!("{}\t{}\t{:.1} MB", image.names.join(","), image.id, image.size_bytes as f64 / 1e6);
            }
        }
        ImageVerb::Remove { names, unused, folders } => {
            let runtime = connect(&folders).await?;
            let used = runtime.observe().await?.containers.into_iter().map(|found| found.image_id).collect();
            let here = runtime.list_images().await?;
            for image in doomed(here, &used, if unused { None } else { Some(&names) })? {
                runtime.remove_image(&image.id).await?;
                println!("removed {}", image.names.first().unwrap_or(&image.id));
            }
        }
    }
    Ok(())
}

/// The images to remove: those of these names, or all that no container uses. Nothing goes when one of them must stay.
fn doomed(here: Vec<Image>, used: &BTreeSet<String>, names: Option<&[String]>) -> Result<Vec<Image>> {
    let Some(names) = names else {
        return Ok(here.into_iter().filter(|image| !used.contains(&image.id)).collect());
    };
    let mut chosen: Vec<Image> = Vec::new();
    for name in names {
        let full = Reference::parse(name).map(|reference| reference.full_name()).unwrap_or_default();
        let is_meant = |image: &&Image| {
            image.id == *name || image.names.iter().chain(&image.digests).any(|known| *known == full || known == name)
        };
        let image = here.iter().find(is_meant).with_context(|| format!("there is no image {name}"))?;
        if used.contains(&image.id) {
            bail!("a container uses the image {name}; delete its pod first");
        }
        if !chosen.iter().any(|other| other.id == image.id) {
            chosen.push(image.clone());
        }
    }
    Ok(chosen)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, name: &str) -> Image {
        let config = Default::default();
        Image { id: id.into(), names: vec![name.into()], digests: Vec::new(), size_bytes: 1, config }
    }

    #[test]
    fn what_a_container_uses_stays() {
        let here = || vec![image("sha256:1", "docker.io/library/a:latest"), image("sha256:2", "r.example/b:1")];
        let used = BTreeSet::from(["sha256:2".to_owned()]);
        let check = |names: Option<&[&str]>| {
            let names: Option<Vec<String>> = names.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
            let chosen = doomed(here(), &used, names.as_deref());
            chosen.map(|all| all.into_iter().map(|image| image.id).collect::<Vec<_>>()).map_err(|e| e.to_string())
        };
        assert_eq!(check(None).unwrap(), ["sha256:1"]);
        for name in ["a", "docker.io/library/a:latest", "sha256:1"] {
            assert_eq!(check(Some(&[name])).unwrap(), ["sha256:1"], "{name}");
        }
        assert_eq!(check(Some(&["a", "sha256:1"])).unwrap(), ["sha256:1"]);
        assert!(check(Some(&["a", "r.example/b:1"])).unwrap_err().contains("uses the image r.example/b:1"));
        assert!(check(Some(&["c"])).unwrap_err().contains("no image c"));
    }
}
