//! The channel protocols of exec and port-forward over WebSocket: what a message is, and what goes on which channel.
//! Pure. (`k8s.io/apimachinery/pkg/util/remotecommand/constants.go`, `k8s.io/streaming/pkg/httpstream/wsstream`.)

use base64::Engine as _;
use bytes::Bytes;
use serde_json::{Value, json};

/// A dialect of exec over WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Binary messages; the end of stdin can be said (`v5.channel.k8s.io`).
    V5,
    /// Binary messages (`v4.channel.k8s.io`).
    V4,
    /// Text messages in base64 (`v4.base64.channel.k8s.io`).
    V4Base64,
}

/// Standard input, from the client.
pub const STDIN: u8 = 0;
/// Standard output, to the client.
pub const STDOUT: u8 = 1;
/// Standard error, to the client.
pub const STDERR: u8 = 2;
/// How the command ended, to the client, as a `Status`.
pub const ERROR: u8 = 3;
/// The terminal's new size, from the client, as JSON.
pub const RESIZE: u8 = 4;
/// In [`Dialect::V5`]: the channel named by the next byte is closed.
const CLOSE: u8 = 255;

impl Dialect {
    /// The subprotocol's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::V5 => "v5.channel.k8s.io",
            Self::V4 => "v4.channel.k8s.io",
            Self::V4Base64 => "v4.base64.channel.k8s.io",
        }
    }

    /// The first of the client's wishes (`Sec-WebSocket-Protocol`) that is spoken here.
    pub fn choose(wishes: &str) -> Option<Self> {
        wishes
            .split(',')
            .map(str::trim)
            .find_map(|wish| [Self::V5, Self::V4, Self::V4Base64].into_iter().find(|d| d.name() == wish))
    }

    /// A message on `channel`, as the content of a frame.
    pub fn encode(self, channel: u8, data: &[u8]) -> Vec<u8> {
        match self {
            Self::V4Base64 => {
                let text = base64::engine::general_purpose::STANDARD.encode(data);
                [&[b'0' + channel], text.as_bytes()].concat()
            }
            _ => [&[channel], data].concat(),
        }
    }

    /// What a frame from the client says; none for what makes no sense, which is ignored.
    pub fn decode(self, frame: &[u8]) -> Option<Input> {
        let (channel, data) = frame.split_first()?;
        let (channel, data) = match self {
            Self::V4Base64 => {
                (channel.checked_sub(b'0')?, base64::engine::general_purpose::STANDARD.decode(data).ok()?)
            }
            _ => (*channel, data.to_vec()),
        };
        match channel {
            STDIN => Some(Input::Stdin(data.into())),
            RESIZE => {
                let size: Value = serde_json::from_slice(&data).ok()?;
                let of = |key: &str| size[key].as_u64().and_then(|n| u16::try_from(n).ok());
                Some(Input::Resize { width: of("Width").or(of("width"))?, height: of("Height").or(of("height"))? })
            }
            CLOSE if self == Self::V5 && data.first() == Some(&STDIN) => Some(Input::End),
            _ => None,
        }
    }
}

/// What a client says during an exec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Bytes for standard input.
    Stdin(Bytes),
    /// The terminal has another size.
    Resize {
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Standard input is over.
    End,
}

/// How a command ended, as clients read it on the error channel (`remotecommand.NonZeroExitCodeReason`).
pub fn exit_status(code: i32) -> Value {
    if code == 0 {
        return json!({ "metadata": {}, "status": "Success" });
    }
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
    })
}

/// Why a command could not be run.
pub fn failure_status(message: &str) -> Value {
    json!({ "metadata": {}, "status": "Failure", "reason": "InternalError", "message": message, "code": 500 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_dialect_that_both_speak_is_chosen() {
        let cases = [
            ("v5.channel.k8s.io,v4.channel.k8s.io", Some(Dialect::V5)),
            ("v4.channel.k8s.io, v5.channel.k8s.io", Some(Dialect::V4)),
            ("base64.channel.k8s.io,v4.base64.channel.k8s.io", Some(Dialect::V4Base64)),
            ("graphql", None),
        ];
        for (wishes, expected) in cases {
            assert_eq!(Dialect::choose(wishes), expected, "{wishes}");
        }
    }

    #[test]
    fn messages_go_both_ways() {
        assert_eq!(Dialect::V5.encode(STDOUT, b"hi"), b"\x01hi");
        assert_eq!(Dialect::V4Base64.encode(STDERR, b"hi"), b"2aGk=");
        let cases: [(Dialect, &[u8], Option<Input>); 8] = [
            (Dialect::V5, b"\x00ls\n", Some(Input::Stdin("ls\n".into()))),
            (Dialect::V4Base64, b"0bHM=", Some(Input::Stdin("ls".into()))),
            (Dialect::V5, b"\x04{\"Width\":80,\"Height\":24}", Some(Input::Resize { width: 80, height: 24 })),
            (Dialect::V5, b"\xff\x00", Some(Input::End)),
            (Dialect::V4, b"\xff\x00", None),
            (Dialect::V5, b"\x04{\"Width\":-1}", None),
            (Dialect::V4Base64, b"0!!!", None),
            (Dialect::V5, b"", None),
        ];
        for (dialect, frame, expected) in cases {
            assert_eq!(dialect.decode(frame), expected, "{frame:?}");
        }
    }

    #[test]
    fn exit_codes_are_told_as_clients_look_for_them() {
        assert_eq!(exit_status(0)["status"], "Success");
        assert_eq!(exit_status(3)["details"]["causes"][0]["message"], "3");
    }
}
