//! A model in a bucket of S3, or of what answers as S3 does. (docs.aws.amazon.com/AmazonS3/latest/API, ListObjectsV2 and
//! GetObject.)
//!
//! Objects have no digest that could be relied on: each is asked for under the ETag of the listing, over TLS. Redirects are
//! not followed, since a signature is for one host.

use async_trait::async_trait;
use http::header::{AUTHORIZATION, IF_MATCH};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use kedge_fetch::{Answer, FetchError, Fetcher, Get};
use kedge_own::S3Source;
use kedge_world::World;

use super::signature::{Credentials, EMPTY, Scope, Signed, authorization};
use super::{Check, Listing, Part, Place, Remote, RemoteError, Tools, encoded, endpoint, is_packed};
use crate::manifest::FILES_MAX;

/// One page of a listing has at most 1000 keys of at most 1024 bytes.
const PAGE_BYTES_MAX: usize = 8 << 20;
/// More pages than a model has, even where a server gives few keys a page.
const PAGES_MAX: usize = 200;
/// What says why something was refused is small.
const REASON_BYTES_MAX: usize = 64 << 10;

struct S3 {
    fetcher: Fetcher,
    world: World,
    location: String,
    /// The address of the bucket, without a slash at its end.
    bucket: String,
    region: String,
    /// Without a slash at its end; empty for the whole bucket.
    prefix: String,
    credentials: Option<Credentials>,
}

pub(super) async fn open(source: &S3Source, tools: &Tools<'_>) -> Result<impl Remote + use<>, RemoteError> {
    let (bucket, prefix) = parse(&source.location)
        .ok_or_else(|| RemoteError::Unusable(format!("{:?} is no s3://BUCKET/PREFIX", source.location)))?;
    let region = source.region.clone().unwrap_or_else(|| "us-east-1".into());
    if !region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(RemoteError::Unusable(format!("the region {region:?} is no name")));
    }
    let own = source.endpoint.is_some();
    let endpoint = endpoint(&source.endpoint.clone().unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com")))?;
    // A certificate for all buckets holds for none with a dot in its name.
    let path_style = source.path_style.unwrap_or(own || bucket.contains('.'));
    let credentials = match &source.secret_ref {
        None => None,
        Some(secret) => {
            let data = tools.secrets.read(&secret.name).await?;
            let value = |key: &str| {
                let text = std::str::from_utf8(data.get(key)?).ok()?.trim();
                (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| text.to_owned())
            };
            let needed = |key: &str| {
                let text = format!("the Secret {}: it has no {key}, or one that is none", secret.name);
                value(key).ok_or(RemoteError::SecretInvalid(text))
            };
            let session = data.contains_key("AWS_SESSION_TOKEN").then(|| needed("AWS_SESSION_TOKEN")).transpose()?;
            Some(Credentials {
                key_id: needed("AWS_ACCESS_KEY_ID")?,
                secret: needed("AWS_SECRET_ACCESS_KEY")?,
                session,
            })
        }
    };
    Ok(S3 {
        fetcher: tools.fetcher.clone(),
        world: tools.world.clone(),
        location: source.location.clone(),
        bucket: bucket_address(&endpoint, bucket, path_style),
        region,
        prefix: prefix.to_owned(),
        credentials,
    })
}

/// The bucket and the prefix.
fn parse(location: &str) -> Option<(&str, &str)> {
    let rest = location.strip_prefix("s3://")?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let good = bucket.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        && bucket.bytes().any(|byte| byte.is_ascii_alphanumeric())
        // Such parts of a key would be taken for another address.
        && !prefix.split('/').any(|part| matches!(part, "." | ".."));
    good.then_some((bucket, prefix.trim_end_matches('/')))
}

fn bucket_address(endpoint: &str, bucket: &str, path_style: bool) -> String {
    match endpoint.split_once("://") {
        Some((scheme, rest)) if !path_style => format!("{scheme}://{bucket}.{rest}"),
        _ => format!("{endpoint}/{bucket}"),
    }
}

