//! The JSON reader.
//!
//! Recursive descent over bytes with an explicit depth. The texts of syntax errors are those of Go's scanner,
//! down to the character it stumbles over.

use serde_json::{Map, Number, Value};

use super::{DEPTH_MAX, DecodeError, Decoded, FieldProblem, note};

/// Reads one JSON value that fills the whole input.
pub fn json(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let mut reader = Reader { bytes, at: 0, path: Vec::new(), problems: Vec::new() };
    let value = reader.value("looking for beginning of value")?;
    reader.space();
    match reader.peek() {
        Some(_) => Err(reader.invalid("after top-level value")),
        None => Ok(Decoded { value, problems: reader.problems }),
    }
}

/// One step on the way to where the reader is. Keys are told by where their text starts, so that a path costs
/// nothing until something is wrong.
enum Step {
    Key(usize),
    Index(usize),
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    path: Vec<Step>,
    problems: Vec<FieldProblem>,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// What Go says about the byte here.
    fn invalid(&self, context: &str) -> DecodeError {
        let Some(byte) = self.peek() else { return DecodeError("unexpected end of JSON input".to_owned()) };
        let shown = match byte {
            b'\'' => "'\\''".to_owned(),
            b'"' => "'\"'".to_owned(),
            byte => {
                let quoted = crate::go_text::quote(&char::from(byte).to_string());
                format!("'{}'", &quoted[1..quoted.len() - 1])
            }
        };
        DecodeError(format!("invalid character {shown} {context}"))
    }

    fn value(&mut self, context: &str) -> Result<Value, DecodeError> {
        self.space();
        match self.peek() {
            Some(b'{') => self.object(),
            Some(b'[') => self.array(),
            Some(b'"') => Ok(Value::String(self.string()?)),
            Some(b't') => self.literal("true", Value::Bool(true)),
            Some(b'f') => self.literal("false", Value::Bool(false)),
            Some(b'n') => self.literal("null", Value::Null),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => Err(self.invalid(context)),
        }
    }

    fn enter(&mut self) -> Result<(), DecodeError> {
        if self.path.len() >= DEPTH_MAX {
            return Err(DecodeError(format!("exceeded max depth: objects and lists may nest {DEPTH_MAX} deep")));
        }
        self.at += 1;
        Ok(())
    }

