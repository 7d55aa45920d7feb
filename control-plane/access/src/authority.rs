//! The cluster's own certificate authorities, made at first start and kept in files under `server/tls`.
//!
//! Two authorities, so that a certificate for serving is never one for acting: `server-ca` and `client-ca`. Keys
//! stay on the box; leaf certificates are made again when they near their end, under the same authority.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use kedge_world::{Disk, DiskError, World};
use parking_lot::Mutex;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::sync::Notify;

use crate::identity::{Identity, IdentityError, Purpose};
use crate::served::Served;
use crate::token::{TokenError, TokenSigner};

/// A box may lie in a drawer for years; its authority must outlive that.
const AUTHORITY_DAYS: i64 = 20 * 365;
const LEAF_DAYS: i64 = 365;
/// A leaf that ends sooner than this is made again, at a start or when somebody connects.
pub(crate) const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(24 * 90);

/// What went wrong with the cluster's keys.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file could not be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A file holds something else.
    #[error("{}: {source}; restore it from a backup, or remove the folder to make new certificates (clients then need a new kubeconfig)", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: IdentityError,
    },
    /// A key or certificate could not be made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The token key could not be used.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// TLS would not take what was made.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

/// Names and addresses under which the API server is reached, beyond those it always has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(pub Vec<String>);

/// The cluster's keys.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    names: Names,
    /// Names of the API server that come and go; shared by all that were opened from the first.
    passing: Arc<Mutex<Names>>,
    world: World,
    server_ca: Identity,
    client_ca: Identity,
    /// Serves the API.
    server: Identity,
    /// The person at the box.
    admin: Identity,
    /// The hub beside the server, a process of its own.
    hub: Identity,
}

impl Authority {
    /// Opens the keys in `folder`, making what is missing and renewing what nears its end.
    pub fn open(world: &World, folder: &Path, names: &Names) -> Result<Self, AuthorityError> {
        Self::open_with(world, folder, names, Arc::default())
    }

    fn open_with(
        world: &World,
        folder: &Path,
        names: &Names,
        passing: Arc<Mutex<Names>>,
    ) -> Result<Self, AuthorityError> {
        world.disk.create_dir_all(folder)?;
        let now = world.clock.wall();
        let files = Files { disk: &*world.disk, folder, now };
        let server_ca = files.open("server-ca", "kedge-server-ca", &Purpose::Authority, None, AUTHORITY_DAYS)?;
        let client_ca = files.open("client-ca", "kedge-client-ca", &Purpose::Authority, None, AUTHORITY_DAYS)?;
        let mut all: Vec<String> =
            ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "127.0.0.1", "::1"]
                .map(String::from)
                .to_vec();
        for name in names.0.iter().chain(&passing.lock().0) {
            if !all.contains(name) {
                all.push(name.clone());
            }
        }
        let server = files.open("server", "kedge-server", &Purpose::Server(all), Some(&server_ca), LEAF_DAYS)?;
        let masters = Purpose::Client(vec!["system:masters".into()]);
        let admin = files.open("admin", "system:admin", &masters, Some(&client_ca), LEAF_DAYS)?;
        let nobody = Purpose::Client(Vec::new());
        let hub = files.open("hub", "system:kedge-hub", &nobody, Some(&client_ca), LEAF_DAYS)?;
        let (folder, names) = (folder.to_owned(), names.clone());
        Ok(Self { folder, names, passing, world: world.clone(), server_ca, client_ca, server, admin, hub })
    }

    /// The same keys as they are on the disk, with leaves made again that near their end.
    pub fn reopen(&self) -> Result<Self, AuthorityError> {
        Self::open_with(&self.world, &self.folder, &self.names, self.passing.clone())
    }

    /// The names of the API server beside those of the start, in the place of those given here before: the addresses
    /// of a machine come and go. Whoever connects next is shown a certificate that has them.
    pub fn also_serve_as(&self, names: Names) {
        *self.passing.lock() = names;
    }

    /// Whether the API server's certificate has the names that come and go.
    pub(crate) fn has_passing_names(&self) -> bool {
        let has = self.server.names();
        self.passing.lock().0.iter().all(|name| has.contains(name))
    }

    /// What the API serves with.
    pub(crate) fn server(&self) -> &Identity {
        &self.server
    }

    /// When the first of the leaves ends.
    pub(crate) fn ends(&self) -> Timestamp {
        self.server.ends().min(self.admin.ends()).min(self.hub.ends())
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.world.clock.wall()
    }

    /// Signs service account tokens, with a key of its own.
    pub fn token_signer(&self) -> Result<TokenSigner, AuthorityError> {
        let files = Files { disk: &*self.world.disk, folder: &self.folder, now: self.world.clock.wall() };
        let key = files.open("service-account", "service-account", &Purpose::Authority, None, AUTHORITY_DAYS)?;
        Ok(TokenSigner::new(&key.key_der())?)
    }

    /// TLS for the API server: its certificate, and clients' certificates checked when they show one. Leaves that near
    /// their end are made again when somebody connects; `renewed` hears of it, for whoever keeps a copy.
    pub fn server_config(&self, renewed: Arc<Notify>) -> Result<Arc<ServerConfig>, AuthorityError> {
        let tls = |error: &dyn std::fmt::Display| AuthorityError::Tls(error.to_string());
        let mut roots = RootCertStore::empty();
        roots.add(self.client_ca.certificate().clone()).map_err(|e| tls(&e))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| tls(&e))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| tls(&e))?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::new(Served::new(self.reopen()?, renewed)?));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// The certificate that clients check the server against, as PEM.
    pub fn server_ca_pem(&self) -> String {
        self.server_ca.certificate_pem()
    }

    /// A kubeconfig for the person at the box, with everything embedded. The same as long as the keys are.
    pub fn kubeconfig(&self, server: &str) -> String {
        use base64::Engine as _;
        let encode = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: kedge\n  cluster:\n    server: {server}\n    \
             certificate-authority-data: {}\nusers:\n- name: kedge\n  user:\n    client-certificate-data: {}\n    \
             client-key-data: {}\ncontexts:\n- name: kedge\n  context:\n    cluster: kedge\n    user: kedge\ncurrent-context: kedge\n",
            encode(self.server_ca_pem()),
            encode(self.admin.certificate_pem()),
            encode(self.admin.key_pem()),
        )
    }
}

