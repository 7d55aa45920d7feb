//! Joining a hub, and leaving it. Every step can be repeated: the key is kept before the hub hears of it, so a lost
//! answer is asked for again with the same token.

use std::path::Path;

use kedge_access::{Identity, Purpose};
use kedge_wire::proto::enrolment_client::EnrolmentClient;
use kedge_wire::proto::{JoinRequest, RenewRequest};
use kedge_wire::{HubRoots, JoinToken, Peer, TokenError, VerifyingKey, key_hash, site_config};
use kedge_world::{DiskError, World};
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::hub::{Address, AddressError, connect, dial};
use crate::identity::{IdentityError, SiteIdentity, folder, identity_path};
use crate::link::state_path;

/// The certificate around a key that has none yet; nobody sees it.
const PLACEHOLDER_DAYS: i64 = 1;

/// Why a cluster did not become a site.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is none.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The address is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The identity that is there cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A file failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It is a site of another hub.
    #[error("this cluster is already the site {site} of the hub at {hub}; leave it first: kedge site leave")]
    OtherHub {
        /// Its name there.
        site: String,
        /// Where that hub is.
        hub: Address,
    },
    /// There is no way to the hub.
    #[error("cannot reach the hub at {hub}: {reason}")]
    Unreachable {
        /// Where it should be.
        hub: Address,
        /// Why not.
        reason: String,
    },
    /// The hub said no.
    #[error("the hub at {hub} refused: {reason}")]
    Refused {
        /// Which hub.
        hub: Address,
        /// In its words.
        reason: String,
    },
    /// What the hub answered is no identity.
    #[error("the hub at {hub} gave an identity that does not fit: {reason}")]
    Answer {
        /// Which hub.
        hub: Address,
        /// What is wrong.
        reason: String,
    },
}

/// What came of joining.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Joined {
    /// The cluster is a site now.
    Now(String),
    /// It was one of this hub before; the token is not used.
    Before(String),
}

