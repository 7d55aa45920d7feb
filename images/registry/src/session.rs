//! Who asks a registry: nobody, somebody with a password, or the bearer of a token that was got for either.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{ACCEPT, AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use kedge_fetch::{Answer, FetchError, Fetcher, Get};
use serde::Deserialize;

use crate::{Login, RegistryError};

/// A token's answer is small.
const TOKEN_BYTES_MAX: usize = 1 << 20;

/// The way to one repository.
pub struct Session {
    fetcher: Fetcher,
    /// The registry's host as people write it, with its port when it has one.
    registry: String,
    repository: String,
    /// Who may be there, the one that was let in last first; nobody when no login is for this registry.
    callers: Vec<Option<Login>>,
    /// What the registry wants, once it has said so.
    challenge: Option<Challenge>,
    /// What is sent along then.
    header: Option<HeaderValue>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({}/{})", self.registry, self.repository)
    }
}

impl Session {
    /// To `repository` (`<host>/<path>`), as any of those `logins` that are for its registry.
    pub fn new(fetcher: &Fetcher, repository: &str, logins: &[Login]) -> Self {
        let (registry, repository) = repository.split_once('/').unwrap_or((repository, ""));
        let (registry, repository) = (registry.to_owned(), repository.to_owned());
        let mut callers: Vec<_> = logins.iter().filter(|login| login.registry == registry).cloned().map(Some).collect();
        if callers.is_empty() {
            callers.push(None);
        }
        Self { fetcher: fetcher.clone(), registry, repository, callers, challenge: None, header: None }
    }

    /// Asks for `path` of the repository (`manifests/…`, `blobs/…`), from byte `from` on.
    pub async fn get(&mut self, path: &str, from: u64, accept: Option<&str>) -> Result<Answer, RegistryError> {
        let answer = self.send(path, from, accept).await?;
        self.judge(&answer).map_or(Ok(answer), Err)
    }

    /// What an answer means when it is not the thing asked for.
    fn judge(&self, answer: &Answer) -> Option<RegistryError> {
        let refused = |reason: &str| RegistryError::Refused {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            reason: reason.to_owned(),
        };
        match answer.status.as_u16() {
            200 | 206 => None,
            401 => Some(refused("it asks who is there")),
            403 => Some(refused("access is denied")),
            404 => Some(RegistryError::Missing(answer.url.clone())),
            _ => Some(FetchError::Status { url: answer.url.clone(), status: answer.status }.into()),
        }
    }

