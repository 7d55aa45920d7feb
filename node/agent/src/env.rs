//! A container's environment and command: values, references, the downward API, Services, and `$(NAME)`.
//!
//! Rules: `pkg/kubelet/kubelet_pods.go` (makeEnvironmentVariables), `third_party/forked/golang/expansion`,
//! `pkg/fieldpath`, `pkg/kubelet/envvars`.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, ObjectFieldSelector, Pod, ResourceFieldSelector, Secret, Service,
};
use kedge_schema::quantity::Quantity;

use crate::resources;

/// What a container's environment may refer to.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The namespace's ConfigMaps that the pod names, as far as they exist.
    pub config_maps: BTreeMap<String, ConfigMap>,
    /// The namespace's Secrets that the pod names, as far as they exist.
    pub secrets: BTreeMap<String, Secret>,
    /// The namespace's Services, and the API server's own.
    pub services: Vec<Service>,
    /// The node's name.
    pub node_name: String,
    /// The node's addresses.
    pub host_ips: Vec<String>,
    /// The pod's addresses.
    pub pod_ips: Vec<String>,
    /// What the node can give in all, in thousandths, by resource: what an absent limit means.
    pub allocatable: BTreeMap<String, i64>,
}

/// Why a container cannot be made yet; a pod waits with `CreateContainerConfigError`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// The environment of a container, in order.
pub fn environment(pod: &Pod, container: &Container, sources: &Sources) -> Result<Vec<(String, String)>, ConfigError> {
    let enabled = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let services = service_variables(&sources.services, pod.metadata.namespace.as_deref().unwrap_or_default(), enabled);
    // Later sources win, and what is set here wins over Services.
    let mut from: BTreeMap<String, String> = BTreeMap::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let pairs = if let Some(reference) = &source.config_map_ref {
            let map = find("configmap", &sources.config_maps, &reference.name, reference.optional)?;
            map.map(|map| map.data.clone().unwrap_or_default()).unwrap_or_default()
        } else if let Some(reference) = &source.secret_ref {
            let secret = find("secret", &sources.secrets, &reference.name, reference.optional)?;
            let data = secret.and_then(|secret| secret.data.clone()).unwrap_or_default();
            data.into_iter().map(|(key, value)| (key, text(&value))).collect()
        } else {
            BTreeMap::new()
        };
        from.extend(pairs.into_iter().map(|(key, value)| (format!("{prefix}{key}"), value)));
    }
    let mut known: BTreeMap<String, String> = services.clone();
    known.extend(from.clone());
    let mut result: Vec<(String, String)> = Vec::new();
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value_from, &variable.value) {
            (None, value) => expand(value.as_deref().unwrap_or_default(), &known),
            (Some(source), _) => {
                let value = if let Some(field) = &source.field_ref {
                    Some(field_value(pod, field, sources)?)
                } else if let Some(resource) = &source.resource_field_ref {
                    Some(resource_value(pod, container, resource, sources)?)
                } else if let Some(key) = &source.config_map_key_ref {
                    let map = find("configmap", &sources.config_maps, &key.name, key.optional)?;
                    let value = map.and_then(|map| map.data.as_ref()?.get(&key.key).cloned());
                    or_optional(value, key.optional, || {
                        format!("couldn't find key {} in ConfigMap {}/{}", key.key, namespace(pod), key.name)
                    })?
                } else if let Some(key) = &source.secret_key_ref {
                    let secret = find("secret", &sources.secrets, &key.name, key.optional)?;
                    let value = secret.and_then(|secret| secret.data.as_ref()?.get(&key.key).map(text));
                    or_optional(value, key.optional, || {
                        format!("couldn't find key {} in Secret {}/{}", key.key, namespace(pod), key.name)
                    })?
                } else {
                    return Err(ConfigError(format!("env {}: this kind of valueFrom is not supported", variable.name)));
                };
                match value {
                    Some(value) => value,
                    None => continue,
                }
            }
        };
        known.insert(variable.name.clone(), value.clone());
        result.retain(|(name, _)| *name != variable.name);
        result.push((variable.name.clone(), value));
    }
    for (name, value) in from.into_iter().chain(services) {
        if !result.iter().any(|(known, _)| *known == name) {
            result.push((name, value));
        }
    }
    Ok(result)
}

