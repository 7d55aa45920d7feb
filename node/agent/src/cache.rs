//! What a node needs to run its pods while the API does not answer: each pod with the objects it names, as last seen.
//!
//! One file for each pod in `<data-dir>/pods`, replaced whole (mode 0600: Secrets are in it). A file that cannot be
//! read is reported and left alone; the pod comes again from the API.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use kedge_runtimes::PodUid;
use kedge_world::{Disk, DiskError};
use serde::{Deserialize, Serialize};

/// A pod and what it refers to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CachedPod {
    /// The pod.
    pub pod: Pod,
    /// The ConfigMaps it names.
    #[serde(default)]
    pub config_maps: Vec<ConfigMap>,
    /// The Secrets it names.
    #[serde(default)]
    pub secrets: Vec<Secret>,
    /// The Services of its namespace.
    #[serde(default)]
    pub services: Vec<Service>,
}

/// The files.
#[derive(Clone)]
pub struct Cache {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
}

impl Cache {
    /// Those below `data_dir`; makes their folder.
    pub fn below(data_dir: &Path, disk: Arc<dyn Disk>) -> Result<Self, DiskError> {
        let folder = data_dir.join("pods");
        disk.create_dir_all(&folder)?;
        Ok(Self { disk, folder })
    }

    fn path(&self, pod: &PodUid) -> PathBuf {
        self.folder.join(format!("{pod}.json"))
    }

    /// Writes a pod down; survives a power cut once it returns.
    pub fn put(&self, uid: &PodUid, pod: &CachedPod) -> Result<(), DiskError> {
        let bytes = serde_json::to_vec(pod).expect("API objects have only JSON's types");
        self.disk.replace(&self.path(uid), &bytes)
    }

    /// Forgets a pod.
    pub fn remove(&self, uid: &PodUid) -> Result<(), DiskError> {
        match self.disk.remove(&self.path(uid)) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// All pods that were on this node.
    pub fn list(&self) -> Result<Vec<CachedPod>, DiskError> {
        let mut pods = Vec::new();
        for name in self.disk.list(&self.folder)? {
            if !name.ends_with(".json") {
                continue;
            }
            match serde_json::from_slice(&self.disk.read(&self.folder.join(&name))?) {
                Ok(pod) => pods.push(pod),
                Err(error) => tracing::warn!(file = %name, %error, "a cached pod cannot be read; waiting for the API"),
            }
        }
        Ok(pods)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_world::sim::{SimDisk, SimRandom};

    #[test]
    fn pods_survive_a_power_cut() {
        for seed in 0..50 {
            let disk = SimDisk::new(Arc::new(SimRandom::seeded(seed)));
            let cache = Cache::below(Path::new("/data"), Arc::new(disk.clone())).unwrap();
            let uid = PodUid::new("u1").unwrap();
            let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}})).unwrap();
            let cached = CachedPod { pod, ..CachedPod::default() };
            cache.put(&uid, &cached).unwrap();
            disk.power_cut();
            assert_eq!(cache.list().unwrap(), [cached], "seed {seed}");
            cache.remove(&uid).unwrap();
            cache.remove(&uid).unwrap();
            assert!(cache.list().unwrap().is_empty());
        }
    }
}
