//! The handshake of SPDY: `Upgrade: SPDY/3.1`, with a protocol chosen by header.
//! (`k8s.io/streaming/pkg/httpstream`.)

use futures::stream;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use crate::{Chunks, NodeRefusal};

const SPDY: &str = "SPDY/3.1";
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// Whether a client asks for SPDY.
pub fn is_asked_for(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(SPDY.as_bytes()))
}

/// The first of the client's protocols that is among `spoken`.
pub fn choose(headers: &HeaderMap, spoken: &[&'static str]) -> Result<&'static str, NodeRefusal> {
    let values = headers.get_all(&PROTOCOL_VERSION).iter().filter_map(|value| value.to_str().ok());
    let wishes: Vec<&str> =
        values.flat_map(|value| value.split(',')).map(str::trim).filter(|w| !w.is_empty()).collect();
    if wishes.is_empty() {
        let message = format!(
            "unable to upgrade: header X-Stream-Protocol-Version does not exist in request with {} headers",
            headers.len()
        );
        return Err(NodeRefusal::new(400, message));
    }
    wishes.iter().find_map(|wish| spoken.iter().find(|name| *name == wish)).copied().ok_or_else(|| {
        let message = format!(
            "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
            wishes.join(" "),
            spoken.join(" ")
        );
        NodeRefusal::new(403, message)
    })
}

/// The answer that switches to SPDY with `protocol` on it.
pub fn accept(protocol: &'static str) -> Response<Chunks> {
    let mut response = Response::new(Box::pin(stream::empty()) as Chunks);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(SPDY));
    headers.insert(PROTOCOL_VERSION, HeaderValue::from_static(protocol));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_protocol_that_both_speak_is_chosen() {
        let spoken = ["v4.channel.k8s.io", "v3.channel.k8s.io"];
        let check = |values: &[&'static str], expected: Result<&str, u16>| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(PROTOCOL_VERSION, HeaderValue::from_static(value));
            }
            assert_eq!(choose(&headers, &spoken).map_err(|refusal| refusal.code), expected, "{values:?}");
        };
        check(&["v9.channel.k8s.io", "v3.channel.k8s.io", "v4.channel.k8s.io"], Ok("v3.channel.k8s.io"));
        check(&["v9.channel.k8s.io, v4.channel.k8s.io"], Ok("v4.channel.k8s.io"));
        check(&["v9.channel.k8s.io"], Err(403));
        check(&[], Err(400));
    }
}
