//! `pods/proxy` and `services/proxy`: an HTTP request carried to a port in the cluster's network, and its answer back.
//! (`pkg/registry/core/{pod,service}/strategy.go` ResourceLocation; `apimachinery/pkg/util/proxy`.)
//!
//! Not here: `https:` targets, upgraded connections, rewriting links in HTML, nodes; the first two are refused by name.

use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::header::{CONNECTION, HOST, HeaderMap, HeaderName, LOCATION, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use kedge_store::{ObjectKey, ResourceId};
use serde_json::Value;
use tokio::time::timeout;

use crate::api::{Api, Incoming};
use crate::body::Body;
use crate::error::ApiError;
use crate::object;
use crate::request::ResourcePath;

/// Until the target has accepted the connection, and until its answer begins.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Headers about one connection, which are not the next one's (RFC 9110, section 7.6.1); and the client's credentials,
/// which are meant for this server only.
const DROPPED: [HeaderName; 6] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    http::header::AUTHORIZATION,
];

/// Carries `incoming` to the port that `path` names.
pub(crate) async fn proxy(api: &Api, incoming: &Incoming, path: &ResourcePath) -> Result<Response<Body>, ApiError> {
    let target = Target::parse(&path.name)?;
    let reads = matches!(incoming.method, Method::GET | Method::HEAD);
    if path.rest.is_empty() && reads {
        let query = incoming.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
        return Ok(redirect(&format!("{}/{query}", incoming.path)));
    }
    if incoming.headers.contains_key(UPGRADE) {
        return Err(ApiError::bad_request(
            "the proxy does not carry upgraded connections; use port-forward".to_owned(),
        ));
    }
    let address = match path.resource.as_str() {
        "services" => service_address(api, &path.namespace, &target)?,
        "pods" => pod_address(api, &path.namespace, &target)?,
        other => return Err(ApiError::bad_request(format!("{other}/proxy is not served; a node has no HTTP port"))),
    };
    let net =
        api.network().ok_or_else(|| ApiError::unavailable("this server has no node, so no way to pods".to_owned()))?;
    let unavailable =
        |what: &dyn std::fmt::Display| ApiError::unavailable(format!("error trying to reach service: {what}"));
    let stream = match timeout(ANSWER_MAX, net.connect(&address)).await {
        Ok(stream) => stream.map_err(|error| unavailable(&error))?,
        Err(_) => return Err(unavailable(&format!("no connection to {address} within {} s", ANSWER_MAX.as_secs()))),
    };
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| unavailable(&error))?;
    tokio::spawn(connection);
    let response = match timeout(ANSWER_MAX, sender.send_request(request(incoming, path, &address)?)).await {
        Ok(response) => response.map_err(|error| unavailable(&error))?,
        Err(_) => return Err(unavailable(&format!("no answer from {address} within {} s", ANSWER_MAX.as_secs()))),
    };
    let (mut parts, body) = response.into_parts();
    clean(&mut parts.headers);
    relocate(&mut parts.headers, incoming, path);
    // What comes is passed on as it comes; a target that breaks off ends the answer early.
    let frames = stream::unfold(body, |mut body| async move {
        loop {
            match body.frame().await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Some((data, body));
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "a proxied answer broke off");
                    return None;
                }
            }
        }
    });
    let mut answer = Response::new(Body::stream(frames));
    *answer.status_mut() = parts.status;
    *answer.headers_mut() = parts.headers;
    Ok(answer)
}

fn request(incoming: &Incoming, path: &ResourcePath, address: &str) -> Result<Request<Full<Bytes>>, ApiError> {
    let mut target = if path.rest.is_empty() { "/".to_owned() } else { path.rest.clone() };
    if let Some(query) = &incoming.query {
        target = format!("{target}?{query}");
    }
    let mut headers = incoming.headers.clone();
    clean(&mut headers);
    headers.remove(http::header::CONTENT_LENGTH);
    headers.insert(HOST, HeaderValue::from_str(address).expect("an address is a header value"));
    let mut request = Request::builder().method(incoming.method.clone()).uri(target);
    *request.headers_mut().ok_or_else(|| ApiError::bad_request("the proxied path is no path".to_owned()))? = headers;
    request
        .body(Full::new(incoming.body.clone()))
        .map_err(|error| ApiError::bad_request(format!("cannot proxy this request: {error}")))
}

fn clean(headers: &mut HeaderMap) {
    for name in &DROPPED {
        headers.remove(name);
    }
}

/// A redirect of the target within itself stays within the proxy.
fn relocate(headers: &mut HeaderMap, incoming: &Incoming, path: &ResourcePath) {
    let Some(location) = headers.get(LOCATION).and_then(|value| value.to_str().ok()) else { return };
    if location.starts_with('/') && !location.starts_with("//") {
        let prefix = incoming.path.strip_suffix(path.rest.as_str()).unwrap_or(&incoming.path);
        if let Ok(value) = HeaderValue::from_str(&format!("{prefix}{location}")) {
            headers.insert(LOCATION, value);
        }
    }
}

fn redirect(to: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = http::StatusCode::MOVED_PERMANENTLY;
    if let Ok(value) = HeaderValue::from_str(to) {
        response.headers_mut().insert(LOCATION, value);
    }
    response
}

/// `[scheme:]name[:port]` (`apimachinery/pkg/util/net`, SplitSchemeNamePort).
#[derive(Debug, PartialEq, Eq)]
struct Target<'a> {
    name: &'a str,
    /// A number or the name of a port; empty for the only one.
    port: &'a str,
}

