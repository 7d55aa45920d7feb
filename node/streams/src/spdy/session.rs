//! The server's side of a SPDY/3.1 connection: which streams there are, and what is answered by itself. Pure.
//!
//! ```text
//! SYN_STREAM ──answered──> open ──FIN from the client──> ours alone ──FIN from us──> gone
//!                           ├────FIN from us──────────> theirs alone ──FIN from the client──> gone
//!                           └────RST_STREAM from either──> gone
//! ```
//! Windows: received bytes are acknowledged as they are taken, so that a client that keeps windows never waits for us.
//! What is sent does not wait for the client's windows: Kubernetes' clients (github.com/moby/spdystream) never update
//! them, and would be waited for without end. Whoever reads slowly slows the connection below down instead.

use std::collections::HashMap;

use bytes::Bytes;

use super::frame::{Decoder, Encoder, Frame, FrameError};
use super::headers::Headers;

/// Streams at a time; more are refused one by one. kubectl uses two for each forwarded connection.
pub const STREAMS_MAX: usize = 512;
/// Received bytes are acknowledged in portions of this; the window is twice as large from the start.
const ACKNOWLEDGED_BYTES: u32 = 32 << 10;

/// Why a stream is refused (SPDY/3.1, 2.6.3).
mod status {
    pub(super) const PROTOCOL_ERROR: u32 = 1;
    pub(super) const INVALID_STREAM: u32 = 2;
    pub(super) const REFUSED_STREAM: u32 = 3;
    pub(super) const CANCEL: u32 = 5;
    pub(super) const STREAM_ALREADY_CLOSED: u32 = 9;
}

/// What the client did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A stream began, and was answered.
    Opened {
        /// Its number.
        stream: u32,
        /// What it is for.
        headers: Headers,
        /// The client sends nothing on it.
        fin: bool,
    },
    /// Content came.
    Data {
        /// On which stream.
        stream: u32,
        /// The content.
        data: Bytes,
        /// It was the last.
        fin: bool,
    },
    /// The client took a stream back.
    Reset {
        /// Which.
        stream: u32,
    },
}

struct Sides {
    client_open: bool,
    server_open: bool,
    unacknowledged: u32,
}

/// The connection.
#[derive(Default)]
pub struct Session {
    decoder: Decoder,
    encoder: Encoder,
    streams: HashMap<u32, Sides>,
    last: u32,
    unacknowledged: u32,
}

