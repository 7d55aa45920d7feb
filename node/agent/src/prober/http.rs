//! HTTP as probes and hooks ask: GET, redirects within the same host, and as much of the answer as an event repeats.
//!
//! Rules: `pkg/probe/http/{http,request}.go`. What to ask and where a redirect leads is computed ([`Ask`]); [`get`] asks.

use std::io;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, LOCATION, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, Version};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::HTTPGetAction;
use kedge_world::Net;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::{OUTPUT_BYTES_MAX, address, tls};
use crate::probe::Answer;

/// Redirects that are followed (`net/http`'s own limit).
const REDIRECTS_MAX: usize = 10;
/// What no URL may hold as it is.
const ESCAPED: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'\\').add(b'^').add(b'`').add(b'{').add(b'|').add(b'}');

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ask {
    https: bool,
    host: String,
    port: u16,
    /// Path and query.
    path: String,
    /// What the Host header says, if not host and port.
    host_header: Option<HeaderValue>,
    headers: HeaderMap,
    /// Why nobody will be asked.
    flaw: Option<String>,
}

/// What was answered.
#[derive(Debug, PartialEq)]
pub(super) struct Reply {
    status: u16,
    /// Its beginning.
    body: String,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Asked over TLS, answered without.
    NotTls(String),
    /// The answer broke off.
    Broken(String),
    /// Anything else.
    Failed(String),
}

impl Trouble {
    pub(super) fn into_text(self) -> String {
        match self {
            Self::NotTls(text) | Self::Broken(text) | Self::Failed(text) => text,
        }
    }
}

/// What a probe makes of it.
pub(super) fn answer(got: Result<Reply, Trouble>) -> Answer {
    match got {
        Ok(Reply { status: 200..300, .. }) => Answer::Success,
        Ok(Reply { status: 300..400, body }) => {
            Answer::Warning(format!("Probe terminated redirects, Response body: {body}"))
        }
        // The body stays out of events: it may hold secrets.
        Ok(Reply { status, .. }) => Answer::Failure(format!("HTTP probe failed with statuscode: {status}")),
        Err(Trouble::Broken(error)) => Answer::Unknown(error),
        Err(trouble) => Answer::Failure(trouble.into_text()),
    }
}

impl Ask {
    /// What an action asks of `host`, in the name of `agent`.
    pub(super) fn new(get: &HTTPGetAction, host: String, port: u16, agent: &str) -> Result<Self, String> {
        let https = match get.scheme.as_deref() {
            None | Some("" | "HTTP") => false,
            Some("HTTPS") => true,
            Some(other) => return Err(format!("unsupported protocol scheme {other:?}")),
        };
        let path = get.path.as_deref().unwrap_or_default();
        let (mut headers, mut flaw) = (HeaderMap::new(), None);
        for header in get.http_headers.iter().flatten() {
            let name: HeaderName = header.name.parse().map_err(|_| format!("invalid header name {:?}", header.name))?;
            match HeaderValue::from_str(&header.value) {
                Ok(value) => drop(headers.append(name, value)),
                // The API takes it, and Go's client finds out, once it is about to ask (`net/http.Transport`).
                Err(_) => flaw = Some(format!("net/http: invalid header field value for {:?}", header.name)),
            }
        }
        let host_header = headers.remove(HOST).filter(|host| !host.is_empty());
        let agent = HeaderValue::from_str(agent).map_err(|e| e.to_string())?;
        headers.entry(USER_AGENT).or_insert(agent);
        // Said to be empty, it is not sent.
        if headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*")).is_empty() {
            headers.remove(ACCEPT);
        }
        Ok(Self { https, host, port, path: rooted(path), host_header, headers, flaw })
    }

    /// The same without TLS.
    pub(super) fn without_tls(self) -> Self {
        Self { https: false, ..self }
    }

    fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }

    pub(super) fn url(&self) -> String {
        format!("{}://{}{}", self.scheme(), address(&self.host, self.port), self.path)
    }

    /// Where an answer sends the question on to; none when it is to be taken as it is.
    fn redirected(&self, reply: &Response<Incoming>) -> Result<Option<Self>, String> {
        let location = reply.headers().get(LOCATION).filter(|location| !location.is_empty());
        let (Some(location), 301 | 302 | 303 | 307 | 308) = (location, reply.status().as_u16()) else {
            return Ok(None);
        };
        let location = location.to_str().map_err(|_| "the Location header is not text".to_owned())?;
        self.follow(location).map(Some)
    }

    /// The question that a Location stands for.
    fn follow(&self, location: &str) -> Result<Self, String> {
        let location = location.split('#').next().unwrap_or_default();
        let own_path = self.path.split('?').next().unwrap_or_default();
        let folder = &own_path[..own_path.rfind('/').map_or(0, |slash| slash + 1)];
        let absolute = match location {
            "" => return Ok(self.clone()),
            _ if location.starts_with("//") => format!("{}:{location}", self.scheme()),
            _ if location.starts_with('/') => return Ok(Self { path: rooted(location), ..self.clone() }),
            _ if location.starts_with('?') => {
                return Ok(Self { path: rooted(&format!("{own_path}{location}")), ..self.clone() });
            }
            _ if !location.split(['/', '?']).next().unwrap_or_default().contains(':') => {
                return Ok(Self { path: rooted(&format!("{folder}{location}")), ..self.clone() });
            }
            _ => location.to_owned(),
        };
        let fail = || format!("failed to parse Location header {location:?}");
        let uri: Uri = utf8_percent_encode(&absolute, ESCAPED).to_string().parse().map_err(|_| fail())?;
        let https = match uri.scheme_str().map(str::to_lowercase).as_deref() {
            Some("http") => false,
            Some("https") => true,
            other => return Err(format!("unsupported protocol scheme {:?}", other.unwrap_or_default())),
        };
        let host = uri.host().ok_or_else(fail)?.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let path = rooted(uri.path_and_query().map_or("", |path| path.as_str()));
        // A whole URL names its host itself.
        Ok(Self { https, host, port, path, host_header: None, headers: self.headers.clone(), flaw: None })
    }

    fn request(&self, version: Version) -> Result<Request<Empty<Bytes>>, String> {
        let own = address(&self.host, self.port);
        let mut request = Request::new(Empty::new());
        *request.headers_mut() = self.headers.clone();
        let host = match &self.host_header {
            Some(host) => host.clone(),
            None => HeaderValue::from_str(&own).map_err(|e| e.to_string())?,
        };
        let uri = if version == Version::HTTP_2 {
            format!("{}://{}{}", self.scheme(), host.to_str().map_err(|e| e.to_string())?, self.path)
        } else {
            request.headers_mut().insert(HOST, host);
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            self.path.clone()
        };
        *request.uri_mut() = uri.parse().map_err(|e| format!("{uri:?}: {e}"))?;
        *request.version_mut() = version;
        Ok(request)
    }
}

