//! Which path is what, without I/O.

use http::Method;

use crate::api::{Refusal, unknown_model};
use crate::completions::Kind;
use crate::v2::VERSION;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Health,
    Metrics,
    /// OpenAI's list of models, of which there is one.
    Models,
    /// That one.
    Model,
    Embeddings,
    Completions(Kind),
    Tokenize,
    Detokenize,
    /// The Open Inference Protocol's, from here on.
    Server,
    Live,
    Ready,
    ModelReady,
    ModelMetadata,
    Infer,
    /// Triton's extension, whole or in pieces.
    Generate {
        streams: bool,
    },
}

impl Route {
    /// What lies at those segments of a path.
    pub(crate) fn of(path: &[&str], name: &str, is_encoder: bool) -> Result<Self, Refusal> {
        let unknown = || Refusal::plain(404, format!("{:?} is not served here", format!("/{}", path.join("/"))));
        let route = match path {
            ["health"] => Self::Health,
            ["metrics"] => Self::Metrics,
            ["v1", "models"] => Self::Models,
            // Names may have slashes.
            ["v1", "models", asked @ ..] if asked.join("/") == name => Self::Model,
            ["v1", "models", asked @ ..] => return Err(unknown_model(&asked.join("/"), name)),
            ["v1", "embeddings"] if is_encoder => Self::Embeddings,
            ["v1", "completions"] if !is_encoder => Self::Completions(Kind::Text),
            ["v1", "chat", "completions"] if !is_encoder => Self::Completions(Kind::Chat),
            ["v1", "embeddings"] => {
                let reason = format!("{name:?} makes text, not vectors: ask /v1/chat/completions or /v1/completions");
                return Err(Refusal::plain(404, reason));
            }
            ["v1", "completions"] | ["v1", "chat", "completions"] => {
                return Err(Refusal::plain(404, format!("{name:?} makes vectors, not text: ask /v1/embeddings")));
            }
            ["tokenize"] if !is_encoder => Self::Tokenize,
            ["detokenize"] if !is_encoder => Self::Detokenize,
            ["v2"] => Self::Server,
            ["v2", "health", "live"] => Self::Live,
            ["v2", "health", "ready"] => Self::Ready,
            ["v2", "models"] => {
                let reason =
                    format!("the protocol has no list of models; /v2/models/{name} is the one that is served here");
                return Err(Refusal::plain(404, reason));
            }
            ["v2", "models", below @ ..] => match v2_model(below, name)? {
                [] => Self::ModelMetadata,
                ["ready"] => Self::ModelReady,
                ["infer"] => Self::Infer,
                ["generate"] if !is_encoder => Self::Generate { streams: false },
                ["generate_stream"] if !is_encoder => Self::Generate { streams: true },
                ["generate" | "generate_stream"] => {
                    let reason = format!("{name:?} makes vectors, not text: ask /v2/models/{name}/infer");
                    return Err(Refusal::plain(404, reason));
                }
                _ => return Err(unknown()),
            },
            _ => return Err(unknown()),
        };
        Ok(route)
    }

    pub(crate) fn method(self) -> Method {
        if self.operation().is_some() { Method::POST } else { Method::GET }
    }

    /// What the model is asked, in the words of OpenTelemetry's conventions where they have one; none where it is not.
    pub(crate) fn operation(self) -> Option<&'static str> {
        Some(match self {
            Self::Embeddings => "embeddings",
            Self::Completions(Kind::Chat) => "chat",
            Self::Completions(_) | Self::Generate { .. } => "text_completion",
            Self::Infer => "infer",
            Self::Tokenize => "tokenize",
            Self::Detokenize => "detokenize",
            _ => return None,
        })
    }

    /// Whether it wants no key: what probes and Prometheus ask, since they carry none.
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Self::Health | Self::Metrics | Self::Live | Self::Ready)
    }

    /// Whether the answer is that requests would be answered.
    pub(crate) fn tells_ready(self) -> bool {
        matches!(self, Self::Health | Self::Ready | Self::ModelReady)
    }
}

