//! String formats of custom resource schemas.
//!
//! The list is that of `apiextensions-apiserver/pkg/apiserver/validation/formats.go`. Unknown formats mean nothing,
//! as upstream has it. Known ones that are not enforced here are told apart, so that the server can say so.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use regex::Regex;

/// Formats that upstream enforces and we do not.
const UNENFORCED: [&str; 7] = ["uri", "email", "isbn", "isbn10", "isbn13", "creditcard", "duration"];

/// Whether upstream enforces the format and we do not.
pub(super) fn is_unenforced(format: &str) -> bool {
    UNENFORCED.contains(&format)
}

/// Whether a text is of the format. Formats that are not enforced accept everything.
pub(super) fn accepts(format: &str, text: &str) -> bool {
    match format.replace('-', "").as_str() {
        "byte" => !text.is_empty() && STANDARD.decode(text).is_ok(),
        "ipv4" => Ipv4Addr::from_str(text).is_ok(),
        "ipv6" => Ipv6Addr::from_str(text).is_ok(),
        "cidr" => is_cidr(text),
        "date" => text.len() == 10 && jiff::civil::Date::from_str(text).is_ok(),
        "datetime" => text.contains(['T', 't']) && jiff::Timestamp::from_str(text).is_ok(),
        "mac" => matches(
            r"^([0-9A-Fa-f]{2}[:-]){5}([0-9A-Fa-f]{2}[:-]){0,2}[0-9A-Fa-f]{2}$|^([0-9A-Fa-f]{4}\.){2,3}[0-9A-Fa-f]{4}$",
            text,
        ),
        "uuid" => matches("(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$", text),
        "uuid3" => matches("(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$", text),
        "uuid4" => matches("(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$", text),
        "uuid5" => matches("(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$", text),
        "bsonobjectid" => matches("(?i)^[0-9a-f]{24}$", text),
        "ssn" => matches(r"^\d{3}[- ]?\d{2}[- ]?\d{4}$", text),
        "hexcolor" => matches("^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$", text),
        "rgbcolor" => matches(
            r"^rgb\(\s*(\d{1,2}|1\d\d|2[0-4]\d|25[0-5])\s*(,\s*(\d{1,2}|1\d\d|2[0-4]\d|25[0-5])\s*){2}\)$",
            text,
        ),
        "hostname" => is_hostname(text),
        _ => true,
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let Ok(bits_count) = bits.parse::<u8>() else { return false };
    let plain = bits == bits_count.to_string();
    let bits_max = if Ipv4Addr::from_str(address).is_ok() {
        32
    } else if Ipv6Addr::from_str(address).is_ok() {
        128
    } else {
        return false;
    };
    plain && bits_count <= bits_max
}

fn is_hostname(text: &str) -> bool {
    text.len() <= 255
        && matches(
            r"^([\p{L}\p{N}\p{S}]([\p{L}\p{N}\p{S}\x00-\x2d]{0,61}[\p{L}\p{N}\p{S}]){0,1}){1}(\.[\p{L}]([\p{L}\p{N}\p{S}\x00-\x2d]{0,61}[\p{L}\p{N}\p{S}]){0,1})*?$",
            text,
        )
}

/// The few expressions above, compiled once each.
fn matches(pattern: &'static str, text: &str) -> bool {
    static COMPILED: OnceLock<std::sync::Mutex<Vec<(&'static str, Regex)>>> = OnceLock::new();
    let mut known = COMPILED.get_or_init(Default::default).lock().expect("no panic while compiling");
    if let Some((_, regex)) = known.iter().find(|(known, _)| std::ptr::eq(*known, pattern)) {
        return regex.is_match(text);
    }
    let regex = Regex::new(pattern).expect("the expressions of this file are valid");
    let matched = regex.is_match(text);
    known.push((pattern, regex));
    matched
}
