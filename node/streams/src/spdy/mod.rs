//! SPDY/3.1, as far as Kubernetes' clients use it: the client opens streams, both sides send on them.
//!
//! Pure from bytes to events ([`Session`]) with a thin shell on a connection ([`Connection`]). The specification is
//! <https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/>.

mod connection;
mod dictionary;
mod frame;
mod headers;
mod session;

pub use connection::{Connection, Output, Stream};
pub use frame::{CONTROL_BYTES_MAX, DATA_BYTES_MAX, Decoder, Encoder, Frame, FrameError};
pub use headers::{HEADER_BYTES_MAX, HEADERS_MAX, Headers, header};
pub use session::{Event, STREAMS_MAX, Session};
