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

/// The condition `kind` as it is after, if its status or its reason is another than before: what is worth an event.
pub fn turned<'a>(kind: &str, before: &[Condition], after: &'a [Condition]) -> Option<&'a Condition> {
    let now = after.iter().find(|condition| condition.type_ == kind)?;
    let same = |old: &Condition| (&old.type_, &old.status, &old.reason) == (&now.type_, &now.status, &now.reason);
    (!before.iter().any(same)).then_some(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_status_or_reason_is_a_turn_and_another_message_is_none() {
        let with = |holds, reason, message| {
            let mut all = Vec::new();
            set_condition(&mut all, ("Ready", holds), (reason, message), None, Timestamp::UNIX_EPOCH);
            all
        };
        let reason =
            |before: &[Condition], after: &[Condition]| turned("Ready", before, after).map(|c| c.reason.clone());
        let lost = with(false, "Lost", "a");
        assert_eq!(reason(&[], &lost).as_deref(), Some("Lost"));
        assert_eq!(reason(&lost, &with(false, "Lost", "b")), None);
        assert_eq!(reason(&lost, &with(false, "Torn", "a")).as_deref(), Some("Torn"));
        assert_eq!(reason(&lost, &with(true, "Lost", "a")).as_deref(), Some("Lost"));
        assert_eq!(reason(&lost, &[]), None);
    }

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
