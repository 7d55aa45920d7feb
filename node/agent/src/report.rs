//! Reports the node: its Node object and its Lease, for as long as the agent runs.
//! (`pkg/kubelet/kubelet_node_status.go`, `k8s.io/component-helpers/apimachinery/lease`.)

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;

use crate::agent::Shared;
use crate::disk;
use crate::events::Happening;
use crate::node::{self, Facts, Troubles};

/// The kubelet's figures: `nodeLeaseDurationSeconds` 40, renewed after a quarter of it.
const LEASE_SECONDS: i32 = 40;
const LEASE_RENEWAL: Duration = Duration::from_secs(10);
/// `nodeStatusReportFrequency`: the Node object itself, when nothing changed.
const NODE_REPORT: Duration = Duration::from_secs(300);
/// How long a question about the node may take while a pod waits for the answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// Makes the Node object and keeps its status, for ever.
pub(crate) async fn report_node(shared: Arc<Shared>) {
    let nodes: Api<Node> = Api::all(shared.client.clone());
    loop {
        match report_once(&shared, &nodes).await {
            Ok(said) => {
                // Whoever contradicts us all the time does not make us write all the time.
                tokio::time::sleep(RETRY_PAUSE).await;
                contradicted(&shared, &said, NODE_REPORT).await;
            }
            Err(error) => {
                tracing::debug!(%error, "the node cannot be reported yet");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

/// Returns once somebody else says another thing of the node's readiness than `said`, the node has another address,
/// its disks fill or empty, a GPU becomes known, or after `time`: a node whose Lease was not renewed for a while is `Unknown`, and its pods leave their Services, until it
/// speaks again.
async fn contradicted(shared: &Shared, said: &NodeStatus, time: Duration) {
    let mut seen = shared.node.subscribe();
    let other = seen.wait_for(|node| node.as_ref().is_some_and(|node| node::contradicts(node, said)));
    let mut node_ip = shared.settings.node_ip.clone();
    let ip = node_ip.borrow_and_update().to_string();
    let mut gpu = shared.settings.gpu.clone();
    let (mut full, mut gone) = (shared.disk_pressure.subscribe(), shared.network_gone.subscribe());
    let (told_full, told_gone) = (node::says(Some(said), "DiskPressure"), node::says(Some(said), node::NETWORK));
    let told = said.addresses.iter().flatten().any(|told| told.address == ip);
    tokio::select! {
        () = std::future::ready(()), if !told => {}
        Ok(()) = node_ip.changed() => {}
        Ok(_) = gpu.wait_for(|gpu| gpu.as_ref().map(|gpu| gpu.usable) != node::says(Some(said), node::GPU)) => {}
        _ = other => {}
        _ = full.wait_for(|full| Some(*full) != told_full) => {}
        _ = gone.wait_for(|gone| *gone != (told_gone == Some(true))) => {}
        () = tokio::time::sleep(time) => {}
    }
}

/// The node's own object as the API has it now; while it does not answer, as far as the node knows itself.
pub(crate) async fn own_node(shared: &Shared) -> Arc<Node> {
    let nodes: Api<Node> = Api::all(shared.client.clone());
    let error = match tokio::time::timeout(ANSWER_MAX, nodes.get(&shared.settings.node_name)).await {
        Ok(Ok(node)) => return Arc::new(node),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer".to_owned(),
    };
    tracing::debug!(error, "the node's own object cannot be read");
    let known = shared.node.borrow().clone();
    known.unwrap_or_else(|| {
        let facts = Facts::read(&shared.settings, shared.runtime.name(), None);
        Arc::new(node::object(&shared.settings, &facts))
    })
}

/// Keeps the agent's copy of its own Node object, for ever.
pub(crate) async fn follow_node(shared: Arc<Shared>) {
    let own = watcher::Config::default().fields(&format!("metadata.name={}", shared.settings.node_name));
    let mut changes = pin!(watcher(Api::<Node>::all(shared.client.clone()), own).default_backoff());
    while let Some(change) = changes.next().await {
        match change {
            Ok(watcher::Event::Apply(node) | watcher::Event::InitApply(node)) => {
                shared.node.send_replace(Some(Arc::new(node)));
            }
            Ok(watcher::Event::Delete(_) | watcher::Event::Init | watcher::Event::InitDone) => {}
            Err(error) => tracing::debug!(%error, "the watch on the node's own object is starting again"),
        }
    }
}

async fn report_once(shared: &Shared, nodes: &Api<Node>) -> Result<NodeStatus, kube::Error> {
    let settings = &shared.settings;
    let version = shared.runtime.version().await;
    let facts = Facts::read(settings, shared.runtime.name(), version.as_deref().ok());
    let problem = version.err().map(|error| error.to_string());
    let found = nodes.get_opt(&settings.node_name).await?;
    let now = shared.world.clock.wall();
    let existing = match found {
        Some(node) => node,
        None => nodes.create(&PostParams::default(), &node::object(settings, &facts)).await?,
    };
    let labels = node::missing_labels(settings, &facts, &existing);
    if !labels.is_empty() {
        let patch = json!({"metadata": {"labels": labels}});
        nodes.patch(&settings.node_name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    let status = node::status(settings, &facts, existing.status.as_ref(), problem.as_deref(), troubles(shared), now);
    let patch = json!({"status": status});
    nodes.patch_status(&settings.node_name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    if node::is_ready(existing.status.as_ref()) != node::is_ready(Some(&status)) {
        let (node, ready) = (settings.node_name.clone(), node::is_ready(Some(&status)) == Some(true));
        shared.tell_of_node(&Happening::NodeStatus { node, ready });
    }
    let (was, is) = [existing.status.as_ref(), Some(&status)].map(|status| node::says(status, "DiskPressure")).into();
    if was != is && (was, is) != (None, Some(false)) {
        let (node, holds) = (settings.node_name.clone(), is == Some(true));
        shared.tell_of_node(&Happening::DiskPressure { node, holds });
    }
    let (was, is) = [existing.status.as_ref(), Some(&status)].map(|status| node::says(status, node::NETWORK)).into();
    if was != is
        && is == Some(true)
        && let Some(namespace) = settings.network_namespace.clone()
    {
        shared.tell_of_node(&Happening::NetworkGone { namespace });
    }
    Ok(status)
}

/// What is not well with the node beside its readiness.
fn troubles(shared: &Shared) -> Troubles {
    Troubles { full: *shared.disk_pressure.borrow(), cut: *shared.network_gone.borrow() }
}

/// Renews the node's Lease, for ever, and looks at its disks on the way.
pub(crate) async fn renew_lease(shared: Arc<Shared>) {
    let leases: Api<Lease> = Api::namespaced(shared.client.clone(), LEASE_NAMESPACE);
    let nodes: Api<Node> = Api::all(shared.client.clone());
    let name = &shared.settings.node_name;
    let (mut disk, mut namespace) = (disk::Watch::default(), disk::NamespaceWatch::default());
    loop {
        disk.look(&shared);
        namespace.look(&shared);
        let renewed = async {
            let renew_time = Some(MicroTime(shared.world.clock.wall()));
            let patch = json!({"spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": renew_time}});
            match leases.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    let node = nodes.get(name).await?;
                    leases.create(&PostParams::default(), &new_lease(name, &node, renew_time)).await.map(drop)
                }
                other => other.map(drop),
            }
        };
        let pause = match renewed.await {
            Ok(()) => LEASE_RENEWAL,
            Err(error) => {
                tracing::debug!(%error, "the node's Lease cannot be renewed; trying again");
                RETRY_PAUSE
            }
        };
        tokio::time::sleep(pause).await;
    }
}

fn new_lease(name: &str, node: &Node, renew_time: Option<MicroTime>) -> Lease {
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: name.to_owned(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        ..OwnerReference::default()
    };
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(LEASE_NAMESPACE.to_owned()),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    let spec = LeaseSpec {
        holder_identity: Some(name.to_owned()),
        lease_duration_seconds: Some(LEASE_SECONDS),
        renew_time,
        ..LeaseSpec::default()
    };
    Lease { metadata, spec: Some(spec) }
}