    fn object(&mut self) -> Result<Value, DecodeError> {
        self.enter()?;
        let mut map = Map::new();
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Object(map));
        }
        loop {
            self.space();
            let start = self.at;
            if self.peek() != Some(b'"') {
                return Err(self.invalid("looking for beginning of object key string"));
            }
            let key = self.string()?;
            self.space();
            if self.peek() != Some(b':') {
                return Err(self.invalid("after object key"));
            }
            self.at += 1;
            self.path.push(Step::Key(start));
            let value = self.value("looking for beginning of value")?;
            if map.insert(key, value).is_some() {
                let path = self.path_text();
                note(&mut self.problems, FieldProblem::Duplicate(path));
            }
            self.path.pop();
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return Err(self.invalid("after object key:value pair")),
            }
        }
        self.at += 1;
        Ok(Value::Object(map))
    }

    fn array(&mut self) -> Result<Value, DecodeError> {
        self.enter()?;
        let mut items = Vec::new();
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(items));
        }
        loop {
            self.path.push(Step::Index(items.len()));
            items.push(self.value("looking for beginning of value")?);
            self.path.pop();
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => break,
                _ => return Err(self.invalid("after array element")),
            }
        }
        self.at += 1;
        Ok(Value::Array(items))
    }

    fn path_text(&self) -> String {
        let mut text = String::new();
        for step in &self.path {
            match step {
                Step::Index(index) => text.push_str(&format!("[{index}]")),
                Step::Key(start) => {
                    let mut reader = Reader { bytes: self.bytes, at: *start, path: Vec::new(), problems: Vec::new() };
                    let key = reader.string().expect("the key was read before");
                    if !text.is_empty() {
                        text.push('.');
                    }
                    text.push_str(&key);
                }
            }
        }
        text
    }

    fn literal(&mut self, word: &str, value: Value) -> Result<Value, DecodeError> {
        for (index, expected) in word.bytes().enumerate() {
            if self.peek() != Some(expected) {
                debug_assert!(index > 0, "the first letter chose the word");
                return Err(self.invalid(&format!("in literal {word} (expecting '{}')", char::from(expected))));
            }
            self.at += 1;
        }
        Ok(value)
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.at - start
    }

    fn number(&mut self) -> Result<Value, DecodeError> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else if self.digits() == 0 {
            return Err(self.invalid("in numeric literal"));
        }
        let mut whole = true;
        if self.peek() == Some(b'.') {
            whole = false;
            self.at += 1;
            if self.digits() == 0 {
                return Err(self.invalid("after decimal point in numeric literal"));
            }
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            whole = false;
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if self.digits() == 0 {
                return Err(self.invalid("in exponent of numeric literal"));
            }
        }
        let text = std::str::from_utf8(&self.bytes[start..self.at]).expect("digits and signs are ASCII");
        if whole && let Ok(number) = text.parse::<i64>() {
            return Ok(Value::Number(number.into()));
        }
        let float = text.parse::<f64>().ok().and_then(Number::from_f64);
        let beyond = || DecodeError(format!("json: cannot unmarshal number {text} into Go value of type float64"));
        float.map(Value::Number).ok_or_else(beyond)
    }

    fn string(&mut self) -> Result<String, DecodeError> {
        self.at += 1;
        let mut out = Vec::new();
        loop {
            let start = self.at;
            while self.peek().is_some_and(|byte| byte != b'"' && byte != b'\\' && byte >= 0x20) {
                self.at += 1;
            }
            out.extend_from_slice(&self.bytes[start..self.at]);
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => self.escape(&mut out)?,
                _ => return Err(self.invalid("in string literal")),
            }
        }
        self.at += 1;
        Ok(String::from_utf8(out).unwrap_or_else(|error| replaced(error.as_bytes())))
    }

    fn escape(&mut self, out: &mut Vec<u8>) -> Result<(), DecodeError> {
        self.at += 1;
        let byte = match self.peek() {
            Some(byte @ (b'"' | b'\\' | b'/')) => byte,
            Some(b'b') => 8,
            Some(b'f') => 12,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'u') => {
                self.at += 1;
                let c = self.escaped_char()?;
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(self.invalid("in string escape code")),
        };
        self.at += 1;
        out.push(byte);
        Ok(())
    }

    /// The character of one or two `\u` escapes; a surrogate without its other half is the replacement character.
    fn escaped_char(&mut self) -> Result<char, DecodeError> {
        let first = self.hex()?;
        if let Some(c) = char::from_u32(first) {
            return Ok(c);
        }
        if first < 0xdc00 && self.bytes[self.at..].starts_with(b"\\u") {
            let back = self.at;
            self.at += 2;
            let second = self.hex()?;
            if (0xdc00..0xe000).contains(&second) {
                let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                return Ok(char::from_u32(code).expect("two surrogates make a character"));
            }
            self.at = back;
        }
        Ok(char::REPLACEMENT_CHARACTER)
    }

    fn hex(&mut self) -> Result<u32, DecodeError> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            let Some(digit) = digit else { return Err(self.invalid("in \\u hexadecimal character escape")) };
            code = code * 16 + digit;
            self.at += 1;
        }
        Ok(code)
    }
}

/// Text of bytes that are not UTF-8: each byte at fault becomes a replacement character, as Go does.
fn replaced(mut bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    while !bytes.is_empty() {
        let good = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&bytes[..error.valid_up_to()]).expect("valid up to there"),
        };
        out.push_str(good);
        bytes = &bytes[good.len()..];
        if !bytes.is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
            bytes = &bytes[1..];
        }
    }
    out
}