/// A path that begins at the root, with what URLs may not hold escaped.
fn rooted(path: &str) -> String {
    let path = utf8_percent_encode(path, ESCAPED).to_string();
    if path.starts_with('/') { path } else { format!("/{path}") }
}

/// Asks, and follows redirects that stay on the host; another host's door is where it ends.
pub(super) async fn get(net: &dyn Net, first: Ask) -> Result<Reply, Trouble> {
    let mut ask = first.clone();
    for _ in 0..REDIRECTS_MAX {
        let within = |error: String| format!("Get {:?}: {error}", ask.url());
        let (reply, next) = match once(net, &ask).await {
            Ok(got) => got,
            Err(Trouble::NotTls(error)) => return Err(Trouble::NotTls(within(error))),
            Err(Trouble::Broken(error)) => return Err(Trouble::Broken(within(error))),
            Err(Trouble::Failed(error)) => return Err(Trouble::Failed(within(error))),
        };
        match next {
            Some(next) if next.host == first.host => ask = next,
            _ => return Ok(reply),
        }
    }
    Err(Trouble::Failed(format!("Get {:?}: stopped after {REDIRECTS_MAX} redirects", ask.url())))
}

/// One question on a connection of its own: the answer, and where it sends on to.
async fn once(net: &dyn Net, ask: &Ask) -> Result<(Reply, Option<Ask>), Trouble> {
    let failed = |error: &dyn std::fmt::Display| Trouble::Failed(error.to_string());
    if let Some(flaw) = &ask.flaw {
        return Err(failed(flaw));
    }
    let stream = net.connect(&address(&ask.host, ask.port)).await.map_err(|e| failed(&e))?;
    if !ask.https {
        return talk_1(stream, ask).await;
    }
    let stream = tls::connect(&ask.host, stream).await.map_err(|error: io::Error| match tls::is_plain(&error) {
        true => Trouble::NotTls("http: server gave HTTP response to HTTPS client".to_owned()),
        false => failed(&error),
    })?;
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        let request = ask.request(Version::HTTP_2).map_err(Trouble::Failed)?;
        let connected = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (mut sender, connection) = connected.map_err(|e| failed(&e))?;
        return beside(connection, read(ask, sender.send_request(request))).await;
    }
    talk_1(stream, ask).await
}

async fn talk_1<S>(stream: S, ask: &Ask) -> Result<(Reply, Option<Ask>), Trouble>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let request = ask.request(Version::HTTP_11).map_err(Trouble::Failed)?;
    let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = connected.map_err(|e| Trouble::Failed(e.to_string()))?;
    beside(connection, read(ask, sender.send_request(request))).await
}

/// Drives a connection for as long as somebody talks on it.
pub(super) async fn beside<T>(connection: impl Future<Output = hyper::Result<()>>, talk: impl Future<Output = T>) -> T {
    let drive = async {
        let _ = connection.await; // Who talks hears of it.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        said = talk => said,
        () = drive => unreachable!("it never ends"),
    }
}

