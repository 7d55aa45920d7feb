//! The link between a site and its hub: a protocol without I/O.
//!
//! The hub keeps one [`Ledger`] a site: what the site should hold, each thing under the number of its last change. The
//! site keeps one [`Saved`]: what it holds, and up to which number. A connection begins with the site's position
//! `(epoch, sequence)`; from there the hub sends what changed since, and never what the site has acknowledged.
//!
//! ```text
//!            site                                    hub
//!    Hello { position, .. }  ───────────────>   does the ledger know that position?
//!    <── Welcome                                      │ yes: resume         │ no: compare
//!    <── Delta { from, to, changes } ... <────────────┘                     │
//!    <── Inventory { keys and hashes } ... <────────────────────────────────┘
//!    Want { what is missing or differs } ─────>
//!    <── Items { bodies } ...
//!    (saved durably) Ack { position } ────────>   forgets deletions up to there, sends on
//!    Reports { last state per key } ──────────>   ReportAck
//! ```
//!
//! What must always hold, whatever is cut, lost, repeated or restarted:
//! * A position is acknowledged only after everything up to it was saved durably at the site.
//! * A number that was once sent is never given to something else: the hub saves its ledger before it sends.
//! * Nothing is deleted at a site because a hub came back from an older backup: what such a hub does not know is kept
//!   as *unclaimed* until somebody at the hub assigns or releases it.
//! * Every queue is bounded. The ledger holds one entry a key, so there is nothing to pile up: what is to be sent is
//!   read from it when the window has room.
//!
//! Events go in, [`Output`]s come out, to be carried out in their order: what follows a [`Output::Save`] may happen
//! only once it is durable. When saving fails, drop the half and load it again. Time, sockets, TLS and what a key
//! means are the shells' (`edge-sync/hub`, `edge-sync/site`).

#![forbid(unsafe_code)]

mod backoff;
mod frame;
mod hub;
mod ledger;
mod reports;
mod site;

pub use backoff::Reconnect;
pub use frame::{Change, Epoch, FromHub, FromSite, Key, Limits, Listed, Position, hash};
pub use hub::{HubHalf, Told};
pub use ledger::{Ledger, TooMuch};
pub use reports::Report;
pub use site::{Held, HeldChanged, Saved, SiteHalf};

/// The version of the protocol; the other side must speak the same.
pub const PROTOCOL: u32 = 1;

/// One connection of the link. A half listens only to the newest it was told of, so that what an older one still
/// delivers changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connection(pub u64);

/// What a half wants done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output<Frame, News> {
    /// Keep these bytes so that they survive a power cut, before anything that follows.
    Save(Vec<u8>),
    /// Send this on the connection.
    Send(Frame),
    /// Tell the shell.
    Tell(News),
    /// End the connection; a later one goes on from what was acknowledged.
    Close(Violation),
}

/// Why a half ends a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The other side speaks another version.
    #[error(
        "the other side speaks version {0} of the protocol and this one {PROTOCOL}; bring both to the same release"
    )]
    Protocol(u32),
    /// A frame that has no place at this moment.
    #[error("{0} came when it was not its time")]
    Unexpected(&'static str),
    /// Changes are missing between the position and the frame.
    #[error("changes are missing before sequence {0}")]
    Gap(u64),
    /// A frame is larger than both sides agreed.
    #[error("{0} is larger than the link allows")]
    TooLarge(&'static str),
}

/// A state file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("not the state of a link: {0}")]
pub struct Unreadable(#[from] serde_json::Error);
