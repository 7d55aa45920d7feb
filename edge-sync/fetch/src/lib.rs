//! Downloads over HTTP: redirects, ranges, TLS, and a bound on everything.
//!
//! One request is one connection: what is fetched is large, and nothing has to be kept open between two files.
//! Certificates are checked against the machine's own authorities. Credentials never follow a redirect to another
//! host, and `https` never becomes `http`.
//! Not here: what is done with the bytes, proxies, HTTP/2.

#![forbid(unsafe_code)]

mod roots;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST, HeaderMap, LOCATION, RANGE, USER_AGENT};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use kedge_world::{BoxedStream, Net};
use rustls_pki_types::ServerName;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

pub use roots::{RootsError, machine_roots};

/// Redirects that are followed (curl's `--max-redirs` is 50, browsers stop at 20; downloads need one or two).
const REDIRECTS_MAX: usize = 10;
/// Until a connection stands.
const CONNECT_MAX: Duration = Duration::from_secs(30);
/// Until the answer begins, and between two pieces of it.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The address is not one that can be fetched.
    #[error("{url}: {reason}")]
    Address {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The network failed; trying again later may help.
    #[error("{url}: {reason}")]
    Network {
        /// What was asked for.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The server said no.
    #[error("{url}: the server answered {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// The answer.
        status: StatusCode,
    },
    /// Certificates cannot be checked on this machine.
    #[error("{0}")]
    Roots(#[from] RootsError),
}

impl FetchError {
    /// Whether the same request may succeed later without anybody changing it.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Network { .. } => true,
            Self::Status { status, .. } => {
                status.is_server_error()
                    || matches!(*status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
            }
            Self::Address { .. } | Self::Roots(_) => false,
        }
    }
}

/// What to ask for.
#[derive(Clone, Debug)]
pub struct Get {
    /// `http://…` or `https://…`.
    pub url: String,
    /// Headers to send along.
    pub headers: HeaderMap,
    /// The first byte wanted; the server may not heed it, see [`Answer::offset`].
    pub from: u64,
    /// Whether a redirect is followed, or is the answer.
    pub follow: bool,
}

impl Get {
    /// All of `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), headers: HeaderMap::new(), from: 0, follow: true }
    }
}

/// Downloads.
#[derive(Clone)]
pub struct Fetcher {
    net: Arc<dyn Net>,
    roots: Option<Arc<rustls::ClientConfig>>,
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fetcher")
    }
}

impl Fetcher {
    /// One that trusts the machine's authorities, which are read when first needed.
    pub fn new(net: Arc<dyn Net>) -> Self {
        Self { net, roots: None }
    }

    /// One that trusts what `config` says: tests come with an authority of their own.
    pub fn with_tls(net: Arc<dyn Net>, config: Arc<rustls::ClientConfig>) -> Self {
        Self { net, roots: Some(config) }
    }

    /// Asks for `get` and follows redirects; the answer is 200 or 206, everything else is an error.
    pub async fn get(&self, get: &Get) -> Result<Answer, FetchError> {
        let answer = self.send(get).await?;
        if !matches!(answer.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            return Err(FetchError::Status { url: answer.url, status: answer.status });
        }
        Ok(answer)
    }

    /// Asks for `get` and follows redirects if it says so; any other status is an answer.
    pub async fn send(&self, get: &Get) -> Result<Answer, FetchError> {
        let mut url = get.url.clone();
        let mut headers = get.headers.clone();
        for hop in 0..=REDIRECTS_MAX {
            let uri = parse(&url)?;
            // Stores give access by what stands in the query of the address they redirect to; errors are read by many.
            let shown = if hop == 0 { &url } else { without_query(&url) };
            let answer = self.once(shown, &uri, &headers, get.from).await?;
            let redirect = matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308);
            if !redirect || !get.follow {
                return Ok(answer);
            }
            let location = answer.headers.get(LOCATION).and_then(|value| value.to_str().ok());
            let wrong = |reason: String| FetchError::Address { url: without_query(&url).to_owned(), reason };
            let next = location.ok_or_else(|| wrong("a redirect that does not say where to".into()))?;
            let next = join(&uri, next)
                .ok_or_else(|| wrong(format!("a redirect to {:?}, which is no address", without_query(next))))?;
            let target = parse(&next)?;
            if uri.scheme_str() == Some("https") && target.scheme_str() != Some("https") {
                return Err(wrong(format!(
                    "a redirect from https to {:?}, which is not encrypted",
                    without_query(&next)
                )));
            }
            if target.authority() != uri.authority() {
                headers.remove(AUTHORIZATION);
            }
            url = next;
        }
        let url = without_query(&url).to_owned();
        Err(FetchError::Address { url, reason: format!("more than {REDIRECTS_MAX} redirects") })
    }

    async fn once(&self, url: &str, uri: &Uri, headers: &HeaderMap, from: u64) -> Result<Answer, FetchError> {
        let failed = |reason: String| FetchError::Network { url: url.to_owned(), reason };
        let stream = match timeout(CONNECT_MAX, self.connect(url, uri)).await {
            Ok(stream) => stream?,
            Err(_) => return Err(failed(format!("no connection within {} s", CONNECT_MAX.as_secs()))),
        };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(e.to_string()))?;
        tokio::spawn(connection);
        let target = uri.path_and_query().map_or("/", |path| path.as_str());
        let host = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
        let mut request = Request::builder().method(Method::GET).uri(target);
        let sent = request.headers_mut().expect("the parts so far are good");
        *sent = headers.clone();
        sent.insert(USER_AGENT, HeaderValue::from_static(concat!("kedge/", env!("CARGO_PKG_VERSION"))));
        sent.insert(HOST, HeaderValue::from_str(host).expect("an authority is a header value"));
        if from > 0 {
            sent.insert(RANGE, HeaderValue::from_str(&format!("bytes={from}-")).expect("digits"));
        }
        let request = request.body(Empty::<Bytes>::new()).expect("an address and headers that were parsed");
        let response = match timeout(IDLE_MAX, sender.send_request(request)).await {
            Ok(response) => response.map_err(|e| failed(e.to_string()))?,
            Err(_) => return Err(failed(format!("no answer within {} s", IDLE_MAX.as_secs()))),
        };
        let (parts, body) = response.into_parts();
        Ok(Answer { url: url.to_owned(), status: parts.status, headers: parts.headers, body })
    }

    async fn connect(&self, url: &str, uri: &Uri) -> Result<BoxedStream, FetchError> {
        let failed = |reason: String| FetchError::Network { url: url.to_owned(), reason };
        let host = uri.host().unwrap_or_default();
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = self.net.connect(&format!("{host}:{port}")).await.map_err(|e| failed(e.to_string()))?;
        if !secure {
            return Ok(stream);
        }
        let config = match &self.roots {
            Some(config) => config.clone(),
            None => machine_roots()?,
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(bare)
            .map_err(|_| FetchError::Address { url: url.to_owned(), reason: format!("{host:?} is no host name") })?;
        let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|e| failed(e.to_string()))?;
        Ok(Box::new(stream))
    }
}

