//! EndpointSlice and Endpoints: which pods stand behind a service, and which of them serve.
//! (`pkg/controller/endpointslice`, `k8s.io/endpointslice`, `pkg/controller/endpoint`.)
//!
//! Slices are filled in the order of pod names and cut at [`SLICE_MAX`]; a change rewrites only the slices whose
//! content changed. The old Endpoints object says the same for old clients, cut at [`ENDPOINTS_MAX`].

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort as OldPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service, ServicePort,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kedge_client::{Context, Key, Next, Reconcile, Trigger};
use kube::ResourceExt;

use crate::endpoint_mirror::LEADER;
use crate::{pods, write};

/// Endpoints in one slice (`--max-endpoints-per-slice`).
const SLICE_MAX: usize = 100;
/// Addresses in an Endpoints object; the rest is cut off and said so by an annotation.
const ENDPOINTS_MAX: usize = 1000;
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const ENDPOINTS_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const ENDPOINTS_MANAGER: &str = "endpoint-controller";
const HEADLESS: &str = "service.kubernetes.io/headless";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

pub(crate) struct Controller {
    /// Who writes Endpoints: upstream has another role for them.
    pub(crate) endpoints: Context,
}

impl Reconcile for Controller {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "endpointslice-controller"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch_self::<Service>(trigger);
        context.watch::<EndpointSlice>(trigger, |change| {
            let slice = change.latest();
            let service = slice
                .labels()
                .get(SERVICE_NAME)
                .filter(|_| slice.labels().get(MANAGED_BY).is_some_and(|m| m == MANAGER));
            service.map(|name| Key::new(&slice.namespace().unwrap_or_default(), name)).into_iter().collect()
        });
        context.watch::<Endpoints>(trigger, |change| match (&change.old, &change.new) {
            (Some(old), None) => vec![Key::of(&**old)],
            // Our own of a Service that went while nobody looked. (`checkLeftoverEndpoints`.)
            (None, Some(new)) if new.labels().get(ENDPOINTS_MANAGED_BY).is_some_and(|by| by == ENDPOINTS_MANAGER) => {
                vec![Key::of(&**new)]
            }
            _ => Vec::new(),
        });
        let services = context.informers.of::<Service>();
        context.watch::<Pod>(trigger, move |change| {
            let sides: Vec<&Arc<Pod>> = change.old.iter().chain(&change.new).collect();
            if let [old, new] = sides[..]
                && same_for_services(old, new)
            {
                return Vec::new();
            }
            let here = services.list_in(&change.latest().namespace().unwrap_or_default());
            let behind = here.iter().filter(|service| sides.iter().any(|pod| selects(service, pod)));
            behind.map(|service| Key::of(&**service)).collect()
        });
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let service = context.informers.of::<Service>().get(key);
        let slices = context.informers.of::<EndpointSlice>().list_in(&key.namespace);
        let ours = slices.into_iter().filter(|slice| is_of(slice, &key.name)).collect::<Vec<_>>();
        let live =
            service.as_ref().filter(|service| service.metadata.deletion_timestamp.is_none() && has_selector(service));
        let Some(service) = live else {
            // Owner references take the slices of a deleted service; a service without a selector is its owner's affair.
            if service.is_none() {
                forget_endpoints(&self.endpoints, key).await?;
            }
            return Ok(Next::Change);
        };
        let all = context.informers.of::<Pod>().list_in(&key.namespace);
        let behind: Vec<Arc<Pod>> = all.into_iter().filter(|pod| selects(service, pod)).collect();
        write_slices(context, service, &behind, &ours).await?;
        write_endpoints(&self.endpoints, service, &behind).await?;
        Ok(Next::Change)
    }
}

fn is_of(slice: &EndpointSlice, service: &str) -> bool {
    slice.labels().get(SERVICE_NAME).is_some_and(|name| name == service)
        && slice.labels().get(MANAGED_BY).is_some_and(|manager| manager == MANAGER)
}

