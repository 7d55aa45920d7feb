//! The site's half of the link.
//!
//! ```text
//! Away ──connected: Hello──> Greeting ──Welcome──> Following ──Delta: save, Ack──┐
//!                                                    │    ^──────────────────────┘
//!                                                    Inventory, ..
//!                                                    v
//!                               Listing ──last part──> Fetching ──everything there: save, Ack──> Following
//! any of them ──disconnected──> Away
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::frame::{Change, Epoch, FromHub, FromSite, Key, Limits, Listed, Position, hash};
use crate::reports::{Report, Reports};
use crate::{Connection, Output, PROTOCOL, Unreadable, Violation};

/// One thing that the site holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// The run of the hub that it came from.
    pub epoch: u64,
    /// The number of the change that brought it.
    pub seq: u64,
    /// The hub came back from an older backup and does not know this; it stays until the hub says more.
    pub unclaimed: bool,
    /// What it is.
    pub body: Arc<str>,
}

/// What the site holds and up to where: one value, kept in one file, so that both change together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// Everything up to here is in `held`.
    pub position: Position,
    /// A comparison has begun and is not complete: `held` has more, or less, than belongs to the position.
    pub comparing: bool,
    /// What the site holds.
    pub held: BTreeMap<Key, Held>,
}

impl Saved {
    /// Reads what [`Saved::to_bytes`] made.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Unreadable> {
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The bytes to keep.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data")
    }
}

/// What the site's half tells its shell: what is held has changed, look at [`SiteHalf::saved`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldChanged;

type Outputs = Vec<Output<FromSite, HeldChanged>>;

enum State {
    /// Nobody is connected.
    Away,
    /// The Hello is sent.
    Greeting,
    /// Changes come.
    Following,
    /// Parts of the inventory come.
    Listing { at: Position, history: Vec<Epoch>, trusted: bool, entries: BTreeMap<Key, Listed> },
    /// What is missing or differs was asked for, a part at a time.
    Fetching {
        at: Position,
        /// To be asked for.
        wanted: BTreeSet<Key>,
        /// Asked for and not here.
        asked: BTreeSet<Key>,
    },
}

/// The site's half of the link.
pub struct SiteHalf {
    saved: Saved,
    boot: u64,
    reports: Reports,
    connection: Connection,
    state: State,
}

impl SiteHalf {
    /// The half that goes on from what was saved. `boot` is a random number for this start.
    pub fn new(saved: Saved, boot: u64) -> Self {
        Self { saved, boot, reports: Reports::default(), connection: Connection(0), state: State::Away }
    }

    /// What the site holds. Until the outputs are carried out, part of it may not be durable.
    pub fn saved(&self) -> &Saved {
        &self.saved
    }

    /// A connection to the hub is open.
    pub fn connected(&mut self, connection: Connection) -> Outputs {
        self.connection = connection;
        self.state = State::Greeting;
        let (position, whole) = (self.saved.position, !self.saved.comparing);
        vec![Output::Send(FromSite::Hello { protocol: PROTOCOL, position, whole, boot: self.boot })]
    }

    /// A connection has ended.
    pub fn disconnected(&mut self, connection: Connection) {
        if connection == self.connection {
            self.state = State::Away;
        }
    }

    /// Whether the hub is at the other end.
    pub fn is_connected(&self) -> bool {
        !matches!(self.state, State::Away | State::Greeting)
    }

    /// Reports the state of a thing: the newest is what counts. A report larger than [`Limits::BODY_BYTES_MAX`] is
    /// cut off by the hub, so the caller keeps below it.
    pub fn report(&mut self, key: Key, report: Report) -> Outputs {
        self.reports.set(key, report);
        let mut out = Vec::new();
        self.pump(&mut out);
        out
    }

    /// Says that the site is there, and what its clock says (milliseconds since 1970).
    pub fn beat(&mut self, wall_ms: i64) -> Outputs {
        if self.is_connected() { vec![Output::Send(FromSite::Beat { wall_ms })] } else { Vec::new() }
    }

    /// A frame has come.
    pub fn received(&mut self, connection: Connection, frame: FromHub) -> Outputs {
        let mut out = Vec::new();
        if connection == self.connection
            && !matches!(self.state, State::Away)
            && let Err(violation) = self.take(frame, &mut out)
        {
            self.state = State::Away;
            out.push(Output::Close(violation));
        }
        out
    }

    fn take(&mut self, frame: FromHub, out: &mut Outputs) -> Result<(), Violation> {
        match frame {
            FromHub::Welcome { protocol, reports_seen } => {
                if protocol != PROTOCOL {
                    return Err(Violation::Protocol(protocol));
                }
                if !matches!(self.state, State::Greeting) {
                    return Err(Violation::Unexpected("Welcome"));
                }
                self.state = State::Following;
                self.reports.begin(reports_seen);
            }
            FromHub::Delta { from, to, changes } => self.apply(from, to, changes, out)?,
            FromHub::Inventory { at, history, trusted, entries, last } => {
                self.list(at, history, trusted, entries)?;
                if last {
                    self.compare(out);
                }
            }
            FromHub::Items { epoch, items } => self.fetched(epoch, items, out)?,
            FromHub::ReportAck(seq) => self.reports.acknowledged(seq),
        }
        self.pump(out);
        Ok(())
    }

