//! Kinds that are answered rather than stored: the access and token reviews.

use kedge_access::{Attributes, User};
use kedge_schema::selector::FieldSelector;
use serde_json::{Value, json};

use crate::api::{Api, Incoming};
use crate::error::ApiError;
use crate::request::ResourcePath;

/// Answers one posted object.
pub(crate) type Answer = fn(&Api, &Incoming, &ResourcePath, Value) -> Result<Value, ApiError>;

/// Who answers for `path`, if its kind is computed.
pub(crate) fn find(path: &ResourcePath) -> Option<Answer> {
    if path.version != "v1" || !path.subresource.is_empty() || !path.name.is_empty() {
        return None;
    }
    match (&*path.group, &*path.resource) {
        ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews") => Some(subject_access_review),
        ("authorization.k8s.io", "selfsubjectaccessreviews") => Some(self_subject_access_review),
        ("authorization.k8s.io", "selfsubjectrulesreviews") => Some(self_subject_rules_review),
        ("authentication.k8s.io", "selfsubjectreviews") => Some(self_subject_review),
        ("authentication.k8s.io", "tokenreviews") => Some(token_review),
        _ => None,
    }
}

fn subject_access_review(
    api: &Api,
    _incoming: &Incoming,
    path: &ResourcePath,
    mut review: Value,
) -> Result<Value, ApiError> {
    let spec = &review["spec"];
    if path.resource.starts_with("local")
        && spec["resourceAttributes"]["namespace"].as_str().unwrap_or_default() != path.namespace
    {
        return Err(ApiError::bad_request("spec.resourceAttributes.namespace must match metadata.namespace"));
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
    let user =
        User { name: text(&spec["user"]), uid: text(&spec["uid"]), groups: list(&spec["groups"]), ..User::default() };
    if user.name.is_empty() && user.groups.is_empty() {
        return Err(ApiError::bad_request(
            "spec.user: Required value: at least one of user or group must be specified",
        ));
    }
    review["status"] = verdict(api, &user, &review["spec"])?;
    Ok(review)
}

fn self_subject_access_review(
    api: &Api,
    incoming: &Incoming,
    _: &ResourcePath,
    mut review: Value,
) -> Result<Value, ApiError> {
    review["status"] = verdict(api, &incoming.user, &review["spec"])?;
    Ok(review)
}

fn verdict(api: &Api, user: &User, spec: &Value) -> Result<Value, ApiError> {
    let of = |part: &'static str, key: &'static str| spec[part][key].as_str().unwrap_or_default();
    let fields = review_fields(&spec["resourceAttributes"]["fieldSelector"])?;
    let attributes = match (spec["resourceAttributes"].is_object(), spec["nonResourceAttributes"].is_object()) {
        (true, false) => Attributes {
            verb: of("resourceAttributes", "verb"),
            group: of("resourceAttributes", "group"),
            version: of("resourceAttributes", "version"),
            resource: of("resourceAttributes", "resource"),
            subresource: of("resourceAttributes", "subresource"),
            namespace: of("resourceAttributes", "namespace"),
            name: of("resourceAttributes", "name"),
            path: "",
            fields: &fields,
        },
        (false, true) => Attributes {
            verb: of("nonResourceAttributes", "verb"),
            path: of("nonResourceAttributes", "path"),
            ..Attributes::default()
        },
        _ => {
            return Err(ApiError::bad_request(
                "spec: exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ));
        }
    };
    let decision = api.guard().decide(api, user, &attributes);
    Ok(match decision {
        kedge_access::Decision::Allow(reason) => json!({ "allowed": true, "reason": reason }),
        kedge_access::Decision::NoOpinion(reason) if reason.is_empty() => json!({ "allowed": false }),
        kedge_access::Decision::NoOpinion(reason) => json!({ "allowed": false, "reason": reason }),
    })
}

/// What a review's `fieldSelector` requires to have one value (`pkg/registry/authorization/util`, KEP-4601).
fn review_fields(selector: &Value) -> Result<Vec<(String, String)>, ApiError> {
    let raw = selector["rawSelector"].as_str().unwrap_or_default();
    let requirements = selector["requirements"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !raw.is_empty() && !requirements.is_empty() {
        return Err(ApiError::bad_request(
            "spec.resourceAttributes.fieldSelector.rawSelector: may not specified at the same time as requirements",
        ));
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    // A raw text that is no selector requires nothing: less is allowed for it, never more.
    let of_raw = FieldSelector::parse(raw).unwrap_or_default();
    let of_raw = of_raw.terms().iter().filter(|term| !term.negated);
    let mut fields: Vec<_> = of_raw.map(|term| (term.field.clone(), term.value.clone())).collect();
    fields.extend(requirements.iter().filter_map(|requirement| {
        let values = requirement["values"].as_array()?;
        let [value] = &values[..] else { return None };
        (requirement["operator"] == "In").then(|| (text(&requirement["key"]), text(value)))
    }));
    Ok(fields)
}

fn self_subject_rules_review(
    api: &Api,
    incoming: &Incoming,
    _: &ResourcePath,
    mut review: Value,
) -> Result<Value, ApiError> {
    let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    review["status"] = api.guard().rules(api, &incoming.user, namespace);
    Ok(review)
}

fn self_subject_review(_: &Api, incoming: &Incoming, _: &ResourcePath, mut review: Value) -> Result<Value, ApiError> {
    review["status"] = json!({ "userInfo": user_info(&incoming.user) });
    Ok(review)
}

fn token_review(api: &Api, _: &Incoming, _: &ResourcePath, mut review: Value) -> Result<Value, ApiError> {
    let token = review["spec"]["token"].as_str().unwrap_or_default().to_owned();
    if token.is_empty() {
        return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences = review["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect::<Vec<_>>();
    review["status"] = match api.guard().authenticate(api, &token, &audiences) {
        Ok((user, audiences)) => json!({ "authenticated": true, "user": user_info(&user), "audiences": audiences }),
        Err(why) => json!({ "authenticated": false, "user": {}, "error": why }),
    };
    Ok(review)
}

/// `authentication.k8s.io/v1` UserInfo.
pub(crate) fn user_info(user: &User) -> Value {
    let mut info = json!({ "username": user.name, "groups": user.groups });
    if !user.uid.is_empty() {
        info["uid"] = user.uid.clone().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}
