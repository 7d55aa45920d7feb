//! gRPC as probes ask it: `grpc.health.v1.Health/Check`, over HTTP/2 without TLS. (`pkg/probe/grpc/grpc.go`.)

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kedge_world::Net;
use percent_encoding::percent_decode_str;
use prost::Message;

use super::http::beside;
use super::{OUTPUT_BYTES_MAX, PROBE_AGENT};
use crate::probe::Answer;

/// Statuses of gRPC that have a word here (`google.golang.org/grpc/codes`).
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
const UNKNOWN: usize = 2;
/// What a service can say of itself.
const HEALTH: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
/// In front of each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Asks `service` at `address` how it is.
pub(super) async fn check(net: &dyn Net, address: &str, service: &str, time: Duration) -> Answer {
    let connecting = async {
        let stream = net.connect(address).await.map_err(|e| e.to_string())?;
        let connected = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        connected.map_err(|e| e.to_string())
    };
    let deadline = tokio::time::Instant::now() + time;
    let (mut sender, connection) = match tokio::time::timeout_at(deadline, connecting).await {
        Ok(Ok(connected)) => connected,
        Ok(Err(error)) => return Answer::Failure(format!("error: failed to connect service at {address:?}: {error}")),
        Err(_) => {
            let why =
                format!("timeout: failed to connect service {address:?} within {time:?}: context deadline exceeded");
            return Answer::Failure(why);
        }
    };
    let request = match request(address, service) {
        Ok(request) => request,
        Err(error) => return Answer::Failure(format!("error: {error}")),
    };
    let talk = async {
        let response = sender.send_request(request).await.map_err(|e| unavailable(&e))?;
        let (parts, body) = response.into_parts();
        if parts.status != http::StatusCode::OK {
            let message = format!("unexpected HTTP status code received from server: {}", parts.status);
            return Err(Status { code: UNKNOWN, message });
        }
        let most = usize::try_from(OUTPUT_BYTES_MAX).expect("it is small");
        let body = Limited::new(body, most).collect().await.map_err(|e| unavailable(&e))?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        // Without a message everything is in the headers.
        let status = Status::of(&trailers).or_else(|| Status::of(&parts.headers));
        let missing = || Status { code: UNKNOWN, message: "the answer has no grpc-status".to_owned() };
        let status = status.ok_or_else(missing)?;
        if status.code == 0 { Ok(body.to_bytes()) } else { Err(status) }
    };
    match tokio::time::timeout_at(deadline, beside(connection, talk)).await {
        Ok(got) => answer(got, time),
        Err(_) => Answer::Failure(format!("timeout: health rpc did not complete within {time:?}")),
    }
}

fn request(address: &str, service: &str) -> http::Result<Request<Full<Bytes>>> {
    let message = HealthCheckRequest { service: service.to_owned() }.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    let framed = [&[0], &length[..], &message].concat();
    Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, PROBE_AGENT)
        .body(Full::new(framed.into()))
}

/// A status other than OK.
#[derive(Debug)]
struct Status {
    code: usize,
    message: String,
}

impl Status {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let code = text("grpc-status")?.parse().unwrap_or(UNKNOWN);
        let message = percent_decode_str(text("grpc-message").unwrap_or_default()).decode_utf8_lossy().into_owned();
        Some(Self { code, message })
    }
}

fn unavailable(error: &dyn std::fmt::Display) -> Status {
    Status { code: 14, message: error.to_string() }
}

/// What a probe makes of it. Pure.
fn answer(got: Result<Bytes, Status>, time: Duration) -> Answer {
    let status = match got.map(|framed| HealthCheckResponse::decode(framed.get(PREFIX_BYTES..).unwrap_or_default())) {
        Ok(Ok(HealthCheckResponse { status: 1 })) => return Answer::Success,
        Ok(Ok(HealthCheckResponse { status })) => {
            let word = usize::try_from(status).ok().and_then(|status| HEALTH.get(status));
            let word = word.map_or_else(|| status.to_string(), |word| (*word).to_owned());
            return Answer::Failure(format!("service unhealthy (responded with {word:?})"));
        }
        Ok(Err(error)) => Status { code: 13, message: error.to_string() },
        Err(status) => status,
    };
    let message = status.message;
    Answer::Failure(match CODES.get(status.code).copied().unwrap_or("Unknown") {
        "Unimplemented" => {
            format!("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}")
        }
        "DeadlineExceeded" => format!("timeout: health rpc did not complete within {time:?}"),
        code => format!("error: health rpc probe failed: rpc error: code = {code} desc = {message}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_says_of_itself_counts() {
        let says = |status: i32| {
            let message = HealthCheckResponse { status }.encode_to_vec();
            let framed = [&[0, 0, 0, 0, u8::try_from(message.len()).unwrap()], &message[..]].concat();
            answer(Ok(framed.into()), Duration::from_secs(1))
        };
        assert_eq!(says(1), Answer::Success);
        assert_eq!(says(2), Answer::Failure("service unhealthy (responded with \"NOT_SERVING\")".into()));
        assert_eq!(
            says(0),
            Answer::Failure("service unhealthy (responded with \"UNKNOWN\")".into()),
            "an empty message"
        );
        assert_eq!(says(9), Answer::Failure("service unhealthy (responded with \"9\")".into()));
        let fails = |code, message: &str| answer(Err(Status { code, message: message.into() }), Duration::from_secs(1));
        for (code, expected) in [
            (12, "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): m"),
            (4, "timeout: health rpc did not complete within 1s"),
            (5, "error: health rpc probe failed: rpc error: code = NotFound desc = m"),
            (99, "error: health rpc probe failed: rpc error: code = Unknown desc = m"),
        ] {
            assert_eq!(fails(code, "m"), Answer::Failure(expected.into()));
        }
    }

    #[test]
    fn a_request_is_framed_and_a_status_read() {
        let request = request("10.0.0.1:5000", "s").unwrap();
        assert_eq!(request.uri(), "http://10.0.0.1:5000/grpc.health.v1.Health/Check");
        let mut headers = HeaderMap::new();
        assert!(Status::of(&headers).is_none());
        headers.insert("grpc-status", "5".parse().unwrap());
        headers.insert("grpc-message", "no%20such".parse().unwrap());
        let status = Status::of(&headers).unwrap();
        assert_eq!((status.code, status.message.as_str()), (5, "no such"));
    }
}
