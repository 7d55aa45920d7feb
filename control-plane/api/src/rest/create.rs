//! CREATE.

use http::Response;

use super::save::{self, Ownership, Saved};
use super::{Call, decode};
use crate::body::Body;
use crate::error::ApiError;
use crate::kinds;
use crate::object;

pub(super) async fn create(call: Call<'_>) -> Result<Response<Body>, ApiError> {
    if !call.path.name.is_empty() {
        return Err(ApiError::method_not_supported(&call.path.group, &call.path.resource, "POST"));
    }
    let decoded = decode::body(&call, call.kind)?;
    let new = decoded.value;
    if new["metadata"]["resourceVersion"].as_str().is_some_and(|rv| !rv.is_empty()) {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    if object::name(&new).is_empty() && new["metadata"]["generateName"].as_str().unwrap_or_default().is_empty() {
        let path = kedge_schema::field::Path::new("metadata").child("name");
        let error = kedge_schema::field::FieldError::required(&path, "name or generateName is required");
        return Err(ApiError::invalid(&call.path.group, &call.kind.resource.kind, "", &[error]));
    }
    let mut warnings = decoded.warnings;
    warnings.extend(kinds::warnings(call.kind, &new));
    let saved = save::create(&call, new, Ownership::Updated).await?;
    decode::with_warnings(render(&call, 201, &saved)?, &warnings)
}

pub(super) fn render(call: &Call<'_>, code: u16, saved: &Saved) -> Result<Response<Body>, ApiError> {
    match saved {
        Saved::Stored(entry) => call.render_entry(code, entry),
        Saved::Shown(value) => call.render(code, value.clone()),
    }
}
