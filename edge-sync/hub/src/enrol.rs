//! From a join token to an identity. What a token is worth is decided by [`judge`], a pure function; the rest carries
//! it out in an order in which every step can be repeated: token used, Site there, certificate signed.

use jiff::Timestamp;
use kedge_client::Informers;
use kedge_own::{Site, SiteIdentity, SiteSpec, SiteStatus};
use kedge_wire::{JoinToken, key_hash, proto};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tonic::Status;

use crate::keys::HubKeys;
use crate::tokens::{Record, Used, secret_name, secrets};

/// Somebody else used the token in the same moment: who was first is looked up again.
const ATTEMPTS_MAX: u32 = 4;
/// Where to get another token.
const ANOTHER: &str = "make a new one at the hub: kedge site token create";

/// Why a token is worth nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the join token {0} is wrong: the hub has no such token, or its secret is another; {ANOTHER}")]
    Wrong(String),
    #[error("the join token {0} was already used by another cluster, for the site {1}; {ANOTHER}")]
    Used(String, String),
    #[error("the join token {0} has ended at {1}; {ANOTHER}")]
    Ended(String, Timestamp),
    #[error("the site {1}, which joined with the token {0}, was removed at the hub since; {ANOTHER}")]
    Removed(String, String),
    #[error("another cluster has joined as {1} since the token {0} was used; {ANOTHER}")]
    Superseded(String, String),
}

/// Whether the bearer of `token` with this key may become the site that it invites.
pub(crate) fn judge(token: &JoinToken, record: Option<&Record>, key: &str, now: Timestamp) -> Result<(), Refusal> {
    let id = || token.id.clone();
    let record = record.filter(|record| record.secret_hash == token.secret_hash()).ok_or(Refusal::Wrong(id()))?;
    match &record.used {
        // The answer was lost on its way: the same cluster asks again.
        Some(used) if used.key == key => Ok(()),
        Some(_) => Err(Refusal::Used(id(), record.site.clone())),
        None if now >= record.ends => Err(Refusal::Ended(id(), record.ends)),
        None => Ok(()),
    }
}

/// Whether the Site that is there may get this key. A token that was used before gives nothing but what it gave then:
/// whoever joined later, by a newer token, is not put out by an older one.
fn may_be(token: &JoinToken, record: &Record, found: Option<&Site>, key: &str) -> Result<(), Refusal> {
    let Some(uid) = record.used.as_ref().and_then(|used| used.uid.as_deref()) else { return Ok(()) };
    let of = |refusal: fn(String, String) -> Refusal| refusal(token.id.clone(), record.site.clone());
    let site = found.filter(|site| site.metadata.uid.as_deref() == Some(uid)).ok_or_else(|| of(Refusal::Removed))?;
    let current = site.status.as_ref().and_then(|status| status.identity.as_ref());
    if current.is_some_and(|identity| identity.key != key) {
        return Err(of(Refusal::Superseded));
    }
    Ok(())
}

/// What joining needs.
pub(crate) struct Enrolment<'a> {
    pub(crate) client: &'a kube::Client,
    pub(crate) informers: &'a Informers,
    pub(crate) keys: &'a HubKeys,
    pub(crate) now: Timestamp,
}

impl Enrolment<'_> {
    /// Changes a token and a key for an identity.
    pub(crate) async fn join(&self, request: &proto::JoinRequest) -> Result<proto::JoinAnswer, Status> {
        let token = JoinToken::parse(&request.token).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let key = key_hash(&request.public_key);
        let record = self.use_token(&token, &key).await?;
        let site = self.site(&token, &record, &key).await?;
        let uid = site.uid().unwrap_or_default();
        if record.used.as_ref().is_none_or(|used| used.uid.is_none()) {
            let used = Some(Used { key: key.clone(), uid: Some(uid.clone()) });
            let secret = Record { used, ..record.clone() }.to_secret(&token.id, None);
            secrets(self.client)
                .replace(&secret_name(&token.id), &PostParams::default(), &secret)
                .await
                .map_err(api)?;
        }
        let certificate = self
            .keys
            .issue(&request.public_key, &record.site, &uid, self.now)
            .map_err(|error| Status::invalid_argument(format!("the public key cannot be used: {error}")))?;
        tracing::info!(site = record.site, token = token.id, "a site has joined");
        Ok(proto::JoinAnswer {
            site: record.site,
            uid,
            certificate: certificate.to_vec().into(),
            signing_key: self.keys.signing().public().0.into(),
            authority: self.keys.authority().to_vec().into(),
        })
    }

    /// Marks the token as used by this key, before anything comes of it.
    async fn use_token(&self, token: &JoinToken, key: &str) -> Result<Record, Status> {
        for _ in 0..ATTEMPTS_MAX {
            let secret = secrets(self.client).get_opt(&secret_name(&token.id)).await.map_err(api)?;
            let record = secret.as_ref().and_then(Record::from_secret);
            judge(token, record.as_ref(), key, self.now)
                .map_err(|error| Status::permission_denied(error.to_string()))?;
            let Some((secret, mut record)) = secret.zip(record) else { continue };
            if record.used.is_some() {
                return Ok(record);
            }
            record.used = Some(Used { key: key.to_owned(), uid: None });
            let used = record.to_secret(&token.id, secret.resource_version());
            match secrets(self.client).replace(&secret_name(&token.id), &PostParams::default(), &used).await {
                Ok(_) => return Ok(record),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(api(error)),
            }
        }
        Err(Status::aborted("the join token is being used by others; try again"))
    }

    /// The Site that the token invites, with this key.
    async fn site(&self, token: &JoinToken, record: &Record, key: &str) -> Result<Site, Status> {
        let sites: Api<Site> = Api::all(self.client.clone());
        let found = sites.get_opt(&record.site).await.map_err(api)?;
        may_be(token, record, found.as_ref(), key).map_err(|error| Status::permission_denied(error.to_string()))?;
        let site = match found {
            Some(site) => site,
            None => {
                let mut site = Site::new(&record.site, SiteSpec::default());
                site.metadata.labels = Some(record.labels.clone()).filter(|labels| !labels.is_empty());
                sites.create(&PostParams::default(), &site).await.map_err(api)?
            }
        };
        let identity = Some(SiteIdentity { key: key.to_owned() });
        if site.status.as_ref().map(|status| &status.identity) == Some(&identity) {
            return Ok(site);
        }
        let status = SiteStatus { identity, ..SiteStatus::default() };
        let patch = Patch::Merge(json!({ "metadata": { "uid": site.uid() }, "status": status }));
        let site = sites.patch_status(&record.site, &PatchParams::default(), &patch).await.map_err(api)?;
        // The site comes at once, and must be known by then.
        let revision = site.resource_version().and_then(|text| text.parse().ok()).unwrap_or(0);
        self.informers.of::<Site>().reached(revision).await;
        Ok(site)
    }
}

