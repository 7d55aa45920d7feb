//! The data and the run directory of a node, which know each other: a verb needs only the first.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kedge_network::Namespace;
use kedge_runtimes::Layout;
use kedge_world::World;

use crate::settings::Folders;

const DEFAULT_RUN_DIR: &str = "/run/kedge";
/// The file in the data directory that names the run directory.
const MEMO: &str = "run-dir";
/// The file in the run directory that names the data directory.
const MARK: &str = "data-dir";
/// The file in the data directory that names the node's network namespace; empty for the machine's own.
const NAMESPACE_MEMO: &str = "network-namespace";
/// The file in the data directory that names the network namespace that the node made itself, and takes away.
const MADE_MEMO: &str = "network-namespace-made";

/// The file in the data directory that says where the API server listens.
const API_MEMO: &str = "server/address";

/// The directories of a node; the run directory is the one given, else the one remembered, else the usual one.
pub(crate) fn resolve(world: &World, folders: &Folders) -> Result<Layout> {
    let data_dir = absolute(&folders.data_dir)?;
    let run_dir = match (&folders.run_dir, remembered(world, &data_dir)) {
        (Some(given), _) => absolute(given)?,
        (None, Some(remembered)) => remembered,
        (None, None) => absolute(Path::new(DEFAULT_RUN_DIR))?,
    };
    Ok(Layout { data_dir, run_dir })
}

/// Refuses directories that are not a node's: each of them knows the other. A run directory that is gone, as after a
/// reboot, is no reason to refuse.
pub(crate) fn check_ours(world: &World, resolved: &Layout) -> Result<()> {
    let Layout { data_dir, run_dir } = resolved;
    if memo(world, &data_dir.join(MEMO))?.is_none() {
        bail!("{} is not a data directory of kedge; name the right one with --data-dir", data_dir.display());
    }
    match owner(world, run_dir)? {
        Owner::Nobody => Ok(()),
        Owner::Node(owner) if owner == *data_dir => Ok(()),
        Owner::Others if has_run(world, resolved) => Ok(()),
        Owner::Node(_) | Owner::Others => bail!(
            "{} is not the run directory of {}: its file {MARK:?} would say so, and a server's start writes it; name the right one with --run-dir",
            run_dir.display(),
            data_dir.display()
        ),
    }
}

/// Whether anything of a node is in a data directory.
pub(crate) fn is_claimed(world: &World, folders: &Folders) -> Result<bool> {
    Ok(memo(world, &absolute(&folders.data_dir)?.join(MEMO))?.is_some())
}

/// Takes a run directory for a node; refused when another node or anybody else has something in it.
pub(crate) fn claim(world: &World, resolved: &Layout) -> Result<()> {
    let Layout { data_dir, run_dir } = resolved;
    // An earlier version did not leave a mark; it left this.
    let earlier = || {
        let lock = world.disk.open(&resolved.containerd().join("ensure.lock"), false);
        lock.is_ok() && remembered(world, data_dir).is_some_and(|its| its == *run_dir)
    };
    match owner(world, run_dir)? {
        Owner::Node(owner) if owner == *data_dir => return Ok(()),
        Owner::Node(owner) if remembered(world, &owner).is_some_and(|its| its == *run_dir) => bail!(
            "--run-dir {} is that of the node with --data-dir {}; choose another",
            run_dir.display(),
            owner.display()
        ),
        Owner::Others if !earlier() && !has_run(world, resolved) => {
            bail!("--run-dir {} holds what is not of kedge; choose a directory of its own", run_dir.display())
        }
        Owner::Nobody | Owner::Node(_) | Owner::Others => {}
    }
    let text = data_dir.to_str().context("the data directory's name (--data-dir) is not UTF-8")?;
    world.disk.create_dir_all(run_dir).context("cannot use --run-dir")?;
    world.disk.replace(&run_dir.join(MARK), text.as_bytes()).context("cannot use --run-dir")
}

