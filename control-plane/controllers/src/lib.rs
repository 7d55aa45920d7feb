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
mod definitions;
mod deployment;
mod disruption;
mod endpoint_mirror;
mod endpoint_slices;
mod event_ttl;
mod events;
mod garbage;
mod history;
mod jobs;
mod model_figures;
mod model_services;
mod namespaces;
mod nodes;
mod pod_garbage;
mod pods;
mod quotas;
mod replica_sets;
mod replication_controllers;
mod service_accounts;
mod share;
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
use tokio::task::JoinHandle;

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

    /// A client for a controller: acts as the service account that the role of this name is bound to.
    /// (`pkg/controller/clientbuilder`, `plugin/pkg/auth/authorizer/rbac/bootstrappolicy/controller_policy.go`.)
    pub fn of(&self, controller: &str) -> Client {
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
    /// What `ModelService`s need; its image says why there is none, as without a node.
    pub serving: Serving,
}

/// The controllers that run, each with the account that it acts as.
#[derive(Debug, Default)]
pub struct Running(Vec<(&'static str, JoinHandle<()>)>);

impl Running {
    /// A controller that has ended, which none does by itself; none when all is well.
    pub fn ended(&self) -> Option<&'static str> {
        self.0.iter().find(|(_, task)| task.is_finished()).map(|(name, _)| *name)
    }
}

/// Starts every controller; they run as long as the runtime. The shared copies are fed by the context's own client,
/// which need not be let do anything else.
pub fn start(context: &Context, settings: &Settings) -> Running {
    let by = |name: &str| {
        let informers = context.informers.acting_through(settings.clients.of(name));
        Context { informers, world: context.world.clone() }
    };
    let mut start = Start { by: &by, running: Running::default() };
    start.one("deployment-controller", |by| run(deployment::Controller, by));
    start.one("replicaset-controller", |by| run(replica_sets::Controller::<ReplicaSet>::default(), by));
    start.one("replication-controller", |by| run(replica_sets::Controller::<ReplicationController>::default(), by));
    let slices = endpoint_slices::Controller { endpoints: by("endpoint-controller") };
    start.one("endpointslice-controller", |by| run(slices, by));
    start.one("endpointslicemirroring-controller", |by| run(endpoint_mirror::Controller, by));
    start.one("namespace-controller", |by| run(namespaces::Controller, by));
    start.one("customresourcedefinition-controller", |by| run(definitions::Controller, by));
    start.one("clusterrole-aggregation-controller", |by| run(cluster_roles::Controller, by));
    start.one("pvc-protection-controller", |by| run(storage_protection::Claims, by));
    start.one("pv-protection-controller", |by| run(storage_protection::Volumes, by));
    start.one("job-controller", |by| run(jobs::Controller, by));
    start.one("job-controller", |by| run(jobs::Orphans, by));
    start.one("cronjob-controller", |by| run(cron_jobs::Controller, by));
    start.one("daemon-set-controller", |by| run(daemon_sets::Controller::default(), by));
    start.one("statefulset-controller", |by| run(stateful_sets::Controller, by));
    start.one("disruption-controller", |by| run(disruption::Budgets, by));
    start.one("disruption-controller", |by| run(disruption::Stale, by));
    start.one("node-controller", |by| run(nodes::Controller::default(), by));
    start.one("node-controller", |by| run(taint_eviction::Controller::default(), by));
    start.one("pod-garbage-collector", |by| run(pod_garbage::Controller::default(), by));
    start.one("resourcequota-controller", |by| run(quotas::Controller::default(), by));
    start.one("ttl-after-finished-controller", |by| run(ttl_after_finished::Controller, by));
    start.one("generic-garbage-collector", garbage::run);
    let accounts = service_accounts::Controller::new(&settings.root_ca, by("root-ca-cert-publisher"));
    start.one("service-account-controller", |by| run(accounts, by));
    start.one("event-ttl-controller", event_ttl::run);
    let serving = settings.serving.clone();
    start.one("model-service-controller", |by| run(model_services::Controller(serving), by));
    start.one("model-service-controller", |by| run(model_figures::Controller::default(), by));
    start.running
}

struct Start<'a> {
    /// The context of somebody who acts as the account of this name.
    by: &'a dyn Fn(&str) -> Context,
    running: Running,
}

impl Start<'_> {
    fn one<F: Future<Output = ()> + Send + 'static>(&mut self, name: &'static str, run: impl FnOnce(Context) -> F) {
        self.running.0.push((name, tokio::spawn(run((self.by)(name)))));
    }
}
