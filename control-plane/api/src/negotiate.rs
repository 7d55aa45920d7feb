//! Which form an answer takes, from the `Accept` header; which form a body has, from `Content-Type`. Pure.

use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};

use crate::error::ApiError;

/// The wire format of a body or an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// `application/json`.
    Json,
    /// `application/yaml`.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
}

const MEDIA_TYPES: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

impl Format {
    /// The media type.
    pub(crate) fn media_type(self) -> &'static str {
        MEDIA_TYPES[self as usize]
    }

    fn of(media_type: &str) -> Option<Self> {
        match media_type {
            "application/json" | "*/*" | "application/*" => Some(Self::Json),
            "application/yaml" | "application/x-yaml" | "text/yaml" => Some(Self::Yaml),
            "application/vnd.kubernetes.protobuf" => Some(Self::Protobuf),
            _ => None,
        }
    }
}

/// What the object is turned into on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// The object itself.
    Plain,
    /// `meta.k8s.io/v1` Table: rows for a person.
    Table,
    /// `meta.k8s.io/v1` PartialObjectMetadata or its list: no spec, no status.
    Metadata,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Bytes.
    pub format: Format,
    /// Content.
    pub view: View,
}

/// Chooses the best form that the client accepts. JSON is preferred whenever it is acceptable at all, because
/// objects are held encoded as JSON; `views` says whether tables and metadata make sense here.
pub(crate) fn answer(headers: &HeaderMap, views: bool) -> Result<Answer, ApiError> {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect::<Vec<_>>().join(",");
    if accepted.trim().is_empty() {
        return Ok(Answer { format: Format::Json, view: View::Plain });
    }
    let clauses: Vec<Answer> = accepted.split(',').filter_map(|clause| parse_clause(clause, views)).collect();
    // The view is the client's first wish; among its clauses with that view JSON wins.
    let view = clauses.first().ok_or_else(|| ApiError::not_acceptable(&MEDIA_TYPES))?.view;
    let same = || clauses.iter().filter(|clause| clause.view == view);
    Ok(*same().find(|clause| clause.format == Format::Json).or(same().next()).expect("the first has that view"))
}

fn parse_clause(clause: &str, views: bool) -> Option<Answer> {
    let mut parts = clause.split(';').map(str::trim);
    let format = Format::of(parts.next()?)?;
    let mut view = View::Plain;
    let mut of_meta_v1 = (true, true);
    for part in parts {
        match part.split_once('=')? {
            ("as", "Table") => view = View::Table,
            ("as", "PartialObjectMetadata" | "PartialObjectMetadataList") => view = View::Metadata,
            ("as", _) => return None,
            ("g", group) => of_meta_v1.0 = group == "meta.k8s.io",
            ("v", version) => of_meta_v1.1 = version == "v1",
            _ => {}
        }
    }
    let understood = view == View::Plain || (views && of_meta_v1 == (true, true));
    understood.then_some(Answer { format, view })
}

/// The media type of a request's body without its parameters; JSON when it is not said.
pub(crate) fn content_type(headers: &HeaderMap) -> &str {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text.split(';').next().unwrap_or_default().trim() {
        "" => MEDIA_TYPES[0],
        media_type => media_type,
    }
}

/// The format of an object in a request's body.
pub(crate) fn body_format(headers: &HeaderMap) -> Result<Format, ApiError> {
    let media_type = content_type(headers);
    let known = Format::of(media_type).filter(|_| !media_type.contains('*'));
    known.ok_or_else(|| ApiError::unsupported_media_type(&MEDIA_TYPES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str, expected: Option<(Format, View)>) {
        let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
        let found = answer(&headers, true).ok().map(|a| (a.format, a.view));
        assert_eq!(found, expected, "{accept}");
    }

    #[test]
    fn the_accept_header_chooses() {
        use Format::{Json, Protobuf, Yaml};
        use View::{Metadata, Plain, Table};
        check("*/*", Some((Json, Plain)));
        check("application/vnd.kubernetes.protobuf,application/json", Some((Json, Plain)));
        check("application/vnd.kubernetes.protobuf", Some((Protobuf, Plain)));
        check("application/yaml", Some((Yaml, Plain)));
        check("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Some((Json, Table)));
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            Some((Json, Table)),
        );
        check(
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
            Some((Json, Metadata)),
        );
        check("application/json;as=Table;v=v9;g=meta.k8s.io", None);
        check("text/html", None);
        let headers = HeaderMap::from_iter([(ACCEPT, "application/json;as=Table;v=v1;g=meta.k8s.io".parse().unwrap())]);
        assert_eq!(answer(&headers, false).unwrap_err().code, 406);
    }
}
