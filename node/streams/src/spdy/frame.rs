//! SPDY/3.1's frames as values, read from bytes as they come and written to bytes. Pure.
//!
//! What is waited for is bounded: a control frame is kept until it is whole and may be [`CONTROL_BYTES_MAX`] long; the
//! content of a data frame is handed on in the pieces in which it arrives.

use bytes::{Buf, Bytes, BytesMut};

use super::headers::{Deflater, Headers, Inflater};

/// The longest control frame. Header blocks are the only long ones.
pub const CONTROL_BYTES_MAX: usize = 16 << 10;
/// The longest data frame that is written here.
pub const DATA_BYTES_MAX: usize = 64 << 10;

const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;
const FLAG_UNIDIRECTIONAL: u8 = 2;
const ID_MASK: u32 = 0x7fff_ffff;

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A stream begins.
    SynStream {
        /// Its number: odd from clients.
        stream: u32,
        /// The sender sends nothing more.
        fin: bool,
        /// The receiver may send nothing.
        unidirectional: bool,
        /// What it is for.
        headers: Headers,
    },
    /// A stream is accepted.
    SynReply {
        /// Which.
        stream: u32,
        /// The sender sends nothing more.
        fin: bool,
        /// Anything.
        headers: Headers,
    },
    /// A stream is over at once, in both directions.
    RstStream {
        /// Which.
        stream: u32,
        /// Why.
        status: u32,
    },
    /// Wishes, as id and value.
    Settings(Vec<(u32, u32)>),
    /// To be sent back.
    Ping(u32),
    /// The sender accepts no more streams.
    GoAway {
        /// The last stream it accepted.
        last: u32,
        /// 0 is well, 1 a protocol error.
        status: u32,
    },
    /// More headers.
    Headers {
        /// Of which stream.
        stream: u32,
        /// The sender sends nothing more.
        fin: bool,
        /// Which.
        headers: Headers,
    },
    /// So many bytes more may be sent.
    WindowUpdate {
        /// On which stream; 0 is all together.
        stream: u32,
        /// How many.
        bytes: u32,
    },
    /// Content, or a piece of it.
    Data {
        /// Of which stream.
        stream: u32,
        /// The sender sends nothing more; only on the last piece.
        fin: bool,
        /// The piece.
        data: Bytes,
    },
}

/// Why bytes are no frames. The connection cannot go on after any of these.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not SPDY/3.
    #[error("frames of version {0} are not understood, only those of 3")]
    Version(u16),
    /// A control frame is too long.
    #[error("a control frame of {0} bytes is too long (at most {CONTROL_BYTES_MAX})")]
    ControlTooLarge(usize),
    /// A header block is too long.
    #[error("a header block has too many or too long headers")]
    HeadersTooLarge,
    /// A header block cannot be decompressed.
    #[error("a header block is not compressed as SPDY/3 has it")]
    Compression,
    /// The frame contradicts itself.
    #[error("{0}")]
    Malformed(&'static str),
}

/// Reads frames.
pub struct Decoder {
    buffer: BytesMut,
    /// The rest of a data frame: stream, bytes, whether it ends its sender's side.
    data: Option<(u32, usize, bool)>,
    inflater: Inflater,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { buffer: BytesMut::new(), data: None, inflater: Inflater::new() }
    }
}

