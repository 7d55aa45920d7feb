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
use tokio::sync::watch;

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

/// One pod's file, written in the order of what is noted, on a thread that may wait for the disk. Of several notes that
/// the disk is too slow for, the last one counts.
#[derive(Debug)]
pub struct Notes(watch::Sender<Note>);

#[derive(Clone, Debug)]
enum Note {
    Nothing,
    Put(Arc<CachedPod>),
    Remove,
}

impl Notes {
    /// Notes about the pod `uid`; they are carried out to the last, also after this is dropped.
    pub fn of(cache: Cache, uid: PodUid) -> Self {
        let (sender, mut notes) = watch::channel(Note::Nothing);
        tokio::spawn(async move {
            while notes.changed().await.is_ok() {
                let note = notes.borrow_and_update().clone();
                let (cache, uid) = (cache.clone(), uid.clone());
                let written = tokio::task::spawn_blocking(move || match note {
                    Note::Nothing => Ok(()),
                    Note::Put(pod) => cache.put(&uid, &pod),
                    Note::Remove => cache.remove(&uid),
                });
                match written.await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "what a start without the API needs of a pod is not as it should be")
                    }
                    Err(error) => tracing::error!(%error, "writing down a pod panicked"),
                }
            }
        });
        Self(sender)
    }

    /// The pod as it is to be found by a start without the API.
    pub fn put(&self, pod: CachedPod) {
        self.0.send_replace(Note::Put(Arc::new(pod)));
    }

    /// The pod is gone for good.
    pub fn remove(&self) {
        self.0.send_replace(Note::Remove);
    }
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

    #[tokio::test]
    async fn notes_are_carried_out_to_the_last() {
        let cache = Cache::below(Path::new("/data"), Arc::new(SimDisk::new(Arc::new(SimRandom::seeded(1))))).unwrap();
        for (removed, expected) in [(false, vec!["p99"]), (true, vec![])] {
            let notes = Notes::of(cache.clone(), PodUid::new("u1").unwrap());
            for n in 0..100 {
                let pod: Pod =
                    serde_json::from_value(serde_json::json!({"metadata": {"name": format!("p{n}")}})).unwrap();
                notes.put(CachedPod { pod, ..CachedPod::default() });
                tokio::task::yield_now().await;
            }
            if removed {
                notes.remove();
            }
            drop(notes);
            let names = || -> Vec<String> {
                cache.list().unwrap().into_iter().filter_map(|cached| cached.pod.metadata.name).collect()
            };
            for _ in 0..500 {
                if names() == expected {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            assert_eq!(names(), expected);
        }
    }

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