fn has_selector(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let external = spec.is_some_and(|spec| spec.type_.as_deref() == Some("ExternalName"));
    !external && spec.and_then(|spec| spec.selector.as_ref()).is_some_and(|selector| !selector.is_empty())
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).filter(|s| !s.is_empty());
    selector.is_some_and(|selector| selector.iter().all(|(key, value)| pod.labels().get(key) == Some(value)))
}

/// Whether nothing about a pod changed that endpoints show.
fn same_for_services(old: &Pod, new: &Pod) -> bool {
    let shown = |pod: &Pod| {
        let status = pod.status.clone().unwrap_or_default();
        let spec = pod.spec.as_ref();
        (
            status.pod_ip,
            status.phase,
            pods::is_ready(pod),
            pod.metadata.deletion_timestamp.is_some(),
            pod.metadata.labels.clone(),
            spec.and_then(|spec| spec.node_name.clone()),
            spec.and_then(|spec| spec.hostname.clone()),
        )
    };
    shown(old) == shown(new)
}

/// An address behind a service, with the ports it offers there.
#[derive(Clone)]
struct Backend {
    endpoint: Endpoint,
    ports: Vec<EndpointPort>,
}

/// The pods that have an address and have not ended.
fn backends(service: &Service, behind: &[Arc<Pod>]) -> Vec<Backend> {
    let spec = service.spec.clone().unwrap_or_default();
    let publish_unready = spec.publish_not_ready_addresses == Some(true);
    let mut out: Vec<Backend> = behind
        .iter()
        .filter(|pod| !pods::is_finished(pod))
        .filter_map(|pod| {
            let ip = pod.status.as_ref()?.pod_ip.clone().filter(|ip| !ip.is_empty())?;
            let terminating = pod.metadata.deletion_timestamp.is_some();
            let serving = pods::is_ready(pod);
            let endpoint = Endpoint {
                addresses: vec![ip],
                conditions: Some(EndpointConditions {
                    ready: Some(publish_unready || (serving && !terminating)),
                    serving: Some(serving),
                    terminating: Some(terminating),
                }),
                hostname: hostname(pod, service),
                node_name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
                target_ref: Some(reference(pod)),
                ..Endpoint::default()
            };
            Some(Backend {
                endpoint,
                ports: spec.ports.iter().flatten().filter_map(|port| port_on(pod, port)).collect(),
            })
        })
        .collect();
    out.sort_by(|a, b| name_of(a).cmp(name_of(b)));
    out
}

fn name_of(backend: &Backend) -> &str {
    backend.endpoint.target_ref.as_ref().and_then(|target| target.name.as_deref()).unwrap_or_default()
}

/// A pod's own DNS name under a headless service.
fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let matches = spec.subdomain.as_deref() == Some(&service.name_any());
    spec.hostname.clone().filter(|name| matches && !name.is_empty())
}

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// Where a service's port leads in this pod; a named port may lead elsewhere in each pod, or nowhere.
fn port_on(pod: &Pod, port: &ServicePort) -> Option<EndpointPort> {
    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
    let number = match &port.target_port {
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars =
                spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
            let named = |p: &&k8s_openapi::api::core::v1::ContainerPort| {
                p.name.as_ref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol
            };
            ports.into_iter().find(named)?.container_port
        }
        Some(IntOrString::Int(number)) if *number != 0 => *number,
        _ => port.port,
    };
    Some(EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(number),
        protocol: Some(protocol),
        app_protocol: port.app_protocol.clone(),
    })
}

/// Ports and endpoints of the slices that a service should have. A service without endpoints has one empty slice.
fn plan(service: &Service, behind: &[Arc<Pod>]) -> Vec<(Vec<EndpointPort>, Vec<Endpoint>)> {
    let mut groups: Vec<(Vec<EndpointPort>, Vec<Endpoint>)> = Vec::new();
    for backend in backends(service, behind) {
        match groups.iter_mut().find(|(ports, _)| *ports == backend.ports) {
            Some((_, endpoints)) => endpoints.push(backend.endpoint),
            None => groups.push((backend.ports, vec![backend.endpoint])),
        }
    }
    if groups.is_empty() {
        return vec![(Vec::new(), Vec::new())];
    }
    groups
        .into_iter()
        .flat_map(|(ports, all)| all.chunks(SLICE_MAX).map(|part| (ports.clone(), part.to_vec())).collect::<Vec<_>>())
        .collect()
}