impl Decoder {
    /// Takes bytes in. They are kept until [`Decoder::next_frame`] has used them.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame, once there is one.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some((stream, rest, fin)) = self.data {
                let take = rest.min(self.buffer.len());
                if take == 0 && rest > 0 {
                    return Ok(None);
                }
                let data = self.buffer.split_to(take).freeze();
                let over = take == rest;
                self.data = (!over).then_some((stream, rest - take, fin));
                return Ok(Some(Frame::Data { stream, fin: fin && over, data }));
            }
            let Some(head) = self.buffer.first_chunk::<8>() else { return Ok(None) };
            let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            let flags = head[4];
            let length = u32::from_be_bytes([0, head[5], head[6], head[7]]);
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if first & !ID_MASK == 0 {
                self.buffer.advance(8);
                self.data = Some((first, length, flags & FLAG_FIN != 0));
                continue;
            }
            let [version, kind] = [(first >> 16 & 0x7fff) as u16, (first & 0xffff) as u16];
            if version != VERSION {
                return Err(FrameError::Version(version));
            }
            if length > CONTROL_BYTES_MAX {
                return Err(FrameError::ControlTooLarge(length));
            }
            if self.buffer.len() < 8 + length {
                return Ok(None);
            }
            let body = self.buffer.split_to(8 + length).freeze().slice(8..);
            if let Some(frame) = self.control(kind, flags, body)? {
                return Ok(Some(frame));
            }
        }
    }

    /// A whole control frame; none when its kind is unknown, which is passed over.
    fn control(&mut self, kind: u16, flags: u8, mut body: Bytes) -> Result<Option<Frame>, FrameError> {
        let fin = flags & FLAG_FIN != 0;
        let frame = match kind {
            1 => {
                let stream = id(&mut body)?;
                // The stream it belongs to, its priority and its slot mean nothing here.
                if body.len() < 6 {
                    return Err(FrameError::Malformed("SYN_STREAM ends too soon"));
                }
                body.advance(6);
                let unidirectional = flags & FLAG_UNIDIRECTIONAL != 0;
                Frame::SynStream { stream, fin, unidirectional, headers: self.inflater.read(&body)? }
            }
            2 => Frame::SynReply { stream: id(&mut body)?, fin, headers: self.inflater.read(&body)? },
            3 => Frame::RstStream { stream: id(&mut body)?, status: word(&mut body)? },
            4 => {
                let count = usize::try_from(word(&mut body)?).unwrap_or(usize::MAX);
                if count != body.len() / 8 || !body.len().is_multiple_of(8) {
                    return Err(FrameError::Malformed("SETTINGS miscounts its entries"));
                }
                let mut settings = Vec::with_capacity(count);
                while !body.is_empty() {
                    settings.push((word(&mut body)? & 0x00ff_ffff, word(&mut body)?));
                }
                Frame::Settings(settings)
            }
            6 => Frame::Ping(word(&mut body)?),
            7 => Frame::GoAway { last: word(&mut body)? & ID_MASK, status: word(&mut body)? },
            8 => Frame::Headers { stream: id(&mut body)?, fin, headers: self.inflater.read(&body)? },
            9 => Frame::WindowUpdate { stream: word(&mut body)? & ID_MASK, bytes: word(&mut body)? & ID_MASK },
            _ => return Ok(None),
        };
        Ok(Some(frame))
    }
}

fn word(body: &mut Bytes) -> Result<u32, FrameError> {
    body.try_get_u32().map_err(|_| FrameError::Malformed("a control frame ends too soon"))
}

fn id(body: &mut Bytes) -> Result<u32, FrameError> {
    match word(body)? & ID_MASK {
        0 => Err(FrameError::Malformed("0 is no stream")),
        id => Ok(id),
    }
}

/// Writes frames.
pub struct Encoder {
    deflater: Deflater,
}

impl Default for Encoder {
    fn default() -> Self {
        Self { deflater: Deflater::new() }
    }
}

impl Encoder {
    /// A frame's bytes. Header blocks depend on those before: what is encoded must be sent, in that order.
    pub fn encode(&mut self, frame: &Frame) -> Vec<u8> {
        let flag = |fin: &bool| if *fin { FLAG_FIN } else { 0 };
        let two = |a: u32, b: u32| [a.to_be_bytes(), b.to_be_bytes()].concat();
        match frame {
            Frame::SynStream { stream, fin, unidirectional, headers } => {
                let mut body = [&stream.to_be_bytes()[..], &[0; 6]].concat();
                body.extend(self.deflater.write(headers));
                control(1, flag(fin) | if *unidirectional { FLAG_UNIDIRECTIONAL } else { 0 }, &body)
            }
            Frame::SynReply { stream, fin, headers } => control(2, flag(fin), &self.with_headers(*stream, headers)),
            Frame::RstStream { stream, status } => control(3, 0, &two(*stream, *status)),
            Frame::Settings(settings) => {
                let mut body = u32::try_from(settings.len()).expect("settings are few").to_be_bytes().to_vec();
                body.extend(settings.iter().flat_map(|(id, value)| two(*id, *value)));
                control(4, 0, &body)
            }
            Frame::Ping(id) => control(6, 0, &id.to_be_bytes()),
            Frame::GoAway { last, status } => control(7, 0, &two(*last, *status)),
            Frame::Headers { stream, fin, headers } => control(8, flag(fin), &self.with_headers(*stream, headers)),
            Frame::WindowUpdate { stream, bytes } => control(9, 0, &two(*stream, *bytes)),
            Frame::Data { stream, fin, data } => data_frame(*stream, *fin, data),
        }
    }

    fn with_headers(&mut self, stream: u32, headers: &Headers) -> Vec<u8> {
        [stream.to_be_bytes().to_vec(), self.deflater.write(headers)].concat()
    }
}

fn control(kind: u16, flags: u8, body: &[u8]) -> Vec<u8> {
    let first = !ID_MASK | u32::from(VERSION) << 16 | u32::from(kind);
    frame(first, flags, body)
}

/// A data frame's bytes; `data` is at most [`DATA_BYTES_MAX`] long.
pub(super) fn data_frame(stream: u32, fin: bool, data: &[u8]) -> Vec<u8> {
    frame(stream, if fin { FLAG_FIN } else { 0 }, data)
}