/// What a server answers.
#[derive(Debug)]
pub struct Answer {
    /// Where it came from in the end; after a redirect without its query.
    pub url: String,
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    body: Incoming,
}

impl Answer {
    /// The place in the file of the first byte that follows: what was asked for, or 0 when the server sends all of it.
    pub fn offset(&self) -> u64 {
        let range = self.headers.get(http::header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let start = range.and_then(|text| text.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
        if self.status == StatusCode::PARTIAL_CONTENT { start.unwrap_or(0) } else { 0 }
    }

    /// The next bytes; none at the end. A body that ends before its length is an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        let failed = |reason: String| FetchError::Network { url: self.url.clone(), reason };
        loop {
            let frame = match timeout(IDLE_MAX, self.body.frame()).await {
                Ok(Some(frame)) => frame.map_err(|e| failed(format!("the transfer broke off: {e}")))?,
                Ok(None) => return Ok(None),
                Err(_) => return Err(failed(format!("nothing came for {} s", IDLE_MAX.as_secs()))),
            };
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// The whole body, which must not be longer than `max` bytes.
    pub async fn bytes(mut self, max: usize) -> Result<Vec<u8>, FetchError> {
        let mut all = Vec::new();
        while let Some(piece) = self.next().await? {
            if all.len() + piece.len() > max {
                let reason = format!("the answer is longer than {max} bytes");
                return Err(FetchError::Address { url: self.url, reason });
            }
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }
}

fn without_query(url: &str) -> &str {
    url.split('?').next().unwrap_or(url)
}

fn parse(url: &str) -> Result<Uri, FetchError> {
    let wrong = |reason: &str| FetchError::Address { url: url.to_owned(), reason: reason.to_owned() };
    let uri: Uri = url.parse().map_err(|_| wrong("this is no address"))?;
    match uri.scheme_str() {
        Some("http" | "https") if uri.host().is_some_and(|host| !host.is_empty()) => Ok(uri),
        Some("http" | "https") => Err(wrong("the address names no host")),
        _ => Err(wrong("only http:// and https:// can be fetched")),
    }
}

/// The address that `location` means, seen from `base` (RFC 3986, section 5.2, without `.` and `..`).
fn join(base: &Uri, location: &str) -> Option<String> {
    let scheme = base.scheme_str()?;
    let authority = base.authority()?;
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{scheme}://{rest}"));
    }
    if location.starts_with('/') {
        return Some(format!("{scheme}://{authority}{location}"));
    }
    if location.contains("://") {
        return Some(location.to_owned());
    }
    let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    (!location.is_empty()).then(|| format!("{scheme}://{authority}{folder}/{location}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_seen_from_where_it_was_given() {
        let base: Uri = "https://a.test:8443/v2/x/blob?k=1".parse().unwrap();
        for (location, expected) in [
            ("https://b.test/y", "https://b.test/y"),
            ("//b.test/y", "https://b.test/y"),
            ("/y?z", "https://a.test:8443/y?z"),
            ("y", "https://a.test:8443/v2/x/y"),
        ] {
            assert_eq!(join(&base, location).as_deref(), Some(expected), "{location}");
        }
        assert_eq!(join(&base, ""), None);
    }

    #[test]
    fn only_http_addresses_with_a_host_are_fetched() {
        for bad in ["file:///etc/passwd", "ftp://a/b", "a/b", "http://", "http:///x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse("http://a.test/x").is_ok());
    }
}
