//! Service: a name and an address for a set of pods.
//! (`SetDefaults_Service`, `pkg/registry/core/service/strategy.go`, `printService`.)
//!
//! Addresses and node ports are taken when the service is written, by admission, which sees all services.

use std::borrow::Cow;
use std::collections::BTreeSet;

use jiff::Timestamp;
use kedge_schema::field::FieldError;
use serde_json::{Value, json};

use super::fill::{count, fill, keep_spec, labels_text, len, or_none, text};
use super::{Column, Names, Rules};
use crate::object;

pub(crate) mod change;
pub(super) mod valid;

/// Three hours (`DefaultClientIPServiceAffinitySeconds`).
const AFFINITY_SECONDS: i64 = 10_800;

pub(super) struct Service;

impl Rules for Service {
    fn default(&self, service: &mut Value) {
        let Some(spec) = service.get_mut("spec").filter(|spec| spec.is_object()) else { return };
        fill(spec, "sessionAffinity", "None");
        match text(&spec["sessionAffinity"]) {
            "None" => drop(object::as_map(spec).remove("sessionAffinityConfig")),
            "ClientIP" if spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].is_null() => {
                spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": AFFINITY_SECONDS}});
            }
            _ => {}
        }
        fill(spec, "type", "ClusterIP");
        for port in object::items_mut(spec, "ports") {
            fill(port, "protocol", "TCP");
            let number = port["port"].clone();
            fill(port, "targetPort", number);
        }
        let kind = text(&spec["type"]).to_owned();
        let external =
            matches!(&*kind, "NodePort" | "LoadBalancer") || kind == "ClusterIP" && len(&spec["externalIPs"]) > 0;
        if external {
            fill(spec, "externalTrafficPolicy", "Cluster");
        }
        if matches!(&*kind, "ClusterIP" | "NodePort" | "LoadBalancer") {
            object::default(spec, "internalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            object::default(spec, "allocateLoadBalancerNodePorts", true);
        }
    }

    fn prepare_create(&self, service: &mut Value) {
        object::as_map(service).remove("status");
        // Older clients know only the one address.
        let one = text(&service["spec"]["clusterIP"]).to_owned();
        if !one.is_empty() && len(&service["spec"]["clusterIPs"]) == 0 {
            service["spec"]["clusterIPs"] = json!([one]);
        }
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        object::carry_over(new, old, "status");
        change::keep(new, old);
    }

    fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        keep_spec(new, old);
    }

    fn validate(&self, service: &Value) -> Vec<FieldError> {
        valid::validate(service)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        valid::validate_update(new, old)
    }

    fn creates_on_update(&self) -> bool {
        true
    }

    fn selectable(&self) -> Cow<'_, [(Cow<'static, str>, &'static str)]> {
        Cow::Borrowed(&[(Cow::Borrowed("spec.clusterIP"), ""), (Cow::Borrowed("spec.type"), "")])
    }

    fn has_status(&self) -> bool {
        true
    }

    fn names(&self) -> Names {
        Names::Label
    }

    fn columns(&self) -> Cow<'_, [Column]> {
        const COLUMNS: &[Column] = &[
            Column::text("Type"),
            Column::text("Cluster-IP"),
            Column::text("External-IP"),
            Column::text("Port(s)"),
            Column::wide("Selector"),
        ];
        Cow::Borrowed(COLUMNS)
    }

    fn row(&self, service: &Value, _now: Timestamp) -> Vec<Value> {
        let spec = &service["spec"];
        vec![
            text(&spec["type"]).into(),
            or_none(text(&spec["clusterIPs"][0])),
            external(service).into(),
            or_none(&ports(spec)),
            labels_text(&spec["selector"]),
        ]
    }
}

fn external(service: &Value) -> String {
    let spec = &service["spec"];
    let own: Vec<String> = object::items(spec, "externalIPs").map(|ip| text(ip).to_owned()).collect();
    match text(&spec["type"]) {
        "ClusterIP" | "NodePort" if own.is_empty() => "<none>".into(),
        "ClusterIP" | "NodePort" => own.join(","),
        "LoadBalancer" => {
            let ingress = object::items(&service["status"]["loadBalancer"], "ingress");
            let address = |entry: &Value| {
                [&entry["ip"], &entry["hostname"]].map(text).into_iter().find(|t| !t.is_empty()).map(str::to_owned)
            };
            let balanced: BTreeSet<String> = ingress.filter_map(address).collect();
            let all: Vec<String> = balanced.into_iter().chain(own).collect();
            if all.is_empty() { "<pending>".into() } else { all.join(",") }
        }
        "ExternalName" => text(&spec["externalName"]).to_owned(),
        _ => "<unknown>".into(),
    }
}

fn ports(spec: &Value) -> String {
    let port = |port: &Value| {
        let node_port = count(&port["nodePort"]);
        let node_port = if node_port > 0 { format!(":{node_port}") } else { String::new() };
        format!("{}{node_port}/{}", count(&port["port"]), text(&port["protocol"]))
    };
    object::items(spec, "ports").map(port).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        let check = |service: Value, expected: [&str; 4]| {
            assert_eq!(Service.row(&service, Timestamp::UNIX_EPOCH)[..4], expected.map(Value::from), "{service}");
        };
        let ports = json!([{"port": 80, "protocol": "TCP", "nodePort": 30080}, {"port": 53, "protocol": "UDP"}]);
        check(
            json!({"spec": {"type": "NodePort", "clusterIPs": ["10.43.0.9"], "ports": ports}}),
            ["NodePort", "10.43.0.9", "<none>", "80:30080/TCP,53/UDP"],
        );
        check(
            json!({"spec": {"type": "LoadBalancer", "clusterIPs": ["None"]}}),
            ["LoadBalancer", "None", "<pending>", "<none>"],
        );
        check(
            json!({"spec": {"type": "ExternalName", "externalName": "a.b"}}),
            ["ExternalName", "<none>", "a.b", "<none>"],
        );
        check(
            json!({"spec": {"type": "LoadBalancer", "externalIPs": ["1.2.3.4"]}, "status": {"loadBalancer": {"ingress": [{"hostname": "x"}]}}}),
            ["LoadBalancer", "<none>", "x,1.2.3.4", "<none>"],
        );
    }
}