fn frame(first: u32, flags: u8, body: &[u8]) -> Vec<u8> {
    assert!(body.len() < 1 << 24, "a frame's length has 24 bits");
    let length = u32::try_from(body.len()).expect("just compared").to_be_bytes();
    let mut out = Vec::with_capacity(8 + body.len());
    out.extend(first.to_be_bytes());
    out.extend([flags, length[1], length[2], length[3]]);
    out.extend(body);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers() -> impl Strategy<Value = Headers> {
        prop::collection::btree_map("[a-z]{1,9}", "[ -~]{0,20}", 0..5).prop_map(|map| map.into_iter().collect())
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        let id = 1..=ID_MASK;
        prop_oneof![
            (id.clone(), any::<bool>(), any::<bool>(), headers()).prop_map(|(stream, fin, unidirectional, headers)| {
                Frame::SynStream { stream, fin, unidirectional, headers }
            }),
            (id.clone(), any::<bool>(), headers()).prop_map(|(stream, fin, headers)| Frame::SynReply {
                stream,
                fin,
                headers
            }),
            (id.clone(), any::<u32>()).prop_map(|(stream, status)| Frame::RstStream { stream, status }),
            prop::collection::vec((0..1_u32 << 24, any::<u32>()), 0..5).prop_map(Frame::Settings),
            any::<u32>().prop_map(Frame::Ping),
            (0..=ID_MASK, any::<u32>()).prop_map(|(last, status)| Frame::GoAway { last, status }),
            (id.clone(), any::<bool>(), headers()).prop_map(|(stream, fin, headers)| Frame::Headers {
                stream,
                fin,
                headers
            }),
            (0..=ID_MASK, 0..=ID_MASK).prop_map(|(stream, bytes)| Frame::WindowUpdate { stream, bytes }),
            (id, any::<bool>(), prop::collection::vec(any::<u8>(), 0..2000))
                .prop_map(|(stream, fin, data)| Frame::Data { stream, fin, data: data.into() }),
        ]
    }

    /// Everything that is read from `bytes`, given in pieces of `step`; pieces of one data frame joined again.
    fn decode(bytes: &[u8], step: usize) -> Result<Vec<Frame>, FrameError> {
        let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
        let mut open: Option<BytesMut> = None;
        for piece in bytes.chunks(step) {
            decoder.push(piece);
            while let Some(frame) = decoder.next_frame()? {
                let Frame::Data { stream, fin, data } = frame else {
                    frames.push(frame);
                    continue;
                };
                let mut joined = open.take().unwrap_or_default();
                joined.extend_from_slice(&data);
                if decoder.data.is_some() {
                    open = Some(joined);
                } else {
                    frames.push(Frame::Data { stream, fin, data: joined.freeze() });
                }
            }
        }
        Ok(frames)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_cut(frames in prop::collection::vec(any_frame(), 1..12), step in 1..5000_usize) {
            let mut encoder = Encoder::default();
            let bytes: Vec<u8> = frames.iter().flat_map(|frame| encoder.encode(frame)).collect();
            prop_assert_eq!(decode(&bytes, step).unwrap(), frames);
        }

        #[test]
        fn noise_never_panics_and_is_not_kept(bytes in prop::collection::vec(any::<u8>(), 0..4000), kind in 0..12_u16, flags: u8) {
            let _ = decode(&bytes, 100);
            let mut decoder = Decoder::default();
            decoder.push(&control(kind, flags, &bytes));
            let _ = decoder.next_frame();
            prop_assert!(decoder.buffer.len() <= 8 + CONTROL_BYTES_MAX);
        }
    }

    #[test]
    fn a_control_frame_is_refused_by_its_length_before_it_is_there() {
        let mut decoder = Decoder::default();
        decoder.push(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]);
        assert_eq!(decoder.next_frame(), Err(FrameError::ControlTooLarge(0xff_ffff)));
    }

    #[test]
    fn frames_of_another_version_or_without_a_stream_are_refused() {
        let cases: [(&[u8], FrameError); 3] = [
            (&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1], FrameError::Version(2)),
            (&[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 5], FrameError::Malformed("0 is no stream")),
            (&[0x80, 3, 0, 4, 0, 0, 0, 4, 0, 0, 0, 9], FrameError::Malformed("SETTINGS miscounts its entries")),
        ];
        for (bytes, expected) in cases {
            assert_eq!(decode(bytes, 100), Err(expected), "{bytes:?}");
        }
    }

    #[test]
    fn an_unknown_control_frame_is_passed_over() {
        let bytes = [control(77, 0, b"whatever"), control(6, 0, &[0, 0, 0, 1])].concat();
        assert_eq!(decode(&bytes, 3).unwrap(), [Frame::Ping(1)]);
    }
}
