//! Logins for registries out of a secret. (`pkg/credentialprovider/secrets/secrets.go`; the two forms are Docker's
//! `config.json` and its older `.dockercfg`.)

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// A name and a password for a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The registry's host, with its port when it has one.
    pub registry: String,
    /// The name.
    pub user: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Login({} at {})", self.user, self.registry)
    }
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    /// `name:password` in base64, instead of the two.
    auth: String,
}

/// The logins in one secret, whose values `data` gives by their key.
pub fn logins<'a>(data: impl Fn(&str) -> Option<&'a [u8]>) -> Result<Vec<Login>, String> {
    let fail = |error: serde_json::Error| format!("it is not JSON of the right form: {error}");
    let entries = match (data(".dockerconfigjson"), data(".dockercfg")) {
        (Some(bytes), _) => serde_json::from_slice::<Config>(bytes).map_err(fail)?.auths,
        (None, Some(bytes)) => serde_json::from_slice(bytes).map_err(fail)?,
        (None, None) => return Err("it has neither .dockerconfigjson nor .dockercfg".into()),
    };
    Ok(entries.into_iter().filter_map(|(registry, entry)| login(&registry, entry)).collect())
}

fn login(registry: &str, entry: Entry) -> Option<Login> {
    let bare = registry.trim_start_matches("https://").trim_start_matches("http://");
    let host = bare.split('/').next().unwrap_or_default();
    // Docker writes its own registry's old address.
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    let joined = || String::from_utf8(STANDARD.decode(&entry.auth).ok()?).ok();
    let (user, password) = match (&*entry.username, &*entry.password) {
        ("", "") => joined()?.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))?,
        (user, password) => (user.to_owned(), password.to_owned()),
    };
    Some(Login { registry: host.to_owned(), user, password })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(key: &str, content: &serde_json::Value) -> Result<Vec<Login>, String> {
        let content = content.to_string();
        logins(|asked| (asked == key).then_some(content.as_bytes()))
    }

    #[test]
    fn both_forms_and_both_ways_to_write_a_login() {
        let login = |registry: &str, user: &str, password: &str| Login {
            registry: registry.into(),
            user: user.into(),
            password: password.into(),
        };
        let joined = STANDARD.encode("b:c:d");
        let auths = json!({ "r.test:5000": { "username": "u", "password": "p" }, "https://index.docker.io/v1/": { "auth": joined } });
        let expected = vec![login("docker.io", "b", "c:d"), login("r.test:5000", "u", "p")];
        let sorted = |mut logins: Vec<Login>| {
            logins.sort_by(|a, b| a.registry.cmp(&b.registry));
            logins
        };
        assert_eq!(of(".dockerconfigjson", &json!({ "auths": auths })).map(sorted), Ok(expected.clone()));
        assert_eq!(of(".dockercfg", &auths).map(sorted), Ok(expected));
    }

    #[test]
    fn what_is_no_login_is_said_or_left_out() {
        assert!(logins(|_| None).unwrap_err().contains("neither"));
        assert!(of(".dockercfg", &json!([1])).is_err());
        let bad = json!({ "auths": { "r.test": { "auth": "!" } } });
        assert_eq!(of(".dockerconfigjson", &bad), Ok(vec![]));
    }
}
