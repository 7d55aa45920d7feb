//! Requests about a pod that its node answers, on their way there and back: logs, exec, attach, port-forward.
//! (`pkg/registry/core/pod/rest/{log,subresources}.go`.)

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use kedge_streams::{NodeRefusal, NodeRequest};
use serde_json::Value;

use crate::body::Body;
use crate::error::ApiError;
use crate::object;
use crate::rest::Call;

/// Hands the call to the node of its pod.
pub(crate) async fn connect(call: Call<'_>) -> Result<Response<Body>, ApiError> {
    let pod = call.decode(&*call.stored()?);
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    // A port is the whole pod's.
    let container = if call.path.subresource == "portforward" { None } else { Some(container(&call, &pod)?) };
    if node.is_empty() && call.path.subresource == "log" {
        // It has said nothing yet (`LogLocation`).
        let mut response = Response::new(Body::empty());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        return Ok(response);
    }
    if node.is_empty() {
        return Err(ApiError::bad_request(format!("pod {} does not have a host assigned", call.path.name)));
    }
    let handler =
        call.api.node(node).ok_or_else(|| ApiError::unavailable(format!("the node {node} is not connected")))?;
    let waiting = container.as_deref().map(|name| waiting(&pod, name)).unwrap_or_default();
    let mut query: Vec<(String, String)> =
        call.query.pairs().filter(|(key, _)| *key != "container").map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    query.extend(container.map(|name| ("container".to_owned(), name)));
    let request = NodeRequest {
        verb: call.path.subresource.clone(),
        namespace: call.path.namespace.clone(),
        pod: call.path.name.clone(),
        uid: object::uid(&pod).to_owned(),
        waiting,
        query,
        headers: call.incoming.headers.clone(),
        upgrade: call.incoming.upgrade.lock().take(),
    };
    let (parts, chunks) = handler.handle(request).await.map_err(|refusal| told(&refusal))?.into_parts();
    let body = if parts.status == StatusCode::SWITCHING_PROTOCOLS { Body::empty() } else { Body::stream(chunks) };
    Ok(Response::from_parts(parts, body))
}

/// Why a container waits, in a word; empty when it does not.
fn waiting(pod: &Value, container: &str) -> String {
    let lists = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
    let mut all = lists.iter().flat_map(|list| object::items(&pod["status"], list));
    let found = all.find(|status| status["name"] == container).map(|status| &status["state"]["waiting"]["reason"]);
    found.and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn told(refusal: &NodeRefusal) -> ApiError {
    match refusal.code {
        400 => ApiError::bad_request(refusal.message.clone()),
        403 => ApiError::forbidden("", "", "", &refusal.message),
        501 => ApiError { code: 501, reason: "NotImplemented", ..ApiError::bad_request(refusal.message.clone()) },
        _ => ApiError::internal(&refusal.message),
    }
}

/// The container that is meant: the one named, or the only one (`pkg/registry/core/pod/strategy.go`,
/// `validateContainer`).
fn container(call: &Call<'_>, pod: &Value) -> Result<String, ApiError> {
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    let in_order: Vec<&str> =
        lists.iter().flat_map(|list| object::items(&pod["spec"], list)).filter_map(|c| c["name"].as_str()).collect();
    if let Some(name) = call.query.get("container") {
        if in_order.contains(&name) {
            return Ok(name.to_owned());
        }
        return Err(ApiError::bad_request(format!("container {name} is not valid for pod {}", call.path.name)));
    }
    let main: Vec<&str> = object::items(&pod["spec"], "containers").filter_map(|c| c["name"].as_str()).collect();
    match main[..] {
        [only] => Ok(only.to_owned()),
        _ => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            call.path.name,
            in_order.join(" ")
        ))),
    }
}

/// Whether a client wants to take the connection over.
pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(http::header::UPGRADE)
}