impl<'a> Target<'a> {
    fn parse(text: &'a str) -> Result<Self, ApiError> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts[..] {
            [name] => ("", name, ""),
            [name, port] => ("", name, port),
            [scheme, name, port] => (scheme, name, port),
            _ => return Err(ApiError::bad_request(format!("invalid proxy request {text:?}"))),
        };
        match scheme {
            "" | "http" => Ok(Self { name, port }),
            "https" => Err(ApiError::bad_request("the proxy does not speak https to its targets yet".to_owned())),
            _ => Err(ApiError::bad_request(format!("invalid proxy request {text:?}"))),
        }
    }
}

fn get(api: &Api, resource: &str, namespace: &str, name: &str) -> Result<Value, ApiError> {
    let key = ObjectKey::new(namespace, name);
    let entry = api.store().get(&ResourceId::new("", resource), &key);
    Ok(object::decode(&entry.ok_or_else(|| ApiError::not_found("", resource, name))?.bytes))
}

fn pod_address(api: &Api, namespace: &str, target: &Target<'_>) -> Result<String, ApiError> {
    let pod = get(api, "pods", namespace, target.name)?;
    let ip = pod["status"]["podIP"].as_str().filter(|ip| !ip.is_empty());
    let ip = ip.ok_or_else(|| ApiError::bad_request(format!("pod {} has no address yet", target.name)))?;
    let ports = || object::items(&pod["spec"], "containers").flat_map(|container| object::items(container, "ports"));
    let port = if target.port.is_empty() {
        ports().filter_map(|port| port["containerPort"].as_u64()).next().unwrap_or(80)
    } else {
        let named = || ports().find(|port| port["name"] == target.port).and_then(|port| port["containerPort"].as_u64());
        let number = target.port.parse().ok().or_else(named);
        number.ok_or_else(|| ApiError::bad_request(format!("pod {} has no port {:?}", target.name, target.port)))?
    };
    Ok(join(ip, port))
}

fn service_address(api: &Api, namespace: &str, target: &Target<'_>) -> Result<String, ApiError> {
    let service = get(api, "services", namespace, target.name)?;
    let none =
        || ApiError::unavailable(format!("no service port {:?} found for service {:?}", target.port, target.name));
    let port_name = port_name(&service, target.port).ok_or_else(none)?;
    let slices = ResourceId::new("discovery.k8s.io", "endpointslices");
    let of_service = |entry: &kedge_store::Entry| {
        object::decode(&entry.bytes)["metadata"]["labels"]["kubernetes.io/service-name"] == target.name
    };
    let page = api.store().list(&slices, Some(namespace), None, None, usize::MAX, of_service);
    let entries = page.expect("the newest revision is never gone").entries;
    let mut addresses = Vec::new();
    for slice in entries.iter().map(|entry| object::decode(&entry.bytes)) {
        let fits = |port: &&Value| port["name"].as_str().unwrap_or_default() == port_name;
        let Some(port) = object::items(&slice, "ports").find(fits).and_then(|port| port["port"].as_u64()) else {
            continue;
        };
        let ready = object::items(&slice, "endpoints").filter(|endpoint| endpoint["conditions"]["ready"] != false);
        addresses.extend(ready.filter_map(|endpoint| Some(join(endpoint["addresses"][0].as_str()?, port))));
    }
    let none = || ApiError::unavailable(format!("no endpoints available for service {:?}", target.name));
    let mut dice = [0; 8];
    api.world().random.fill(&mut dice);
    let chosen = (u64::from_le_bytes(dice) as usize).checked_rem(addresses.len()).ok_or_else(none)?;
    Ok(addresses.swap_remove(chosen))
}

/// The name of the service's port that `wanted` means: by number, by name, or the only one.
fn port_name(service: &Value, wanted: &str) -> Option<String> {
    let ports: Vec<&Value> = object::items(&service["spec"], "ports").collect();
    let name = |port: &Value| port["name"].as_str().unwrap_or_default().to_owned();
    if wanted.is_empty() {
        return match ports[..] {
            [only] => Some(name(only)),
            _ => ports.iter().find(|port| name(port).is_empty()).map(|port| name(port)),
        };
    }
    if let Ok(number) = wanted.parse::<u64>() {
        return ports.iter().find(|port| port["port"] == number).map(|port| name(port));
    }
    ports.iter().find(|port| name(port) == wanted).map(|port| name(port))
}

fn join(ip: &str, port: u64) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn targets() {
        let parse = |text| Target::parse(text).map(|target| (target.name.to_owned(), target.port.to_owned()));
        let good = |name: &str, port: &str| Some((name.to_owned(), port.to_owned()));
        assert_eq!(parse("a").ok(), good("a", ""));
        assert_eq!(parse("a:80").ok(), good("a", "80"));
        assert_eq!(parse("http:a:web").ok(), good("a", "web"));
        assert_eq!(parse("http:a:").ok(), good("a", ""));
        for bad in ["https:a:80", "ftp:a:80", "a:b:c:d"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_services_port_is_meant_by_number_by_name_or_alone() {
        let one = json!({"spec": {"ports": [{"port": 80}]}});
        let two = json!({"spec": {"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]}});
        assert_eq!(port_name(&one, ""), Some(String::new()));
        assert_eq!(port_name(&one, "80"), Some(String::new()));
        assert_eq!(port_name(&one, "81"), None);
        assert_eq!(port_name(&two, ""), None);
        assert_eq!(port_name(&two, "81").as_deref(), Some("b"));
        assert_eq!(port_name(&two, "a").as_deref(), Some("a"));
    }
}