/// Whether a node of this data directory has used exactly this run directory: then what lies in it without a mark is what
/// somebody's clearing up left, mounts mostly.
fn has_run(world: &World, resolved: &Layout) -> bool {
    let had_pods = world.disk.list(&resolved.node()).is_ok_and(|names| !names.is_empty());
    had_pods && remembered(world, &resolved.data_dir).is_some_and(|its| its == resolved.run_dir)
}

/// Whose a run directory is.
enum Owner {
    /// It is empty, or not there.
    Nobody,
    /// That of the node with this data directory.
    Node(PathBuf),
    /// Something lies in it, and no node's mark.
    Others,
}

fn owner(world: &World, run_dir: &Path) -> Result<Owner> {
    let names = match world.disk.list(run_dir) {
        Err(error) if error.is_not_found() => return Ok(Owner::Nobody),
        other => other.context("cannot use --run-dir")?,
    };
    if !names.iter().any(|name| name == MARK) {
        return Ok(if names.is_empty() { Owner::Nobody } else { Owner::Others });
    }
    let mark = String::from_utf8(world.disk.read(&run_dir.join(MARK))?);
    Ok(mark.map_or(Owner::Others, |mark| Owner::Node(mark.trim().into())))
}

/// A note that a server left; none when none did. That it cannot be read is another thing.
fn memo(world: &World, path: &Path) -> Result<Option<Vec<u8>>> {
    match world.disk.read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) if error.source.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(error).context("a node's directories are root's; run this as root, or with sudo")
        }
        Err(error) => Err(error.into()),
    }
}

/// The run directory that a data directory remembers.
fn remembered(world: &World, data_dir: &Path) -> Option<PathBuf> {
    let bytes = world.disk.read(&data_dir.join(MEMO)).ok()?;
    Some(PathBuf::from(String::from_utf8(bytes).ok()?.trim()))
}

/// Notes the run directory in the data directory.
pub(crate) fn remember(world: &World, resolved: &Layout) -> Result<()> {
    let text = resolved.run_dir.to_str().context("the run directory's name (--run-dir) is not UTF-8")?;
    let memo = resolved.data_dir.join(MEMO);
    let same = world.disk.read(&memo).is_ok_and(|bytes| bytes == text.as_bytes());
    if !same {
        world.disk.replace(&memo, text.as_bytes())?;
    }
    Ok(())
}

/// Notes the node's network namespace, so that what clears up after the node finds it.
pub(crate) fn remember_namespace(world: &World, resolved: &Layout, name: Option<&str>) -> Result<()> {
    if let Some(name) = name
        && !is_there(name)
    {
        world.disk.replace(&resolved.data_dir.join(MADE_MEMO), name.as_bytes())?;
    }
    let memo = resolved.data_dir.join(NAMESPACE_MEMO);
    let text = name.unwrap_or_default();
    if !world.disk.read(&memo).is_ok_and(|bytes| bytes == text.as_bytes()) {
        world.disk.replace(&memo, text.as_bytes())?;
    }
    Ok(())
}

/// Whether there is a network namespace of this name.
pub(crate) fn is_there(name: &str) -> bool {
    Namespace::of_name(name).is_ok_and(|namespace| namespace.path().is_some_and(Path::exists))
}

/// Whether the node made the network namespace of this name, rather than found it.
pub(crate) fn made_namespace(world: &World, resolved: &Layout, name: &str) -> bool {
    world.disk.read(&resolved.data_dir.join(MADE_MEMO)).is_ok_and(|bytes| bytes == name.as_bytes())
}

/// Notes where the API server listens, so that what runs beside it finds it.
pub(crate) fn remember_api(world: &World, resolved: &Layout, address: &str) -> Result<()> {
    let memo = resolved.data_dir.join(API_MEMO);
    if !world.disk.read(&memo).is_ok_and(|bytes| bytes == address.as_bytes()) {
        world.disk.replace(&memo, address.as_bytes())?;
    }
    Ok(())
}

