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
    /// Binary messages; how the command ended is said in words, and only when it failed (`channel.k8s.io`).
    V1,
    /// The same in base64 (`base64.channel.k8s.io`).
    V1Base64,
}

const DIALECTS: [Dialect; 5] = [Dialect::V5, Dialect::V4, Dialect::V4Base64, Dialect::V1, Dialect::V1Base64];

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
            Self::V1 => "channel.k8s.io",
            Self::V1Base64 => "base64.channel.k8s.io",
        }
    }

    /// The first of the client's wishes (`Sec-WebSocket-Protocol`) that is spoken here.
    pub fn choose(wishes: &str) -> Option<Self> {
        Self::choose_of(&DIALECTS, wishes)
    }

    /// The same for port-forward, which has fewer (`portforward/websocket.go`).
    pub fn choose_for_ports(wishes: &str) -> Option<Self> {
        Self::choose_of(&[Self::V4, Self::V4Base64], wishes)
    }

    fn choose_of(spoken: &[Self], wishes: &str) -> Option<Self> {
        wishes.split(',').map(str::trim).find_map(|wish| spoken.iter().find(|dialect| dialect.name() == wish)).copied()
    }

    /// Whether messages are text.
    pub fn is_text(self) -> bool {
        matches!(self, Self::V4Base64 | Self::V1Base64)
    }

    /// A message on `channel`, as the content of a frame.
    pub fn encode(self, channel: u8, data: &[u8]) -> Vec<u8> {
        if self.is_text() {
            let text = base64::engine::general_purpose::STANDARD.encode(data);
            [&[b'0' + channel], text.as_bytes()].concat()
        } else {
            [&[channel], data].concat()
        }
    }

    /// The channel of a frame and what it carries; none when it is no frame of this dialect.
    pub fn split(self, frame: &Bytes) -> Option<(u8, Bytes)> {
        let channel = *frame.first()?;
        let data = frame.slice(1..);
        if self.is_text() {
            let data = base64::engine::general_purpose::STANDARD.decode(data).ok()?;
            Some((channel.checked_sub(b'0')?, data.into()))
        } else {
            Some((channel, data))
        }
    }

    /// What a frame from the client says; none for what makes no sense, which is ignored.
    pub fn decode(self, frame: &Bytes) -> Option<Input> {
        let (channel, data) = self.split(frame)?;
        match channel {
            STDIN => Some(Input::Stdin(data)),
            RESIZE => terminal_size(&data).map(|(width, height)| Input::Resize { width, height }),
            CLOSE if self == Self::V5 && data.first() == Some(&STDIN) => Some(Input::End),
            _ => None,
        }
    }

    /// What is said on [`ERROR`] about how a command ended; none when nothing is.
    pub fn ending(self, outcome: &Outcome) -> Option<Vec<u8>> {
        match self {
            Self::V5 | Self::V4 | Self::V4Base64 => Some(outcome.status().to_string().into_bytes()),
            Self::V1 | Self::V1Base64 => outcome.message().map(String::into_bytes),
        }
    }
}

/// Columns and rows, as clients write them: JSON, one object.
pub fn terminal_size(json: &[u8]) -> Option<(u16, u16)> {
    let size: Value = serde_json::from_slice(json).ok()?;
    let of = |key: &str| size[key].as_u64().and_then(|n| u16::try_from(n).ok());
    Some((of("Width").or(of("width"))?, of("Height").or(of("height"))?))
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

/// How a command, or the connection to a running one, ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With this exit code.
    Exit(i32),
    /// It could not be run, or was lost.
    Failed(String),
}

impl Outcome {
    /// As a `Status`, as newer clients read it (`remotecommand.NonZeroExitCodeReason`).
    pub fn status(&self) -> Value {
        match self {
            Self::Exit(0) => json!({ "metadata": {}, "status": "Success" }),
            Self::Exit(code) => json!({
                "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message": self.message(),
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Self::Failed(_) => json!({
                "metadata": {}, "status": "Failure", "reason": "InternalError", "message": self.message(), "code": 500,
            }),
        }
    }

    /// In words, as older clients read it; none when all is well.
    pub fn message(&self) -> Option<String> {
        match self {
            Self::Exit(0) => None,
            Self::Exit(code) => Some(format!("command terminated with non-zero exit code: exit status {code}")),
            Self::Failed(message) => Some(message.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_dialect_that_both_speak_is_chosen() {
        let cases = [
            ("v5.channel.k8s.io,v4.channel.k8s.io", Some(Dialect::V5)),
            ("v4.channel.k8s.io, v5.channel.k8s.io", Some(Dialect::V4)),
            ("base64.channel.k8s.io,v4.base64.channel.k8s.io", Some(Dialect::V1Base64)),
            ("v9.channel.k8s.io,channel.k8s.io", Some(Dialect::V1)),
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
        let cases: [(Dialect, &'static [u8], Option<Input>); 8] = [
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
            assert_eq!(dialect.decode(&Bytes::from_static(frame)), expected, "{frame:?}");
        }
    }

    #[test]
    fn exit_codes_are_told_as_clients_look_for_them() {
        assert_eq!(Outcome::Exit(0).status()["status"], "Success");
        assert_eq!(Outcome::Exit(3).status()["details"]["causes"][0]["message"], "3");
        let said = |dialect: Dialect, outcome| dialect.ending(&outcome).map(|text| String::from_utf8(text).unwrap());
        assert_eq!(said(Dialect::V1, Outcome::Exit(0)), None);
        assert_eq!(said(Dialect::V1, Outcome::Failed("no".into())).as_deref(), Some("no"));
        assert!(said(Dialect::V4, Outcome::Exit(0)).is_some());
    }
}