/// What follows the model's name and version below `/v2/models`.
fn v2_model<'a>(below: &'a [&'a str], name: &str) -> Result<&'a [&'a str], Refusal> {
    let Some(length) = (1..=below.len()).find(|length| below[..*length].join("/") == name) else {
        let asked = below.first().copied().unwrap_or_default();
        return Err(Refusal::plain(404, format!("model {asked:?} is not served here; {name:?} is")));
    };
    match &below[length..] {
        ["versions", version, ..] if *version != VERSION => Err(unknown_version(name, version)),
        ["versions", _, rest @ ..] => Ok(rest),
        rest => Ok(rest),
    }
}

/// A version of the model is asked for that there is not.
pub(crate) fn unknown_version(name: &str, version: &str) -> Refusal {
    Refusal::plain(404, format!("model {name:?} has no version {version:?}; its one version is {VERSION:?}"))
}

/// The segments of a path; none where one is no text.
pub(crate) fn segments(path: &str) -> Option<Vec<String>> {
    path.trim_end_matches('/').split('/').skip(1).map(decoded).collect()
}

/// A segment of a path with its `%XX` read; none when that is no text.
fn decoded(segment: &str) -> Option<String> {
    let mut out = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let [first, after @ ..] = rest {
        let (byte, after) = match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                (u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?, after)
            }
            (b'%', _) => return None,
            (byte, after) => (*byte, after),
        };
        out.push(byte);
        rest = after;
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_what_they_are_for_the_kind_of_model() {
        use Route::*;
        let of = |path: &str, is_encoder: bool| {
            let segments = segments(path).unwrap();
            let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
            Route::of(&segments, "org/m", is_encoder).map_err(|refusal| refusal.status)
        };
        for (path, of_encoder, of_decoder) in [
            ("/health", Ok(Health), Ok(Health)),
            ("/health/", Ok(Health), Ok(Health)),
            ("/metrics", Ok(Metrics), Ok(Metrics)),
            ("/v2/health/live", Ok(Live), Ok(Live)),
            ("/v2/health/ready", Ok(Ready), Ok(Ready)),
            ("/v1/models", Ok(Models), Ok(Models)),
            ("/v1/models/org/m", Ok(Model), Ok(Model)),
            ("/v1/models/org%2Fm", Ok(Model), Ok(Model)),
            ("/v1/models/m", Err(404), Err(404)),
            ("/v1/embeddings", Ok(Embeddings), Err(404)),
            ("/v1/chat/completions", Err(404), Ok(Completions(Kind::Chat))),
            ("/v2", Ok(Server), Ok(Server)),
            ("/v2/models", Err(404), Err(404)),
            ("/v2/models/org/m", Ok(ModelMetadata), Ok(ModelMetadata)),
            ("/v2/models/org%2Fm/versions/1", Ok(ModelMetadata), Ok(ModelMetadata)),
            ("/v2/models/org/m/versions/2", Err(404), Err(404)),
            ("/v2/models/org/m/versions/1/infer", Ok(Infer), Ok(Infer)),
            ("/v2/models/org/m/ready", Ok(ModelReady), Ok(ModelReady)),
            ("/v2/models/org/m/generate", Err(404), Ok(Generate { streams: false })),
            ("/v2/models/org/m/generate_stream", Err(404), Ok(Generate { streams: true })),
            ("/v2/models/other/infer", Err(404), Err(404)),
            ("/", Err(404), Err(404)),
        ] {
            assert_eq!((of(path, true), of(path, false)), (of_encoder, of_decoder), "{path}");
            let open = ["/health", "/health/", "/metrics", "/v2/health/live", "/v2/health/ready"].contains(&path);
            assert_eq!(of_decoder.is_ok_and(Route::is_open), open, "{path}");
        }
    }

    #[test]
    fn who_asks_for_what_the_model_does_not_make_is_told_what_it_makes() {
        for (path, is_encoder, says) in [
            (&["v1", "chat", "completions"][..], true, "\"m\" makes vectors, not text: ask /v1/embeddings"),
            (&["v1", "completions"], true, "/v1/embeddings"),
            (&["v1", "embeddings"], false, "\"m\" makes text, not vectors: ask /v1/chat/completions"),
            (&["v2", "models", "m", "generate"], true, "ask /v2/models/m/infer"),
            (&["v2", "models"], false, "/v2/models/m is the one"),
        ] {
            let refusal = Route::of(path, "m", is_encoder).unwrap_err();
            assert!(refusal.status == 404 && refusal.reason.contains(says), "{path:?}: {refusal}");
        }
    }

    #[test]
    fn names_in_paths_may_be_escaped() {
        for (segment, expected) in [
            ("m", Some("m")),
            ("a%2Fb", Some("a/b")),
            ("%C3%A9", Some("é")),
            ("%", None),
            ("%2", None),
            ("%ff", None),
            ("%g0", None),
        ] {
            assert_eq!(decoded(segment).as_deref(), expected, "{segment}");
        }
    }
}