#[async_trait]
impl Remote for S3 {
    async fn list(&mut self, _pinned: Option<&str>) -> Result<Listing, RemoteError> {
        let folder = if self.prefix.is_empty() { String::new() } else { format!("{}/", self.prefix) };
        let mut found = self.objects(&folder).await?;
        // What is named may be no folder.
        let is_file = found.is_empty() && !folder.is_empty();
        if is_file {
            found = self.objects(&self.prefix).await?;
            found.retain(|object| object.key == self.prefix);
        }
        if found.is_empty() {
            return Err(RemoteError::Missing(format!(
                "{}: there is no object of that name or below it",
                self.location
            )));
        }
        let parts = found.into_iter().map(|object| {
            let below = object.key.strip_prefix(&folder).filter(|_| !is_file);
            let name = below.or(object.key.rsplit('/').next()).unwrap_or_default();
            let place = if is_packed(name) { Place::Archive } else { Place::File(name.to_owned()) };
            let of = format!("{}/{}", self.bucket, object.key);
            Part { place, name: object.key, size: Some(object.size), check: Check::Entity { of, tag: object.tag } }
        });
        let mut listing = Listing { location: self.location.clone(), revision: String::new(), parts: parts.collect() };
        listing.revision = listing.contents().to_string();
        Ok(listing)
    }

    async fn get(&mut self, part: &Part, from: u64) -> Result<Answer, RemoteError> {
        let mut headers = HeaderMap::new();
        if let Check::Entity { tag, .. } = &part.check {
            let tag = HeaderValue::from_str(tag)
                .map_err(|_| RemoteError::Unusable(format!("{}: its ETag {tag:?} is none", part.name)))?;
            headers.insert(IF_MATCH, tag);
        }
        self.ask(&format!("{}/{}", self.bucket, encoded(&part.name, "/")), headers, from).await
    }
}

impl S3 {
    /// The objects whose keys begin so; folders that some clients make as objects are left out.
    async fn objects(&self, prefix: &str) -> Result<Vec<Object>, RemoteError> {
        let wrong = |what: String| RemoteError::Unusable(format!("{}: {what}", self.location));
        let (mut all, mut token) = (Vec::new(), String::new());
        for _ in 0..PAGES_MAX {
            let mut query = format!("list-type=2&prefix={}", encoded(prefix, ""));
            if !token.is_empty() {
                query = format!("continuation-token={}&{query}", encoded(&token, ""));
            }
            let answer = self.ask(&format!("{}/?{query}", self.bucket), HeaderMap::new(), 0).await?;
            let bytes = answer.bytes(PAGE_BYTES_MAX).await?;
            let page = std::str::from_utf8(&bytes).map_err(|_| wrong("its listing is no text".into()))?;
            if element(page, "ListBucketResult").is_none() && !page.contains("<ListBucketResult") {
                return Err(wrong("what answers there gives no listing of a bucket".into()));
            }
            for entry in elements(page, "Contents") {
                let object =
                    Object::read(entry).ok_or_else(|| wrong("an entry of its listing makes no sense".into()))?;
                if !object.key.starts_with(prefix) {
                    return Err(wrong(format!("its listing has {:?}, which was not asked for", object.key)));
                }
                if object.size > 0 || !object.key.ends_with('/') {
                    all.push(object);
                }
            }
            if all.len() > FILES_MAX {
                return Err(wrong(format!("there are more than {FILES_MAX} files")));
            }
            if element(page, "IsTruncated") != Some("true") {
                return Ok(all);
            }
            token = element(page, "NextContinuationToken").map(plain).unwrap_or_default();
            if token.is_empty() {
                return Err(wrong("its listing ends in the middle".into()));
            }
        }
        Err(wrong(format!("its listing has more than {PAGES_MAX} pages")))
    }

