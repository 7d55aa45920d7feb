//! The data and the run directory of a node, which know each other: a verb needs only the first.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kedge_runtimes::Layout;
use kedge_world::World;

use crate::settings::Folders;

const DEFAULT_RUN_DIR: &str = "/run/kedge";
/// The file in the data directory that names the run directory.
const MEMO: &str = "run-dir";
/// The file in the data directory that names the node's network namespace; empty for the machine's own.
const NAMESPACE_MEMO: &str = "network-namespace";

/// The file in the data directory that says where the API server listens.
const API_MEMO: &str = "server/address";

/// The directories of a node; the run directory is the one given, else the one remembered, else the usual one.
pub(crate) fn resolve(world: &World, folders: &Folders) -> Result<Layout> {
    let data_dir = absolute(&folders.data_dir)?;
    let remembered = world.disk.read(&data_dir.join(MEMO)).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let run_dir = match (&folders.run_dir, remembered) {
        (Some(given), _) => absolute(given)?,
        (None, Some(remembered)) => PathBuf::from(remembered.trim()),
        (None, None) => PathBuf::from(DEFAULT_RUN_DIR),
    };
    Ok(Layout { data_dir, run_dir })
}

/// Whether a node has been here: its data directory remembers where it ran.
pub(crate) fn is_ours(world: &World, data_dir: &Path) -> bool {
    world.disk.read(&data_dir.join(MEMO)).is_ok()
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
    let memo = resolved.data_dir.join(NAMESPACE_MEMO);
    let text = name.unwrap_or_default();
    if !world.disk.read(&memo).is_ok_and(|bytes| bytes == text.as_bytes()) {
        world.disk.replace(&memo, text.as_bytes())?;
    }
    Ok(())
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
    let bytes = world.disk.read(&data_dir.join(API_MEMO)).with_context(|| {
        format!("no server has run with --data-dir {dir} yet; start it first: kedge server --data-dir {dir}")
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
