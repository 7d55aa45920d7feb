//! Keeps the kernel's rules in step with Services and EndpointSlices: watches, asks the pure part, hands batches over.
//!
//! Changes that arrive while a batch is being applied make up the next one. A batch that the kernel refuses (somebody
//! else changed the table) is answered by writing the whole table anew; if that fails too, again after a while.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kedge_client::{Change, Informers, Key};

use super::conntrack;
use super::endpoints::{Backend, NodeFacts};
use super::fragment::{Fragment, fragment};
use super::ruleset::{Ruleset, TableFacts};
use crate::{Namespace, NetworkError, nft};

/// Ties a slice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Marks slices of Services without an address.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// How long to wait before the whole table is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The proxy of one node.
pub struct ServiceProxy {
    namespace: Namespace,
    node: NodeFacts,
    rules: Ruleset,
    services: BTreeMap<Key, Arc<Service>>,
    slices: BTreeMap<Key, BTreeMap<Key, Arc<EndpointSlice>>>,
    /// Whether the kernel may differ from `rules`.
    stale: bool,
    /// UDP backends that went away and whose connections are not forgotten yet.
    lost: BTreeSet<Backend>,
}

impl ServiceProxy {
    /// A proxy whose rules go to `namespace`.
    pub fn new(namespace: Namespace, node: NodeFacts, facts: TableFacts) -> Self {
        Self {
            namespace,
            node,
            rules: Ruleset::new(facts),
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            stale: true,
            lost: BTreeSet::new(),
        }
    }

    /// Runs until it is dropped. The table of an earlier run stays in force until the first lists are complete.
    pub async fn run(mut self, informers: Informers) {
        let (services, slices) = (informers.of::<Service>(), informers.of::<EndpointSlice>());
        let (mut service_changes, mut slice_changes) = (services.subscribe(), slices.subscribe());
        services.synced().await;
        slices.synced().await;
        let mut wait = RETRY.0;
        let mut touched = BTreeSet::new();
        loop {
            while let Ok(change) = service_changes.try_recv() {
                self.note_service(&change, &mut touched);
            }
            while let Ok(change) = slice_changes.try_recv() {
                self.note_slice(&change, &mut touched);
            }
            let again = match self.apply(&std::mem::take(&mut touched)).await {
                Ok(()) => {
                    wait = RETRY.0;
                    None
                }
                Err(error) => {
                    tracing::warn!(%error, again_in = ?wait, "Services are not up to date in the kernel");
                    let next = (wait * 2).min(RETRY.1);
                    Some(std::mem::replace(&mut wait, next))
                }
            };
            tokio::select! {
                Some(change) = service_changes.recv() => self.note_service(&change, &mut touched),
                Some(change) = slice_changes.recv() => self.note_slice(&change, &mut touched),
                () = sleep(again) => {}
            }
        }
    }

    /// Makes the kernel's rules those of the Services named, and of everything else after a failure.
    pub async fn apply(&mut self, touched: &BTreeSet<Key>) -> Result<(), NetworkError> {
        let mut batch = String::new();
        for key in touched {
            let new = self.fragment_of(key);
            let old = self.rules.get(key).map(|old| old.udp_backends.clone()).unwrap_or_default();
            self.lost.extend(old.difference(&new.udp_backends));
            batch += &self.rules.put(key, new);
        }
        if !self.stale
            && !batch.is_empty()
            && let Err(error) = nft::apply(&self.namespace, batch).await
        {
            tracing::warn!(%error, "writing the whole table of Services anew");
            self.stale = true;
        }
        if self.stale {
            nft::apply(&self.namespace, self.rules.whole()).await?;
            self.stale = false;
        }
        self.forget().await
    }

    /// Takes in a changed Service; `apply` does the rest.
    pub fn note_service(&mut self, change: &Change<Service>, touched: &mut BTreeSet<Key>) {
        let key = Key::of(&**change.latest());
        match &change.new {
            Some(service) => self.services.insert(key.clone(), service.clone()),
            None => self.services.remove(&key),
        };
        touched.insert(key);
    }

    /// Takes in a changed slice; `apply` does the rest.
    pub fn note_slice(&mut self, change: &Change<EndpointSlice>, touched: &mut BTreeSet<Key>) {
        if let Some((service, slice)) = change.old.as_deref().and_then(owner) {
            if let Some(slices) = self.slices.get_mut(&service) {
                slices.remove(&slice);
                if slices.is_empty() {
                    self.slices.remove(&service);
                }
            }
            touched.insert(service);
        }
        if let Some(new) = &change.new
            && let Some((service, slice)) = owner(new)
        {
            self.slices.entry(service.clone()).or_default().insert(slice, new.clone());
            touched.insert(service);
        }
    }

    fn fragment_of(&self, key: &Key) -> Fragment {
        let none = BTreeMap::new();
        let slices = self.slices.get(key).unwrap_or(&none);
        let Some(service) = self.services.get(key) else { return Fragment::default() };
        fragment(service, slices.values().map(|slice| &**slice), &self.node, self.rules.facts())
    }

    /// Connections to a UDP backend that is gone would be sent there for as long as the client keeps asking. Another
    /// Service's connections to the same backend are forgotten too, and find a backend anew.
    async fn forget(&mut self) -> Result<(), NetworkError> {
        let doomed = conntrack::Doomed { backends: self.lost.clone(), ..conntrack::Doomed::default() };
        conntrack::forget(&self.namespace, doomed).await?;
        self.lost.clear();
        Ok(())
    }
}

/// The Service that a slice belongs to, and the slice's own key.
fn owner(slice: &EndpointSlice) -> Option<(Key, Key)> {
    let labels = slice.metadata.labels.as_ref()?;
    if labels.contains_key(HEADLESS) {
        return None;
    }
    let key = Key::of(slice);
    Some((Key::new(&key.namespace, labels.get(SERVICE_NAME)?), key))
}

async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
