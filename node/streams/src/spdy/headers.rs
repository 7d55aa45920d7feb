//! Header blocks: names and values, compressed over all blocks of one direction (SPDY/3.1, 2.6.10). Pure.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::dictionary;
use super::frame::FrameError;

/// Names and values, in order. Names are in lower case.
pub type Headers = Vec<(String, String)>;

/// A block is refused when it is longer than this without compression. Clients send under 200 bytes.
pub const HEADER_BYTES_MAX: usize = 16 << 10;
/// A block is refused when it has more names than this.
pub const HEADERS_MAX: usize = 100;

/// The value of header `name`.
pub fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// Reads the blocks that one side sends.
pub(super) struct Inflater {
    zlib: Decompress,
    buffer: Box<[u8]>,
}

impl Inflater {
    pub(super) fn new() -> Self {
        Self { zlib: Decompress::new(true), buffer: vec![0; HEADER_BYTES_MAX].into_boxed_slice() }
    }

    pub(super) fn read(&mut self, block: &[u8]) -> Result<Headers, FrameError> {
        let (mut read, mut filled) = (0, 0);
        while read < block.len() {
            let (in_before, out_before) = (self.zlib.total_in(), self.zlib.total_out());
            let result = self.zlib.decompress(&block[read..], &mut self.buffer[filled..], FlushDecompress::Sync);
            let (in_now, out_now) = (self.zlib.total_in() - in_before, self.zlib.total_out() - out_before);
            read += usize::try_from(in_now).unwrap_or(usize::MAX);
            filled += usize::try_from(out_now).unwrap_or(usize::MAX);
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.zlib.set_dictionary(&dictionary()).map_err(|_| FrameError::Compression)?;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(FrameError::Compression),
                // Room that is used up to the last byte may have more behind it.
                Ok(_) if filled == self.buffer.len() => return Err(FrameError::HeadersTooLarge),
                Ok(_) if in_now == 0 && out_now == 0 => return Err(FrameError::Compression),
                Ok(_) => {}
            }
        }
        parse(&self.buffer[..filled])
    }
}

fn parse(mut block: &[u8]) -> Result<Headers, FrameError> {
    let count = number(&mut block)?;
    if count > HEADERS_MAX {
        return Err(FrameError::HeadersTooLarge);
    }
    let mut headers = Headers::with_capacity(count);
    for _ in 0..count {
        let name = text(&mut block)?.to_ascii_lowercase();
        if name.is_empty() || headers.iter().any(|(known, _)| *known == name) {
            return Err(FrameError::Malformed("a header block names a header twice, or none"));
        }
        headers.push((name, text(&mut block)?));
    }
    Ok(headers)
}

fn number(block: &mut &[u8]) -> Result<usize, FrameError> {
    let (head, rest) = block.split_first_chunk().ok_or(FrameError::Malformed("a header block ends too soon"))?;
    *block = rest;
    Ok(usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX))
}

fn text(block: &mut &[u8]) -> Result<String, FrameError> {
    let length = number(block)?;
    let (head, rest) = block.split_at_checked(length).ok_or(FrameError::Malformed("a header block ends too soon"))?;
    *block = rest;
    String::from_utf8(head.to_vec()).map_err(|_| FrameError::Malformed("a header is not UTF-8"))
}

/// Writes the blocks of one side.
pub(super) struct Deflater {
    zlib: Compress,
}

impl Deflater {
    pub(super) fn new() -> Self {
        let mut zlib = Compress::new(Compression::default(), true);
        zlib.set_dictionary(&dictionary()).expect("a fresh stream takes a dictionary");
        Self { zlib }
    }

    pub(super) fn write(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = size(headers.len()).to_vec();
        for (name, value) in headers {
            for word in [name.to_ascii_lowercase().as_str(), value] {
                plain.extend(size(word.len()));
                plain.extend(word.bytes());
            }
        }
        let mut out = Vec::with_capacity(plain.len() + 64);
        let mut read = 0;
        loop {
            let before = self.zlib.total_in();
            self.zlib
                .compress_vec(&plain[read..], &mut out, FlushCompress::Sync)
                .expect("compressing into memory does not fail");
            read += usize::try_from(self.zlib.total_in() - before).unwrap_or(usize::MAX);
            // Room left over means that everything is out.
            if read == plain.len() && out.len() < out.capacity() {
                return out;
            }
            out.reserve(plain.len() + 64);
        }
    }
}

fn size(length: usize) -> [u8; 4] {
    u32::try_from(length).expect("headers of ours are short").to_be_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check_refused(plain: &[u8], expected: &FrameError) {
        assert_eq!(parse(plain).unwrap_err().to_string(), expected.to_string(), "{plain:?}");
    }

    #[test]
    fn blocks_that_lie_are_refused() {
        check_refused(b"", &FrameError::Malformed("a header block ends too soon"));
        check_refused(&[0, 0, 0, 1, 0, 0, 0, 9, b'x'], &FrameError::Malformed("a header block ends too soon"));
        check_refused(&[255; 8], &FrameError::HeadersTooLarge);
        check_refused(&[0, 0, 0, 1, 255, 255, 255, 255], &FrameError::Malformed("a header block ends too soon"));
        let twice = [&[0, 0, 0, 2][..], &[0, 0, 0, 1, b'a', 0, 0, 0, 0], &[0, 0, 0, 1, b'A', 0, 0, 0, 0]].concat();
        check_refused(&twice, &FrameError::Malformed("a header block names a header twice, or none"));
    }

    #[test]
    fn a_block_that_grows_without_end_is_cut_off() {
        let bomb = vec![("x".to_owned(), "0".repeat(8 << 20))];
        let block = Deflater::new().write(&bomb);
        assert!(block.len() < 16 << 10, "{} bytes", block.len());
        assert!(matches!(Inflater::new().read(&block), Err(FrameError::HeadersTooLarge)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(blocks in prop::collection::vec(
            prop::collection::btree_map("[a-z:-]{1,20}", "\\PC{0,60}", 0..10), 1..8)
        ) {
            let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
            for block in blocks {
                let headers: Headers = block.into_iter().collect();
                prop_assert_eq!(inflater.read(&deflater.write(&headers)).unwrap(), headers);
            }
        }

        #[test]
        fn noise_never_panics(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..5)) {
            let mut inflater = Inflater::new();
            for block in blocks {
                let _ = inflater.read(&block);
                let _ = parse(&block);
            }
        }
    }
}