    /// Asks for `path` of the repository; asked who is there, says so and asks again, as each of the callers until one
    /// is let in. (pkg/kubelet/images/image_manager.go tries credentials in turn, too.)
    async fn send(&mut self, path: &str, from: u64, accept: Option<&str>) -> Result<Answer, RegistryError> {
        let url = url(&self.registry, &self.repository, path);
        let mut get = Get { from, ..Get::new(&*url) };
        if let Some(accept) = accept {
            get.headers.insert(ACCEPT, HeaderValue::from_str(accept).expect("media types are header values"));
        }
        let with = |header: &Option<HeaderValue>| {
            let mut get = get.clone();
            get.headers.extend(header.clone().map(|header| (AUTHORIZATION, header)));
            get
        };
        let answer = self.fetcher.send(&with(&self.header)).await?;
        // A token may be for one that is known but may not have this.
        let denied = answer.status == StatusCode::FORBIDDEN && self.challenge.is_some();
        if answer.status != StatusCode::UNAUTHORIZED && !denied {
            return Ok(answer);
        }
        let wants = answer.headers.get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        self.challenge = Challenge::parse(wants).or(self.challenge.take());
        let Some(challenge) = &self.challenge else { return Ok(answer) };
        let mut last = Ok(answer);
        for index in 0..self.callers.len() {
            let header = match self.header(challenge, self.callers[index].as_ref()).await {
                Ok(Some(header)) => Some(header),
                Ok(None) => continue,
                Err(error @ RegistryError::Refused { .. }) => {
                    last = Err(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let answer = self.fetcher.send(&with(&header)).await?;
            // What somebody may not see is missing to them in some registries.
            if !matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND) {
                self.header = header;
                self.callers.swap(0, index);
                return Ok(answer);
            }
            last = Ok(answer);
        }
        last
    }

    /// What is sent along when `login` is there; none when it takes a login and there is none.
    async fn header(&self, challenge: &Challenge, login: Option<&Login>) -> Result<Option<HeaderValue>, RegistryError> {
        match challenge {
            Challenge::Basic => Ok(login.map(basic)),
            Challenge::Bearer { realm, service, scope } => self.token(realm, service, scope, login).await.map(Some),
        }
    }

    async fn token(
        &self,
        realm: &str,
        service: &str,
        scope: &str,
        login: Option<&Login>,
    ) -> Result<HeaderValue, RegistryError> {
        // Who does not speak in the clear to the registry does not tell its password to somebody else so.
        if !is_loopback(&self.registry) && !realm.starts_with("https://") {
            let reason = format!("its tokens come from {realm:?}, which is not encrypted");
            return Err(RegistryError::Invalid { what: format!("the registry {}", self.registry), reason });
        }
        let mut get = Get::new(token_url(realm, service, scope));
        get.headers.extend(login.map(|login| (AUTHORIZATION, basic(login))));
        let answer = self.fetcher.send(&get).await?;
        if let Some(error) = self.judge(&answer) {
            return Err(error);
        }
        let bytes = answer.bytes(TOKEN_BYTES_MAX).await?;
        let wrong =
            |reason: &str| RegistryError::Invalid { what: "the registry's token".into(), reason: reason.into() };
        let token: Token =
            serde_json::from_slice(&bytes).map_err(|error| wrong(&format!("cannot be read: {error}")))?;
        let text = if token.token.is_empty() { token.access_token } else { token.token };
        let mut header = HeaderValue::from_str(&format!("Bearer {text}")).map_err(|_| wrong("is no token"))?;
        header.set_sensitive(true);
        Ok(header)
    }
}

fn token_url(realm: &str, service: &str, scope: &str) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (key, value) in [("service", service), ("scope", scope)] {
        if !value.is_empty() {
            query.append_pair(key, value);
        }
    }
    let separator = if realm.contains('?') { '&' } else { '?' };
    format!("{realm}{separator}{}", query.finish())
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

fn basic(login: &Login) -> HeaderValue {
    let text = STANDARD.encode(format!("{}:{}", login.user, login.password));
    let mut header = HeaderValue::from_str(&format!("Basic {text}")).expect("base64 is a header value");
    header.set_sensitive(true);
    header
}

/// Where a repository's things are. Registries on this machine's loopback speak plain HTTP, as Docker has it.
fn url(registry: &str, repository: &str, path: &str) -> String {
    let scheme = if is_loopback(registry) { "http" } else { "https" };
    // The name that people use is not where that registry answers.
    let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
    format!("{scheme}://{host}/v2/{repository}/{path}")
}

fn is_loopback(host: &str) -> bool {
    let name = host.split(':').next().unwrap_or_default();
    name == "localhost" || name.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

/// What a registry wants to see.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: String, scope: String },
}

impl Challenge {
    /// Reads `WWW-Authenticate` (RFC 9110, section 11.6.1).
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (String::new(), String::new(), String::new());
        let mut rest = rest.trim();
        while let Some((key, after)) = rest.split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').unwrap_or((after, "")),
            };
            match key.trim() {
                "realm" => value.clone_into(&mut realm),
                "service" => value.clone_into(&mut service),
                "scope" => value.clone_into(&mut scope),
                _ => {}
            }
            rest = after.trim_start_matches([',', ' ']);
        }
        (!realm.is_empty()).then_some(Self::Bearer { realm, service, scope })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let text = r#"Bearer realm="https://auth.test/token",service="registry.test",scope="repository:a/b:pull,push""#;
        let expected = Challenge::Bearer {
            realm: "https://auth.test/token".into(),
            service: "registry.test".into(),
            scope: "repository:a/b:pull,push".into(),
        };
        assert_eq!(Challenge::parse(text), Some(expected));
        assert_eq!(Challenge::parse("Basic realm=\"x\""), Some(Challenge::Basic));
        for bad in ["", "Bearer", "Bearer service=\"a\"", "Digest realm=\"a\"", "Bearer realm=\"open"] {
            assert_eq!(Challenge::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn loopback_is_asked_in_plain_http_and_everybody_else_is_not() {
        let of = |registry: &str| url(registry, "a/b", "manifests/1");
        assert_eq!(of("localhost:5000"), "http://localhost:5000/v2/a/b/manifests/1");
        assert_eq!(of("127.0.0.1:5000"), "http://127.0.0.1:5000/v2/a/b/manifests/1");
        assert_eq!(of("example.test"), "https://example.test/v2/a/b/manifests/1");
        assert_eq!(of("127.example.test"), "https://127.example.test/v2/a/b/manifests/1");
        assert_eq!(of("docker.io"), "https://registry-1.docker.io/v2/a/b/manifests/1");
    }
}
