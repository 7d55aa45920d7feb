//! Tables: what `kubectl get` prints. The server decides the columns (`meta.k8s.io/v1` Table).

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::object;
use crate::registry::Kind;

/// What each row carries of its object (`includeObject`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Include {
    /// Nothing.
    None,
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
}

impl Include {
    /// Reads the query parameter.
    pub(crate) fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("Metadata") => Some(Self::Metadata),
            Some("None") => Some(Self::None),
            Some("Object") => Some(Self::Object),
            Some(_) => None,
        }
    }
}

/// A table of `objects`. `metadata` is that of the list (or empty for a single object); `headings` is off in the
/// later events of a watch.
pub(crate) fn table(
    kind: &Kind,
    objects: &[Value],
    metadata: Value,
    include: Include,
    headings: bool,
    now: Timestamp,
) -> Value {
    let rows: Vec<Value> = objects.iter().map(|object| row(kind, object, include, now)).collect();
    let columns = if headings { columns(kind) } else { Vec::new() };
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": columns, "rows": rows,
    })
}

fn columns(kind: &Kind) -> Vec<Value> {
    let column = |name: &str, kind: &str, format: &str, priority: i32| json!({"name": name, "type": kind, "format": format, "description": "", "priority": priority});
    let own = kind.rules.get().columns();
    if kind.rules.get().whole_table() {
        let format = |name: &str| if name == "Name" { "name" } else { "" };
        return own.iter().map(|c| column(&c.name, &c.kind, format(&c.name), c.priority)).collect();
    }
    let mut out = vec![column("Name", "string", "name", 0)];
    out.extend(own.iter().filter(|c| c.priority == 0).map(|c| column(&c.name, &c.kind, "", c.priority)));
    if !own.iter().any(|c| c.name == "Age") {
        out.push(column("Age", "string", "", 0));
    }
    out.extend(own.iter().filter(|c| c.priority != 0).map(|c| column(&c.name, &c.kind, "", c.priority)));
    out
}

fn row(kind: &Kind, object: &Value, include: Include, now: Timestamp) -> Value {
    let rules = kind.rules.get();
    let own = rules.columns();
    let cells = rules.row(object, now);
    debug_assert_eq!(own.len(), cells.len(), "{}: one cell per column", kind.resource.kind);
    let of =
        |shown: bool| own.iter().zip(&cells).filter(move |(c, _)| (c.priority == 0) == shown).map(|(_, v)| v.clone());
    let mut out = Vec::with_capacity(own.len() + 2);
    if rules.whole_table() {
        out.extend(cells.iter().cloned());
    } else {
        out.push(Value::from(object::name(object)));
        out.extend(of(true));
        if !own.iter().any(|c| c.name == "Age") {
            out.push(age(object["metadata"]["creationTimestamp"].as_str().unwrap_or_default(), now).into());
        }
        out.extend(of(false));
    }
    let mut row = json!({ "cells": out });
    match include {
        Include::None => {}
        Include::Metadata => row["object"] = partial(object, "PartialObjectMetadata"),
        Include::Object => row["object"] = object.clone(),
    }
    row
}

/// The object's metadata alone (`PartialObjectMetadata`).
pub(crate) fn partial(object: &Value, kind: &str) -> Value {
    json!({ "kind": kind, "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"] })
}

/// How long ago `since` was, as `kubectl` shows it.
pub(crate) fn age(since: &str, now: Timestamp) -> String {
    match since.parse::<Timestamp>() {
        Ok(then) => human_duration(now.duration_since(then)),
        Err(_) => "<unknown>".into(),
    }
}

/// Two significant units at most (`k8s.io/apimachinery/pkg/util/duration.HumanDuration`).
pub(crate) fn human_duration(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let years = days / 365;
    let pair = |big: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    match seconds {
        ..-1 => "<invalid>".into(),
        -1..0 => "0s".into(),
        0..120 => format!("{seconds}s"),
        120..600 => pair(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => pair(years, "y", days % 365, "d"),
        _ => format!("{years}y"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_kubectl_prints_them() {
        let cases = [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (121, "2m1s"),
            (599, "9m59s"),
            (600, "10m"),
            (3 * 3600 - 1, "179m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (8 * 3600, "8h"),
            (48 * 3600 - 1, "47h"),
            (48 * 3600, "2d"),
            (49 * 3600, "2d1h"),
            (8 * 86_400, "8d"),
            (2 * 365 * 86_400, "2y"),
            (2 * 365 * 86_400 + 86_400, "2y1d"),
            (9 * 365 * 86_400, "9y"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(human_duration(SignedDuration::from_secs(seconds)), expected, "{seconds}");
        }
    }
}