fn text(bytes: &ByteString) -> String {
    String::from_utf8_lossy(&bytes.0).into_owned()
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

fn find<'a, T>(
    kind: &str,
    all: &'a BTreeMap<String, T>,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<&'a T>, ConfigError> {
    or_optional(all.get(name), optional, || format!("{kind} \"{name}\" not found"))
}

fn or_optional<T>(
    found: Option<T>,
    optional: Option<bool>,
    missing: impl FnOnce() -> String,
) -> Result<Option<T>, ConfigError> {
    match found {
        None if optional != Some(true) => Err(ConfigError(missing())),
        found => Ok(found),
    }
}

/// Replaces `$(NAME)` of what is known; `$$` is one `$`, and what is not known stays as it is.
pub fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match known.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

/// The value of a pod's field, by the paths that the downward API knows.
pub fn field_value(pod: &Pod, field: &ObjectFieldSelector, sources: &Sources) -> Result<String, ConfigError> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let first = |list: &[String]| list.first().cloned().unwrap_or_default();
    let map_key = |path: &str, kind: &str| -> Option<String> {
        path.strip_prefix(kind)?.strip_prefix("['")?.strip_suffix("']").map(str::to_owned)
    };
    let path = field.field_path.as_str();
    if let Some(key) = map_key(path, "metadata.labels") {
        return Ok(meta.labels.as_ref().and_then(|labels| labels.get(&key).cloned()).unwrap_or_default());
    }
    if let Some(key) = map_key(path, "metadata.annotations") {
        return Ok(meta.annotations.as_ref().and_then(|all| all.get(&key).cloned()).unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "spec.nodeName" => sources.node_name.clone(),
        "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default(),
        "status.hostIP" => first(&sources.host_ips),
        "status.hostIPs" => sources.host_ips.join(","),
        "status.podIP" => first(&sources.pod_ips),
        "status.podIPs" => sources.pod_ips.join(","),
        other => return Err(ConfigError(format!("unsupported fieldPath: {other}"))),
    })
}

/// One `key="value"` a line, sorted, the value as Go quotes it.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", go_quote(value)));
    lines.collect::<Vec<_>>().join("\n")
}

