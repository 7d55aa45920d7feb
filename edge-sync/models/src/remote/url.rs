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
    use crate::remote::testing::{Certified, Machine, Reply, Web, noise};

    /// An archive of a model, which has those weights.
    fn packed(weights: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(weights.len() as u64);
        header.set_mode(0o600);
        builder.append_data(&mut header, "m/model.safetensors", weights).unwrap();
        builder.into_inner().unwrap()
    }

    fn source(location: &str, archive: &[u8]) -> Source {
        Source::Url(UrlSource { location: location.to_owned(), digest: Digest::of(archive).to_string() })
    }

    #[tokio::test]
    async fn a_file_that_was_taken_in_is_never_written_to_and_a_cut_archive_is_gone_on_from() {
        let content = noise(100_000);
        let archive = packed(&content);
        let (digest, sent) = (Digest::of(&archive), archive.clone());
        let web = Web::serve(move |asked, before| {
            let cut = (before == 0).then_some(60_000);
            Reply { cut, ..Reply::content(asked, &sent) }
        });
        let location = format!("http://{}/m.tar", web.host);
        let source = source(&location, &archive);
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

    const HOST: &str = "127.0.0.1";

    #[tokio::test]
    async fn over_tls_a_model_comes_from_one_that_is_trusted_and_is_gone_on_from() {
        let content = noise(400_000);
        let archive = packed(&content);
        let (certified, sent) = (Certified::new("ours", HOST), archive.clone());
        let web = Web::serve_tls(&certified, move |asked, before| {
            let cut = (before == 0).then_some(250_000);
            Reply { cut, ..Reply::content(asked, &sent) }
        });
        let here = Machine::trusting(&certified);
        let source = source(&format!("https://{}/m.tar", web.host), &archive);
        let (reason, message) = here.fails(&source).await;
        assert!(reason == "FetchFailed" && message.contains("the transfer broke off"), "{reason}: {message}");
        assert_eq!(here.fetch(&source, None).await.unwrap().files["model.safetensors"], content);
        let asked: Vec<_> = web.asked().iter().map(|asked| (asked.from(), asked.sent)).collect();
        assert_eq!(asked, [(0, 250_000), (250_000, archive.len() - 250_000)]);
    }

    #[tokio::test]
    async fn over_tls_whoever_is_not_trusted_or_has_another_name_is_asked_for_nothing() {
        let archive = packed(b"weights");
        let (known, stranger) = (Certified::new("ours", HOST), Certified::new("theirs", HOST));
        let (namesake, other) = (Certified::new("ours", HOST), Certified::new("ours", "models.example"));
        for (served, trusted, says) in [
            (&known, &known, None),
            (&stranger, &known, Some("invalid peer certificate: UnknownIssuer")),
            (&namesake, &known, Some("invalid peer certificate: BadSignature")),
            (&other, &other, Some("not valid for name \"127.0.0.1\"")),
        ] {
            let sent = archive.clone();
            let web = Web::serve_tls(served, move |asked, _| Reply::content(asked, &sent));
            let location = format!("https://{}/m.tar", web.host);
            let fetched = Machine::trusting(trusted).fetch(&source(&location, &archive), None).await;
            let error = fetched.err().map(|failure| (failure.reason(), failure.to_string()));
            match says {
                None => assert_eq!(error, None),
                Some(says) => {
                    let (reason, message) = error.unwrap();
                    let named = message.starts_with(&format!("{location}: ")) && message.contains(says);
                    assert!(reason == "FetchFailed" && named, "{reason}: {message}");
                }
            }
            assert_eq!(web.asked().len(), usize::from(says.is_none()), "{says:?}");
        }
        let plain = Web::serve(|_, _| Reply::status("200 OK"));
        let location = format!("https://{}/m.tar", plain.host);
        let (reason, message) = Machine::trusting(&known).fails(&source(&location, &archive)).await;
        assert!(reason == "FetchFailed" && message.starts_with(&location), "it speaks no TLS: {reason}: {message}");
    }

    #[tokio::test]
    async fn what_was_asked_for_over_tls_is_never_asked_for_without() {
        let archive = packed(b"weights");
        let (certified, sent) = (Certified::new("ours", HOST), archive.clone());
        let reply = move |asked: &_, _| Reply::content(asked, &sent);
        let (plain, safe) = (Web::serve(reply.clone()), Web::serve_tls(&certified, reply));
        let at = [format!("http://{}/m.tar?Signature=word", plain.host), format!("https://{}/m.tar", safe.host)];
        let sends = move |asked: &crate::remote::testing::Asked, _| {
            let at = if asked.path == "/plain" { &at[0] } else { &at[1] };
            Reply { headers: format!("Location: {at}\r\n"), ..Reply::status("302 Found") }
        };
        let (from_plain, from_safe) = (Web::serve(sends.clone()), Web::serve_tls(&certified, sends));
        let here = || Machine::trusting(&certified);
        let (to_plain, to_safe) = (format!("https://{}/plain", from_safe.host), |base: &str| format!("{base}/safe"));
        let (reason, message) = here().fails(&source(&to_plain, &archive)).await;
        let says =
            format!("{to_plain}: a redirect from https to \"http://{}/m.tar\", which is not encrypted", plain.host);
        assert_eq!((reason, message), ("FetchFailed", says));
        assert_eq!(plain.asked().len(), 0);
        for base in [format!("https://{}", from_safe.host), format!("http://{}", from_plain.host)] {
            here().fetch(&source(&to_safe(&base), &archive), None).await.unwrap();
        }
        assert_eq!(safe.asked().len(), 2);
    }

    /// Set for the process that fetches with the authorities of its machine.
    const FETCHED: &str = "KEDGE_TEST_FETCHED";
    const THIS: &str = "remote::url::tests::fetches_with_the_authorities_of_its_machine";

    /// What the next one starts.
    #[tokio::test]
    #[ignore = "is no test by itself"]
    async fn fetches_with_the_authorities_of_its_machine() {
        let location = std::env::var(FETCHED).expect("what to fetch");
        match Machine::new().fetch(&source(&location, &packed(b"weights")), None).await {
            Ok(fetched) => println!("fetched {} file.", fetched.files.len()),
            Err(failure) => println!("{}: {failure}.", failure.reason()),
        }
    }

    #[tokio::test]
    async fn the_authorities_of_a_machine_are_those_that_ssl_cert_file_lists() {
        let (certified, archive) = (Certified::new("ours", HOST), packed(b"weights"));
        let other = Certified::new("theirs", HOST).authority;
        let web = Web::serve_tls(&certified, move |asked, _| Reply::content(asked, &archive));
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let location = format!("https://{}/m.tar", web.host);
        for (list, says) in [
            (file("both.pem", &(other.clone() + &certified.authority)), "fetched 1 file."),
            (file("other.pem", &other), "UnknownIssuer."),
            (file("none.pem", "no certificate"), "none.pem: no certificate in it); install the package"),
            (folder.path().join("lost.pem"), "lost.pem: No such file"),
        ] {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            child
                .args(["--exact", THIS, "--ignored", "--nocapture"])
                .env(FETCHED, &location)
                .env("SSL_CERT_FILE", &list);
            let said = String::from_utf8(child.output().unwrap().stdout).unwrap();
            assert!(said.contains(says), "{}: {said}", list.display());
        }
        assert_eq!(web.asked().len(), 1);
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
