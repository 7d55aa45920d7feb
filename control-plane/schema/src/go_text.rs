//! Texts as Go prints them, because clients and tests compare the server's messages letter by letter.
//!
//! What must hold: [`quote`] is `strconv.Quote`, [`json`] is `encoding/json`'s `Marshal`, [`number`] is `%v`.
//! Nothing here decides anything; it only writes.

use std::fmt::Write as _;

use serde_json::{Number, Value};

/// `strconv.Quote`: double quotes, Go's escapes, printable Unicode kept.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if is_printable(c) => out.push(c),
            c if (c as u32) < 0x80 => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c if (c as u32) < 0x10000 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => {
                let _ = write!(out, "\\U{:08x}", c as u32);
            }
        }
    }
    out.push('"');
    out
}

/// Rust's own escaping knows which characters are not printable (`Grapheme_Extend` ones are, for Go).
fn is_printable(c: char) -> bool {
    let code = c as u32;
    if code < 0x80 {
        return (0x20..0x7f).contains(&code);
    }
    if c.is_whitespace() || c.is_control() {
        return false;
    }
    match c.escape_debug().len() {
        1 => true,
        _ => is_combining(code),
    }
}

/// The combining marks that `escape_debug` escapes although they print.
fn is_combining(code: u32) -> bool {
    matches!(code, 0x300..=0x36f | 0x483..=0x489 | 0x591..=0x5bd | 0x1ab0..=0x1aff | 0x1dc0..=0x1dff | 0x20d0..=0x20ff | 0xfe00..=0xfe0f | 0xfe20..=0xfe2f)
}

/// `encoding/json`'s `Marshal`: compact, `<`, `>`, `&` and the two line separators escaped, whole floats without a
/// fraction.
pub fn json(value: &Value) -> String {
    let mut out = String::new();
    write_json(value, &mut out);
    out
}

fn write_json(value: &Value, out: &mut String) {
    match value {
        Value::Null | Value::Bool(_) => out.push_str(&value.to_string()),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => out.push_str(&json_float(float)),
            _ => out.push_str(&number.to_string()),
        },
        Value::String(text) => write_text(text, out),
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                write_json(item, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            for (at, (key, value)) in map.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                write_text(key, out);
                out.push(':');
                write_json(value, out);
            }
            out.push('}');
        }
    }
}

fn write_text(text: &str, out: &mut String) {
    for c in Value::from(text).to_string().chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
}

/// Plain digits from 1e-6 to 1e21, else an exponent of as few digits as needed.
fn json_float(float: f64) -> String {
    let size = float.abs();
    if size == 0.0 || (1e-6..1e21).contains(&size) {
        return format!("{float}");
    }
    let text = format!("{float:e}");
    if size >= 1e21 { text.replace('e', "e+") } else { text }
}

/// `%v` of a number: integers as they are, floats shortest, with an exponent from 1e21 on and below 1e-4.
pub fn number(number: &Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() => float_text(float),
        _ => number.to_string(),
    }
}

/// `%v` of a float.
pub fn float_text(float: f64) -> String {
    let size = float.abs();
    if size != 0.0 && !(1e-4..1e21).contains(&size) {
        let text = format!("{float:e}");
        let (digits, exponent) = text.split_once('e').expect("LowerExp always writes an exponent");
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{float}")
}

/// `%v` of a decoded value: `map[a:1 b:[x y]]`.
pub fn plain(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => number(value),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(plain).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let members: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", plain(value))).collect();
            format!("map[{}]", members.join(" "))
        }
    }
}

/// `%T` of a decoded value.
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// What JSON calls the value's type, in the words of `encoding/json` errors.
pub fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quotes_as_go_does() {
        for (input, expected) in [
            ("plain", "\"plain\""),
            ("a\"b\\", "\"a\\\"b\\\\\""),
            ("tab\there\u{1}", "\"tab\\there\\x01\""),
            ("caf\u{e9} \u{4e16}", "\"caf\u{e9} \u{4e16}\""),
            ("\u{a0}\u{feff}", "\"\\u00a0\\ufeff\""),
            ("e\u{301}", "\"e\u{301}\""),
        ] {
            assert_eq!(quote(input), expected);
        }
    }

    #[test]
    fn prints_floats_as_go_does() {
        for (input, expected) in
            [(1.0, "1"), (0.5, "0.5"), (1e20, "100000000000000000000"), (1e21, "1e+21"), (1e-5, "1e-05")]
        {
            assert_eq!(float_text(input), expected);
        }
        assert_eq!(json(&json!([1.0, 0.5, 1e-7, 1e21, 3])), "[1,0.5,1e-7,1e+21,3]");
        assert_eq!(plain(&json!({"a": [1, "x", null], "b": {"c": true}})), "map[a:[1 x <nil>] b:map[c:true]]");
        assert_eq!(json(&json!({"a": "<b>"})), "{\"a\":\"\\u003cb\\u003e\"}");
    }
}