/// The API server did not answer as it should: the site tries again.
pub(crate) fn api(error: kube::Error) -> Status {
    Status::unavailable(format!("the hub cannot reach its API server: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_world::sim::SimRandom;

    #[test]
    fn a_used_token_gives_what_it_gave_and_puts_nobody_out() {
        let token = JoinToken::make([0; 32], &SimRandom::seeded(1));
        let record = |uid: Option<&str>| Record {
            site: "shop-1".into(),
            labels: Default::default(),
            secret_hash: token.secret_hash(),
            ends: Timestamp::MAX,
            used: Some(Used { key: "k1".into(), uid: uid.map(str::to_owned) }),
        };
        let site = |uid: &str, key: &str| {
            let mut site = Site::new("shop-1", SiteSpec::default());
            site.metadata.uid = Some(uid.into());
            site.status =
                Some(SiteStatus { identity: Some(SiteIdentity { key: key.into() }), ..SiteStatus::default() });
            site
        };
        let refused = |refusal: fn(String, String) -> Refusal| Err(refusal(token.id.clone(), "shop-1".into()));
        let cases = [
            ("first", None, None, Ok(())),
            ("first, onto a Site that is there", None, Some(site("u1", "k0")), Ok(())),
            ("again", Some("u1"), Some(site("u1", "k1")), Ok(())),
            ("removed", Some("u1"), None, refused(Refusal::Removed)),
            ("made anew", Some("u1"), Some(site("u2", "k1")), refused(Refusal::Removed)),
            ("somebody joined later", Some("u1"), Some(site("u1", "k2")), refused(Refusal::Superseded)),
        ];
        for (name, uid, found, expected) in cases {
            assert_eq!(may_be(&token, &record(uid), found.as_ref(), "k1"), expected, "{name}");
        }
    }

    #[test]
    fn a_token_is_worth_one_identity_for_a_while() {
        let token = JoinToken::make([0; 32], &SimRandom::seeded(1));
        let at = |second| Timestamp::from_second(second).unwrap();
        let fresh = Record {
            site: "shop-1".into(),
            labels: Default::default(),
            secret_hash: token.secret_hash(),
            ends: at(100),
            used: None,
        };
        let used = Record { used: Some(Used { key: "k1".into(), uid: None }), ..fresh.clone() };
        let other = Record { secret_hash: "00".into(), ..fresh.clone() };
        let cases = [
            ("fresh", Some(&fresh), "k1", 50, Ok(())),
            ("ended", Some(&fresh), "k1", 100, Err(Refusal::Ended(token.id.clone(), at(100)))),
            ("asked again", Some(&used), "k1", 500, Ok(())),
            ("used", Some(&used), "k2", 50, Err(Refusal::Used(token.id.clone(), "shop-1".into()))),
            ("unknown", None, "k1", 50, Err(Refusal::Wrong(token.id.clone()))),
            ("wrong secret", Some(&other), "k1", 50, Err(Refusal::Wrong(token.id.clone()))),
        ];
        for (name, record, key, now, expected) in cases {
            let verdict = judge(&token, record, key, at(now));
            assert_eq!(verdict, expected, "{name}");
            if let Err(refusal) = verdict {
                assert!(refusal.to_string().contains("kedge site token create"), "{refusal}");
            }
        }
    }
}
