//! An archive at an address, known by its digest beforehand.

use async_trait::async_trait;
use kedge_content::Digest;
use kedge_fetch::{Answer, Fetcher, Get};
use kedge_own::UrlSource;

use super::{Check, Listing, Part, Place, Remote, RemoteError, Tools};

struct Url {
    fetcher: Fetcher,
    location: String,
    digest: Digest,
}

pub(super) fn open(source: &UrlSource, tools: &Tools<'_>) -> Result<impl Remote + use<>, RemoteError> {
    let digest = Digest::parse(&source.digest)
        .ok_or_else(|| RemoteError::Unusable("spec.source.url.digest is no digest".into()))?;
    Ok(Url { fetcher: tools.fetcher.clone(), location: source.location.clone(), digest })
}

#[async_trait]
impl Remote for Url {
    async fn list(&mut self, _pinned: Option<&str>) -> Result<Listing, RemoteError> {
        let check = Check::Sha256(self.digest.clone());
        let part = Part { place: Place::Archive, name: self.location.clone(), size: None, check };
        Ok(Listing { location: self.location.clone(), revision: self.digest.to_string(), parts: vec![part] })
    }

    async fn get(&mut self, part: &Part, from: u64) -> Result<Answer, RemoteError> {
        Ok(self.fetcher.get(&Get { from, ..Get::new(&*part.name) }).await?)
    }
}
