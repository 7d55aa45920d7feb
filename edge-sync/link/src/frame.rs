//! What the two halves say to each other. How it looks on the wire is the shells'.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Bounds that both sides keep.
#[derive(Clone, Copy, Debug)]
pub struct Limits;

impl Limits {
    /// Longest key: two Kubernetes names and a kind.
    pub const KEY_BYTES_MAX: usize = 640;
    /// Longest body. What is larger goes by its digest, outside this stream.
    pub const BODY_BYTES_MAX: usize = 64 << 10;
    /// Things one site can hold. As many deletions may wait for a site that is away, and as many things may be
    /// unclaimed.
    pub const KEYS_MAX: usize = 10_000;
    /// A frame with several bodies is closed once it has this many bytes.
    pub const BATCH_BYTES: usize = 64 << 10;
    /// A frame holds no more entries than this.
    pub const BATCH_ENTRIES_MAX: usize = 256;
    /// Deltas sent and not acknowledged: what a cut costs at most, together with [`Limits::BATCH_BYTES`].
    pub const WINDOW_FRAMES: usize = 4;
}

/// The name of a thing that a site should hold, or reports on; opaque to the link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(pub Arc<str>);

impl Key {
    /// The key of this text.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// Its length in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.0.len()
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// How far a site has come: everything up to `seq` of the ledger as it was in `epoch`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Which run of the hub gave the number; 0 before the first.
    pub epoch: u64,
    /// The number of the last change.
    pub seq: u64,
}

/// Up to which number a run of the hub counted. A hub that came back from an older backup knows no run that followed
/// it, and so knows no position that such a run gave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// A random number for each run of the hub, never 0.
    pub epoch: u64,
    /// The last number it gave.
    pub last_seq: u64,
}

/// SHA-256 of a body.
pub fn hash(body: &str) -> [u8; 32] {
    Sha256::digest(body.as_bytes()).into()
}

/// One thing that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub key: Key,
    /// The number of the change.
    pub seq: u64,
    /// What it is now; none when it is to go.
    pub body: Option<Arc<str>>,
}

impl Change {
    /// Roughly its bytes on the wire.
    pub(crate) fn bytes(&self) -> usize {
        self.key.bytes() + self.body.as_ref().map_or(0, |body| body.len()) + 16
    }
}

/// One thing in a ledger, by its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Which.
    pub key: Key,
    /// The number of its last change.
    pub seq: u64,
    /// SHA-256 of its body; none when it is to go.
    pub hash: Option<[u8; 32]>,
}

/// What a site says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromSite {
    /// The first frame of a connection.
    Hello {
        /// [`crate::PROTOCOL`].
        protocol: u32,
        /// How far the site has come.
        position: Position,
        /// Whether it holds exactly what belongs to that position: not so when a comparison was cut off.
        whole: bool,
        /// A random number for each start of the site: its reports are counted from there.
        boot: u64,
    },
    /// Everything up to here is saved.
    Ack(Position),
    /// Send these out of the inventory.
    Want(Vec<Key>),
    /// The state of things at the site: the last one for each key.
    Reports {
        /// Forget every report that came before.
        reset: bool,
        /// The number of the report before them.
        from: u64,
        /// The number of the last of them.
        to: u64,
        /// Key and state; none when there is nothing to report any more.
        reports: Vec<(Key, Option<Arc<str>>)>,
    },
    /// The site is there, and its clock says this (milliseconds since 1970).
    Beat {
        /// The site's clock.
        wall_ms: i64,
    },
}

/// What a hub says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromHub {
    /// The answer to a Hello: reports of this boot have arrived up to this number.
    Welcome {
        /// [`crate::PROTOCOL`].
        protocol: u32,
        /// The last report that arrived.
        reports_seen: u64,
    },
    /// What changed after `from`.
    Delta {
        /// The position that this follows.
        from: Position,
        /// The position after it.
        to: Position,
        /// The changes, in the order of their numbers.
        changes: Vec<Change>,
    },
    /// Everything in the ledger, by its hash; several frames, the last one marked.
    Inventory {
        /// The position that an equal holding has.
        at: Position,
        /// The runs that this ledger remembers.
        history: Vec<Epoch>,
        /// Whether the site's position is part of this ledger's past: only then may it say what is to go.
        trusted: bool,
        /// A part of the entries, in the order of their keys.
        entries: Vec<Listed>,
        /// Whether this is the last part.
        last: bool,
    },
    /// What was wanted.
    Items {
        /// The run of the hub that gave the newest of their numbers.
        epoch: u64,
        /// The present state of each.
        items: Vec<Change>,
    },
    /// Reports have arrived up to this number.
    ReportAck(u64),
}
