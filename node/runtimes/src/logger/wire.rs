//! What a logger and those who attach to its container say to each other on a unix socket.
//!
//! The attacher's first byte says whether input follows ([`OUTPUT_ONLY`], [`WITH_INPUT`]); after it come the input's
//! bytes, and half a close at their end. The logger sends frames: what they are, a length, the bytes.

/// First byte: nothing else follows.
pub const OUTPUT_ONLY: u8 = 0;
/// First byte: input follows.
pub const WITH_INPUT: u8 = 1;
/// The container's output.
pub const STDOUT: u8 = 1;
/// The container's errors.
pub const STDERR: u8 = 2;
/// Why the logger says nothing more, in words.
pub const REFUSED: u8 = 3;
/// The longest content of a frame.
pub const CONTENT_BYTES_MAX: usize = 64 << 10;
/// The bytes before a frame's content.
pub const HEAD_BYTES: usize = 5;

/// A frame's first bytes.
pub fn head(kind: u8, length: usize) -> [u8; HEAD_BYTES] {
    let [a, b, c, d] = u32::try_from(length).expect("contents are short").to_be_bytes();
    [kind, a, b, c, d]
}

/// What [`head`] wrote: kind and length; none when the length is impossible.
pub fn read_head(head: [u8; HEAD_BYTES]) -> Option<(u8, usize)> {
    let length = usize::try_from(u32::from_be_bytes([head[1], head[2], head[3], head[4]])).ok()?;
    (length <= CONTENT_BYTES_MAX).then_some((head[0], length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_back_unless_they_are_impossible() {
        assert_eq!(read_head(head(STDERR, 70)), Some((STDERR, 70)));
        assert_eq!(read_head(head(STDOUT, CONTENT_BYTES_MAX + 1)), None);
    }
}