fn go_quote(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A container's own request or limit, divided and rounded up.
pub fn resource_value(
    pod: &Pod,
    own: &Container,
    field: &ResourceFieldSelector,
    sources: &Sources,
) -> Result<String, ConfigError> {
    let spec = pod.spec.as_ref();
    let container = match field.container_name.as_deref().filter(|name| !name.is_empty()) {
        None => own,
        Some(name) => spec
            .and_then(|spec| spec.init_containers.iter().flatten().chain(&spec.containers).find(|c| c.name == name))
            .ok_or_else(|| ConfigError(format!("container {name} not found")))?,
    };
    let (limits, name) = match field.resource.split_once('.') {
        Some(("limits", name)) => (true, name),
        Some(("requests", name)) => (false, name),
        _ => return Err(ConfigError(format!("unsupported container resource : {}", field.resource))),
    };
    let whole = || if limits { sources.allocatable.get(name).copied() } else { Some(0) };
    let milli = resources::amount(container, limits, name).or_else(whole).unwrap_or(0);
    let divisor = field.divisor.as_ref().and_then(|divisor| Quantity::parse(&divisor.0).ok());
    let divisor = divisor.map(|divisor| divisor.milli_value()).filter(|milli| *milli > 0).unwrap_or(1000);
    Ok(milli.unsigned_abs().div_ceil(divisor.unsigned_abs()).to_string())
}

/// The variables that tell a container where the Services of its namespace are, as Docker's links did.
fn service_variables(services: &[Service], namespace: &str, enabled: bool) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let (name, own) = (service.metadata.name.as_deref().unwrap_or_default(), service.metadata.namespace.as_deref());
        let is_master = name == "kubernetes" && own == Some("default");
        let ip = spec.cluster_ip.as_deref().unwrap_or_default();
        if ip.is_empty() || ip == "None" || !(is_master || enabled && own == Some(namespace)) {
            continue;
        }
        let prefix = name.to_uppercase().replace('-', "_");
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        let mut set = |suffix: &str, value: String| drop(variables.insert(format!("{prefix}_{suffix}"), value));
        set("SERVICE_HOST", ip.to_owned());
        set("SERVICE_PORT", first.port.to_string());
        let address = |protocol: &str, port: i32| format!("{}://{host}:{port}", protocol.to_lowercase());
        let protocol = |protocol: &Option<String>| protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        set("PORT", address(&protocol(&first.protocol), first.port));
        for port in ports {
            if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                set(&format!("SERVICE_PORT_{}", name.to_uppercase().replace('-', "_")), port.port.to_string());
            }
            let kind = protocol(&port.protocol);
            let stem = format!("PORT_{}_{kind}", port.port);
            set(&stem, address(&kind, port.port));
            set(&format!("{stem}_PROTO"), kind.to_lowercase());
            set(&format!("{stem}_PORT"), port.port.to_string());
            set(&format!("{stem}_ADDR"), ip.to_owned());
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sources() -> Sources {
        let read = |value| serde_json::from_value(value).unwrap();
        Sources {
            config_maps: BTreeMap::from([(
                "cm".into(),
                serde_json::from_value(json!({"data": {"a": "1", "b": "2"}})).unwrap(),
            )]),
            secrets: BTreeMap::from([(
                "s".into(),
                serde_json::from_value(json!({"data": {"pw": "c2VjcmV0"}})).unwrap(),
            )]),
            services: vec![
                read(
                    json!({"metadata": {"name": "web-app", "namespace": "ns"}, "spec": {"clusterIP": "10.43.0.9", "ports": [{"name": "http-x", "port": 80}]}}),
                ),
                read(
                    json!({"metadata": {"name": "kubernetes", "namespace": "default"}, "spec": {"clusterIP": "10.43.0.1", "ports": [{"port": 443, "protocol": "TCP"}]}}),
                ),
                read(
                    json!({"metadata": {"name": "other", "namespace": "elsewhere"}, "spec": {"clusterIP": "10.43.0.2", "ports": [{"port": 1}]}}),
                ),
                read(
                    json!({"metadata": {"name": "headless", "namespace": "ns"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}}),
                ),
            ],
            node_name: "n1".into(),
            host_ips: vec!["192.0.2.1".into()],
            pod_ips: vec!["10.42.0.5".into(), "fd00::5".into()],
            allocatable: BTreeMap::from([("cpu".into(), 2000)]),
        }
    }

    fn run(container: serde_json::Value) -> Result<BTreeMap<String, String>, ConfigError> {
        let mut whole = json!({"name": "main", "resources": {"limits": {"memory": "64Mi"}}});
        whole.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"a": "x\"y"}, "annotations": {"k/z": "1"}},
            "spec": {"containers": [whole], "serviceAccountName": "sa"},
        }))
        .unwrap();
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        Ok(environment(&pod, &container, &sources())?.into_iter().collect())
    }

    fn check(env: serde_json::Value, expected: &str) {
        let mut entry = json!({"name": "X"});
        entry.as_object_mut().unwrap().extend(env.as_object().unwrap().clone());
        assert_eq!(run(json!({"env": [{"name": "BEFORE", "value": "b"}, entry]})).unwrap()["X"], expected, "{env}");
    }

    #[test]
    fn values_come_from_everywhere() {
        check(json!({"value": "plain"}), "plain");
        check(json!({"value": "$(BEFORE)-$(X)-$$(BEFORE)-$(WEB_APP_SERVICE_HOST)"}), "b-$(X)-$(BEFORE)-10.43.0.9");
        check(json!({"valueFrom": {"configMapKeyRef": {"name": "cm", "key": "a"}}}), "1");
        check(json!({"valueFrom": {"secretKeyRef": {"name": "s", "key": "pw"}}}), "secret");
        check(json!({"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}), "p");
        check(json!({"valueFrom": {"fieldRef": {"fieldPath": "metadata.labels"}}}), "a=\"x\\\"y\"");
        check(json!({"valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['k/z']"}}}), "1");
        check(json!({"valueFrom": {"fieldRef": {"fieldPath": "status.podIPs"}}}), "10.42.0.5,fd00::5");
        check(json!({"valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}), "n1");
        check(json!({"valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}}), "67108864");
        check(json!({"valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}}), "64");
        check(json!({"valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}}), "2000");
        check(json!({"valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}}}), "0");
    }

    #[test]
    fn sources_are_merged_and_services_added() {
        let all = run(json!({
            "envFrom": [{"configMapRef": {"name": "cm"}, "prefix": "P_"}, {"secretRef": {"name": "s"}}, {"secretRef": {"name": "none", "optional": true}}],
            "env": [{"name": "P_a", "value": "mine"}],
        }))
        .unwrap();
        assert_eq!((all["P_a"].as_str(), all["P_b"].as_str(), all["pw"].as_str()), ("mine", "2", "secret"));
        assert_eq!(all["KUBERNETES_SERVICE_PORT"], "443");
        assert_eq!(all["WEB_APP_PORT_80_TCP"], "tcp://10.43.0.9:80");
        assert_eq!(all["WEB_APP_SERVICE_PORT_HTTP_X"], "80");
        assert!(!all.keys().any(|key| key.starts_with("OTHER") || key.starts_with("HEADLESS")), "{all:?}");
    }

    #[test]
    fn what_is_missing_is_named() {
        for (container, expected) in [
            (
                json!({"env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "a"}}}]}),
                "configmap \"no\" not found",
            ),
            (
                json!({"env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "z"}}}]}),
                "couldn't find key z in ConfigMap ns/cm",
            ),
            (json!({"envFrom": [{"secretRef": {"name": "no"}}]}), "secret \"no\" not found"),
            (
                json!({"env": [{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]}),
                "unsupported fieldPath: spec.x",
            ),
        ] {
            assert_eq!(run(container).unwrap_err().0, expected);
        }
        let optional = json!({"env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "a", "optional": true}}}]});
        assert!(!run(optional).unwrap().contains_key("X"));
    }

    #[test]
    fn expansion_leaves_what_it_does_not_know() {
        let known = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        for (text, expected) in [
            ("$(A)", "1"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("a$", "a$"),
            ("$$$(A)", "$1"),
        ] {
            assert_eq!(expand(text, &known), expected, "{text}");
        }
    }
}