struct Files<'a> {
    disk: &'a dyn Disk,
    folder: &'a Path,
    now: Timestamp,
}

impl Files<'_> {
    /// The identity in `file`, made (again) when it is missing, nears its end, or lacks a name it must serve under.
    fn open(
        &self,
        file: &str,
        name: &str,
        purpose: &Purpose,
        issuer: Option<&Identity>,
        days: i64,
    ) -> Result<Identity, AuthorityError> {
        let path = self.folder.join(format!("{file}.pem"));
        match self.disk.read(&path) {
            Ok(bytes) => {
                let found =
                    Identity::from_pem(&bytes).map_err(|source| AuthorityError::File { path: path.clone(), source })?;
                // An authority is never replaced behind its clients' backs.
                if *purpose == Purpose::Authority || self.serves(&found, purpose) {
                    return Ok(found);
                }
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        let made = Identity::make(name, purpose, issuer, self.now, days)?;
        self.disk.replace(&path, made.to_pem().as_bytes())?;
        Ok(made)
    }

    fn serves(&self, found: &Identity, purpose: &Purpose) -> bool {
        let lasts = found.ends().duration_since(self.now) > RENEW_BEFORE;
        let named = match purpose {
            Purpose::Server(names) => {
                let has = found.names();
                names.iter().all(|name| has.contains(name))
            }
            _ => true,
        };
        lasts && named
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_world::RealNet;
    use kedge_world::sim::{SimClock, SimDisk, SimRandom};

    fn world(clock: Arc<SimClock>, disk: SimDisk) -> World {
        World { clock, random: Arc::new(SimRandom::seeded(1)), disk: Arc::new(disk), net: Arc::new(RealNet) }
    }

    #[test]
    fn keys_stay_the_same_and_leaves_are_renewed_under_the_same_authority() {
        let clock = Arc::new(SimClock::at("2026-05-01T00:00:00Z".parse().unwrap()));
        let world = world(clock.clone(), SimDisk::new(Arc::new(SimRandom::seeded(1))));
        let folder = Path::new("/data/tls");
        let open = |names: &[&str]| {
            let names = Names(names.iter().map(|n| (*n).to_owned()).collect());
            Authority::open(&world, folder, &names).unwrap()
        };
        let first = open(&["box.example"]);
        let config = first.kubeconfig("https://127.0.0.1:6443");
        assert_eq!(open(&["box.example"]).kubeconfig("https://127.0.0.1:6443"), config);
        clock.advance(std::time::Duration::from_secs(400 * 86_400));
        let later = open(&["box.example"]);
        assert_ne!(later.kubeconfig("https://127.0.0.1:6443"), config);
        assert_eq!(later.server_ca_pem(), first.server_ca_pem());
        assert!(open(&["other.example"]).server.names().contains(&"other.example".to_owned()));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let clock = Arc::new(SimClock::at("2026-05-01T00:00:00Z".parse().unwrap()));
        let world = world(clock, SimDisk::new(Arc::new(SimRandom::seeded(1))));
        let folder = Path::new("/data/tls");
        Authority::open(&world, folder, &Names::default()).unwrap();
        world.disk.replace(&folder.join("client-ca.pem"), b"gone").unwrap();
        let error = Authority::open(&world, folder, &Names::default()).unwrap_err().to_string();
        assert!(error.contains("client-ca.pem"), "{error}");
    }
}
