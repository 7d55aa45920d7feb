//! An archive at an address, known by its digest beforehand.

use async_trait::async_trait;
use kedge_content::Digest;
use kedge_fetch::{Answer, FetchError, Fetcher, Get};
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
        let answer = self.fetcher.get(&Get { from, ..Get::new(&*part.name) }).await;
        answer.map_err(|error| match &error {
            FetchError::Status { status, .. } if matches!(status.as_u16(), 401 | 403) => {
                RemoteError::Unauthorized(error.to_string())
            }
            FetchError::Status { status, .. } if matches!(status.as_u16(), 404 | 410) => {
                RemoteError::Missing(error.to_string())
            }
            _ => error.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "a test's own files")]

    use kedge_own::Source;

    use super::*;
    use crate::remote::testing::{Machine, Reply, Web, noise};

    #[tokio::test]
    async fn a_file_that_was_taken_in_is_never_written_to_and_a_cut_archive_is_gone_on_from() {
        let mut builder = tar::Builder::new(Vec::new());
        let content = noise(100_000);
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        builder.append_data(&mut header, "m/model.safetensors", &*content).unwrap();
        let archive = builder.into_inner().unwrap();
        let digest = Digest::of(&archive);
        let sent = archive.clone();
        let web = Web::serve(move |asked, before| {
            let cut = (before == 0).then_some(60_000);
            Reply { cut, ..Reply::content(asked, &sent) }
        });
        let location = format!("http://{}/m.tar", web.host);
        let source = Source::Url(UrlSource { location: location.clone(), digest: digest.to_string() });
        let here = Machine::new();
        // What a power cut leaves after files were linked into the store, and then spoilt: wrong, and not ours to mend.
        let folder = here.store.download(&Machine::identity(&source));
        std::fs::create_dir(&folder).unwrap();
        let taken_in = folder.join("taken-in");
        std::fs::write(&taken_in, "of another model").unwrap();
        std::fs::hard_link(&taken_in, folder.join(digest.hex())).unwrap();
        assert_eq!(here.fails(&source).await.0, "FetchFailed");
        assert_eq!(std::fs::read(&taken_in).unwrap(), b"of another model");
        assert_eq!(here.fetch(&source, None).await.unwrap().files["model.safetensors"], content);
        let asked: Vec<_> = web.asked().iter().map(|asked| (asked.from(), asked.sent)).collect();
        assert_eq!(asked, [(0, 60_000), (60_000, archive.len() - 60_000)]);
        let wrong = Source::Url(UrlSource { location, digest: Digest::of(b"other").to_string() });
        assert_eq!(here.fails(&wrong).await.0, "DigestMismatch");
    }

    #[tokio::test]
    async fn an_answer_is_told_by_what_it_means() {
        let web = Web::serve(|asked, _| {
            Reply::status(match &*asked.path {
                "/lost" => "404 Not Found",
                "/gone" => "410 Gone",
                "/closed" => "403 Forbidden",
                "/login" => "401 Unauthorized",
                _ => "503 Service Unavailable",
            })
        });
        let here = Machine::new();
        for (path, reason) in [
            ("lost", "NotFound"),
            ("gone", "NotFound"),
            ("closed", "Unauthorized"),
            ("login", "Unauthorized"),
            ("busy", "FetchFailed"),
        ] {
            let location = format!("http://{}/{path}", web.host);
            let source = Source::Url(UrlSource { location: location.clone(), digest: Digest::of(b"m").to_string() });
            let (found, message) = here.fails(&source).await;
            assert!(found == reason && message.contains(&location), "{path}: {found}: {message}");
        }
    }
}
