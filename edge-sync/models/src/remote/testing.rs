//! What tests of sources share: a server on loopback, with and without TLS, and a fetch as the controller does it.
#![allow(clippy::disallowed_methods, reason = "a test's server on loopback, and its files")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use kedge_fetch::Fetcher;
use kedge_own::Source;
use kedge_world::World;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{Place, RemoteError, Secrets, Tools};
use crate::controller::{self, Failure};
use crate::download::{Download, Step, part_file};
use crate::store::ModelStore;
use kedge_content::Digest;

/// A request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    pub(crate) path: String,
    /// By lower-case name.
    pub(crate) headers: BTreeMap<String, String>,
    /// Bytes of a body that were sent in answer.
    pub(crate) sent: usize,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(String::as_str).unwrap_or_default()
    }

    /// The first byte asked for.
    pub(crate) fn from(&self) -> usize {
        let range = self.header("range");
        let from = range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
        from.map_or(0, |from| from.parse().unwrap())
    }
}

/// An answer.
pub(crate) struct Reply {
    pub(crate) status: &'static str,
    /// Header lines, each with its line's end.
    pub(crate) headers: String,
    pub(crate) body: Vec<u8>,
    /// How many bytes of the body are sent before the connection ends.
    pub(crate) cut: Option<usize>,
    /// Whether the body is sent again and again, with no length said.
    pub(crate) endless: bool,
}

impl Reply {
    /// What was asked for of `content`.
    pub(crate) fn content(asked: &Asked, content: &[u8]) -> Self {
        let from = asked.from();
        if from == 0 {
            return Self { body: content.to_vec(), ..Self::status("200 OK") };
        }
        if from >= content.len() {
            return Self::status("416 Range Not Satisfiable");
        }
        let headers = format!("Content-Range: bytes {from}-{}/{}\r\n", content.len() - 1, content.len());
        Self { headers, body: content[from..].to_vec(), ..Self::status("206 Partial Content") }
    }

    pub(crate) fn status(status: &'static str) -> Self {
        Self { status, headers: String::new(), body: Vec::new(), cut: None, endless: false }
    }
}

/// A server that answers until the test ends.
pub(crate) struct Web {
    pub(crate) host: String,
    log: Arc<Mutex<Vec<Asked>>>,
}

impl Web {
    /// Serves what `reply` says, one request a connection; it is told how many asked for the same path before.
    pub(crate) fn serve(reply: impl Fn(&Asked, usize) -> Reply + Send + 'static) -> Self {
        Self::serve_over(None, reply)
    }

    /// The same over TLS, as the one that `own` certifies. Who does not trust it asks for nothing.
    pub(crate) fn serve_tls(own: &Certified, reply: impl Fn(&Asked, usize) -> Reply + Send + 'static) -> Self {
        Self::serve_over(Some(own.server.clone()), reply)
    }

    fn serve_over(
        tls: Option<Arc<rustls::ServerConfig>>,
        reply: impl Fn(&Asked, usize) -> Reply + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let log: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let all = log.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Some(mut stream) = greeted(tls.clone(), stream) else { continue };
                let mut asked = read(&mut stream);
                let before = all.lock().unwrap().iter().filter(|other| other.path == asked.path).count();
                let reply = reply(&asked, before);
                asked.sent = reply.cut.unwrap_or(reply.body.len());
                all.lock().unwrap().push(asked);
                answer(stream, &reply);
            }
        });
        Self { host, log }
    }

    /// Everything that was asked for.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }

    /// What was asked for at paths that end so.
    pub(crate) fn asked_for(&self, end: &str) -> Vec<Asked> {
        self.asked().into_iter().filter(|asked| asked.path.split('?').next().unwrap().ends_with(end)).collect()
    }
}

/// What requests come over.
trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// A connection after its handshake; none where the client does not like the certificate.
fn greeted(tls: Option<Arc<rustls::ServerConfig>>, mut stream: TcpStream) -> Option<Box<dyn Stream>> {
    let Some(tls) = tls else { return Some(Box::new(stream)) };
    let mut connection = rustls::ServerConnection::new(tls).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).ok()?;
    }
    Some(Box::new(rustls::StreamOwned::new(connection, stream)))
}

fn read(stream: &mut dyn Stream) -> Asked {
    let mut asked = Asked::default();
    for line in BufReader::new(stream).lines() {
        let line = line.unwrap_or_default();
        if line.is_empty() {
            break;
        }
        if let Some(rest) = line.strip_prefix("GET ") {
            asked.path = rest.split(' ').next().unwrap().to_owned();
        } else if let Some((name, value)) = line.split_once(": ") {
            asked.headers.insert(name.to_lowercase(), value.to_owned());
        }
    }
    asked
}