/// Where the API server of this data directory listens.
pub(crate) fn api(world: &World, data_dir: &Path) -> Result<String> {
    let dir = data_dir.display();
    let bytes = memo(world, &data_dir.join(API_MEMO))?.with_context(|| {
        format!(
            "no server has run with --data-dir {dir} yet; name another, or start it first: kedge server --data-dir {dir}"
        )
    })?;
    String::from_utf8(bytes)
        .with_context(|| format!("{} is damaged; start the server again", data_dir.join(API_MEMO).display()))
}

/// The network namespace of the node that last ran here; none for the machine's own.
pub(crate) fn namespace(world: &World, resolved: &Layout) -> Option<String> {
    let bytes = world.disk.read(&resolved.data_dir.join(NAMESPACE_MEMO)).ok()?;
    String::from_utf8(bytes).ok().filter(|name| !name.is_empty())
}

/// The one name of a directory, which need not be there: absolute, and without links as far as it is there. What the
/// node makes is keyed to it, and the kernel's table of mounts knows no other.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    if path.as_os_str().is_empty() {
        bail!("a directory's name is empty");
    }
    let failed = || format!("cannot tell where {} is", path.display());
    let absolute = std::path::absolute(path).with_context(failed)?;
    for there in absolute.ancestors() {
        match there.canonicalize() {
            // By components: what is hashed must not end with a slash one time and without the next.
            Ok(resolved) => {
                return Ok(resolved.components().chain(absolute.strip_prefix(there)?.components()).collect());
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(failed),
        }
    }
    Ok(absolute)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_directory_is_taken_by_one_node_and_from_nobody_else() {
        let world = World::real();
        let folder = tempfile::tempdir().unwrap();
        let node =
            |data: &str, run: &str| Layout { data_dir: folder.path().join(data), run_dir: folder.path().join(run) };
        let start = |node: &Layout| -> Result<()> {
            std::fs::create_dir_all(&node.data_dir)?;
            claim(&world, node)?;
            remember(&world, node)
        };
        let first = node("a", "run");
        assert!(check_ours(&world, &first).is_err(), "nothing has run there");
        start(&first).unwrap();
        start(&first).unwrap();
        check_ours(&world, &first).unwrap();
        let error = start(&node("b", "run")).unwrap_err().to_string();
        assert!(error.contains("/a;"), "{error}");
        // What nobody else remembers is free again.
        std::fs::remove_dir_all(&first.data_dir).unwrap();
        start(&node("b", "run")).unwrap();
        assert!(check_ours(&world, &first).is_err());

        let others = node("b", "others");
        std::fs::create_dir_all(others.run_dir.join("containerd")).unwrap();
        assert!(start(&others).is_err());
        // Remembered, as by a server without a node, but never used.
        remember(&world, &others).unwrap();
        assert!(start(&others).is_err() && check_ours(&world, &others).is_err());
        world.disk.replace(&others.run_dir.join("containerd/ensure.lock"), b"").unwrap();
        start(&others).unwrap();
        check_ours(&world, &others).unwrap();
    }

    #[test]
    fn a_directory_has_one_name() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap().join("real");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, folder.path().join("link")).unwrap();
        for (given, expected) in
            [("real", ""), ("real/", ""), ("link", ""), ("link/new/er", "new/er"), ("real/../link/./new", "new")]
        {
            let expected = if expected.is_empty() { real.clone() } else { real.join(expected) };
            let found = absolute(&folder.path().join(given)).unwrap();
            assert_eq!(found.as_os_str(), expected.as_os_str(), "{given}");
        }
        assert_eq!(kedge_network::NodeKey::of(&real).bridge(), format!("kedge-{}", kedge_runtimes::node_key(&real)));
        assert!(absolute(Path::new("")).is_err());
        assert!(absolute(Path::new("relative")).unwrap().is_absolute());
    }
}
