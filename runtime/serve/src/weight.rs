//! What a request takes in memory once it is read, told from its bytes before that is done.
//!
//! A few bytes can stand for much: `{"":0}` is an object with room for eleven fields, and two bytes of a gRPC message an input
//! with all its lists. What must hold: what is told is no less than what is taken, but for a little that each request takes
//! anyway; telling takes no memory and reads every byte once.

/// Bytes of an object of JSON that has a field: a node of the standard library's tree, with eleven names and values.
const OBJECT: usize = 640;
/// Bytes of a value, in a list that may have room for as many again.
const VALUE: usize = 64;
/// Bytes of a text beside its letters.
const TEXT: usize = 16;
/// Bytes of a message within a message once it is read: the largest has some 400, in a list with room for as many again.
const MESSAGE: usize = 1024;

/// Bytes that JSON takes as values beside those of its texts. Of what is no JSON it is what its beginning would take.
pub(crate) fn of_json(bytes: &[u8]) -> usize {
    let (mut weight, mut in_text, mut rest) = (0_usize, false, bytes.iter());
    while let Some(byte) = rest.next() {
        match byte {
            b'"' => {
                in_text = !in_text;
                weight += if in_text { TEXT } else { 0 };
            }
            // What follows is no end.
            b'\\' if in_text => drop(rest.next()),
            _ if in_text => {}
            b'{' => weight += OBJECT,
            b'[' | b',' | b':' => weight += VALUE,
            _ => {}
        }
    }
    weight
}

/// Bytes that a message of protocol buffers takes beside its own (`encoding.md` of protocol buffers). `messages` are the
/// numbers of its fields that are messages, then those of theirs.
pub(crate) fn of_message(message: &[u8], messages: &[&[u64]]) -> usize {
    let (mut weight, mut rest) = (0_usize, message);
    while let Some(tag) = varint(&mut rest) {
        let field = match tag & 7 {
            0 => varint(&mut rest).map(|_| &[][..]),
            1 => rest.split_off(..8),
            5 => rest.split_off(..4),
            2 => varint(&mut rest).and_then(|length| rest.split_off(..usize::try_from(length).ok()?)),
            _ => None,
        };
        let Some(field) = field else { break };
        weight += match messages {
            [these, below @ ..] if tag & 7 == 2 && these.contains(&(tag >> 3)) => MESSAGE + of_message(field, below),
            // Numbers side by side are kept in eight bytes each, in a list with room for as many again.
            _ if tag & 7 == 2 => VALUE,
            _ => 16,
        };
    }
    weight
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_weighs_what_it_is_read_into() {
        for (text, weight) in [
            ("", 0),
            ("7", 0),
            (r#""a""#, TEXT),
            (r#""a\"{[,:""#, TEXT),
            (r#"{"a":1}"#, OBJECT + TEXT + VALUE),
            ("[1,2,3]", 3 * VALUE),
            (r#"[{"":0},{"":0}]"#, 2 * (OBJECT + TEXT + VALUE) + 2 * VALUE),
            ("[[[[", 4 * VALUE),
        ] {
            assert_eq!(of_json(text.as_bytes()), weight, "{text}");
        }
    }

    #[test]
    fn messages_weigh_by_how_many_there_are() {
        // A name, two inputs of which the second has contents with two elements, and a number.
        let message = [&[0x0a, 1, b'd'][..], &[0x2a, 0], &[0x2a, 6, 0x2a, 4, 0x42, 0, 0x42, 0], &[0x30, 7]].concat();
        let messages: [&[u64]; 2] = [&[5], &[5]];
        assert_eq!(of_message(&message, &messages), VALUE + MESSAGE + (MESSAGE + MESSAGE + 2 * VALUE) + 16);
        assert_eq!(of_message(&message, &[]), 3 * VALUE + 16);
        assert_eq!(of_message(&[0x2a, 0].repeat(1000), &messages), 1000 * MESSAGE);
        // What is cut or is none ends there.
        for broken in [&[0x2a, 9, 1][..], &[0xff; 11], &[0x2b], &[0x29, 1]] {
            assert_eq!(of_message(broken, &messages), 0, "{broken:?}");
        }
    }
}
