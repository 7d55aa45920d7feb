//! Join tokens in the API: one Secret each in `kube-system`, so that they can be listed, removed, and used only once
//! however many hubs look at them.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kedge_wire::{JoinToken, check_site_name};
use kedge_world::World;
use kube::api::PostParams;

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "kedge.dev/site-token";
/// Between names that were made up.
const NAME_LETTERS: usize = 5;

/// Whom a token invites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// The site's name; made up when none is given.
    pub site: Option<String>,
    /// Labels that the Site begins with.
    pub labels: BTreeMap<String, String>,
    /// How long the token can be used.
    pub lasts: SignedDuration,
}

/// How long a token can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lasting(pub SignedDuration);

/// An invitation that lies about for longer is one for whoever finds it.
const LASTING_MAX: SignedDuration = SignedDuration::from_hours(24 * 365);

/// Reads a duration such as `24h` or `30m`.
pub fn parse_lasting(text: &str) -> Result<Lasting, String> {
    let duration: SignedDuration =
        text.parse().map_err(|_| format!("{text:?} is no duration; write one such as 24h or 30m"))?;
    match duration {
        _ if !duration.is_positive() => Err("a token must last longer than nothing".into()),
        _ if duration > LASTING_MAX => Err("a token must not last longer than a year (8760h)".into()),
        _ => Ok(Lasting(duration)),
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The name cannot be a site's.
    #[error("--name: {0}")]
    Name(String),
    /// The API server did not take it.
    #[error("cannot keep the token at the API server: {0}")]
    Api(#[from] kube::Error),
}

/// Makes a token and keeps it; gives it with the site's name.
pub async fn create(
    world: &World,
    client: &kube::Client,
    authority: [u8; 32],
    invitation: &Invitation,
) -> Result<(JoinToken, String), TokenError> {
    let site = match &invitation.site {
        Some(name) => name.clone(),
        None => format!("site-{}", world.random.suffix(NAME_LETTERS)),
    };
    check_site_name(&site).map_err(TokenError::Name)?;
    let token = JoinToken::make(authority, &*world.random);
    let ends = world.clock.wall().saturating_add(invitation.lasts).unwrap_or(Timestamp::MAX);
    let record = Record {
        site: site.clone(),
        labels: invitation.labels.clone(),
        secret_hash: token.secret_hash(),
        ends,
        used: None,
    };
    let secret = record.to_secret(&token.id, None);
    secrets(client).create(&PostParams::default(), &secret).await?;
    Ok((token, site))
}

pub(crate) fn secrets(client: &kube::Client) -> kube::Api<Secret> {
    kube::Api::namespaced(client.clone(), NAMESPACE)
}

pub(crate) fn secret_name(id: &str) -> String {
    format!("kedge-site-token-{id}")
}

/// A token as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) site: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) secret_hash: String,
    pub(crate) ends: Timestamp,
    pub(crate) used: Option<Used>,
}

/// Who used a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    /// SHA-256 of the public key.
    pub(crate) key: String,
    /// The Site that came of it, once it was there.
    pub(crate) uid: Option<String>,
}

impl Record {
    /// The Secret that keeps it. `revision` is that of the one it replaces.
    pub(crate) fn to_secret(&self, id: &str, revision: Option<String>) -> Secret {
        let mut data = BTreeMap::from([
            ("site", self.site.clone()),
            ("secret-hash", self.secret_hash.clone()),
            ("ends", self.ends.to_string()),
            ("labels", serde_json::to_string(&self.labels).expect("plain data")),
        ]);
        if let Some(used) = &self.used {
            data.insert("used-by", used.key.clone());
            data.extend(used.uid.clone().map(|uid| ("site-uid", uid)));
        }
        Secret {
            metadata: ObjectMeta {
                name: Some(secret_name(id)),
                namespace: Some(NAMESPACE.into()),
                resource_version: revision,
                ..ObjectMeta::default()
            },
            type_: Some(TYPE.into()),
            data: Some(data.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect()),
            ..Secret::default()
        }
    }

    /// Reads a Secret; none when it is something else.
    pub(crate) fn from_secret(secret: &Secret) -> Option<Self> {
        let text = |key: &str| String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok();
        let used = text("used-by").map(|key| Used { key, uid: text("site-uid") });
        Some(Self {
            site: text("site")?,
            labels: serde_json::from_str(&text("labels")?).ok()?,
            secret_hash: text("secret-hash")?,
            ends: text("ends")?.parse().ok()?,
            used,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_secret() {
        let mut record = Record {
            site: "shop-1".into(),
            labels: BTreeMap::from([("city".into(), "bonn".into())]),
            secret_hash: "00".into(),
            ends: "2026-05-01T00:00:00Z".parse().unwrap(),
            used: None,
        };
        assert_eq!(Record::from_secret(&record.to_secret("abc", None)), Some(record.clone()));
        record.used = Some(Used { key: "k".into(), uid: Some("u".into()) });
        assert_eq!(Record::from_secret(&record.to_secret("abc", None)), Some(record));
        assert_eq!(Record::from_secret(&Secret::default()), None);
    }
}
