//! Models as content: files known by one digest, taken in, verified, made active at once, and removed when no `Model`
//! names them any more.
//!
//! What must hold: what is active is complete, durable and never changed; whatever fails on the way leaves nothing
//! half-made. Not here: serving models, and the link over which a hub sends them.

mod controller;
mod download;
mod manifest;
mod remote;
mod secrets;
mod sites;
mod source;
mod store;
mod write;

pub use controller::{Failure, Inspect, ModelController, Unfit};
pub use kedge_content::Digest;
pub use manifest::{CHUNK_BYTES, FILES_MAX, FileEntry, MANIFEST_BYTES_MAX, Manifest, ManifestError, check_path};
pub use sites::{SitesOfModels, is_chosen};
pub use source::SourceError;
pub use store::{ModelStore, Piece, Staging, StoreError, read_folder};
