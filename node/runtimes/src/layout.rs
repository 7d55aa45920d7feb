//! Where things lie below a node's two directories: who makes one and who clears it away read the same line.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// A node's two directories, both absolute. What lasts is below the first, what ends with a reboot below the second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Everything that lasts.
    pub data_dir: PathBuf,
    /// Everything fleeting.
    pub run_dir: PathBuf,
}

impl Layout {
    /// Images and snapshots.
    pub fn images(&self) -> PathBuf {
        self.data_dir.join("containerd")
    }

    /// What the node's containerd says.
    pub fn containerd_log(&self) -> PathBuf {
        self.data_dir.join("containerd.log")
    }

    /// What the agent keeps: pods' own files and their volumes.
    pub fn node(&self) -> PathBuf {
        self.data_dir.join("node")
    }

    /// Containers' logs.
    pub fn logs(&self) -> PathBuf {
        self.data_dir.join("pods")
    }

    /// Blobs on their way from registries.
    pub fn pulls(&self) -> PathBuf {
        self.data_dir.join("pulls")
    }

    /// Written when everything that ran was ended at once: its own time says when.
    pub fn killed(&self) -> PathBuf {
        self.data_dir.join("killed")
    }

    /// Bundles and sockets of the node's containerd.
    pub fn containerd(&self) -> PathBuf {
        self.run_dir.join("containerd")
    }

    /// What the containers of a pod share.
    pub fn sandboxes(&self) -> PathBuf {
        self.run_dir.join("pods")
    }

    /// Where clients attach to containers.
    pub fn attach(&self) -> PathBuf {
        self.run_dir.join("attach")
    }

    /// Pipes of processes started in running containers.
    pub fn execs(&self) -> PathBuf {
        self.run_dir.join("exec")
    }
}

/// What the names of all that a node makes in the kernel and in containerd hold: eight digits that its data directory
/// alone has.
pub fn node_key(data_dir: &Path) -> String {
    let hash = hex::encode(Sha256::digest(data_dir.as_os_str().as_encoded_bytes()));
    hash[..8].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_directories_have_two_keys() {
        assert_ne!(node_key(Path::new("/a")), node_key(Path::new("/b")));
        assert_eq!(node_key(Path::new("/a")).len(), 8);
    }
}