async fn read(
    ask: &Ask,
    answering: impl Future<Output = hyper::Result<Response<Incoming>>>,
) -> Result<(Reply, Option<Ask>), Trouble> {
    let response = answering.await.map_err(|e| Trouble::Failed(e.to_string()))?;
    let next = ask.redirected(&response).map_err(Trouble::Failed)?;
    let status = response.status().as_u16();
    let (mut body, mut kept) = (response.into_body(), Vec::new());
    let most = usize::try_from(OUTPUT_BYTES_MAX).expect("it is small");
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Trouble::Broken(e.to_string()))?;
        let data = frame.into_data().unwrap_or_default();
        kept.extend_from_slice(&data[..data.len().min(most - kept.len())]);
        if kept.len() == most {
            break;
        }
    }
    Ok((Reply { status, body: String::from_utf8_lossy(&kept).into_owned() }, next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ask(action: serde_json::Value) -> Result<Ask, String> {
        let mut whole = json!({"port": 80});
        whole.as_object_mut().unwrap().extend(action.as_object().unwrap().clone());
        Ask::new(&serde_json::from_value(whole).unwrap(), "10.0.0.1".into(), 8080, "kube-probe/1.36")
    }

    /// The request as text: target, then headers by name.
    fn request(action: serde_json::Value) -> Vec<String> {
        let request = ask(action).unwrap().request(Version::HTTP_11).unwrap();
        let mut headers: Vec<String> =
            request.headers().iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        headers.sort();
        std::iter::once(request.uri().to_string()).chain(headers).collect()
    }

    #[test]
    fn what_is_asked_follows_from_the_action() {
        let agent = "user-agent: kube-probe/1.36";
        assert_eq!(request(json!({})), ["/", "accept: */*", "connection: close", "host: 10.0.0.1:8080", agent]);
        let own = json!({"path": "healthz?full=1", "httpHeaders": [
            {"name": "Host", "value": "example.com"}, {"name": "Accept", "value": ""},
            {"name": "user-agent", "value": "own"}, {"name": "X", "value": "1"}, {"name": "X", "value": "2"},
        ]});
        let expected = ["/healthz?full=1", "connection: close", "host: example.com", "user-agent: own", "x: 1", "x: 2"];
        assert_eq!(request(own), expected);
        assert_eq!(request(json!({"path": "/a b/ä"}))[0], "/a%20b/%C3%A4");
        assert_eq!(ask(json!({"scheme": "HTTPS", "path": "/x"})).unwrap().url(), "https://10.0.0.1:8080/x");
        assert!(ask(json!({"scheme": "FTP"})).is_err());
        assert!(ask(json!({"httpHeaders": [{"name": "a b", "value": ""}]})).unwrap_err().contains("header name"));
        let secure = ask(json!({"scheme": "HTTPS", "path": "/x", "httpHeaders": [{"name": "Host", "value": "h"}]}));
        assert_eq!(secure.unwrap().request(Version::HTTP_2).unwrap().uri(), "https://h/x");
    }

    #[test]
    fn a_redirect_is_read_as_browsers_do() {
        let from = ask(json!({"path": "/a/b?q", "httpHeaders": [{"name": "Host", "value": "example.com"}]})).unwrap();
        for (location, expected, keeps_host) in [
            ("/c", "http://10.0.0.1:8080/c", true),
            ("c?d", "http://10.0.0.1:8080/a/c?d", true),
            ("?d", "http://10.0.0.1:8080/a/b?d", true),
            ("/c#part", "http://10.0.0.1:8080/c", true),
            ("https://10.0.0.1:8443", "https://10.0.0.1:8443/", false),
            ("//10.0.0.2/x", "http://10.0.0.2:80/x", false),
            ("HTTPS://[::1]/x", "https://[::1]:443/x", false),
        ] {
            let next = from.follow(location).unwrap();
            assert_eq!((next.url().as_str(), next.host_header.is_some()), (expected, keeps_host), "{location}");
        }
        assert!(from.follow("ftp://10.0.0.1/").unwrap_err().contains("unsupported protocol scheme \"ftp\""));
    }

    #[test]
    fn answers_count_by_their_status() {
        let reply = |status| answer(Ok(Reply { status, body: "b".into() }));
        assert_eq!(reply(200), Answer::Success);
        assert_eq!(reply(302), Answer::Warning("Probe terminated redirects, Response body: b".into()));
        for status in [100, 400, 503] {
            assert_eq!(reply(status), Answer::Failure(format!("HTTP probe failed with statuscode: {status}")));
        }
        assert_eq!(answer(Err(Trouble::Failed("f".into()))), Answer::Failure("f".into()));
        assert_eq!(answer(Err(Trouble::Broken("b".into()))), Answer::Unknown("b".into()));
    }
}