/// Makes the cluster with this data directory a site of the hub at `url`.
pub async fn join(world: &World, data_dir: &Path, url: &str, token: &str) -> Result<Joined, JoinError> {
    let hub = Address::parse(url)?;
    let token_text = token.trim();
    let token = JoinToken::parse(token_text)?;
    let disk = &*world.disk;
    let mut known_key = None;
    if let Some(before) = SiteIdentity::load(disk, data_dir)? {
        if Sha256::digest(&before.authority).as_slice() != token.authority {
            return Err(JoinError::OtherHub { site: before.site, hub: before.hub });
        }
        let moved = SiteIdentity { hub: hub.clone(), ..before };
        match renew(world, moved).await {
            Ok(renewed) => {
                renewed.save(disk, data_dir)?;
                return Ok(Joined::Before(renewed.site));
            }
            // The Site was removed at the hub: the token may bring it back, with the key that it had.
            Err(Renewal::Refused(status)) if status.code() == Code::PermissionDenied => {
                known_key = SiteIdentity::load(disk, data_dir)?.map(|identity| identity.keys);
            }
            Err(Renewal::Refused(status)) => return Err(refused(&hub, &status)),
            Err(Renewal::Unreachable(reason)) => return Err(JoinError::Unreachable { hub, reason }),
        }
    }
    let pending = match known_key {
        Some(key) => key,
        None => pending_key(world, data_dir)?,
    };
    let config = site_config(HubRoots::Hash(token.authority), None)
        .map_err(|error| JoinError::Unreachable { hub: hub.clone(), reason: error.to_string() })?;
    let channel =
        dial(&*world.net, &hub, config).await.map_err(|reason| JoinError::Unreachable { hub: hub.clone(), reason })?;
    let public_key = pending.public_key();
    let request = JoinRequest {
        token: token_text.to_owned(),
        public_key: public_key.clone().into(),
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let answer = EnrolmentClient::new(channel).join(request).await.map_err(|status| refused(&hub, &status))?;
    let answer = answer.into_inner();
    let wrong = |reason: &str| JoinError::Answer { hub: hub.clone(), reason: reason.to_owned() };
    if Sha256::digest(&answer.authority).as_slice() != token.authority {
        return Err(wrong("its authority is not the one that the token names"));
    }
    let certificate = CertificateDer::from(answer.certificate.to_vec());
    let peer = Peer::read(&certificate).map_err(|error| wrong(&error.to_string()))?;
    if peer.key != key_hash(&public_key) {
        return Err(wrong("the certificate is for another key"));
    }
    let identity = SiteIdentity {
        hub,
        site: answer.site,
        uid: answer.uid,
        authority: answer.authority.to_vec().into(),
        signing_key: VerifyingKey(answer.signing_key.to_vec()),
        keys: pending.with_certificate(certificate),
    };
    identity.save(disk, data_dir)?;
    gone_is_fine(disk.remove(&pending_path(data_dir)))?;
    Ok(Joined::Now(identity.site))
}

/// Ends being a site. What came from the hub stays as it is and goes on being served.
pub fn leave(world: &World, data_dir: &Path) -> Result<Option<String>, JoinError> {
    let disk = &*world.disk;
    let name = match SiteIdentity::load(disk, data_dir) {
        Ok(identity) => identity.map(|identity| identity.site),
        // A damaged file is what leaving is for, too.
        Err(IdentityError::File { .. }) => Some("of a damaged identity".to_owned()),
        Err(error) => return Err(error.into()),
    };
    for path in [identity_path(data_dir), state_path(data_dir), pending_path(data_dir)] {
        gone_is_fine(disk.remove(&path))?;
    }
    if name.is_some() {
        disk.sync_dir(&folder(data_dir))?;
    }
    Ok(name)
}

fn gone_is_fine(removed: Result<(), DiskError>) -> Result<(), DiskError> {
    match removed {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

fn pending_path(data_dir: &Path) -> std::path::PathBuf {
    folder(data_dir).join("joining.pem")
}

/// The key that the cluster joins with, made when it joins for the first time.
fn pending_key(world: &World, data_dir: &Path) -> Result<Identity, JoinError> {
    let path = pending_path(data_dir);
    let wrong = |reason: String| IdentityError::File { path: path.clone(), reason };
    match world.disk.read(&path) {
        Ok(bytes) => Ok(Identity::from_pem(&bytes).map_err(|error| wrong(error.to_string()))?),
        Err(error) if error.is_not_found() => {
            let purpose = Purpose::Client(Vec::new());
            let made = Identity::make("joining", &purpose, None, world.clock.wall(), PLACEHOLDER_DAYS);
            let made = made.map_err(|error| wrong(error.to_string()))?;
            world.disk.create_dir_all(&folder(data_dir))?;
            world.disk.replace(&path, made.to_pem().as_bytes())?;
            Ok(made)
        }
        Err(error) => Err(error.into()),
    }
}

fn refused(hub: &Address, status: &Status) -> JoinError {
    JoinError::Refused { hub: hub.clone(), reason: status.message().to_owned() }
}

/// Why a certificate was not renewed.
pub(crate) enum Renewal {
    Unreachable(String),
    Refused(Status),
}

/// The identity with a new certificate for the same key. The old one may have ended.
pub(crate) async fn renew(world: &World, identity: SiteIdentity) -> Result<SiteIdentity, Renewal> {
    let channel = connect(&*world.net, &identity).await.map_err(Renewal::Unreachable)?;
    renew_over(channel, identity).await
}

pub(crate) async fn renew_over(channel: Channel, identity: SiteIdentity) -> Result<SiteIdentity, Renewal> {
    let answer = EnrolmentClient::new(channel).renew(RenewRequest {}).await.map_err(Renewal::Refused)?;
    let certificate = CertificateDer::from(answer.into_inner().certificate.to_vec());
    let same = Peer::read(&certificate).is_ok_and(|peer| peer.key == key_hash(&identity.keys.public_key()));
    if !same {
        return Err(Renewal::Refused(Status::internal("the hub renewed the certificate of another key")));
    }
    Ok(SiteIdentity { keys: identity.keys.with_certificate(certificate), ..identity })
}
