//! Events about what a controller could not do, for `kubectl describe`. (`k8s.io/client-go/tools/record`.)
//!
//! A reason and an object are one event, which counts and tells the newest message: messages name what was tried, which
//! is another name each time. It is written again only now and then, because what fails is tried again very soon.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kedge_client::Context;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::pods::content_hash;
use crate::write::{Namespaced, is, is_ending};

/// The pause before the same trouble is told again.
const PAUSE: SignedDuration = SignedDuration::from_secs(10);
/// The longest message that the API takes.
const MESSAGE_BYTES_MAX: usize = 1024;

/// What an error says, without what a client adds for programmers.
pub(crate) fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => other.to_string(),
    }
}

/// Tells a trouble with `object`; that it cannot be told is no trouble of its own.
pub(crate) async fn warn<O: Namespaced>(context: &Context, controller: &str, object: &O, reason: &str, message: &str) {
    let now = context.world.clock.wall();
    let event = event(controller, object, reason, message, now);
    let api: Api<Event> = Api::namespaced(context.informers.client().clone(), &object.namespace().unwrap_or_default());
    let told = match api.create(&PostParams::default(), &event).await {
        Err(error) if is(&error, 409) => again(&api, &event, now).await,
        other => other.map(drop),
    };
    if let Err(error) = told.or_else(|error| if is_ending(&error) { Ok(()) } else { Err(error) }) {
        tracing::debug!(controller, reason, %error, "an event cannot be written");
    }
}

/// Counts an event that is there, if it was not told just now.
async fn again(api: &Api<Event>, event: &Event, now: Timestamp) -> kube::Result<()> {
    let name = event.name_any();
    let found = api.get(&name).await?;
    let Some(count) = next_count(&found, now) else { return Ok(()) };
    let patch = json!({ "count": count, "lastTimestamp": Time(now), "message": event.message });
    api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

/// The count to write; none while it is too early. Pure.
fn next_count(event: &Event, now: Timestamp) -> Option<i32> {
    let recent = event.last_timestamp.as_ref().is_some_and(|last| now.duration_since(last.0) < PAUSE);
    (!recent).then(|| event.count.unwrap_or(1).saturating_add(1))
}

/// The event, under a name that the same trouble has again. Pure.
fn event<O: Namespaced>(controller: &str, object: &O, reason: &str, message: &str, now: Timestamp) -> Event {
    let mut end = message.len().min(MESSAGE_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let message = message[..end].to_owned();
    let hash = content_hash(&(object.uid(), controller, reason), None);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{hash}", object.name_any())),
            namespace: object.namespace(),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some(O::api_version(&()).into_owned()),
            kind: Some(O::kind(&()).into_owned()),
            name: Some(object.name_any()),
            namespace: object.namespace(),
            uid: object.uid(),
            resource_version: object.resource_version(),
            field_path: None,
        },
        type_: Some("Warning".into()),
        reason: Some(reason.into()),
        message: Some(message),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        source: Some(EventSource { component: Some(controller.into()), host: None }),
        reporting_component: Some(controller.into()),
        reporting_instance: Some(String::new()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::batch::v1::Job;

    #[test]
    fn the_same_trouble_is_one_event_that_counts() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let job: Job =
            serde_json::from_value(json!({"metadata": {"name": "j", "namespace": "n", "uid": "u"}})).unwrap();
        let first = event("c", &job, "FailedCreate", "no room", at(0));
        assert_eq!(first.name_any(), event("c", &job, "FailedCreate", "no room", at(50)).name_any());
        assert_eq!(first.name_any(), event("c", &job, "FailedCreate", "no way", at(0)).name_any());
        assert_ne!(first.name_any(), event("c", &job, "FailedDelete", "no room", at(0)).name_any());
        assert_eq!((next_count(&first, at(9)), next_count(&first, at(10))), (None, Some(2)));
        // Cut where a letter ends.
        let long = event("c", &job, "FailedCreate", &"ä".repeat(600), at(0)).message.unwrap();
        assert_eq!(long.len(), 1024);
    }
}