impl Session {
    /// Takes bytes from the client in.
    pub fn push(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// The next event, if there is one. Answers are appended to `out` and must be sent before more bytes are taken in:
    /// that is what bounds them. After an error there is nothing to do but to send `out` and to close.
    pub fn next_event(&mut self, out: &mut Vec<u8>) -> Result<Option<Event>, FrameError> {
        let fail = |session: &mut Self, out: &mut Vec<u8>, error| {
            let goodbye = Frame::GoAway { last: session.last, status: status::PROTOCOL_ERROR };
            out.extend(session.encoder.encode(&goodbye));
            Err(error)
        };
        loop {
            let frame = match self.decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(None),
                Err(error) => return fail(self, out, error),
            };
            let event = match frame {
                Frame::SynStream { stream, .. } if stream % 2 == 0 || stream <= self.last => {
                    return fail(self, out, FrameError::Malformed("a stream's number is even or not a new one"));
                }
                Frame::SynStream { stream, fin, unidirectional, headers } => {
                    self.open(stream, fin, unidirectional, headers, out)
                }
                Frame::Data { stream, fin, data } => self.data(stream, fin, data, out),
                Frame::Headers { stream, fin: true, .. } => self.data(stream, true, Bytes::new(), out),
                Frame::RstStream { stream, .. } => self.streams.remove(&stream).map(|_| Event::Reset { stream }),
                Frame::Ping(id) if id % 2 == 1 => {
                    out.extend(self.encoder.encode(&Frame::Ping(id)));
                    None
                }
                // Streams begin at the client only, so that a reply answers nothing; the streams there are go on after
                // a GOAWAY; the client's windows and wishes are not waited for.
                Frame::SynReply { .. }
                | Frame::Headers { .. }
                | Frame::Settings(_)
                | Frame::Ping(_)
                | Frame::GoAway { .. }
                | Frame::WindowUpdate { .. } => None,
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    fn open(
        &mut self,
        stream: u32,
        fin: bool,
        unidirectional: bool,
        headers: Headers,
        out: &mut Vec<u8>,
    ) -> Option<Event> {
        self.last = stream;
        if self.streams.len() >= STREAMS_MAX {
            self.refuse(stream, status::REFUSED_STREAM, out);
            return None;
        }
        let sides = Sides { client_open: !fin, server_open: !unidirectional, unacknowledged: 0 };
        if sides.client_open || sides.server_open {
            self.streams.insert(stream, sides);
        }
        if !unidirectional {
            out.extend(self.encoder.encode(&Frame::SynReply { stream, fin: false, headers: Headers::new() }));
        }
        Some(Event::Opened { stream, headers, fin })
    }

    fn data(&mut self, stream: u32, fin: bool, data: Bytes, out: &mut Vec<u8>) -> Option<Event> {
        let count = u32::try_from(data.len()).unwrap_or(u32::MAX);
        acknowledge(&mut self.unacknowledged, 0, count, &mut self.encoder, out);
        let Some(sides) = self.streams.get_mut(&stream) else {
            // What was on its way while a stream was closed is nobody's fault.
            if stream == 0 || stream > self.last {
                self.refuse(stream, status::INVALID_STREAM, out);
            }
            return None;
        };
        if !sides.client_open {
            self.streams.remove(&stream);
            self.refuse(stream, status::STREAM_ALREADY_CLOSED, out);
            return Some(Event::Reset { stream });
        }
        if fin {
            sides.client_open = false;
        } else {
            acknowledge(&mut sides.unacknowledged, stream, count, &mut self.encoder, out);
        }
        if !sides.client_open && !sides.server_open {
            self.streams.remove(&stream);
        }
        (fin || !data.is_empty()).then_some(Event::Data { stream, data, fin })
    }

    fn refuse(&mut self, stream: u32, status: u32, out: &mut Vec<u8>) {
        // The stream 0 cannot be refused.
        if stream != 0 {
            out.extend(self.encoder.encode(&Frame::RstStream { stream, status }));
        }
    }

    /// Ends our side of a stream: the bytes to send, none when there is nothing left to end.
    pub fn finish(&mut self, stream: u32) -> Option<Vec<u8>> {
        let sides = self.streams.get_mut(&stream).filter(|sides| sides.server_open)?;
        sides.server_open = false;
        if !sides.client_open {
            self.streams.remove(&stream);
        }
        Some(self.encoder.encode(&Frame::Data { stream, fin: true, data: Bytes::new() }))
    }

    /// Ends both sides of a stream at once: the bytes to send, none when it is gone.
    pub fn reset(&mut self, stream: u32) -> Option<Vec<u8>> {
        self.streams.remove(&stream)?;
        Some(self.encoder.encode(&Frame::RstStream { stream, status: status::CANCEL }))
    }
}

fn acknowledge(waiting: &mut u32, stream: u32, count: u32, encoder: &mut Encoder, out: &mut Vec<u8>) {
    *waiting = waiting.saturating_add(count);
    if *waiting >= ACKNOWLEDGED_BYTES {
        out.extend(encoder.encode(&Frame::WindowUpdate { stream, bytes: std::mem::take(waiting) }));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn syn(stream: u32) -> Frame {
        Frame::SynStream { stream, fin: false, unidirectional: false, headers: vec![] }
    }

    fn data(stream: u32, fin: bool, text: &str) -> Frame {
        Frame::Data { stream, fin, data: text.to_owned().into() }
    }

    /// A server and its client.
    #[derive(Default)]
    struct Talk {
        session: Session,
        client: Encoder,
        answers: Decoder,
    }

    impl Talk {
        /// What the server makes of the client's frames: its events, its answers, and how it ended.
        fn say(&mut self, frames: &[Frame]) -> (Vec<Event>, Vec<Frame>, Option<FrameError>) {
            let (mut events, mut out) = (Vec::new(), Vec::new());
            let mut error = None;
            for frame in frames {
                self.session.push(&self.client.encode(frame));
                loop {
                    match self.session.next_event(&mut out) {
                        Ok(Some(event)) => events.push(event),
                        Ok(None) => break,
                        Err(e) => {
                            error = Some(e);
                            break;
                        }
                    }
                }
            }
            self.answers.push(&out);
            let answers = std::iter::from_fn(|| self.answers.next_frame().unwrap()).collect();
            (events, answers, error)
        }
    }

    fn check_answers(frames: &[Frame], expected: &[Frame]) {
        let (_, answers, error) = Talk::default().say(frames);
        assert_eq!((answers.as_slice(), error), (expected, None), "{frames:?}");
    }

    #[test]
    fn what_is_answered() {
        let reply = |stream| Frame::SynReply { stream, fin: false, headers: vec![] };
        let reset = |stream, status| Frame::RstStream { stream, status };
        check_answers(&[syn(1), data(1, false, "x")], &[reply(1)]);
        check_answers(&[Frame::Ping(7), Frame::Ping(8)], &[Frame::Ping(7)]);
        check_answers(&[data(9, false, "x")], &[reset(9, status::INVALID_STREAM)]);
        check_answers(&[data(0, false, "x")], &[]);
        check_answers(
            &[syn(1), data(1, true, "x"), data(1, false, "y")],
            &[reply(1), reset(1, status::STREAM_ALREADY_CLOSED)],
        );
        let reset_by_client = [syn(1), reset(1, status::CANCEL), data(1, false, "late")];
        check_answers(&reset_by_client, &[reply(1)]);
        let much = "x".repeat(40_000);
        let bytes = 40_000;
        let updates = [Frame::WindowUpdate { stream: 0, bytes }, Frame::WindowUpdate { stream: 1, bytes }];
        check_answers(&[syn(1), data(1, false, &much)], &[&[reply(1)], &updates[..]].concat());
    }

    #[test]
    fn a_number_that_is_even_or_used_ends_the_connection() {
        for frames in [vec![syn(2)], vec![syn(3), syn(3)], vec![syn(5), syn(3)]] {
            let (_, answers, error) = Talk::default().say(&frames);
            assert!(error.is_some() && matches!(answers.last(), Some(Frame::GoAway { .. })), "{frames:?}: {answers:?}");
        }
    }

    #[test]
    fn streams_are_counted_until_both_sides_have_ended() {
        let mut talk = Talk::default();
        let many: Vec<Frame> = (0..STREAMS_MAX + 1).map(|n| syn(u32::try_from(n).unwrap() * 2 + 1)).collect();
        let (events, answers, _) = talk.say(&many);
        assert_eq!(events.len(), STREAMS_MAX);
        let refused = Frame::RstStream { stream: 1025, status: status::REFUSED_STREAM };
        assert_eq!(answers.last(), Some(&refused));
        assert!(talk.session.finish(1).is_some() && talk.session.finish(1).is_none());
        let (events, _, _) = talk.say(&[syn(1027), data(1, true, ""), syn(1029)]);
        assert_eq!(events.len(), 2, "the second is opened: {events:?}");
        assert!(talk.session.reset(3).is_some() && talk.session.reset(3).is_none() && talk.session.reset(1).is_none());
    }

    proptest! {
        /// Whatever a client sends, in whatever order: no panic, streams stay bounded, and every event is about a
        /// stream that was opened and has not ended.
        #[test]
        fn events_make_sense(steps in prop::collection::vec((0..6_u8, 0..12_u32, any::<bool>()), 0..200)) {
            let mut talk = Talk::default();
            let mut open = std::collections::HashSet::new();
            let mut next = 1;
            for (kind, stream, fin) in steps {
                let frame = match kind {
                    0 => { next += 2; syn(next - 2) }
                    1 | 2 => data(stream, fin, "content"),
                    3 => Frame::RstStream { stream: stream.max(1), status: 5 },
                    4 => { talk.session.finish(stream); continue }
                    _ => Frame::Headers { stream: stream.max(1), fin, headers: vec![] },
                };
                let (events, _, error) = talk.say(&[frame]);
                prop_assert_eq!(error, None);
                for event in events {
                    match event {
                        Event::Opened { stream, .. } => prop_assert!(open.insert(stream)),
                        Event::Data { stream, fin: true, .. } | Event::Reset { stream } => {
                            // A reset may follow the client's own end: our side was still open.
                            let known = open.remove(&stream);
                            prop_assert!(known || stream < next);
                        }
                        Event::Data { stream, .. } => prop_assert!(open.contains(&stream)),
                    }
                }
                prop_assert!(talk.session.streams.len() <= STREAMS_MAX);
            }
        }
    }
}
