//! What labels, qualified names and DNS names look like, with upstream's words for what is wrong.
//!
//! The rules are those of `apimachinery/pkg/api/validate/content`. Each function gives a list of reasons, empty
//! for a good value. What is not here: which field must follow which rule.

const LABEL_KEY_FORMAT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const LABEL_KEY_WORDS: &str =
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const LABEL_VALUE_WORDS: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const DNS_LABEL_FORMAT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const DNS_LABEL_WORDS: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
const DNS_SUBDOMAIN_WORDS: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";

/// The key of a label or annotation: an optional DNS subdomain, a slash, and a name.
pub fn label_key(value: &str) -> Vec<String> {
    let parts: Vec<&str> = value.split('/').collect();
    let mut reasons = Vec::new();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                reasons.push("prefix part must be non-empty".to_owned());
            } else {
                reasons.extend(dns_subdomain(prefix).into_iter().map(|reason| format!("prefix part {reason}")));
            }
            name
        }
        _ => {
            let words = pattern_words(LABEL_KEY_WORDS, LABEL_KEY_FORMAT, &["MyName", "my.name", "123-abc"]);
            return vec![format!(
                "a valid label key {words} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        reasons.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        reasons.push(format!("name part {}", length_words(63)));
    }
    if !is_label_text(name) {
        let words = pattern_words(LABEL_KEY_WORDS, LABEL_KEY_FORMAT, &["MyName", "my.name", "123-abc"]);
        reasons.push(format!("name part {words}"));
    }
    reasons
}

/// The value of a label.
pub fn label_value(value: &str) -> Vec<String> {
    let mut reasons = Vec::new();
    if value.len() > 63 {
        reasons.push(length_words(63));
    }
    if !value.is_empty() && !is_label_text(value) {
        let format = format!("({LABEL_KEY_FORMAT})?");
        reasons.push(pattern_words(LABEL_VALUE_WORDS, &format, &["MyValue", "my_value", "12345"]));
    }
    reasons
}

/// One part of a DNS name, in lower case (RFC 1123).
pub fn dns_label(value: &str) -> Vec<String> {
    let mut reasons = Vec::new();
    if value.len() > 63 {
        reasons.push(length_words(63));
    }
    if !is_dns_label(value) {
        reasons.push(if is_dns_subdomain(value) {
            "must not contain dots".to_owned()
        } else {
            pattern_words(DNS_LABEL_WORDS, DNS_LABEL_FORMAT, &["my-name", "123-abc"])
        });
    }
    reasons
}

/// A DNS name in lower case (RFC 1123).
pub fn dns_subdomain(value: &str) -> Vec<String> {
    let mut reasons = Vec::new();
    if value.len() > 253 {
        reasons.push(length_words(253));
    }
    if !is_dns_subdomain(value) {
        let format = format!("{DNS_LABEL_FORMAT}(\\.{DNS_LABEL_FORMAT})*");
        reasons.push(pattern_words(DNS_SUBDOMAIN_WORDS, &format, &["example.com"]));
    }
    reasons
}

/// `must be no more than N bytes`.
pub fn length_words(bytes_max: usize) -> String {
    format!("must be no more than {bytes_max} bytes")
}

/// A rule, examples of it, and its regular expression, as upstream's `RegexError` writes them.
pub fn pattern_words(rule: &str, format: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{rule} (regex used for validation is '{format}')");
    }
    let quoted: Vec<String> = examples.iter().map(|example| format!("'{example}', ")).collect();
    format!("{rule} (e.g. {}regex used for validation is '{format}')", quoted.join(" or "))
}

fn is_label_text(value: &str) -> bool {
    let bytes = value.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    first.is_ascii_alphanumeric()
        && last.is_ascii_alphanumeric()
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

fn is_dns_label(value: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = value.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    alphanumeric(first) && alphanumeric(last) && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
}

fn is_dns_subdomain(value: &str) -> bool {
    value.split('.').all(is_dns_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_keys() {
        for good in ["a", "app.kubernetes.io/name", "A_b.c-9", "x/y"] {
            assert_eq!(label_key(good), Vec::<String>::new(), "{good}");
        }
        for (bad, reasons) in [("", 2), ("/a", 1), ("a/b/c", 1), ("-a", 1), ("a b", 1), ("Upper.com/x", 1), ("a/", 2)] {
            assert_eq!(label_key(bad).len(), reasons, "{bad}: {:?}", label_key(bad));
        }
        assert_eq!(
            label_key("-a"),
            [
                "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
            ]
        );
    }

    #[test]
    fn names_in_dns() {
        assert!(dns_label("web-1").is_empty() && dns_subdomain("a.b-c.d").is_empty() && label_value("").is_empty());
        assert_eq!(dns_label("a.b"), ["must not contain dots"]);
        assert_eq!(dns_label(&"a".repeat(64)), ["must be no more than 63 bytes"]);
        assert_eq!(
            label_value("_"),
            [
                "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
            ]
        );
    }
}
