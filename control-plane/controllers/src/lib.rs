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
mod endpoint_slices;
mod event_ttl;
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

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;
use kedge_client::{Context, run};

pub use model_services::{Serving, ServingImage};

/// What controllers must be told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The certificate authority of the API server as PEM, published in every namespace.
    pub root_ca: String,
    /// What `ModelService`s need; without a node they are stored only.
    pub serving: Option<Serving>,
}

/// Starts every controller; they run as long as the runtime.
pub fn start(context: &Context, settings: &Settings) {
    let spawn = |context: &Context| context.clone();
    tokio::spawn(run(deployment::Controller, spawn(context)));
    tokio::spawn(run(replica_sets::Controller::<ReplicaSet>::default(), spawn(context)));
    tokio::spawn(run(replica_sets::Controller::<ReplicationController>::default(), spawn(context)));
    tokio::spawn(run(endpoint_slices::Controller, spawn(context)));
    tokio::spawn(run(namespaces::Controller, spawn(context)));
    tokio::spawn(run(cluster_roles::Controller, spawn(context)));
    tokio::spawn(run(storage_protection::Claims, spawn(context)));
    tokio::spawn(run(storage_protection::Volumes, spawn(context)));
    tokio::spawn(run(jobs::Controller, spawn(context)));
    tokio::spawn(run(jobs::Orphans, spawn(context)));
    tokio::spawn(run(cron_jobs::Controller, spawn(context)));
    tokio::spawn(run(daemon_sets::Controller::default(), spawn(context)));
    tokio::spawn(run(stateful_sets::Controller, spawn(context)));
    tokio::spawn(run(disruption::Budgets, spawn(context)));
    tokio::spawn(run(disruption::Stale, spawn(context)));
    tokio::spawn(run(nodes::Controller::default(), spawn(context)));
    tokio::spawn(run(taint_eviction::Controller::default(), spawn(context)));
    tokio::spawn(run(pod_garbage::Controller::default(), spawn(context)));
    tokio::spawn(run(quotas::Controller::default(), spawn(context)));
    tokio::spawn(event_ttl::run(spawn(context)));
    tokio::spawn(run(ttl_after_finished::Controller, spawn(context)));
    if let Some(serving) = &settings.serving {
        tokio::spawn(run(model_services::Controller(serving.clone()), spawn(context)));
    }
    tokio::spawn(garbage::run(spawn(context)));
    tokio::spawn(run(service_accounts::Controller::new(&settings.root_ca), spawn(context)));
}
