//! Conditions: what is true of an object, since when and why.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// Sets the condition `kind`; its transition time is `now` only when its status changes.
/// (`apimachinery/pkg/api/meta/conditions.go`, SetStatusCondition.)
pub fn set_condition(
    conditions: &mut Vec<Condition>,
    (kind, holds): (&str, bool),
    (reason, message): (&str, &str),
    generation: Option<i64>,
    now: Timestamp,
) {
    let status = if holds { "True" } else { "False" };
    let previous = conditions.iter().position(|condition| condition.type_ == kind);
    let since = previous.map(|at| &conditions[at]).filter(|old| old.status == status);
    let condition = Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: generation,
        last_transition_time: since.map_or(Time(now), |old| old.last_transition_time.clone()),
    };
    match previous {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_changed_status_moves_the_transition_time() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut conditions = Vec::new();
        set_condition(&mut conditions, ("Ready", false), ("A", "a"), Some(1), at(1));
        set_condition(&mut conditions, ("Ready", false), ("B", "b"), Some(1), at(2));
        assert_eq!((conditions[0].reason.as_str(), conditions[0].last_transition_time.0), ("B", at(1)));
        set_condition(&mut conditions, ("Ready", true), ("C", "c"), Some(2), at(3));
        assert_eq!((conditions.len(), conditions[0].last_transition_time.0), (1, at(3)));
    }
}