    async fn ask(&self, url: &str, headers: HeaderMap, from: u64) -> Result<Answer, RemoteError> {
        let mut get = Get { from, headers, follow: false, ..Get::new(url) };
        if let Some(credentials) = &self.credentials {
            self.sign(&mut get, credentials)?;
        }
        let answer = self.fetcher.send(&get).await?;
        match answer.status.as_u16() {
            200 | 206 => Ok(answer),
            _ => Err(judge(answer).await),
        }
    }

    fn sign(&self, get: &mut Get, who: &Credentials) -> Result<(), RemoteError> {
        let wrong = || RemoteError::Unusable(format!("{}: this is no address", get.url));
        let uri: Uri = get.url.parse().map_err(|_| wrong())?;
        let host = uri.authority().ok_or_else(wrong)?.as_str();
        let time = self.world.clock.wall().strftime("%Y%m%dT%H%M%SZ").to_string();
        let mut headers = vec![("host", host), ("x-amz-content-sha256", EMPTY), ("x-amz-date", &*time)];
        headers.extend(who.session.as_deref().map(|token| ("x-amz-security-token", token)));
        let signed =
            Signed { path: uri.path(), query: uri.query().unwrap_or_default(), headers: &headers, body: EMPTY };
        let text = authorization(&signed, who, Scope { region: &self.region, service: "s3" }, &time);
        headers.push((AUTHORIZATION.as_str(), &text));
        for (name, value) in headers.iter().filter(|(name, _)| *name != "host") {
            let mut value = HeaderValue::from_str(value).map_err(|_| wrong())?;
            value.set_sensitive(true);
            get.headers.insert(HeaderName::try_from(*name).expect("names of headers"), value);
        }
        Ok(())
    }
}

/// What an answer means that is not what was asked for.
async fn judge(answer: Answer) -> RemoteError {
    let (url, status) = (answer.url.clone(), answer.status);
    let region = answer.headers.get("x-amz-bucket-region").and_then(|value| value.to_str().ok().map(str::to_owned));
    let body = answer.bytes(REASON_BYTES_MAX).await.unwrap_or_default();
    let body = String::from_utf8_lossy(&body);
    let said = |name: &str| element(&body, name).map(plain).map(|text| text.chars().take(300).collect::<String>());
    let mut text = format!("{url}: the server answered {status}");
    if let Some(code) = said("Code") {
        text.push_str(&format!(" ({code}: {})", said("Message").unwrap_or_default()));
    }
    match (status.as_u16(), region.or_else(|| said("Region"))) {
        (301 | 307 | 400, Some(region)) => {
            RemoteError::Unusable(format!("{text}; the bucket is in the region {region}"))
        }
        (300..=399, None) => {
            RemoteError::Unusable(format!("{text}; redirects are not followed: name the right endpoint"))
        }
        (401 | 403, _) => RemoteError::Unauthorized(text),
        (404, _) => RemoteError::Missing(text),
        (412, _) => RemoteError::Changed(format!("{text}: it changed since it was listed")),
        _ => FetchError::Status { url, status }.into(),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Object {
    key: String,
    size: u64,
    /// As it is sent in headers, with its quotes.
    tag: String,
}

impl Object {
    fn read(entry: &str) -> Option<Self> {
        let text = |name: &str| element(entry, name).map(plain);
        let (key, size, tag) = (text("Key")?, text("Size")?.trim().parse().ok()?, text("ETag")?);
        (!tag.is_empty()).then_some(Self { key, size, tag })
    }
}

/// What stands between `<name>` and `</name>` for the first time. S3's documents have no attributes there, no comments and
/// no element within one of its own name.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    elements(text, name).next()
}

fn elements<'a>(text: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = text;
    std::iter::from_fn(move || {
        let (inner, after) = rest.split_once(&open)?.1.split_once(&close)?;
        rest = after;
        Some(inner)
    })
}

