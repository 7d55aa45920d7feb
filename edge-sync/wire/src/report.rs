//! What a site reports, as bodies of the link.

use serde::{Deserialize, Serialize};

/// The key of what a site says of itself ([`About`]).
pub const ABOUT: &str = "site";

/// `sha256:` and 64 digits, with some room.
const DIGEST_BYTES_MAX: usize = 80;
/// Longest message in a report.
pub const MESSAGE_BYTES_MAX: usize = 1024;

/// What a site says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Its release.
    pub version: String,
    /// Its nodes, once they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inventory: Option<Inventory>,
}

/// The nodes of a site, in sum.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// How many there are.
    pub nodes: i64,
    /// How many are ready.
    pub nodes_ready: i64,
    /// Their CPUs, in thousandths.
    pub cpu_millis: i64,
    /// Their memory.
    pub memory_bytes: i64,
}

/// What has become of a model; its key is that of the assignment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelReport {
    /// The digest that this is about.
    pub digest: String,
    /// What it is doing.
    pub state: State,
    /// Bytes that are here and verified.
    pub bytes_done: u64,
    /// Bytes of the model.
    pub bytes_total: u64,
    /// What a person should know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl ModelReport {
    /// The same with no more text than an honest site sends.
    pub fn bounded(mut self) -> Self {
        cut(&mut self.digest, DIGEST_BYTES_MAX);
        self.message.iter_mut().for_each(|message| cut(message, MESSAGE_BYTES_MAX));
        self
    }
}

impl About {
    /// The same with no more text than an honest site sends.
    pub fn bounded(mut self) -> Self {
        cut(&mut self.version, DIGEST_BYTES_MAX);
        self
    }
}

/// Cuts a text at a character's end.
fn cut(text: &mut String, bytes_max: usize) {
    text.truncate(text.floor_char_boundary(bytes_max));
    text.shrink_to_fit();
}

/// What a model at a site is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// On its way.
    Pulling,
    /// Verified and in its place.
    Active,
    /// Something is wrong; the site tries again.
    Failed,
    /// Kept although the hub does not know it.
    Unclaimed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_cut_at_a_character() {
        let long = "é".repeat(5000);
        let report = ModelReport {
            digest: long.clone(),
            state: State::Failed,
            bytes_done: 0,
            bytes_total: 0,
            message: Some(long),
        };
        let cut = report.bounded();
        assert_eq!(
            (cut.digest.len(), cut.message.as_deref().map(str::len)),
            (DIGEST_BYTES_MAX, Some(MESSAGE_BYTES_MAX))
        );
        assert_eq!(cut.clone().bounded(), cut);
    }
}
