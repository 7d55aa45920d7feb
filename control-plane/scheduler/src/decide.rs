//! Where a pod should run. Pure. (`pkg/scheduler/schedule_one.go`.)

use std::collections::BTreeMap;

use crate::framework::{Event, Refusal};
use crate::plugins;
use crate::snapshot::{NodeView, PodView, Snapshot};

/// What came of looking for a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// This one.
    Node(String),
    /// None at present.
    Nowhere {
        /// What the pod's condition says: `0/3 nodes are available: 2 Insufficient cpu, …`.
        message: String,
        /// The events that could change it.
        cures: Vec<Event>,
    },
}

/// Filters the nodes, scores those left, and takes the best; `tie` chooses among equals.
pub fn decide(pod: &PodView, snapshot: &Snapshot, tie: u64) -> Decision {
    let plugins = plugins::all();
    for plugin in plugins {
        if let Err(refusal) = plugin.prefilter(pod, snapshot) {
            return Decision::Nowhere { message: refusal.reason, cures: plugin.cures().to_vec() };
        }
    }
    let mut fitting: Vec<&NodeView> = Vec::new();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut cures: Vec<Event> = Vec::new();
    let mut count = 0;
    for node in snapshot.nodes() {
        count += 1;
        // The first plugin that refuses speaks for the node.
        let refused = plugins.iter().find_map(|plugin| {
            let refusal: Refusal = plugin.filter(pod, node, snapshot).err()?;
            Some((refusal, plugin.cures()))
        });
        match refused {
            None => fitting.push(node),
            Some((refusal, by)) => {
                for reason in refusal.reason.split('\n') {
                    *reasons.entry(reason.to_owned()).or_insert(0) += 1;
                }
                cures.extend(by.iter().filter(|event| !cures.contains(event)).copied().collect::<Vec<_>>());
            }
        }
    }
    match fitting[..] {
        [] => Decision::Nowhere {
            message: explain(count, &reasons),
            cures: if count == 0 { vec![Event::Node] } else { cures },
        },
        [only] => Decision::Node(only.name.clone()),
        _ => Decision::Node(best(pod, &fitting, snapshot, tie)),
    }
}

fn best(pod: &PodView, fitting: &[&NodeView], snapshot: &Snapshot, tie: u64) -> String {
    let mut totals = vec![0; fitting.len()];
    for plugin in plugins::all() {
        if let Some(scores) = plugin.scores(pod, fitting, snapshot) {
            totals.iter_mut().zip(scores).for_each(|(total, score)| *total += score * plugin.weight());
        }
    }
    let most = totals.iter().copied().max().unwrap_or(0);
    let equals: Vec<&&NodeView> =
        fitting.iter().zip(&totals).filter(|(_, total)| **total == most).map(|(node, _)| node).collect();
    equals[(tie % equals.len() as u64) as usize].name.clone()
}

/// The message of upstream's `FitError`.
fn explain(nodes: usize, reasons: &BTreeMap<String, usize>) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".into();
    }
    let mut listed: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    listed.sort();
    format!("0/{nodes} nodes are available: {}.", listed.join(", "))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use serde_json::{Value, json};

    fn node(name: &str, cpu: &str, more: &Value) -> Value {
        let mut node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"allocatable": {"cpu": cpu, "memory": "4Gi", "pods": "10"}}});
        json_merge(&mut node, more);
        node
    }

    fn json_merge(into: &mut Value, more: &Value) {
        match (into, more) {
            (Value::Object(into), Value::Object(more)) => {
                for (key, value) in more {
                    json_merge(into.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
            (into, more) => *into = more.clone(),
        }
    }

    fn pod(name: &str, spec: &Value) -> PodView {
        let mut full = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]});
        json_merge(&mut full, spec);
        PodView::new(Arc::new(
            serde_json::from_value(
                json!({"metadata": {"name": name, "namespace": "d", "labels": {"app": "a"}}, "spec": full}),
            )
            .unwrap(),
        ))
    }

    fn check(nodes: &[Value], placed: &[(&str, Value)], spec: Value, expected: &str) {
        let mut snapshot = Snapshot::default();
        for node in nodes {
            snapshot.put_node(Arc::new(serde_json::from_value(node.clone()).unwrap()));
        }
        for (index, (node, spec)) in placed.iter().enumerate() {
            snapshot.place(pod(&format!("p{index}"), spec), node);
        }
        let found = match decide(&pod("new", &spec), &snapshot, 0) {
            Decision::Node(name) => name,
            Decision::Nowhere { message, .. } => message,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn pods_go_where_there_is_room_and_most_of_it() {
        let nodes = [node("a", "2", &json!({})), node("b", "4", &json!({}))];
        check(&nodes, &[], json!({}), "b");
        check(&nodes, &[("b", json!({})), ("b", json!({})), ("b", json!({}))], json!({}), "a");
        let big = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "8"}}}]});
        check(&nodes, &[], big, "0/2 nodes are available: 2 Insufficient cpu.");
        check(&[], &[], json!({}), "no nodes available to schedule pods");
    }

    #[test]
    fn taints_selectors_and_cordons_keep_pods_away() {
        let tainted =
            node("a", "4", &json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}}));
        let cordoned = node("b", "4", &json!({"spec": {"unschedulable": true}}));
        let labelled = node("c", "4", &json!({"metadata": {"labels": {"disk": "ssd"}}}));
        let tolerates = json!({"tolerations": [{"key": "k", "operator": "Exists"}], "nodeSelector": {"kubernetes.io/hostname": "a"}});
        check(
            std::slice::from_ref(&tainted),
            &[],
            json!({}),
            "0/1 nodes are available: 1 node(s) had untolerated taint(s).",
        );
        check(&[tainted.clone(), cordoned.clone()], &[], tolerates, "a");
        check(
            std::slice::from_ref(&cordoned),
            &[],
            json!({}),
            "0/1 nodes are available: 1 node(s) were unschedulable.",
        );
        check(&[tainted, cordoned, labelled], &[], json!({"nodeSelector": {"disk": "ssd"}}), "c");
    }

    #[test]
    fn affinity_ports_and_spreading_are_honoured() {
        let nodes = [node("a", "9", &json!({})), node("b", "9", &json!({}))];
        let term = |operator: &str, values: Value| {
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": operator, "values": values}]}]}}}})
        };
        check(&nodes, &[], term("NotIn", json!(["b"])), "a");
        check(
            &nodes,
            &[],
            term("In", json!(["z"])),
            "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.",
        );
        let port = json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80}]}]});
        check(&nodes, &[("a", port.clone())], port.clone(), "b");
        check(
            &nodes,
            &[("a", port.clone()), ("b", port.clone())],
            port,
            "0/2 nodes are available: 2 node(s) didn't have free ports for the requested pod ports.",
        );
        let spread = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "a"}}}]});
        check(&nodes, &[("a", json!({}))], spread.clone(), "b");
        let only_a = json!({"nodeSelector": {"kubernetes.io/hostname": "a"}, "topologySpreadConstraints": spread["topologySpreadConstraints"]});
        check(&nodes, &[("a", json!({})), ("a", json!({}))], only_a, "a");
    }

    #[test]
    fn what_no_plugin_understands_is_said_and_not_ignored() {
        let inter = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]}}});
        let nodes = [node("a", "9", &json!({}))];
        check(&nodes, &[], inter, "spec.affinity.podAffinity is not supported by this scheduler yet");
        check(
            &nodes,
            &[],
            json!({"schedulingGates": [{"name": "wait"}]}),
            "Scheduling is blocked due to non-empty scheduling gates",
        );
    }
}
