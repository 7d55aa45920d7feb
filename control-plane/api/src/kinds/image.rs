//! Names of images, as far as the API server reads them: which tag decides when to pull.
//! (`pkg/util/parsers`, and the grammar of `distribution/reference`.)

/// `Always` for `latest`, which is also what no tag and no digest means; `IfNotPresent` for all else, names that
/// cannot be read among them.
pub(super) fn pull_policy(image: &str) -> &'static str {
    match tag(image) {
        Some("latest") => "Always",
        _ => "IfNotPresent",
    }
}

/// The tag, `latest` when there is neither tag nor digest; none for a digest alone and for what is no image's name.
fn tag(image: &str) -> Option<&str> {
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (image, None),
    };
    let last_slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match rest[last_slash..].split_once(':') {
        Some((last, tag)) => (&rest[..last_slash + last.len()], Some(tag)),
        None => (rest, None),
    };
    let good_tag = |tag: &str| {
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
        tag.len() <= 128 && tag.starts_with(letter) && tag.chars().all(|c| letter(c) || c == '.' || c == '-')
    };
    if !is_repository(name) || !tag.is_none_or(good_tag) || !digest.is_none_or(is_digest) {
        return None;
    }
    match (tag, digest) {
        (None, None) => Some("latest"),
        (tag, _) => tag,
    }
}

/// Whether it is an optional registry and a path of lower-case parts.
fn is_repository(name: &str) -> bool {
    let is_registry =
        |part: &str| part.contains(['.', ':']) || part == "localhost" || part.chars().any(char::is_uppercase);
    let path = match name.split_once('/') {
        Some((first, rest)) if is_registry(first) => {
            let (host, port) = first.rsplit_once(':').unwrap_or((first, "0"));
            let host_ok = host.starts_with('[')
                || host.split('.').all(|part| {
                    !part.is_empty()
                        && !part.starts_with('-')
                        && !part.ends_with('-')
                        && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                });
            if !host_ok || port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
                return false;
            }
            rest
        }
        _ => name,
    };
    let hex64 = name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    !hex64 && path.split('/').all(is_path_part)
}

/// Runs of lower-case letters and digits, with `.`, `_`, `__` or dashes between them.
fn is_path_part(part: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators: Vec<&str> = part.split(alphanumeric).filter(|run| !run.is_empty()).collect();
    part.starts_with(alphanumeric)
        && part.ends_with(alphanumeric)
        && separators.iter().all(|run| matches!(*run, "." | "_" | "__") || run.chars().all(|c| c == '-'))
}

/// `algorithm:hex`.
fn is_digest(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, hex)| {
        !algorithm.is_empty() && hex.len() >= 32 && hex.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_decides() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (image, expected) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/a/b:v1", "IfNotPresent"),
            (&format!("nginx@{digest}"), "IfNotPresent"),
            (&format!("nginx:latest@{digest}"), "Always"),
            ("Nginx", "IfNotPresent"),
            ("EXAMPLE/nginx", "Always"),
            ("a__b/c--d", "Always"),
            ("a..b", "IfNotPresent"),
            ("", "IfNotPresent"),
            ("nginx:", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), expected, "{image}");
        }
    }
}
