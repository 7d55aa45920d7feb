//! Default classes of storage and ingress, protection of storage in use, and who asks for a certificate.
//! (`plugin/pkg/admission/{storage/storageclass/setdefault,network/defaultingressclass,storage/storageobjectinuseprotection}`,
//! `pkg/registry/certificates/certificates/strategy.go`.)

use serde_json::{Value, json};

use super::{Attempt, Plugin, listed};
use crate::error::ApiError;
use crate::object;

/// A claim or ingress that names no class gets the one that is marked as default.
pub(super) struct DefaultClass;

impl Plugin for DefaultClass {
    fn mutate(&self, attempt: &mut Attempt<'_, '_>) -> Result<(), ApiError> {
        let (group, plural, annotations, key): (_, _, &[&str], _) = if attempt.creates("", "PersistentVolumeClaim") {
            let known =
                &["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
            ("storage.k8s.io", "storageclasses", known, "storageClassName")
        } else if attempt.creates("networking.k8s.io", "Ingress") {
            let known = &["ingressclass.kubernetes.io/is-default-class"];
            ("networking.k8s.io", "ingressclasses", known, "ingressClassName")
        } else {
            return Ok(());
        };
        let old_style = ["volume.beta.kubernetes.io/storage-class", "kubernetes.io/ingress.class"];
        let chosen = old_style.iter().any(|key| !attempt.new["metadata"]["annotations"][*key].is_null());
        if chosen || !attempt.new["spec"][key].is_null() || !attempt.new["spec"].is_object() {
            return Ok(());
        }
        let classes = listed(attempt.call.api, group, plural, None);
        if let Some(name) = newest_default(&classes, annotations) {
            attempt.new["spec"][key] = name.into();
        }
        Ok(())
    }
}

/// Of several defaults the newest, then the first by name.
fn newest_default<'a>(classes: &'a [Value], annotations: &[&str]) -> Option<&'a str> {
    let marked = |class: &&Value| annotations.iter().any(|key| class["metadata"]["annotations"][*key] == "true");
    let created = |class: &Value| class["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
    let best = classes
        .iter()
        .filter(marked)
        .min_by(|a, b| created(b).cmp(&created(a)).then_with(|| object::name(a).cmp(object::name(b))));
    best.map(object::name)
}

/// StorageObjectInUseProtection: what is in use goes when it is no longer.
pub(super) struct InUse;

impl Plugin for InUse {
    fn mutate(&self, attempt: &mut Attempt<'_, '_>) -> Result<(), ApiError> {
        let finalizer = if attempt.creates("", "PersistentVolume") {
            "kubernetes.io/pv-protection"
        } else if attempt.creates("", "PersistentVolumeClaim") {
            "kubernetes.io/pvc-protection"
        } else {
            return Ok(());
        };
        if object::finalizers(attempt.new).any(|known| known == finalizer) {
            return Ok(());
        }
        let list = object::metadata_mut(attempt.new).entry("finalizers").or_insert_with(|| json!([]));
        match list.as_array_mut() {
            Some(list) => list.push(finalizer.into()),
            None => *list = json!([finalizer]),
        }
        Ok(())
    }
}

/// A certificate request says who made it, whatever its author wrote.
pub(super) struct Requestor;

impl Plugin for Requestor {
    fn mutate(&self, attempt: &mut Attempt<'_, '_>) -> Result<(), ApiError> {
        if !attempt.creates("certificates.k8s.io", "CertificateSigningRequest") {
            return Ok(());
        }
        let user = attempt.call.incoming.user.clone();
        let spec = object::child(attempt.new, "spec");
        spec.insert("username".into(), user.name.clone().into());
        spec.insert("groups".into(), user.groups.clone().into());
        for (key, value) in [("uid", json!(user.uid)), ("extra", json!(user.extra))] {
            let empty = value.as_str() == Some("") || value.as_object().is_some_and(|map| map.is_empty());
            if empty {
                spec.remove(key)
            } else {
                spec.insert(key.into(), value)
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_default_wins() {
        let class = |name: &str, default: &str, created: &str| json!({"metadata": {"name": name, "annotations": {"d": default}, "creationTimestamp": created}});
        let classes = [
            class("a", "true", "2026-01-01T00:00:00Z"),
            class("b", "true", "2026-01-02T00:00:00Z"),
            class("c", "false", "2026-01-03T00:00:00Z"),
            class("d", "true", "2026-01-02T00:00:00Z"),
        ];
        assert_eq!(newest_default(&classes, &["d"]), Some("b"));
        assert_eq!(newest_default(&classes[2..3], &["d"]), None);
    }
}
