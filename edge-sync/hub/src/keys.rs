//! The hub's keys, in files below `hub/keys`: an authority for its own certificate, which join tokens name by hash,
//! another one for sites' certificates, and the key that signs what sites should hold.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use kedge_access::{Identity, IdentityError, Purpose};
use kedge_wire::{HUB_SERVER_NAME, SigningKey, StatementError, TlsError, hub_config};
use kedge_world::{DiskError, World};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};

/// As long as a box may live.
const AUTHORITY_DAYS: i64 = 20 * 365;
const SERVER_DAYS: i64 = 365;
const SERVER_RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(24 * 90);
/// A site's certificate; it is renewed once half of that has passed.
const SITE_DAYS: i64 = 90;
/// How long after its end a certificate can still be renewed: what a box may lie in a drawer.
pub(crate) const RENEW_AFTER_END: SignedDuration = SignedDuration::from_hours(24 * 400);

/// What is wrong with the hub's keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file could not be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The hub has never run here.
    #[error("no hub has run with this data directory ({} is missing); start it first: kedge hub --data-dir DIR", .0.display())]
    Missing(PathBuf),
    /// A file holds something else.
    #[error("{}: {reason}; restore it from a backup (with other keys every site has to join again)", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A key or certificate could not be made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// TLS would not take what was made.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The hub's keys.
pub struct HubKeys {
    authority: Identity,
    site_authority: Identity,
    server: Identity,
    signing: SigningKey,
}

impl HubKeys {
    /// Opens the keys below the hub's folder, making what is missing.
    pub fn open(world: &World, hub: &Path) -> Result<Self, KeysError> {
        let folder = hub.join("keys");
        world.disk.create_dir_all(&folder)?;
        let now = world.clock.wall();
        let authority = kept(world, &folder.join("hub-ca.pem"), || {
            Identity::make("kedge-hub-ca", &Purpose::Authority, None, now, AUTHORITY_DAYS)
        })?;
        let site_authority = kept(world, &folder.join("site-ca.pem"), || {
            Identity::make("kedge-site-ca", &Purpose::Authority, None, now, AUTHORITY_DAYS)
        })?;
        let make = || {
            let purpose = Purpose::Server(vec![HUB_SERVER_NAME.into()]);
            Identity::make("kedge-hub", &purpose, Some(&authority), now, SERVER_DAYS)
        };
        let path = folder.join("hub.pem");
        let mut server = kept(world, &path, make)?;
        if server.ends().duration_since(now) < SERVER_RENEW_BEFORE {
            server = make()?;
            world.disk.replace(&path, server.to_pem().as_bytes())?;
        }
        let signing = signing_key(world, &folder.join("signing.key"))?;
        Ok(Self { authority, site_authority, server, signing })
    }

    /// The hash of the hub's authority, without making anything.
    pub fn authority_hash_of(world: &World, hub: &Path) -> Result<[u8; 32], KeysError> {
        let path = hub.join("keys/hub-ca.pem");
        match world.disk.read(&path) {
            Ok(bytes) => Ok(hash(read(&path, &bytes)?.certificate())),
            Err(error) if error.is_not_found() => Err(KeysError::Missing(path)),
            Err(error) => Err(error.into()),
        }
    }

    /// TLS for sites.
    pub(crate) fn tls(&self) -> Result<Arc<ServerConfig>, KeysError> {
        let chain = vec![self.server.certificate().clone(), self.authority.certificate().clone()];
        Ok(hub_config(chain, self.server.private_key(), self.site_authority.certificate().clone())?)
    }

    /// The certificate that join tokens name by its hash.
    pub(crate) fn authority(&self) -> &CertificateDer<'static> {
        self.authority.certificate()
    }

    /// What signs assignments.
    pub(crate) fn signing(&self) -> &SigningKey {
        &self.signing
    }

    /// A certificate for a site's key.
    pub(crate) fn issue(
        &self,
        public_key: &[u8],
        site: &str,
        uid: &str,
        now: Timestamp,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        self.site_authority.issue(public_key, site, &Purpose::Client(vec![uid.to_owned()]), now, SITE_DAYS)
    }
}

/// Whether a site's certificate that ends then should be renewed.
pub(crate) fn until_renewal_is_due(ends: i64, now: Timestamp) -> Duration {
    let half = SITE_DAYS * 86_400 / 2;
    Duration::from_secs(u64::try_from(ends - half - now.as_second()).unwrap_or(0))
}

fn hash(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

fn read(path: &Path, bytes: &[u8]) -> Result<Identity, KeysError> {
    Identity::from_pem(bytes).map_err(|error| KeysError::File { path: path.to_owned(), reason: error.to_string() })
}

/// The identity in a file, made when it is missing.
fn kept(
    world: &World,
    path: &Path,
    make: impl FnOnce() -> Result<Identity, IdentityError>,
) -> Result<Identity, KeysError> {
    match world.disk.read(path) {
        Ok(bytes) => read(path, &bytes),
        Err(error) if error.is_not_found() => {
            let made = make()?;
            world.disk.replace(path, made.to_pem().as_bytes())?;
            Ok(made)
        }
        Err(error) => Err(error.into()),
    }
}

fn signing_key(world: &World, path: &Path) -> Result<SigningKey, KeysError> {
    let wrong = |reason: String| KeysError::File { path: path.to_owned(), reason };
    let bytes = match world.disk.read(path) {
        Ok(bytes) => STANDARD.decode(bytes.trim_ascii()).map_err(|error| wrong(error.to_string()))?,
        Err(error) if error.is_not_found() => {
            let made = SigningKey::generate();
            world.disk.replace(path, STANDARD.encode(&made).as_bytes())?;
            made
        }
        Err(error) => return Err(error.into()),
    };
    SigningKey::read(&bytes).map_err(|error: StatementError| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_world::RealNet;
    use kedge_world::sim::{SimClock, SimDisk, SimRandom};

    fn world() -> World {
        let random = Arc::new(SimRandom::seeded(1));
        World {
            clock: Arc::new(SimClock::at("2026-05-01T00:00:00Z".parse().unwrap())),
            disk: Arc::new(SimDisk::new(random.clone())),
            random,
            net: Arc::new(RealNet),
        }
    }

    #[test]
    fn keys_stay_and_damage_and_absence_are_named() {
        let world = world();
        let hub = Path::new("/data/hub");
        assert!(matches!(HubKeys::authority_hash_of(&world, hub), Err(KeysError::Missing(_))));
        let first = HubKeys::open(&world, hub).unwrap();
        let again = HubKeys::open(&world, hub).unwrap();
        assert_eq!(first.signing.public(), again.signing.public());
        assert_eq!(HubKeys::authority_hash_of(&world, hub).unwrap(), hash(first.authority.certificate()));
        world.disk.replace(&hub.join("keys/signing.key"), b"!").unwrap();
        let error = HubKeys::open(&world, hub).err().unwrap().to_string();
        assert!(error.contains("signing.key") && error.contains("join again"), "{error}");
    }

    #[test]
    fn a_certificate_is_renewed_at_half_of_its_time() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let wait = |days: i64| until_renewal_is_due(1_000_000 + days * 86_400, now).as_secs();
        assert_eq!([wait(46), wait(45), wait(44), wait(-400)], [86_400, 0, 0, 0]);
    }
}