/// Text of a document as it is meant. (XML 1.0, sections 4.1 and 4.6.)
fn plain(text: &str) -> String {
    let mut all = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        all.push_str(before);
        let Some((name, after)) = after.split_once(';') else {
            all.push('&');
            rest = after;
            continue;
        };
        let number = |digits: &str, base| u32::from_str_radix(digits, base).ok().and_then(char::from_u32);
        let meant = match (name, name.strip_prefix("#x"), name.strip_prefix('#')) {
            ("amp", ..) => Some('&'),
            ("lt", ..) => Some('<'),
            ("gt", ..) => Some('>'),
            ("quot", ..) => Some('"'),
            ("apos", ..) => Some('\''),
            (_, Some(digits), _) => number(digits, 16),
            (_, None, Some(digits)) => number(digits, 10),
            _ => None,
        };
        all.push(meant.unwrap_or(char::REPLACEMENT_CHARACTER));
        rest = after;
    }
    all + rest
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kedge_own::{SecretRef, Source};

    use super::*;
    use crate::remote::testing::{Asked, Machine, Reply, Web, noise};

    #[test]
    fn locations_and_addresses() {
        assert_eq!(parse("s3://b"), Some(("b", "")));
        assert_eq!(parse("s3://b/a/b c/"), Some(("b", "a/b c")));
        for bad in ["b/a", "s3://", "s3:///a", "s3://b@c/a", "s3://b:80/a", "s3://b/../c", "s3://..", "s3://b?c/a"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(bucket_address("https://s3.test", "b", false), "https://b.s3.test");
        assert_eq!(bucket_address("https://s3.test:9000", "b", true), "https://s3.test:9000/b");
    }

    #[test]
    fn what_listings_say() {
        let text = "<Contents><Key>a&amp;b&#x20;&#228;</Key><Size>7</Size><ETag>&quot;x-2&quot;</ETag><Owner><ID>o</ID></Owner></Contents>";
        let object = Object { key: "a&b ä".into(), size: 7, tag: "\"x-2\"".into() };
        assert_eq!(elements(text, "Contents").map(Object::read).collect::<Vec<_>>(), [Some(object)]);
        for bad in
            ["<Key>a</Key>", "<Key>a</Key><Size>-1</Size><ETag>x</ETag>", "<Key>a</Key><Size>1</Size><ETag></ETag>"]
        {
            assert_eq!(Object::read(bad), None, "{bad}");
        }
        assert_eq!(plain("&bogus;&#xD800;&"), "\u{fffd}\u{fffd}&");
    }

    /// A bucket named `models`, given to whom `who` is; three keys a page.
    fn reply(asked: &Asked, held: &BTreeMap<&str, Vec<u8>>, who: Option<&Credentials>) -> Reply {
        let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        if let Some(who) = who {
            let time = asked.header("x-amz-date");
            let mut headers = vec![
                ("host", asked.header("host")),
                ("x-amz-content-sha256", asked.header("x-amz-content-sha256")),
                ("x-amz-date", time),
            ];
            headers.extend(who.session.as_deref().map(|token| ("x-amz-security-token", token)));
            let signed = Signed { path, query, headers: &headers, body: EMPTY };
            let scope = Scope { region: "eu-test-1", service: "s3" };
            let good = time.len() == 16
                && asked.header("x-amz-security-token") == who.session.as_deref().unwrap_or_default()
                && asked.header("authorization") == authorization(&signed, who, scope, time);
            if !good {
                let body = b"<Error><Code>SignatureDoesNotMatch</Code><Message>no</Message></Error>".to_vec();
                return Reply { body, ..Reply::status("403 Forbidden") };
            }
        }
        if let Some(key) = path.strip_prefix("/models/").filter(|key| !key.is_empty()) {
            let Some((_, content)) = held.iter().find(|(name, _)| encoded(name, "/") == key) else {
                return Reply::status("404 Not Found");
            };
            if asked.header("if-match") != tag(content) {
                return Reply::status("412 Precondition Failed");
            }
            return Reply::content(asked, content);
        }
        if path != "/models/" {
            return Reply::status("404 Not Found");
        }
        let value = |name: &str| {
            let found = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            found.unwrap_or_default().replace("%2F", "/").replace("%20", " ")
        };
        let (prefix, after) = (value("prefix"), value("continuation-token"));
        let mut keys = held.iter().filter(|(key, _)| key.starts_with(&prefix) && ***key > *after);
        let entry = |(key, content): (&&str, &Vec<u8>)| {
            format!("<Contents><Key>{key}</Key><ETag>{}</ETag><Size>{}</Size></Contents>", tag(content), content.len())
        };
        let page: Vec<_> = keys.by_ref().take(3).collect();
        let last = page.last().map(|(key, _)| (**key).to_owned()).unwrap_or_default();
        let entries: String = page.into_iter().map(entry).collect();
        let more = keys.next().is_some();
        let next = format!("<IsTruncated>{more}</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>");
        let body = format!("<?xml version=\"1.0\"?><ListBucketResult xmlns=\"x\">{entries}{next}</ListBucketResult>");
        Reply { body: body.into_bytes(), ..Reply::status("200 OK") }
    }

    fn tag(content: &[u8]) -> String {
        format!("\"{}-1\"", &kedge_content::Digest::of(content).hex()[..32])
    }

    fn source(web: &Web, rest: &str, secret: Option<&str>) -> Source {
        Source::S3(S3Source {
            location: format!("s3://{rest}"),
            endpoint: Some(format!("http://{}", web.host)),
            region: Some("eu-test-1".into()),
            path_style: None,
            secret_ref: secret.map(|name| SecretRef { name: name.to_owned() }),
        })
    }

    #[tokio::test]
    async fn a_prefix_is_fetched_signed_in_pages_and_resumed() {
        let large = noise(500_000);
        let held = BTreeMap::from([
            ("m/", Vec::new()),
            ("m/1 Pooling/config.json", b"[]".to_vec()),
            ("m/config.json", b"{}".to_vec()),
            ("m/empty.txt", Vec::new()),
            ("m/model.safetensors", large.clone()),
            ("m/tokenizer.json", b"{ }".to_vec()),
            ("more/config.json", b"another".to_vec()),
        ]);
        let who = Credentials { key_id: "ID".into(), secret: "word".into(), session: Some("session/+=".into()) };
        let web = Web::serve(move |asked, before| {
            let cut = (asked.path.ends_with("safetensors") && before == 0).then_some(200_000);
            Reply { cut, ..reply(asked, &held, Some(&who)) }
        });
        let (id, word, session) = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN");
        let here = Machine::new()
            .with_secret("right", &[(id, "ID"), (word, "word\n"), (session, "session/+=")])
            .with_secret("wrong", &[(id, "ID"), (word, "guess")])
            .with_secret("odd", &[(id, "ID")]);
        let named = source(&web, "models/m", Some("right"));
        assert_eq!(here.fails(&named).await.0, "FetchFailed");
        let fetched = here.fetch(&named, None).await.unwrap();
        let names = ["1 Pooling/config.json", "config.json", "empty.txt", "model.safetensors", "tokenizer.json"];
        assert_eq!(fetched.files.keys().collect::<Vec<_>>(), names);
        assert_eq!(fetched.files["model.safetensors"], large);
        let asked: Vec<_> = web.asked_for("safetensors").iter().map(|asked| (asked.from(), asked.sent)).collect();
        assert_eq!(asked, [(0, 200_000), (200_000, 300_000)]);
        let one = here.fetch(&source(&web, "models/more/config.json", Some("right")), None).await.unwrap();
        assert_eq!(one.files["config.json"], b"another");
        for (rest, secret, reason, part) in [
            ("models/m", Some("wrong"), "Unauthorized", "SignatureDoesNotMatch"),
            ("models/m", None, "Unauthorized", "SignatureDoesNotMatch"),
            ("models/m", Some("odd"), "SecretInvalid", word),
            ("models/m", Some("none"), "SecretNotFound", "none"),
            ("models/gone", Some("right"), "NotFound", "no object"),
            ("nothing/m", Some("right"), "NotFound", "404"),
        ] {
            let (found, message) = here.fails(&source(&web, rest, secret)).await;
            assert!(found == reason && message.contains(part), "{rest} {secret:?}: {found}: {message}");
        }
    }

    #[tokio::test]
    async fn what_is_wrong_is_said() {
        let list = |entries: &str, rest: &str| {
            let body = format!("<ListBucketResult>{entries}{rest}</ListBucketResult>").into_bytes();
            Reply { body, ..Reply::status("200 OK") }
        };
        let entry = |key: &str, size: u64| {
            format!("<Contents><Key>{key}</Key><ETag>\"x\"</ETag><Size>{size}</Size></Contents>")
        };
        let elsewhere = Web::serve(|_, _| Reply::status("200 OK"));
        let to = format!("Location: http://{}/\r\n", elsewhere.host);
        let web = Web::serve(move |asked, _| match asked.path.split('?').next().unwrap() {
            "/up/" => list(&entry("m/../../x", 1), ""),
            "/root/" => list(&entry("m//etc/x", 1), ""),
            "/other/" => list(&entry("n/x", 1), ""),
            "/odd/" => list("<Contents><Key>m/x</Key></Contents>", ""),
            "/half/" => list("", "<IsTruncated>true</IsTruncated>"),
            "/round/" => list("", "<IsTruncated>true</IsTruncated><NextContinuationToken>a</NextContinuationToken>"),
            "/page/" => Reply { body: b"<html>".to_vec(), ..Reply::status("200 OK") },
            "/moved/" => Reply { headers: to.clone(), ..Reply::status("301 Moved Permanently") },
            "/region/" => Reply {
                headers: "x-amz-bucket-region: eu-other-1\r\n".into(),
                ..Reply::status("301 Moved Permanently")
            },
            "/endless/" => Reply { endless: true, body: vec![b' '; 1 << 20], ..Reply::status("200 OK") },
            "/huge/" => list(&entry("m/x", 1 << 50), ""),
            "/long/" => list(&entry("m/x", 3), ""),
            "/long/m/x" => Reply { endless: true, body: vec![7; 5000], ..Reply::status("200 OK") },
            "/changed/" => list(&entry("m/x", 3), ""),
            "/changed/m/x" => Reply::status("412 Precondition Failed"),
            _ => Reply::status("503 Service Unavailable"),
        });
        let here = Machine::new();
        for (bucket, reason, part) in [
            ("up", "SourceInvalid", "../../x"),
            ("root", "SourceInvalid", "/etc/x"),
            ("other", "SourceInvalid", "not asked for"),
            ("odd", "SourceInvalid", "makes no sense"),
            ("half", "SourceInvalid", "in the middle"),
            ("round", "SourceInvalid", "pages"),
            ("page", "SourceInvalid", "no listing"),
            ("moved", "SourceInvalid", "not followed"),
            ("region", "SourceInvalid", "eu-other-1"),
            ("endless", "FetchFailed", "longer than"),
            ("huge", "SourceInvalid", "bytes"),
            ("long", "SourceInvalid", "longer than"),
            ("changed", "SourceChanged", "changed"),
            ("down", "FetchFailed", "503"),
        ] {
            let (found, message) = here.fails(&source(&web, &format!("{bucket}/m"), None)).await;
            assert!(found == reason && message.contains(part), "{bucket}: {found}: {message}");
        }
        assert!(elsewhere.asked().is_empty());
        assert!(here.store.list().unwrap().is_empty());
    }
}
