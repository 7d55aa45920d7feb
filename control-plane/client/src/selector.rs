//! Label selectors of typed objects, for every client alike. (`metav1.LabelSelectorAsSelector`.)

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Whether a label selector selects these labels. One that selects nothing and one that is missing select no pod.
pub fn selects(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let value = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
    let equal = selector.match_labels.iter().flatten().all(|(key, wanted)| value(key) == Some(wanted));
    equal
        && selector.match_expressions.iter().flatten().all(|rule| {
            let listed = |found: &str| rule.values.iter().flatten().any(|wanted| wanted == found);
            match &*rule.operator {
                "In" => value(&rule.key).is_some_and(listed),
                "NotIn" => !value(&rule.key).is_some_and(listed),
                "Exists" => value(&rule.key).is_some(),
                "DoesNotExist" => value(&rule.key).is_none(),
                _ => false,
            }
        })
}
