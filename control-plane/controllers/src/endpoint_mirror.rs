//! EndpointSliceMirroring: Endpoints that somebody writes by hand for a service without a selector are slices too.
//! (`pkg/controller/endpointslicemirroring`, and `RepackSubsets` of `pkg/api/v1/endpoints`.)

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort as OldPort, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kedge_client::{Context, Key, Next, Reconcile, Trigger};
use kube::ResourceExt;

use crate::{pods, write};

/// Addresses of one subset that are mirrored (`--mirroring-max-endpoints-per-subset`).
const SUBSET_MAX: usize = 1000;
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// On Endpoints that are the lock of a leader election.
pub(crate) const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that are about the Endpoints object alone.
const OWN: [&str; 2] =
    ["endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration"];

pub(crate) struct Controller;

impl Reconcile for Controller {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "endpointslicemirroring-controller"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch_self::<Endpoints>(trigger);
        context.watch_self::<Service>(trigger);
        context.watch::<EndpointSlice>(trigger, |change| {
            let slice = change.latest();
            let name = slice.labels().get(SERVICE_NAME).filter(|_| is_mirrored(slice));
            name.map(|name| Key::new(&slice.namespace().unwrap_or_default(), name)).into_iter().collect()
        });
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let endpoints = context.informers.of::<Endpoints>().get(key);
        let service = context.informers.of::<Service>().get(key);
        let mut have = context.informers.of::<EndpointSlice>().list_in(&key.namespace);
        have.retain(|slice| is_mirrored(slice) && slice.labels().get(SERVICE_NAME) == Some(&key.name));
        let mirrors = endpoints.filter(|endpoints| service.is_some_and(|service| is_mirrored_for(endpoints, &service)));
        let wanted = mirrors.map(|endpoints| slices(&endpoints)).unwrap_or_default();
        write_slices(context, &key.namespace, wanted, have).await.map(|()| Next::Change)
    }
}

fn is_mirrored(slice: &EndpointSlice) -> bool {
    slice.labels().get(MANAGED_BY).is_some_and(|manager| manager == MANAGER)
}

/// Whether nobody else makes slices for these.
fn is_mirrored_for(endpoints: &Endpoints, service: &Service) -> bool {
    let skipped = endpoints.labels().get(SKIP).is_some_and(|skip| skip == "true");
    let selects = service.spec.as_ref().is_some_and(|spec| spec.selector.is_some());
    let leaving = endpoints.metadata.deletion_timestamp.is_some();
    !skipped && !selects && !leaving && !endpoints.annotations().contains_key(LEADER)
}

/// An address of a subset, and whether it is ready. Texts, so that sets of them can be compared.
type Addresses = BTreeMap<String, (EndpointAddress, bool)>;

/// The subsets with each port's addresses put together, and ports that lead to the same addresses joined.
fn repacked(endpoints: &Endpoints) -> Vec<(Vec<OldPort>, Addresses)> {
    let mut by_port: Vec<(Option<OldPort>, Addresses)> = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<Option<OldPort>> = match subset.ports.as_deref() {
            None | Some([]) => vec![None],
            Some(ports) => ports.iter().cloned().map(Some).collect(),
        };
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let all: Vec<_> = ready.chain(subset.not_ready_addresses.iter().flatten().map(|a| (a, false))).collect();
        for port in ports {
            let at = by_port.iter().position(|(known, _)| *known == port).unwrap_or_else(|| {
                by_port.push((port, Addresses::new()));
                by_port.len() - 1
            });
            for (address, ready) in &all {
                let uid = address.target_ref.as_ref().and_then(|target| target.uid.clone()).unwrap_or_default();
                let entry =
                    by_port[at].1.entry(format!("{} {uid}", address.ip)).or_insert(((*address).clone(), *ready));
                // Ready in one subset and not in another is not ready.
                entry.1 &= ready;
            }
        }
    }
    let mut joined: Vec<(Vec<OldPort>, Addresses)> = Vec::new();
    for (port, addresses) in by_port {
        match joined.iter_mut().find(|(ports, known)| *known == addresses && (port.is_none() == ports.is_empty())) {
            Some((ports, _)) => ports.extend(port),
            None => joined.push((port.into_iter().collect(), addresses)),
        }
    }
    joined
}

/// The slices that mirror an Endpoints object: one for each set of ports and family of addresses.
fn slices(endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let mut labels = endpoints.labels().clone();
    labels.insert(SERVICE_NAME.into(), endpoints.name_any());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut annotations = endpoints.annotations().clone();
    annotations.retain(|key, _| !OWN.contains(&key.as_str()));
    let metadata = ObjectMeta {
        generate_name: Some(format!("{}-", endpoints.name_any())),
        namespace: endpoints.namespace(),
        labels: Some(labels),
        annotations: (!annotations.is_empty()).then_some(annotations),
        owner_references: Some(vec![pods::owned_by(endpoints)]),
        ..ObjectMeta::default()
    };
    let mut made = Vec::new();
    for (ports, addresses) in repacked(endpoints) {
        let ports: Vec<EndpointPort> = ports.iter().map(port).collect();
        let valid = addresses.values().filter_map(|(address, ready)| {
            let ip: IpAddr = address.ip.parse().ok()?;
            Some((ip.is_ipv4(), endpoint(address, ip, *ready)))
        });
        let (four, six): (Vec<_>, Vec<_>) = valid.take(SUBSET_MAX).partition(|(is_ipv4, _)| *is_ipv4);
        for (family, all) in [("IPv4", four), ("IPv6", six)].into_iter().filter(|(_, all)| !all.is_empty()) {
            made.push(EndpointSlice {
                metadata: metadata.clone(),
                address_type: family.into(),
                endpoints: Some(all.into_iter().map(|(_, endpoint)| endpoint).collect()),
                ports: Some(ports.clone()),
            });
        }
    }
    made
}