fn slice_labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.labels().clone();
    labels.retain(|key, _| key != HEADLESS);
    labels.insert(SERVICE_NAME.into(), service.name_any());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

async fn write_slices(
    context: &Context,
    service: &Service,
    behind: &[Arc<Pod>],
    have: &[Arc<EndpointSlice>],
) -> kube::Result<()> {
    let mut wanted = plan(service, behind);
    let labels = slice_labels(service);
    let namespace = service.namespace().unwrap_or_default();
    let same = |slice: &EndpointSlice, ports: &[EndpointPort], endpoints: &[Endpoint]| {
        slice.ports.as_deref().unwrap_or_default() == ports
            && slice.endpoints.as_deref().unwrap_or_default() == endpoints
            && slice.labels() == &labels
    };
    // What is already right stays; what is left of both sides is paired, made or deleted.
    let mut free = Vec::new();
    for slice in have {
        match wanted.iter().position(|(ports, endpoints)| same(slice, ports, endpoints)) {
            Some(at) => drop(wanted.remove(at)),
            None => free.push(slice),
        }
    }
    let mut free = free.into_iter();
    for (ports, endpoints) in wanted {
        match free.next() {
            Some(slice) => {
                let mut new = (**slice).clone();
                new.metadata.labels = Some(labels.clone());
                (new.ports, new.endpoints) = (Some(ports), Some(endpoints));
                write::replace(context, &new).await?;
            }
            None => {
                let metadata = ObjectMeta {
                    generate_name: Some(format!("{}-", service.name_any())),
                    labels: Some(labels.clone()),
                    owner_references: Some(vec![pods::owned_by(service)]),
                    ..ObjectMeta::default()
                };
                let slice = EndpointSlice {
                    metadata,
                    address_type: "IPv4".into(),
                    endpoints: Some(endpoints),
                    ports: Some(ports),
                };
                write::create(context, &namespace, &slice).await?;
            }
        }
    }
    for slice in free {
        write::delete(context, &**slice).await?;
    }
    Ok(())
}

fn subsets(service: &Service, behind: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let all = backends(service, behind);
    let over = all.len() > ENDPOINTS_MAX;
    let mut subsets: Vec<EndpointSubset> = Vec::new();
    for backend in all.into_iter().take(ENDPOINTS_MAX) {
        let terminating = backend.endpoint.conditions.as_ref().is_some_and(|c| c.terminating == Some(true));
        let ready = backend.endpoint.conditions.as_ref().is_some_and(|c| c.ready == Some(true));
        if terminating && !ready {
            continue;
        }
        let old = |port: &EndpointPort| OldPort {
            name: port.name.clone().filter(|name| !name.is_empty()),
            port: port.port.unwrap_or(0),
            protocol: port.protocol.clone(),
            app_protocol: port.app_protocol.clone(),
        };
        let ports: Vec<OldPort> = backend.ports.iter().map(old).collect();
        let address = EndpointAddress {
            ip: backend.endpoint.addresses[0].clone(),
            hostname: backend.endpoint.hostname.clone(),
            node_name: backend.endpoint.node_name.clone(),
            target_ref: backend.endpoint.target_ref.clone(),
        };
        let at = match subsets.iter().position(|subset| subset.ports.as_ref() == Some(&ports)) {
            Some(at) => at,
            None => {
                subsets.push(EndpointSubset { ports: Some(ports), ..EndpointSubset::default() });
                subsets.len() - 1
            }
        };
        let list = if ready { &mut subsets[at].addresses } else { &mut subsets[at].not_ready_addresses };
        list.get_or_insert_default().push(address);
    }
    (subsets, over)
}

