//! What a site says of itself: its release and its nodes, in sum.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kedge_schema::quantity::Quantity;
use kedge_wire::report::{About, Inventory};

/// The report.
pub(crate) fn about(nodes: &[Arc<Node>]) -> About {
    let ready = |node: &&Arc<Node>| {
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let sum = |resource: &str, amount_of: fn(&Quantity) -> i64| {
        let amounts = nodes.iter().filter_map(|node| node.status.as_ref()?.capacity.as_ref()?.get(resource));
        amounts.filter_map(|amount| Some(amount_of(&Quantity::parse(&amount.0).ok()?))).fold(0, i64::saturating_add)
    };
    let inventory = Inventory {
        nodes: nodes.len() as i64,
        nodes_ready: nodes.iter().filter(ready).count() as i64,
        cpu_millis: sum("cpu", Quantity::milli_value),
        memory_bytes: sum("memory", Quantity::value),
    };
    About { version: env!("CARGO_PKG_VERSION").into(), inventory: Some(inventory) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nodes_are_summed() {
        let node = |cpu: &str, memory: &str, ready: &str| -> Arc<Node> {
            let condition = json!({"type": "Ready", "status": ready});
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": "n"},
                    "status": {"capacity": {"cpu": cpu, "memory": memory}, "conditions": [condition]}}))
                .unwrap(),
            )
        };
        let about = about(&[node("2", "1024Ki", "True"), node("1500m", "1Gi", "Unknown")]);
        let inventory = about.inventory.unwrap();
        assert_eq!((inventory.nodes, inventory.nodes_ready, inventory.cpu_millis), (2, 1, 3500));
        assert_eq!(inventory.memory_bytes, (1 << 20) + (1 << 30));
    }
}