fn port(old: &OldPort) -> EndpointPort {
    EndpointPort {
        name: Some(old.name.clone().unwrap_or_default()),
        port: Some(old.port),
        protocol: Some(old.protocol.clone().unwrap_or_else(|| "TCP".into())),
        app_protocol: old.app_protocol.clone(),
    }
}

fn endpoint(address: &EndpointAddress, ip: IpAddr, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

/// Whether a slice is what it should be.
fn same(have: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    let shown = |slice: &EndpointSlice| {
        let (ports, endpoints) = (slice.ports.clone().unwrap_or_default(), slice.endpoints.clone().unwrap_or_default());
        (slice.address_type.clone(), ports, endpoints, slice.labels().clone(), slice.annotations().clone())
    };
    shown(have) == shown(wanted)
}

/// What is right stays; what is left of both sides is paired by family, made or deleted.
async fn write_slices(
    context: &Context,
    namespace: &str,
    wanted: Vec<EndpointSlice>,
    mut have: Vec<Arc<EndpointSlice>>,
) -> kube::Result<()> {
    let mut missing = Vec::new();
    for slice in wanted {
        match have.iter().position(|have| same(have, &slice)) {
            Some(at) => drop(have.remove(at)),
            None => missing.push(slice),
        }
    }
    for mut slice in missing {
        match have.iter().position(|have| have.address_type == slice.address_type) {
            Some(at) => {
                let old = have.remove(at);
                (slice.metadata.name, slice.metadata.generate_name) = (old.metadata.name.clone(), None);
                slice.metadata.resource_version = old.resource_version();
                write::replace(context, &slice).await?;
            }
            None => match write::create(context, namespace, &slice).await {
                Err(error) if write::is_ending(&error) => return Ok(()),
                other => drop(other?),
            },
        }
    }
    write::all(have.iter().map(|slice| write::delete(context, &**slice))).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn endpoints(subsets: Value) -> Endpoints {
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n", "uid": "e",
            "labels": {"a": "b"}, "annotations": {(OWN[0]): "now", "kept": "yes"}}, "subsets": subsets}))
        .unwrap()
    }

    #[test]
    fn subsets_become_slices() {
        let check = |subsets: Value, expected: &[&str]| {
            let text = |slice: EndpointSlice| {
                let ports: Vec<String> = slice.ports.iter().flatten().map(|p| p.port.unwrap().to_string()).collect();
                let ready = |e: &Endpoint| e.conditions.as_ref().unwrap().ready.unwrap();
                let all = slice.endpoints.iter().flatten();
                let all: Vec<String> = all.map(|e| format!("{}={}", e.addresses[0], ready(e))).collect();
                format!("{} {} {}", slice.address_type, ports.join(","), all.join(","))
            };
            let found: Vec<String> = slices(&endpoints(subsets.clone())).into_iter().map(text).collect();
            assert_eq!(found, expected, "{subsets}");
        };
        let ip = |ip: &str| json!({"ip": ip});
        check(json!([]), &[]);
        check(json!([{"ports": [{"port": 80}], "addresses": [ip("10.1.2.3")]}]), &["IPv4 80 10.1.2.3=true"]);
        // The same addresses behind two subsets are one slice with both ports.
        let twice = json!([{"ports": [{"name": "a", "port": 80}], "addresses": [ip("1.1.1.1")]},
            {"ports": [{"name": "b", "port": 81}], "addresses": [ip("1.1.1.1")]}]);
        check(twice, &["IPv4 80,81 1.1.1.1=true"]);
        let mixed = json!([{"ports": [{"port": 80}], "addresses": [ip("1.1.1.1"), ip("fd00::1"), ip("nonsense")],
            "notReadyAddresses": [ip("1.1.1.2")]}]);
        check(mixed, &["IPv4 80 1.1.1.1=true,1.1.1.2=false", "IPv6 80 fd00::1=true"]);
        let slice = &slices(&endpoints(json!([{"addresses": [ip("1.1.1.1")]}])))[0];
        assert_eq!((slice.labels()[SERVICE_NAME].as_str(), slice.labels()["a"].as_str()), ("s", "b"));
        assert_eq!(slice.annotations().keys().collect::<Vec<_>>(), ["kept"]);
    }

    #[test]
    fn services_that_select_make_their_own() {
        let check = |service: Value, labels: Value, expected: bool| {
            let service: Service = serde_json::from_value(json!({ "spec": service })).unwrap();
            let mut endpoints = endpoints(json!([]));
            endpoints.metadata.labels = serde_json::from_value(labels).unwrap();
            assert_eq!(is_mirrored_for(&endpoints, &service), expected, "{service:?}");
        };
        check(json!({}), json!({}), true);
        check(json!({"selector": {"a": "b"}}), json!({}), false);
        check(json!({}), json!({(SKIP): "true"}), false);
    }
}