/// Endpoints have no owner: those of a Service that is gone are deleted, whoever made them, or a later Service of its name
/// would send its clients there. (`pkg/controller/endpoint/endpoints_controller.go`, `syncService`.)
async fn forget_endpoints(context: &Context, key: &Key) -> kube::Result<()> {
    let Some(left) = context.informers.of::<Endpoints>().get(key) else { return Ok(()) };
    // The lock of an old client's leader election holds no addresses.
    if left.annotations().contains_key(LEADER) {
        return Ok(());
    }
    tracing::debug!(service = %key, "deleting the Endpoints of a Service that is gone");
    write::delete(context, &*left).await
}

async fn write_endpoints(context: &Context, service: &Service, behind: &[Arc<Pod>]) -> kube::Result<()> {
    let (subsets, over) = subsets(service, behind);
    let namespace = service.namespace().unwrap_or_default();
    let found = context.informers.of::<Endpoints>().get(&Key::new(&namespace, &service.name_any()));
    let mut labels = service.labels().clone();
    labels.insert(ENDPOINTS_MANAGED_BY.into(), ENDPOINTS_MANAGER.into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    let annotations = over.then(|| BTreeMap::from([(OVER_CAPACITY.to_owned(), "truncated".to_owned())]));
    let subsets = (!subsets.is_empty()).then_some(subsets);
    match found {
        None => {
            let metadata = ObjectMeta {
                name: Some(service.name_any()),
                labels: Some(labels),
                annotations,
                ..ObjectMeta::default()
            };
            match write::create(context, &namespace, &Endpoints { metadata, subsets }).await {
                Err(error) if !write::is(&error, 409) => Err(error),
                _ => Ok(()),
            }
        }
        Some(old) if old.subsets == subsets && old.labels() == &labels => Ok(()),
        Some(old) => {
            let mut new = (*old).clone();
            (new.subsets, new.metadata.labels) = (subsets, Some(labels));
            write::replace(context, &new).await.map(drop)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service() -> Service {
        serde_json::from_value(
            json!({"metadata": {"name": "s"}, "spec": {"selector": {"app": "a"}, "clusterIP": "10.43.0.9",
            "ports": [{"name": "http", "port": 80, "targetPort": "web"}]}}),
        )
        .unwrap()
    }

    fn pod(name: &str, ip: &str, port: i32, ready: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"app": "a"}},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port}]}]},
            "status": {"podIP": ip, "phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap(),
        )
    }

    #[test]
    fn pods_are_grouped_by_where_their_named_port_leads() {
        let pods = [
            pod("b", "10.42.0.2", 8080, "True"),
            pod("a", "10.42.0.1", 8080, "False"),
            pod("c", "10.42.0.3", 9090, "True"),
            pod("d", "", 1, "True"),
        ];
        let plan = plan(&service(), &pods);
        let shown: Vec<_> = plan
            .iter()
            .map(|(ports, all)| {
                (
                    ports[0].port.unwrap(),
                    all.iter()
                        .map(|e| (&*e.addresses[0], e.conditions.as_ref().unwrap().ready.unwrap()))
                        .collect::<Vec<_>>(),
                )
            })
            .collect();
        assert_eq!(shown, [(8080, vec![("10.42.0.1", false), ("10.42.0.2", true)]), (9090, vec![("10.42.0.3", true)])]);
        let (subsets, over) = subsets(&service(), &pods);
        assert_eq!((subsets.len(), over), (2, false));
        assert_eq!(subsets[0].not_ready_addresses.as_ref().unwrap()[0].ip, "10.42.0.1");
    }

    #[test]
    fn slices_are_cut_and_an_empty_service_has_one() {
        assert_eq!(plan(&service(), &[]).len(), 1);
        let pods: Vec<_> = (0..250).map(|n| pod(&format!("p{n:03}"), &format!("10.42.1.{n}"), 80, "True")).collect();
        let sizes: Vec<usize> = plan(&service(), &pods).iter().map(|(_, all)| all.len()).collect();
        assert_eq!(sizes, [100, 100, 50]);
    }
}
