//! Protobuf's wire format: tags, varints, lengths. It never reads past its input and never allocates when reading.

use crate::protobuf::Fault;

/// The fields of a message, one after the other.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

/// A field's value as it lies on the wire.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
    /// Known to protobuf, used by none of Kubernetes' messages.
    Group,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Fields<'a> {
        Fields { rest: message }
    }

    /// The next field's number and value.
    pub(crate) fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, Fault> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (number, kind) = self.tag()?;
        let value = match kind {
            3 => self.skip_group(number)?,
            _ => self.value(kind)?,
        };
        Ok(Some((number, value)))
    }

    /// One bare varint, as in packed lists; none at the end.
    pub(crate) fn packed(&mut self) -> Result<Option<u64>, Fault> {
        if self.rest.is_empty() { Ok(None) } else { self.varint().map(Some) }
    }

    fn tag(&mut self) -> Result<(u32, u8), Fault> {
        let tag = u32::try_from(self.varint()?).map_err(|_| Fault::Malformed)?;
        if tag >> 3 == 0 { Err(Fault::Malformed) } else { Ok((tag >> 3, (tag & 7) as u8)) }
    }

    fn value(&mut self, kind: u8) -> Result<Wire<'a>, Fault> {
        match kind {
            0 => Ok(Wire::Varint(self.varint()?)),
            1 => {
                let bytes = self.take(8)?.try_into().map_err(|_| Fault::Truncated)?;
                Ok(Wire::Fixed64(u64::from_le_bytes(bytes)))
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Fault::Truncated)?;
                Ok(Wire::Bytes(self.take(length)?))
            }
            5 => self.take(4).map(|_| Wire::Fixed32),
            _ => Err(Fault::Malformed),
        }
    }

    /// Passes over a group and the groups in it, without recursion.
    fn skip_group(&mut self, number: u32) -> Result<Wire<'a>, Fault> {
        let mut depth = 1_usize;
        while depth > 0 {
            match self.tag()? {
                (_, 3) => depth += 1,
                (end, 4) => {
                    depth -= 1;
                    if depth == 0 && end != number {
                        return Err(Fault::Malformed);
                    }
                }
                (_, kind) => {
                    self.value(kind)?;
                }
            }
        }
        Ok(Wire::Group)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Fault::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0_u64;
        for (at, byte) in self.rest.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[at + 1..];
                return Ok(value);
            }
        }
        Err(if self.rest.len() < 10 { Fault::Truncated } else { Fault::Malformed })
    }
}

impl<'a> Wire<'a> {
    fn name(self) -> &'static str {
        match self {
            Wire::Varint(_) => "a varint",
            Wire::Fixed64(_) => "64 bits",
            Wire::Bytes(_) => "length-delimited",
            Wire::Fixed32 => "32 bits",
            Wire::Group => "a group",
        }
    }

    fn mismatch(self, expected: &'static str) -> Fault {
        Fault::WireType { expected, found: self.name() }
    }

    pub(crate) fn varint(self) -> Result<u64, Fault> {
        match self {
            Wire::Varint(value) => Ok(value),
            other => Err(other.mismatch("a varint")),
        }
    }

    pub(crate) fn bytes(self) -> Result<&'a [u8], Fault> {
        match self {
            Wire::Bytes(value) => Ok(value),
            other => Err(other.mismatch("length-delimited")),
        }
    }

    pub(crate) fn text(self) -> Result<&'a str, Fault> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Fault::NotUtf8)
    }

    pub(crate) fn double(self) -> Result<f64, Fault> {
        match self {
            Wire::Fixed64(bits) => Ok(f64::from_bits(bits)),
            other => Err(other.mismatch("64 bits")),
        }
    }
}

pub(crate) fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn write_number(out: &mut Vec<u8>, number: u32, value: u64) {
    write_varint(out, u64::from(number) << 3);
    write_varint(out, value);
}

pub(crate) fn write_double(out: &mut Vec<u8>, number: u32, value: f64) {
    write_varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&value.to_bits().to_le_bytes());
}

pub(crate) fn write_bytes(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    write_varint(out, u64::from(number) << 3 | 2);
    write_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}
