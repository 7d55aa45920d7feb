//! `/openapi/v2` and `/openapi/v3`: documents rendered when first asked for, kept compressed until a definition of a
//! custom resource changes.
//!
//! The index names each document with a hash that changes with its content, so that clients cache for ever. It is
//! taken over what a document is made of, so that the index costs no rendering.

use std::collections::HashMap;
use std::io::{Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use http::{Response, StatusCode};
use kedge_descriptions::Descriptions;
use kedge_schema::facts;
use kedge_schema::openapi::{document_v2, document_v3, document_v3_of_path, gnostic_v2};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::api::{Api, Incoming, bytes_response, json_response};
use crate::body::Body;
use crate::customs;
use crate::error::ApiError;
use crate::registry::{Registry, api_version};

const GNOSTIC: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const GNOSTIC_OLD: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// Rendered documents, compressed.
#[derive(Default)]
pub(crate) struct Documents(Mutex<HashMap<String, Bytes>>);

/// Answers everything below `/openapi`.
pub(crate) fn serve(api: &Api, incoming: &Incoming, parts: &[&str]) -> Result<Response<Body>, ApiError> {
    match parts {
        ["openapi", "v2"] => v2(api, incoming),
        ["openapi", "v3"] => Ok(json_response(200, &index(&api.registry()))),
        ["openapi", "v3", path @ ..] => v3(api, incoming, &path.join("/")),
        _ => Err(ApiError::no_such_path()),
    }
}

fn accepts(incoming: &Incoming, media_type: &str) -> bool {
    let accept = incoming.headers.get(http::header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    accept.split([',', ';']).any(|part| part.trim() == media_type)
}

fn v2(api: &Api, incoming: &Incoming) -> Result<Response<Body>, ApiError> {
    // The old name is accepted and never said: Go's parser refuses its `@` (kube-openapi `pkg/handler`).
    let gnostic = [GNOSTIC, GNOSTIC_OLD].into_iter().any(|form| accepts(incoming, form)).then_some(GNOSTIC);
    let render = || {
        let registry = api.registry();
        let descriptions = Descriptions::load();
        let describe = |definition: &str, field: &str| descriptions.get(definition, field);
        let release = &api.settings().git_version;
        let document = document_v2(facts::builtin(), &customs::documents(&registry), release, &describe);
        match gnostic {
            Some(_) => gnostic_v2(&document).map_err(ApiError::internal),
            None => Ok(serde_json::to_vec(&document).expect("JSON values always encode")),
        }
    };
    let key = if gnostic.is_some() { "v2-gnostic" } else { "v2" };
    let compressed = kept(api, key, render)?;
    send(incoming, gnostic.unwrap_or("application/json"), compressed)
}

fn v3(api: &Api, incoming: &Incoming, path: &str) -> Result<Response<Body>, ApiError> {
    let registry = api.registry();
    let parts: Vec<&str> = path.split('/').collect();
    let (group, version) = match parts[..] {
        ["api", version] => ("", version),
        ["apis", group, version] => (group, version),
        _ => ("", ""),
    };
    let render = || {
        let descriptions = Descriptions::load();
        let describe = |definition: &str, field: &str| descriptions.get(definition, field);
        let document = if version.is_empty() {
            document_v3_of_path(facts::builtin(), path, &describe)
        } else {
            document_v3(facts::builtin(), group, version, &customs::documents(&registry), &describe)
        };
        let document = document.ok_or_else(ApiError::no_such_path)?;
        Ok(serde_json::to_vec(&document).expect("JSON values always encode"))
    };
    send(incoming, "application/json", kept(api, path, render)?)
}

/// The document under `key`, rendered when it is asked for the first time.
fn kept(api: &Api, key: &str, render: impl FnOnce() -> Result<Vec<u8>, ApiError>) -> Result<Bytes, ApiError> {
    let documents = api.documents();
    if let Some(found) = documents.0.lock().get(key) {
        return Ok(found.clone());
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&render()?).map_err(ApiError::internal)?;
    let compressed = Bytes::from(encoder.finish().map_err(ApiError::internal)?);
    documents.0.lock().insert(key.to_owned(), compressed.clone());
    Ok(compressed)
}

fn send(incoming: &Incoming, media_type: &'static str, compressed: Bytes) -> Result<Response<Body>, ApiError> {
    let etag = HeaderValue::from_str(&format!("\"{}\"", hex::encode_upper(Sha256::digest(&compressed))))
        .map_err(ApiError::internal)?;
    if incoming.headers.get(IF_NONE_MATCH).is_some_and(|known| *known == etag) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response.headers_mut().insert(ETAG, etag);
        return Ok(response);
    }
    let encodings = incoming.headers.get(ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let gzip = encodings.split(',').any(|encoding| encoding.trim().starts_with("gzip"));
    let mut response = if gzip {
        let mut response = bytes_response(200, media_type, compressed);
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        let mut plain = Vec::new();
        GzDecoder::new(&*compressed).read_to_end(&mut plain).map_err(ApiError::internal)?;
        bytes_response(200, media_type, plain)
    };
    response.headers_mut().insert(ETAG, etag);
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    Ok(response)
}

/// `/openapi/v3`: every document and the URL that names its content.
fn index(registry: &Registry) -> Value {
    let mut paths = Map::new();
    let mut add = |path: String, content: &str| {
        let hash = hex::encode_upper(&Sha256::digest(format!("{}{path}{content}", env!("CARGO_PKG_VERSION")))[..32]);
        let url = format!("/openapi/v3/{path}?hash={hash}");
        paths.insert(path, json!({ "serverRelativeURL": url }));
    };
    let custom = customs::documents(registry);
    let content = |group: &str, version: &str| {
        let own = custom.iter().filter(|crd| crd.group == group && crd.version == version);
        own.map(|crd| format!("{}{}{}", crd.plural, crd.kind, crd.schema)).collect::<String>()
    };
    for path in ["api", "apis", "version", ".well-known/openid-configuration", "openid/v1/jwks"] {
        add(path.to_owned(), "");
    }
    add("api/v1".to_owned(), "");
    for (group, versions) in registry.groups() {
        add(format!("apis/{group}"), "");
        for version in versions {
            add(format!("apis/{}", api_version(&group, &version)), &content(&group, &version));
        }
    }
    json!({ "paths": paths })
}
