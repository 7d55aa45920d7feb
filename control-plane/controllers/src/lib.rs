//! Controllers: each a plan from what is observed to what to do, run by one shared runner.
//!
//! A controller is one file: what it watches, a pure `plan`, the few calls that carry it out, and its cases; and one
//! line in [`start`]. It owns no loop, no queue, no retry. Where behaviour is upstream's, the file names upstream's.
//!
//! What is not here: the scheduler (a crate of its own) and everything a node does.

#![forbid(unsafe_code)]

mod adopt;
mod cluster_roles;
mod cron_jobs;
mod daemon_sets;
mod deployment;
mod disruption;
mod endpoint_mirror;
mod endpoint_slices;
mod event_ttl;
mod events;
mod garbage;
mod history;
mod jobs;
mod model_services;
mod namespaces;
mod nodes;
mod pod_garbage;
mod pods;
mod quotas;
mod replica_sets;
mod replication_controllers;
mod service_accounts;
mod stateful_sets;
mod storage_protection;
mod taint_eviction;
mod ttl_after_finished;
mod write;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;
use kedge_client::{Context, run};
use kube::Client;

pub use model_services::{Serving, ServingImage};

/// A client that acts as a user of this name, in these groups.
type Make = dyn Fn(&str, &[&str]) -> Client + Send + Sync;

/// Makes clients that act as somebody.
#[derive(Clone)]
pub struct Clients(Arc<Make>);

impl Clients {
    /// Clients made by `make`.
    pub fn new(make: impl Fn(&str, &[&str]) -> Client + Send + Sync + 'static) -> Self {
        Self(Arc::new(make))
    }

    /// A client for a controller: acts as the service account that upstream's role of this name is bound to.
    /// (`pkg/controller/clientbuilder`, `plugin/pkg/auth/authorizer/rbac/bootstrappolicy/controller_policy.go`.)
    fn of(&self, controller: &str) -> Client {
        let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system"];
        (self.0)(&format!("system:serviceaccount:kube-system:{controller}"), &groups)
    }
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clients")
    }
}

/// What controllers must be told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Each controller acts as the service account that its role is bound to.
    pub clients: Clients,
    /// The certificate authority of the API server as PEM, published in every namespace.
    pub root_ca: String,
    /// What `ModelService`s need; without a node they are stored only.
    pub serving: Option<Serving>,
}

/// Starts every controller; they run as long as the runtime. The shared copies are fed by the context's own client,
/// which also is who those are that upstream knows no role for.
pub fn start(context: &Context, settings: &Settings) {
    let by = |name: &str| {
        let informers = context.informers.acting_through(settings.clients.of(name));
        Context { informers, world: context.world.clone() }
    };
    tokio::spawn(run(deployment::Controller, by("deployment-controller")));
    tokio::spawn(run(replica_sets::Controller::<ReplicaSet>::default(), by("replicaset-controller")));
    tokio::spawn(run(replica_sets::Controller::<ReplicationController>::default(), by("replication-controller")));
    let slices = endpoint_slices::Controller { endpoints: by("endpoint-controller") };
    tokio::spawn(run(slices, by("endpointslice-controller")));
    tokio::spawn(run(endpoint_mirror::Controller, by("endpointslicemirroring-controller")));
    tokio::spawn(run(namespaces::Controller, by("namespace-controller")));
    tokio::spawn(run(cluster_roles::Controller, by("clusterrole-aggregation-controller")));
    tokio::spawn(run(storage_protection::Claims, by("pvc-protection-controller")));
    tokio::spawn(run(storage_protection::Volumes, by("pv-protection-controller")));
    tokio::spawn(run(jobs::Controller, by("job-controller")));
    tokio::spawn(run(jobs::Orphans, by("job-controller")));
    tokio::spawn(run(cron_jobs::Controller, by("cronjob-controller")));
    tokio::spawn(run(daemon_sets::Controller::default(), by("daemon-set-controller")));
    tokio::spawn(run(stateful_sets::Controller, by("statefulset-controller")));
    tokio::spawn(run(disruption::Budgets, by("disruption-controller")));
    tokio::spawn(run(disruption::Stale, by("disruption-controller")));
    tokio::spawn(run(nodes::Controller::default(), by("node-controller")));
    tokio::spawn(run(taint_eviction::Controller::default(), by("node-controller")));
    tokio::spawn(run(pod_garbage::Controller::default(), by("pod-garbage-collector")));
    tokio::spawn(run(quotas::Controller::default(), by("resourcequota-controller")));
    tokio::spawn(run(ttl_after_finished::Controller, by("ttl-after-finished-controller")));
    tokio::spawn(garbage::run(by("generic-garbage-collector")));
    let accounts = service_accounts::Controller::new(&settings.root_ca, by("root-ca-cert-publisher"));
    tokio::spawn(run(accounts, by("service-account-controller")));
    tokio::spawn(event_ttl::run(context.clone()));
    if let Some(serving) = &settings.serving {
        tokio::spawn(run(model_services::Controller(serving.clone()), context.clone()));
    }
}
