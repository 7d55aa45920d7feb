//! Acting for somebody else: the `Impersonate-*` headers, for those who may.
//! (`k8s.io/apiserver/pkg/endpoints/filters/impersonation.go`.)

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use kedge_access::{Attributes, User};
use percent_encoding::percent_decode_str;

use crate::api::Api;
use crate::error::ApiError;

const EXTRA_PREFIX: &str = "impersonate-extra-";
const KNOWN: [&str; 3] = ["impersonate-user", "impersonate-uid", "impersonate-group"];

/// The user that a request acts as.
pub(crate) fn act_as(api: &Api, user: Arc<User>, headers: &HeaderMap) -> Result<Arc<User>, ApiError> {
    let Some(mut wanted) = asked(headers)? else { return Ok(user) };
    may(api, &user, &wanted)?;
    if let Some(account) = wanted.name.strip_prefix("system:serviceaccount:")
        && wanted.groups.is_empty()
        && let Some((namespace, _)) = account.split_once(':')
    {
        wanted.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
    }
    let everyone = if wanted.name == "system:anonymous" { "system:unauthenticated" } else { "system:authenticated" };
    if !wanted.is_in("system:unauthenticated") && !wanted.is_in(everyone) {
        wanted.groups.push(everyone.into());
    }
    Ok(Arc::new(wanted))
}

/// The user that the headers name, if they name any. A header that is there and says nothing that can be read is
/// refused: without it the request would run with the rights of who sent it. Text is UTF-8, as upstream has it.
fn asked(headers: &HeaderMap) -> Result<Option<User>, ApiError> {
    let all = |name: &str| -> Result<Vec<String>, ApiError> {
        let read = |value: &HeaderValue| match std::str::from_utf8(value.as_bytes()) {
            Ok("") => Err(ApiError::bad_request(format!("the header {name} is empty"))),
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(ApiError::bad_request(format!("the header {name} is not UTF-8"))),
        };
        headers.get_all(name).iter().map(read).collect()
    };
    let one = |name: &str| Ok::<_, ApiError>(all(name)?.into_iter().next().unwrap_or_default());
    let mut wanted = User {
        name: one("impersonate-user")?,
        uid: one("impersonate-uid")?,
        groups: all("impersonate-group")?,
        ..User::default()
    };
    for header in headers.keys().map(http::HeaderName::as_str) {
        match header.strip_prefix(EXTRA_PREFIX) {
            Some("") => return Err(ApiError::bad_request(format!("the header {header} names no key"))),
            Some(key) => drop(wanted.extra.insert(extra_key(key)?, all(header)?)),
            None if header.starts_with("impersonate-") && !KNOWN.contains(&header) => {
                return Err(ApiError::bad_request(format!("the header {header} is not known here")));
            }
            None => {}
        }
    }
    if wanted == User::default() {
        return Ok(None);
    }
    if wanted.name.is_empty() {
        return Err(ApiError::bad_request("requested impersonation without impersonating a user"));
    }
    Ok(Some(wanted))
}

/// A key as it was before it became part of a header's name; one with a stray percent sign is taken as it stands
/// (`unescapeExtraKey`).
fn extra_key(encoded: &str) -> Result<String, ApiError> {
    let hexadecimal = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    if !encoded.split('%').skip(1).all(hexadecimal) {
        return Ok(encoded.to_owned());
    }
    let decoded = percent_decode_str(encoded).decode_utf8();
    let refuse = |_| ApiError::bad_request(format!("the header {EXTRA_PREFIX}{encoded} is not UTF-8"));
    decoded.map(Into::into).map_err(refuse)
}

fn may(api: &Api, user: &User, wanted: &User) -> Result<(), ApiError> {
    let ask = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        let attributes = Attributes {
            verb: "impersonate",
            group,
            version: "v1",
            resource,
            subresource,
            namespace,
            name,
            ..Attributes::default()
        };
        api.guard().authorize(api, user, &attributes)
    };
    match wanted.name.strip_prefix("system:serviceaccount:").and_then(|account| account.split_once(':')) {
        Some((namespace, name)) => ask("", "serviceaccounts", "", namespace, name)?,
        None => ask("", "users", "", "", &wanted.name)?,
    }
    for group in &wanted.groups {
        ask("", "groups", "", "", group)?;
    }
    if !wanted.uid.is_empty() {
        ask("authentication.k8s.io", "uids", "", "", &wanted.uid)?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            ask("authentication.k8s.io", "userextras", key, "", value)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn check(headers: &[(&str, &[u8])], expected: Result<Option<&str>, &str>) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value).unwrap());
        }
        let shown = |user: User| {
            let extra: Vec<String> =
                user.extra.iter().map(|(key, values)| format!("{key}={}", values.join("+"))).collect();
            format!("{}/{}/{}/{}", user.name, user.uid, user.groups.join(","), extra.join(","))
        };
        match (asked(&map), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found.map(shown).as_deref(), expected, "{headers:?}"),
            (Err(error), Err(part)) => {
                assert!(error.code == 400 && error.message.contains(part), "{headers:?}: {error}")
            }
            (found, _) => panic!("{headers:?}: {found:?}"),
        }
    }

    #[test]
    fn what_headers_ask_for_is_read_or_refused() {
        check(&[], Ok(None));
        check(&[("impersonate-user", b"a")], Ok(Some("a///")));
        check(
            &[("impersonate-user", b"a"), ("impersonate-group", b"g"), ("impersonate-group", b"h")],
            Ok(Some("a//g,h/")),
        );
        check(&[("impersonate-user", "jürgen".as_bytes())], Ok(Some("jürgen///")));
        check(&[("impersonate-user", b"a"), ("impersonate-uid", b"1")], Ok(Some("a/1//")));
        check(&[("impersonate-user", b"j\xfcrgen")], Err("impersonate-user is not UTF-8"));
        check(&[("impersonate-user", b"")], Err("impersonate-user is empty"));
        check(&[("impersonate-user", b"a"), ("impersonate-group", b"")], Err("impersonate-group is empty"));
        check(&[("impersonate-user", b"a"), ("impersonate-group", b"g\xff")], Err("impersonate-group is not UTF-8"));
        check(&[("impersonate-user", b"a"), ("impersonate-uid", b"")], Err("impersonate-uid is empty"));
        check(&[("impersonate-group", b"g")], Err("without impersonating a user"));
        check(&[("impersonate-uid", b"1")], Err("without impersonating a user"));
        check(&[("impersonate-extra-a", b"1")], Err("without impersonating a user"));
        check(&[("impersonate-user-info", b"a")], Err("impersonate-user-info is not known"));
    }

    #[test]
    fn keys_of_extras_are_decoded_once() {
        let with = |key: &str, expected: Result<&str, &str>| {
            let header = format!("impersonate-extra-{key}");
            let headers: [(&str, &[u8]); 2] = [("impersonate-user", b"a"), (&header, b"v")];
            let expected = expected.map(|key| format!("a///{key}=v"));
            check(&headers, expected.as_deref().map(Some).map_err(|part| *part));
        };
        with("scopes", Ok("scopes"));
        with("example.test%2fkey", Ok("example.test/key"));
        with("%41", Ok("A"));
        with("a%2525", Ok("a%25"));
        with("50%", Ok("50%"));
        with("%zz%2f", Ok("%zz%2f"));
        with("%c3%bc", Ok("ü"));
        with("%ff", Err("is not UTF-8"));
        with("", Err("names no key"));
    }
}
