//! `kedge image`: the images that this machine's pods run from.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use kedge_runtimes::containerd::{self, Containerd};
use kedge_runtimes::private::{Paths, PrivateContainerd};
use kedge_runtimes::reference::Reference;
use kedge_runtimes::{Image, Runtime};
use kedge_world::World;

use crate::folders;
use crate::lock::{self, Role};
use crate::output::{self, say};
use crate::settings::Folders;

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    /// Take in an image archive (docker save, or OCI layout; tar or tar.gz), whether the server runs or not
    #[command(
        after_help = "Examples:\n  docker save web:1 -o web.tar && kedge image import web.tar\n  kedge image import web.tar.gz --data-dir /srv/try"
    )]
    Import {
        /// The archive
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        folders: Folders,
    },
    /// List the images that are here, with their sizes
    #[command(after_help = "Examples:\n  kedge image list\n  kedge image list --data-dir /srv/try")]
    List {
        #[command(flatten)]
        folders: Folders,
    },
    /// Remove images that no container uses; by themselves only pulled ones go, when the disk fills
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
    let folders = match &verb {
        ImageVerb::Import { folders, .. } | ImageVerb::List { folders } | ImageVerb::Remove { folders, .. } => folders,
    };
    if let Err(error) = folders::api(&World::real(), &folders::absolute(&folders.data_dir)?) {
        // Images may be there before the first start; anything else asked of such a directory is a wrong --data-dir.
        match verb {
            ImageVerb::Import { .. } => {
                let dir = folders.data_dir.display();
                eprintln!("warning: no server has run with --data-dir {dir} yet; the image waits there for one");
            }
            // Something may have been imported and wait there.
            ImageVerb::List { .. } | ImageVerb::Remove { .. } if folders::is_claimed(&World::real(), folders)? => {}
            ImageVerb::List { .. } | ImageVerb::Remove { .. } => return Err(error),
        }
    }
    if let ImageVerb::Import { file, .. } = &verb {
        // Before anything is made or started.
        readable(file)?;
    }
    let Connection { runtime, started, data_dir } = connect(folders).await?;
    let done = act(verb, &runtime).await;
    // One that this verb had to start is for a server to adopt; without a server nobody would ever end it.
    if let Some(started) = started
        && !lock::is_taken(&data_dir, Role::Server)
    {
        started.end().await?;
    }
    done
}

/// Refuses a file that cannot be read. It may lie on a medium that nobody can write.
#[allow(clippy::disallowed_methods, reason = "a shell: looked at before anything else happens")]
fn readable(file: &Path) -> Result<()> {
    std::fs::File::open(file).map(drop).with_context(|| format!("cannot read {}", file.display()))
}

async fn act(verb: ImageVerb, runtime: &Containerd) -> Result<()> {
    match verb {
        ImageVerb::Import { file, .. } => {
            for image in runtime.import_archive(&file).await? {
                say!("{}", names(&image))?;
            }
        }
        ImageVerb::List { .. } => output::write(format_args!("{}", table(&runtime.list_images().await?)))?,
        ImageVerb::Remove { names: wanted, unused, .. } => {
            let used = runtime.observe().await?.containers.into_iter().map(|found| found.image_id).collect();
            let here = runtime.list_images().await?;
            for image in doomed(here, &used, if unused { None } else { Some(&wanted) })? {
                runtime.remove_image(&image.id).await?;
                say!("removed {}", names(&image))?;
            }
        }
    }
    Ok(())
}

/// All names of an image, else its id.
fn names(image: &Image) -> String {
    if image.names.is_empty() { image.id.clone() } else { image.names.join(", ") }
}

/// A line for each name: name, id and size.
fn table(images: &[Image]) -> String {
    let rows = images.iter().flat_map(|image| {
        let size = format!("{:.1} MB", image.size_bytes as f64 / 1e6);
        let names = if image.names.is_empty() { vec!["<none>".to_owned()] } else { image.names.clone() };
        names.into_iter().map(move |name| [name, image.id.clone(), size.clone()])
    });
    let mut rows: Vec<[String; 3]> = rows.collect();
    rows.sort();
    rows.insert(0, ["NAME", "ID", "SIZE"].map(str::to_owned));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let (name, id) = (width(0), width(1));
    rows.iter().map(|[a, b, c]| format!("{a:name$}   {b:id$}   {c}\n")).collect()
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

/// What [`connect`] gives.
struct Connection {
    runtime: Containerd,
    /// The containerd, when none was running.
    started: Option<PrivateContainerd>,
    data_dir: PathBuf,
}

/// The node's own containerd: the running one, else one that is started.
async fn connect(folders: &Folders) -> Result<Connection> {
    let world = World::real();
    let resolved = folders::resolve(&world, folders)?;
    world.disk.create_dir_all(&resolved.data_dir)?;
    folders::claim(&world, &resolved)?;
    folders::remember(&world, &resolved)?;
    let paths = Paths::below(&resolved.data_dir, &resolved.run_dir)?;
    let settings = containerd::Settings {
        socket: paths.socket.clone(),
        namespace: paths.namespace(),
        data_dir: resolved.data_dir.clone(),
        run_dir: resolved.run_dir,
        logger: std::env::current_exe().context("cannot tell where this program is")?,
    };
    let containerd = PrivateContainerd::ensure(paths).await?;
    let started = (!containerd.was_adopted()).then_some(containerd);
    let runtime = Containerd::connect(settings, world).await?;
    Ok(Connection { runtime, started, data_dir: resolved.data_dir })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, name: &str) -> Image {
        let config = Default::default();
        Image { id: id.into(), names: vec![name.into()], digests: Vec::new(), size_bytes: 1, config }
    }

    #[test]
    fn every_name_has_a_line() {
        let mut two = image("sha256:2", "b.example/long/name:1");
        two.names.push("a:1".into());
        let nameless = Image { names: Vec::new(), ..image("sha256:1", "") };
        let expected = "NAME                    ID         SIZE\n\
                        <none>                  sha256:1   0.0 MB\n\
                        a:1                     sha256:2   0.0 MB\n\
                        b.example/long/name:1   sha256:2   0.0 MB\n";
        assert_eq!(table(&[two, nameless]), expected);
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
