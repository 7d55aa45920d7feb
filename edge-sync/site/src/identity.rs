//! Who this cluster is to its hub, in one file, so that no power cut parts a key from its certificate.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kedge_access::Identity;
use kedge_wire::VerifyingKey;
use kedge_world::{Disk, DiskError};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::hub::Address;

/// The folder of the site's own files below a data directory.
pub fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("site")
}

/// The file that makes a cluster a site.
pub fn identity_path(data_dir: &Path) -> PathBuf {
    folder(data_dir).join("identity.json")
}

/// What a site keeps of its joining.
#[derive(Debug)]
pub struct SiteIdentity {
    /// Where the hub is.
    pub hub: Address,
    /// The site's name.
    pub site: String,
    /// The uid of its Site.
    pub uid: String,
    /// The authority of the hub's certificate.
    pub authority: CertificateDer<'static>,
    /// What the hub signs with.
    pub signing_key: VerifyingKey,
    /// The site's key and certificate.
    pub keys: Identity,
}

/// The identity cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The file holds something else.
    #[error("{}: {reason}; restore it from a backup, or leave and join again: kedge site leave, kedge site join", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Kept {
    hub: String,
    site: String,
    uid: String,
    authority: String,
    signing_key: String,
    keys: String,
}

impl SiteIdentity {
    /// The identity below a data directory; none for a cluster that is no site.
    pub fn load(disk: &dyn Disk, data_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = identity_path(data_dir);
        let bytes = match disk.read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let read = || {
            let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
            let decode = |text: &str| STANDARD.decode(text).map_err(|error| error.to_string());
            Ok(Self {
                hub: Address::parse(&kept.hub).map_err(|error| error.to_string())?,
                authority: decode(&kept.authority)?.into(),
                signing_key: VerifyingKey(decode(&kept.signing_key)?),
                keys: Identity::from_pem(kept.keys.as_bytes()).map_err(|error| error.to_string())?,
                site: kept.site,
                uid: kept.uid,
            })
        };
        read().map(Some).map_err(|reason| IdentityError::File { path, reason })
    }

    /// Keeps it.
    pub fn save(&self, disk: &dyn Disk, data_dir: &Path) -> Result<(), IdentityError> {
        let kept = Kept {
            hub: self.hub.to_string(),
            site: self.site.clone(),
            uid: self.uid.clone(),
            authority: STANDARD.encode(&self.authority),
            signing_key: STANDARD.encode(&self.signing_key.0),
            keys: self.keys.to_pem(),
        };
        disk.create_dir_all(&folder(data_dir))?;
        let text = serde_json::to_vec_pretty(&kept).expect("plain data");
        Ok(disk.replace(&identity_path(data_dir), &text)?)
    }
}
