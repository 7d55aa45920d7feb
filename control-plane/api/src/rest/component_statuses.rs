//! `componentstatuses`: how the parts of the control plane do, as this process knows it.
//! (`pkg/registry/core/componentstatus/rest.go`.)

use std::sync::Arc;

use http::Response;
use kedge_store::{Entry, Facets, ObjectKey};
use serde_json::{Value, json};

use super::{Call, list};
use crate::api::Api;
use crate::body::Body;
use crate::error::ApiError;
use crate::health;
use crate::request::Verb;

/// Upstream's names; the store stands where its first etcd would.
const COMPONENTS: [&str; 3] = ["controller-manager", "etcd-0", "scheduler"];

pub(super) fn answer(call: Call<'_>) -> Result<Response<Body>, ApiError> {
    if call.verb == Verb::List {
        let entries = COMPONENTS.map(|name| entry(call.api, name));
        return list::computed(call, entries);
    }
    let name = &*call.path.name;
    if !COMPONENTS.contains(&name) {
        return Err(ApiError::not_found("", "componentstatus", name));
    }
    call.render_entry(200, &entry(call.api, name))
}

fn entry(api: &Api, name: &str) -> Arc<Entry> {
    let verdict = match name {
        "etcd-0" => health::store(api),
        _ => api.component(name),
    };
    let bytes = status(name, verdict).to_string().into();
    Arc::new(Entry { key: ObjectKey::new("", name), revision: 0, bytes, facets: Facets::default() })
}

/// What is found, as the object.
fn status(name: &str, verdict: Result<(), String>) -> Value {
    let condition = match verdict {
        Ok(()) => json!({ "type": "Healthy", "status": "True", "message": "ok" }),
        Err(why) => json!({ "type": "Healthy", "status": "False", "error": why }),
    };
    json!({ "kind": "ComponentStatus", "apiVersion": "v1", "metadata": { "name": name }, "conditions": [condition] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_ok_or_why_not() {
        let well = status("scheduler", Ok(()));
        assert_eq!(well["conditions"][0]["message"], "ok");
        let ill = status("scheduler", Err("it has ended".into()));
        assert_eq!(
            (&ill["conditions"][0]["status"], &ill["conditions"][0]["error"]),
            (&json!("False"), &json!("it has ended"))
        );
    }
}
