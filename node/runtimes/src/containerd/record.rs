//! What a containerd container remembers for us, as extensions: what it is, when it started, how it ended.

use std::collections::BTreeMap;
use std::path::PathBuf;

use containerd_client::services::v1::Container;
use prost_types::Any;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::container::ContainerSpec;
use crate::runtime::{ContainerId, Exit, ObservedContainer, PodId};

/// The label to find a pod's containers by.
pub(super) const POD_LABEL: &str = "kedge.dev/pod-uid";
pub(super) const RECORD: &str = "kedge.dev/record";
pub(super) const STARTED: &str = "kedge.dev/started";
pub(super) const EXIT: &str = "kedge.dev/exit";

/// What a container is. Written once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) pod: PodId,
    pub(super) name: String,
    pub(super) attempt: u32,
    pub(super) image: String,
    pub(super) image_id: String,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) log_path: PathBuf,
    pub(super) tty: bool,
    #[serde(default)]
    pub(super) stdin: bool,
    #[serde(default)]
    pub(super) stdin_once: bool,
    pub(super) host_pid: bool,
    pub(super) created_at: jiff::Timestamp,
}

impl Record {
    pub(super) fn of(spec: &ContainerSpec, host_pid: bool, created_at: jiff::Timestamp) -> Self {
        Self {
            pod: spec.pod.clone(),
            name: spec.name.clone(),
            attempt: spec.attempt,
            image: spec.image.clone(),
            image_id: spec.image_id.clone(),
            annotations: spec.annotations.clone(),
            log_path: spec.log_path.clone(),
            tty: spec.tty,
            stdin: spec.stdin,
            stdin_once: spec.stdin_once,
            host_pid,
            created_at,
        }
    }

    pub(super) fn observed(self, id: ContainerId, state: crate::ContainerState) -> ObservedContainer {
        ObservedContainer {
            id,
            pod: self.pod,
            name: self.name,
            attempt: self.attempt,
            image: self.image,
            image_id: self.image_id,
            annotations: self.annotations,
            log_path: self.log_path,
            created_at: self.created_at,
            state,
        }
    }
}

/// A container of ours, read; `None` for one that is not ours or was left by something else.
pub(super) struct Known {
    pub(super) id: ContainerId,
    pub(super) record: Record,
    pub(super) started_at: Option<jiff::Timestamp>,
    pub(super) exit: Option<Exit>,
}

impl Known {
    pub(super) fn read(container: &Container) -> Option<Self> {
        Some(Self {
            id: ContainerId::parse(&container.id)?,
            record: unpack(container, RECORD)?,
            started_at: unpack(container, STARTED),
            exit: unpack(container, EXIT),
        })
    }
}

pub(super) fn pack(value: &impl Serialize) -> Any {
    let value = serde_json::to_vec(value).expect("a record has only strings and numbers");
    Any { type_url: "kedge.dev/json".into(), value }
}

fn unpack<T: DeserializeOwned>(container: &Container, key: &str) -> Option<T> {
    serde_json::from_slice(&container.extensions.get(key)?.value).ok()
}