    fn apply(
        &mut self,
        from: Position,
        to: Position,
        changes: Vec<Change>,
        out: &mut Outputs,
    ) -> Result<(), Violation> {
        if !matches!(self.state, State::Following) {
            return Err(Violation::Unexpected("Delta"));
        }
        if to == self.saved.position {
            // It came twice.
            out.push(Output::Send(FromSite::Ack(to)));
            return Ok(());
        }
        if from != self.saved.position {
            return Err(Violation::Gap(to.seq));
        }
        check(&changes)?;
        if self.saved.held.len() + changes.len() > 2 * Limits::KEYS_MAX {
            return Err(Violation::TooLarge("what the site is to hold"));
        }
        for change in changes {
            self.put(to.epoch, change);
        }
        self.saved.position = to;
        self.save(out);
        out.push(Output::Send(FromSite::Ack(to)));
        Ok(())
    }

    fn put(&mut self, epoch: u64, change: Change) {
        let Change { key, seq, body } = change;
        match body {
            Some(body) => drop(self.saved.held.insert(key, Held { epoch, seq, unclaimed: false, body })),
            None => drop(self.saved.held.remove(&key)),
        }
    }

    fn save(&self, out: &mut Outputs) {
        out.push(Output::Save(self.saved.to_bytes()));
        out.push(Output::Tell(HeldChanged));
    }

    fn list(&mut self, at: Position, history: Vec<Epoch>, trusted: bool, part: Vec<Listed>) -> Result<(), Violation> {
        let part = part.into_iter().map(|listed| (listed.key.clone(), listed));
        match &mut self.state {
            State::Following if part.len() <= Limits::BATCH_ENTRIES_MAX => {
                self.state = State::Listing { at, history, trusted, entries: part.collect() };
                Ok(())
            }
            State::Listing { at: before, entries, .. } if *before == at => {
                entries.extend(part);
                if entries.len() > 2 * Limits::KEYS_MAX { Err(Violation::TooLarge("the inventory")) } else { Ok(()) }
            }
            _ => Err(Violation::Unexpected("Inventory")),
        }
    }

    /// The inventory is complete: what is not in it goes, or stays unclaimed; what differs is asked for.
    fn compare(&mut self, out: &mut Outputs) {
        let State::Listing { at, history, trusted, entries } = std::mem::replace(&mut self.state, State::Following)
        else {
            return;
        };
        let before = self.saved.clone();
        let known = |held: &Held| {
            (trusted && !held.unclaimed)
                || history.iter().any(|run| run.epoch == held.epoch && held.seq <= run.last_seq)
        };
        let mut wanted: BTreeSet<Key> =
            entries.values().filter(|listed| listed.hash.is_some()).map(|listed| listed.key.clone()).collect();
        self.saved.held.retain(|key, held| match entries.get(key).map(|listed| (listed.seq, listed.hash)) {
            Some((seq, Some(same))) if same == hash(&held.body) => {
                *held = Held { epoch: at.epoch, seq, unclaimed: false, body: held.body.clone() };
                wanted.remove(key);
                true
            }
            // What differs stays in use until the other one is here.
            Some((_, Some(_))) => true,
            Some((_, None)) => false,
            None if known(held) => false,
            None => {
                held.unclaimed = true;
                true
            }
        });
        if self.saved != before {
            self.saved.comparing = true;
            self.save(out);
        }
        self.state = State::Fetching { at, wanted, asked: BTreeSet::new() };
        self.fetch(out);
    }

    /// Asks for the next part, or, when everything is here, makes the position durable.
    fn fetch(&mut self, out: &mut Outputs) {
        let State::Fetching { at, wanted, asked } = &mut self.state else { return };
        if !asked.is_empty() {
            return;
        }
        if wanted.is_empty() {
            let at = *at;
            self.state = State::Following;
            self.saved.position = at;
            self.saved.comparing = false;
            self.save(out);
            out.push(Output::Send(FromSite::Ack(at)));
            return;
        }
        while asked.len() < Limits::BATCH_ENTRIES_MAX {
            let Some(key) = wanted.pop_first() else { break };
            asked.insert(key);
        }
        out.push(Output::Send(FromSite::Want(asked.iter().cloned().collect())));
    }

    /// Items are kept as they come, before the position moves: a cut then costs none of them again.
    fn fetched(&mut self, epoch: u64, items: Vec<Change>, out: &mut Outputs) -> Result<(), Violation> {
        check(&items)?;
        let State::Fetching { asked, .. } = &mut self.state else { return Err(Violation::Unexpected("Items")) };
        let here: Vec<Change> = items.into_iter().filter(|item| asked.remove(&item.key)).collect();
        if here.is_empty() {
            // They came twice.
            return Ok(());
        }
        for item in here {
            self.put(epoch, item);
        }
        self.saved.comparing = true;
        self.save(out);
        self.fetch(out);
        Ok(())
    }

    fn pump(&mut self, out: &mut Outputs) {
        if !self.is_connected() {
            return;
        }
        while let Some(frame) = self.reports.next() {
            out.push(Output::Send(frame));
        }
    }
}

fn check(changes: &[Change]) -> Result<(), Violation> {
    let too_large = |change: &Change| {
        change.key.bytes() > Limits::KEY_BYTES_MAX
            || change.body.as_ref().is_some_and(|body| body.len() > Limits::BODY_BYTES_MAX)
    };
    if changes.len() > Limits::BATCH_ENTRIES_MAX || changes.iter().any(too_large) {
        return Err(Violation::TooLarge("a frame"));
    }
    Ok(())
}