fn answer(mut stream: Box<dyn Stream>, reply: &Reply) {
    let length = if reply.endless { String::new() } else { format!("Content-Length: {}\r\n", reply.body.len()) };
    let head = format!("HTTP/1.1 {}\r\n{}{length}Connection: close\r\n\r\n", reply.status, reply.headers);
    let body = &reply.body[..reply.cut.unwrap_or(reply.body.len())];
    // A client that has heard enough is no failure of this server.
    let mut going = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    while reply.endless && going.is_ok() {
        going = stream.write_all(body);
    }
    drop(stream.flush());
}

/// A certificate for a server of some name, and the authority that signed it.
pub(crate) struct Certified {
    /// What a machine that trusts it has in its list of authorities.
    pub(crate) authority: String,
    server: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
}

impl Certified {
    /// One for a host, by an authority of that name that signs nothing else.
    pub(crate) fn new(by: &str, host: &str) -> Self {
        let (authority_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(DnType::CommonName, by);
        let root = authority.self_signed(&authority_key).unwrap();
        let issuer = Issuer::new(authority, authority_key);
        let leaf = CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(provider.clone());
        let server = server.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let server = server.with_single_cert(vec![CertificateDer::from(leaf.der().to_vec())], key).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from(root.der().to_vec())).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let client = client.unwrap().with_root_certificates(roots).with_no_client_auth();
        Self { authority: root.pem(), server: Arc::new(server), client: Arc::new(client) }
    }
}

/// A place where models are fetched to.
pub(crate) struct Machine {
    _folder: tempfile::TempDir,
    pub(crate) store: ModelStore,
    world: World,
    fetcher: Fetcher,
    pub(crate) secrets: Held,
}

/// Secrets by name, each with its values.
#[derive(Default)]
pub(crate) struct Held(pub(crate) BTreeMap<&'static str, BTreeMap<String, Vec<u8>>>);

#[async_trait]
impl Secrets for Held {
    async fn read(&self, name: &str) -> Result<BTreeMap<String, Vec<u8>>, RemoteError> {
        self.0.get(name).cloned().ok_or_else(|| RemoteError::SecretMissing(format!("{name} does not exist")))
    }
}

/// A model that was fetched.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) revision: String,
    pub(crate) digest: Digest,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = World::real();
        let store = ModelStore::open(folder.path(), world.random.clone()).unwrap();
        let fetcher = Fetcher::new(world.net.clone());
        Self { _folder: folder, store, world, fetcher, secrets: Held::default() }
    }

    /// One whose list of authorities has that one alone.
    pub(crate) fn trusting(certified: &Certified) -> Self {
        let here = Self::new();
        Self { fetcher: Fetcher::with_tls(here.world.net.clone(), certified.client.clone()), ..here }
    }

    /// A Secret of this name.
    pub(crate) fn with_secret(mut self, name: &'static str, values: &[(&str, &str)]) -> Self {
        let values = values.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()));
        self.secrets.0.insert(name, values.collect());
        self
    }

    /// Under what the parts of a source are collected.
    pub(crate) fn identity(source: &Source) -> Digest {
        Digest::of(format!("{source:?}").as_bytes())
    }

    /// One attempt, as the controller makes it.
    pub(crate) async fn fetch(&self, source: &Source, pinned: Option<&str>) -> Result<Fetched, Failure> {
        let tools = Tools { fetcher: &self.fetcher, world: &self.world, secrets: &self.secrets };
        let mut remote = super::open(source, &tools).await?.unwrap();
        let listing = controller::list(&mut *remote, pinned).await?;
        let identity = Self::identity(source);
        let folder = self.store.download(&identity);
        let mut download = Download::new(&folder, listing.clone(), &self.world)?;
        while download.step(&mut *remote).await? != Step::Done {}
        let parts: Vec<(Place, _)> =
            listing.parts.iter().map(|part| (part.place.clone(), part_file(&folder, part))).collect();
        let (digest, manifest) = self.store.take_parts(&parts)?;
        self.store.discard_download(&identity)?;
        let read = |path: &str| std::fs::read(self.store.active(&digest).unwrap().join(path)).unwrap();
        let files = manifest.files.iter().map(|file| (file.path.clone(), read(&file.path))).collect();
        Ok(Fetched { revision: listing.revision, digest, files })
    }

    /// The reason and the message of an attempt that fails.
    pub(crate) async fn fails(&self, source: &Source) -> (&'static str, String) {
        let failure = self.fetch(source, None).await.unwrap_err();
        (failure.reason(), failure.to_string())
    }
}

/// Bytes that nothing compresses and no two places share.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    (0..length as u64).map(|index| (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}
