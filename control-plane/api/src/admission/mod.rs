//! What the cluster as a whole has to say about a change: one file per plugin, one line in the list.
//!
//! Plugins see the object as it will be, its old state, and the store; they change it (first round), refuse it
//! (second round), or charge it to a quota. The order is upstream's (`pkg/kubeapiserver/options/plugins.go`).

use kedge_store::{ObjectKey, ResourceId};
use serde_json::Value;

use crate::api::Api;
use crate::error::ApiError;
use crate::kinds::pod::resources::Amounts;
use crate::object;
use crate::rest::Call;
use crate::rest::save::Part;

mod classes;
mod escalation;
mod limit_ranger;
mod namespace;
mod node_restriction;
mod pods;
mod quota;
mod service_account;
mod service_addresses;

pub(crate) use service_addresses::{Range, Reservation, Reservations};

/// A change on its way.
pub(crate) struct Attempt<'a, 'c> {
    pub(crate) call: &'a Call<'c>,
    pub(crate) new: &'a mut Value,
    /// None for a creation.
    pub(crate) old: Option<&'a Value>,
    pub(crate) part: Part,
    /// What stays reserved until the change is written or given up.
    pub(crate) held: Vec<Reservation>,
}

impl Attempt<'_, '_> {
    /// Whether this creates an object of `kind` of `group`.
    pub(crate) fn creates(&self, group: &str, kind: &str) -> bool {
        self.old.is_none() && self.is(group, kind)
    }

    /// Whether the object is of `kind` of `group`.
    pub(crate) fn is(&self, group: &str, kind: &str) -> bool {
        &*self.call.kind.resource.group == group && &*self.call.kind.resource.kind == kind
    }

    /// The refusal of this change; `why` completes "… is forbidden: ".
    pub(crate) fn forbidden(&self, why: &str) -> ApiError {
        ApiError::forbidden(&self.call.path.group, &self.call.path.resource, object::name(self.new), why)
    }
}

/// A plugin: implements only the rounds it has something to say in.
pub(crate) trait Plugin: Sync {
    /// Changes the object.
    fn mutate(&self, _attempt: &mut Attempt<'_, '_>) -> Result<(), ApiError> {
        Ok(())
    }

    /// Refuses the object.
    fn validate(&self, _attempt: &Attempt<'_, '_>) -> Result<(), ApiError> {
        Ok(())
    }

    /// Refuses a deletion.
    fn delete(&self, _call: &Call<'_>, _object: &Value) -> Result<(), ApiError> {
        Ok(())
    }

    /// Refuses what is posted to a subresource of `target` without being a change of it (`eviction`, `token`).
    fn post(&self, _call: &Call<'_>, _target: &Value, _posted: &Value) -> Result<(), ApiError> {
        Ok(())
    }
}

const PLUGINS: &[&dyn Plugin] = &[
    &namespace::Lifecycle,
    &node_restriction::NodeRestriction,
    &limit_ranger::LimitRanger,
    &service_account::ServiceAccount,
    &pods::Priority,
    &pods::Tolerations,
    &pods::Runtime,
    &classes::DefaultClass,
    &classes::InUse,
    &classes::Requestor,
    &escalation::Escalation,
    &service_addresses::ServiceAddresses,
];

/// Lets every plugin change the object. What comes back is to be dropped when the change is written or given up.
pub(crate) fn mutate(attempt: &mut Attempt<'_, '_>) -> Result<Vec<Reservation>, ApiError> {
    PLUGINS.iter().try_for_each(|plugin| plugin.mutate(attempt))?;
    Ok(std::mem::take(&mut attempt.held))
}

/// Lets every plugin refuse the object.
pub(crate) fn validate(attempt: &Attempt<'_, '_>) -> Result<(), ApiError> {
    PLUGINS.iter().try_for_each(|plugin| plugin.validate(attempt))
}

/// Lets every plugin refuse a deletion.
pub(crate) fn delete(call: &Call<'_>, object: &Value) -> Result<(), ApiError> {
    PLUGINS.iter().try_for_each(|plugin| plugin.delete(call, object))
}

/// Lets every plugin refuse what is posted to a subresource of `target`.
pub(crate) fn post(call: &Call<'_>, target: &Value, posted: &Value) -> Result<(), ApiError> {
    PLUGINS.iter().try_for_each(|plugin| plugin.post(call, target, posted))
}

/// Every stored object of a collection, or of one namespace of it.
pub(crate) fn listed(api: &Api, group: &str, plural: &str, namespace: Option<&str>) -> Vec<Value> {
    let page = api.store().list(&ResourceId::new(group, plural), namespace, None, None, usize::MAX, |_| true);
    let page = page.expect("the newest revision is never gone");
    page.entries.iter().map(|entry| object::decode(&entry.bytes)).collect()
}

/// What a change took from quotas; given back when the change does not happen after all.
#[derive(Debug, Default)]
pub(crate) struct Charged {
    taken: Vec<(ObjectKey, Amounts)>,
}

impl Charged {
    pub(crate) async fn give_back(self, api: &Api) {
        quota::give_back(api, self).await;
    }
}

/// Charges a change to the namespace's quotas, or refuses it.
pub(crate) async fn charge(call: &Call<'_>, new: &Value, old: Option<&Value>) -> Result<Charged, ApiError> {
    quota::charge(call, new, old).await
}
