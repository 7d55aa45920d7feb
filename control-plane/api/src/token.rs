//! `serviceaccounts/token`: a bound token, signed and never stored.

use http::Response;

use crate::admission;
use crate::body::Body;
use crate::error::ApiError;
use crate::rest::{Call, decode, encode};

pub(crate) fn request(call: Call<'_>) -> Result<Response<Body>, ApiError> {
    let account = call.decode(&*call.stored()?);
    let request = decode::object_of(&call, "authentication.k8s.io", "v1", "TokenRequest")?;
    admission::post(&call, &account, &request)?;
    encode(201, call.answer.format, &call.api.guard().issue(call.api, &account, request)?)
}
