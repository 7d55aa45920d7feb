//! NamespaceLifecycle: nothing is created in a namespace that is missing or going away, and the namespaces that
//! the cluster itself needs stay. (`k8s.io/apiserver/pkg/admission/plugin/namespace/lifecycle`.)

use kedge_store::{ObjectKey, ResourceId};
use serde_json::Value;

use super::{Attempt, Plugin};
use crate::error::ApiError;
use crate::object;
use crate::rest::Call;

const PERMANENT: &[&str] = &["default", "kube-system", "kube-public"];

pub(super) struct Lifecycle;

impl Plugin for Lifecycle {
    fn validate(&self, attempt: &Attempt<'_, '_>) -> Result<(), ApiError> {
        let call = attempt.call;
        if attempt.old.is_some() || !call.kind.resource.namespaced {
            return Ok(());
        }
        let namespace = &*call.path.namespace;
        let found = call.api.store().get(&ResourceId::new("", "namespaces"), &ObjectKey::new("", namespace));
        let Some(entry) = found else { return Err(ApiError::not_found("", "namespaces", namespace)) };
        if entry.facets.field("status.phase") == Some("Terminating")
            || object::is_deleting(&object::decode(&entry.bytes))
        {
            let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
            let error = ApiError::forbidden(&call.path.group, &call.path.resource, object::name(attempt.new), &why);
            return Err(error.with_cause("NamespaceTerminating", &format!("namespace {namespace} is being terminated")));
        }
        Ok(())
    }

    fn delete(&self, call: &Call<'_>, namespace: &Value) -> Result<(), ApiError> {
        let name = object::name(namespace);
        if &*call.kind.resource.kind == "Namespace" && PERMANENT.contains(&name) {
            return Err(ApiError::forbidden("", "namespaces", name, "this namespace may not be deleted"));
        }
        Ok(())
    }
}
