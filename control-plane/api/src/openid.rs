//! What others need to check service account tokens by themselves: who issues them, and the public keys.
//! (`pkg/routes/openidmetadata.go`, `pkg/serviceaccount/openidmetadata.go`; KEP-1393.)

use http::Response;
use http::header::{CACHE_CONTROL, HeaderValue};
use serde_json::{Value, json};

use crate::api::{Api, bytes_response};
use crate::body::Body;
use crate::error::ApiError;
use crate::guard::Issuer;

/// Keys change with an installation, not within an hour (`GetCacheAgeMaxSeconds`).
const CACHE: HeaderValue = HeaderValue::from_static("public, max-age=3600");

/// Answers `/.well-known/openid-configuration`.
pub(crate) fn configuration(api: &Api) -> Result<Response<Body>, ApiError> {
    let issuer = api.guard().issuer().ok_or_else(ApiError::no_such_path)?;
    Ok(cached("application/json", &document(&issuer, &api.settings().external_address)))
}

/// Answers `/openid/v1/jwks`.
pub(crate) fn keys(api: &Api) -> Result<Response<Body>, ApiError> {
    let issuer = api.guard().issuer().ok_or_else(ApiError::no_such_path)?;
    Ok(cached("application/jwk-set+json", &issuer.keys))
}

fn document(issuer: &Issuer, address: &str) -> Value {
    let keys = issuer.keys["keys"].as_array().into_iter().flatten();
    let mut algorithms: Vec<&str> = keys.filter_map(|key| key["alg"].as_str()).collect();
    algorithms.sort_unstable();
    algorithms.dedup();
    json!({
        "issuer": issuer.url, "jwks_uri": format!("https://{address}/openid/v1/jwks"),
        "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": algorithms,
    })
}

fn cached(media_type: &'static str, document: &Value) -> Response<Body> {
    let mut response = bytes_response(200, media_type, document.to_string().into_bytes());
    response.headers_mut().insert(CACHE_CONTROL, CACHE);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_names_the_place_and_the_algorithms_of_the_keys() {
        let keys = json!({ "keys": [{ "alg": "ES256" }, { "alg": "ES256" }] });
        let issuer = Issuer { url: "https://kubernetes.default.svc".into(), keys };
        let document = document(&issuer, "192.0.2.1:6443");
        assert_eq!(document["jwks_uri"], "https://192.0.2.1:6443/openid/v1/jwks");
        assert_eq!(document["id_token_signing_alg_values_supported"], json!(["ES256"]));
    }
}
