//! What a site says of itself: its release and its nodes, in sum.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kedge_wire::report::{About, Inventory};

/// The report.
pub(crate) fn about(nodes: &[Arc<Node>]) -> About {
    let ready = |node: &&Arc<Node>| {
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let sum = |resource: &str, scale: i64| {
        let amounts = nodes.iter().filter_map(|node| node.status.as_ref()?.capacity.as_ref()?.get(resource));
        amounts.filter_map(|amount| amount_of(amount, scale)).sum()
    };
    let inventory = Inventory {
        nodes: nodes.len() as i64,
        nodes_ready: nodes.iter().filter(ready).count() as i64,
        cpu_millis: sum("cpu", 1000),
        memory_bytes: sum("memory", 1),
    };
    About { version: env!("CARGO_PKG_VERSION").into(), inventory: Some(inventory) }
}

/// A quantity as nodes write their capacity: whole numbers, `m`, and the binary suffixes. Times `scale`.
fn amount_of(quantity: &Quantity, scale: i64) -> Option<i64> {
    let text = quantity.0.as_str();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: i64 = digits.parse().ok()?;
    match &text[digits.len()..] {
        "" => number.checked_mul(scale),
        "m" => number.checked_mul(scale).map(|number| number / 1000),
        "Ki" => number.checked_mul(scale << 10),
        "Mi" => number.checked_mul(scale << 20),
        "Gi" => number.checked_mul(scale << 30),
        "Ti" => number.checked_mul(scale << 40),
        _ => None,
    }
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
