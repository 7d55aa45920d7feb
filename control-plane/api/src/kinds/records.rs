//! Events, leases and revisions: what parts of the cluster tell and remember
//! (`pkg/apis/{core,coordination,apps}/validation`, `pkg/registry/{core/event,coordination/lease}`).

use std::borrow::Cow;

use kedge_schema::field::{FieldError, Path};
use serde_json::Value;

use super::Column;
use super::check;
use super::fill::{age, containers_text, count, labels_text, or_none, text};
use super::plain::{PLAIN, Plain};
use super::pod_template;
use crate::object;

pub(super) static EVENT: Plain = Plain {
    creates_on_update: true,
    whole_table: true,
    columns: &[
        Column::text("Last Seen"),
        Column::text("Type"),
        Column::text("Reason"),
        Column::text("Object"),
        Column::wide("Subobject"),
        Column::wide("Source"),
        Column::text("Message"),
        Column::wide("First Seen"),
        Column::wide("Count"),
        Column::wide("Name"),
    ],
    row: |event, now| {
        let either = |core: &'static str, events: &'static str| {
            if event[core].is_null() { &event[events] } else { &event[core] }
        };
        let since = |value: &Value| (!value.is_null()).then(|| age(value, now));
        let (first, last) =
            (either("firstTimestamp", "deprecatedFirstTimestamp"), either("lastTimestamp", "deprecatedLastTimestamp"));
        let first = since(first).or_else(|| since(&event["eventTime"])).unwrap_or_else(|| "<unknown>".into());
        let series = &event["series"];
        let last = match series.is_object() {
            true => since(&series["lastObservedTime"]),
            false => since(last),
        };
        let times = match (series.is_object(), count(either("count", "deprecatedCount"))) {
            (true, _) => count(&series["count"]),
            (false, times) => times.max(1),
        };
        let about = either("involvedObject", "regarding");
        let kind = text(&about["kind"]).to_lowercase();
        let target = if text(&about["name"]).is_empty() { kind } else { format!("{kind}/{}", text(&about["name"])) };
        vec![
            last.unwrap_or_else(|| first.clone()).into(),
            text(&event["type"]).into(),
            text(&event["reason"]).into(),
            target.into(),
            text(&about["fieldPath"]).into(),
            source(event).into(),
            text(either("message", "note")).trim().into(),
            first.into(),
            times.into(),
            object::name(event).into(),
        ]
    },
    selectable: &[
        (Cow::Borrowed("involvedObject.kind"), ""),
        (Cow::Borrowed("involvedObject.namespace"), ""),
        (Cow::Borrowed("involvedObject.name"), ""),
        (Cow::Borrowed("involvedObject.uid"), ""),
        (Cow::Borrowed("involvedObject.apiVersion"), ""),
        (Cow::Borrowed("involvedObject.resourceVersion"), ""),
        (Cow::Borrowed("involvedObject.fieldPath"), ""),
        (Cow::Borrowed("reason"), ""),
        (Cow::Borrowed("reportingComponent"), ""),
        (Cow::Borrowed("source"), ""),
        (Cow::Borrowed("type"), ""),
    ],
    ..PLAIN
};

/// Who tells it, and where.
fn source(event: &Value) -> String {
    let own = if event["source"].is_null() { &event["deprecatedSource"] } else { &event["source"] };
    let first =
        |values: [&Value; 3]| values.map(text).into_iter().find(|t| !t.is_empty()).unwrap_or_default().to_owned();
    let who = first([&own["component"], &event["reportingComponent"], &event["reportingController"]]);
    let place = first([&own["host"], &event["reportingInstance"], &Value::Null]);
    if place.is_empty() { who } else { format!("{who}, {place}") }
}

pub(super) static LEASE: Plain = Plain {
    creates_on_update: true,
    unconditional: false,
    columns: &[Column::text("Holder")],
    row: |lease, _| vec![text(&lease["spec"]["holderIdentity"]).into()],
    validate: |errors, lease| {
        let (spec, path) = (&lease["spec"], Path::new("spec"));
        if !spec["leaseDurationSeconds"].is_null() && count(&spec["leaseDurationSeconds"]) <= 0 {
            let why = "must be greater than 0";
            errors.push(FieldError::invalid(
                &path.child("leaseDurationSeconds"),
                spec["leaseDurationSeconds"].clone(),
                why,
            ));
        }
        check::not_negative(errors, &path.child("leaseTransitions"), &spec["leaseTransitions"]);
    },
    ..PLAIN
};

pub(super) static REVISION: Plain = Plain {
    columns: &[Column::text("Controller"), Column::text("Revision")],
    row: |revision, _| {
        let owner = object::items(&revision["metadata"], "ownerReferences").find(|owner| owner["controller"] == true);
        let shown = owner.map(|owner| {
            let group =
                text(&owner["apiVersion"]).split_once('/').map_or(String::new(), |(group, _)| format!(".{group}"));
            format!("{}{group}/{}", text(&owner["kind"]).to_lowercase(), text(&owner["name"]))
        });
        vec![or_none(&shown.unwrap_or_default()), count(&revision["revision"]).into()]
    },
    validate: |errors, revision| check::not_negative(errors, &Path::new("revision"), &revision["revision"]),
    validate_update: |errors, new, old| check::immutable(errors, &Path::new("data"), &new["data"], &old["data"]),
    ..PLAIN
};

pub(super) static TEMPLATE: Plain = Plain {
    whole_table: true,
    generation: true,
    columns: &[Column::text("Name"), Column::text("Containers"), Column::text("Images"), Column::text("Pod Labels")],
    row: |template, _| {
        let [names, images] = containers_text(&template["template"]["spec"]);
        vec![object::name(template).into(), names, images, labels_text(&template["template"]["metadata"]["labels"])]
    },
    validate: |errors, template| pod_template::validate(errors, &template["template"], &Path::new("template")),
    ..PLAIN
};
