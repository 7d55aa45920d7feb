//! The names of everything a node makes in the kernel, keyed to its data directory.
//!
//! A link name has at most 15 letters (`IFNAMSIZ`), so the key is eight digits of a hash, the same that cgroups use.

use std::path::Path;

use sha2::{Digest as _, Sha256};

/// What one node's names have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeKey(String);

impl NodeKey {
    /// The key of the node that keeps its state in `data_dir`.
    pub fn of(data_dir: &Path) -> Self {
        let hash = hex::encode(Sha256::digest(data_dir.as_os_str().as_encoded_bytes()));
        Self(hash[..8].to_owned())
    }

    /// The bridge without ports that carries the pods' gateway.
    pub fn bridge(&self) -> String {
        format!("kedge-{}", self.0)
    }

    /// What the node's ends of all pods' links begin with.
    pub fn veth_prefix(&self) -> String {
        format!("k{}", self.0)
    }

    /// The node's end of the link to the pod whose address is `offset` after the first of the pod CIDR.
    pub fn veth(&self, offset: u32) -> String {
        format!("k{}{offset:x}", self.0)
    }

    /// The table of pods: masquerading, hairpins, host ports.
    pub fn pods_table(&self) -> String {
        format!("kedge-{}-pods", self.0)
    }

    /// The table of Services.
    pub fn services_table(&self) -> String {
        format!("kedge-{}-services", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_fit_the_kernel_and_differ_between_nodes() {
        let (one, other) = (NodeKey::of(Path::new("/var/lib/kedge")), NodeKey::of(Path::new("/var/lib/kedge2")));
        assert_ne!(one, other);
        for name in [one.bridge(), one.veth(2), one.veth(0xf_ffff)] {
            assert!(name.len() <= 15, "{name}");
        }
        assert!(one.veth(9).starts_with(&one.veth_prefix()));
    }
}
