//! The hub's half of the link to one site.
//!
//! ```text
//! Away ──connected──> Greeting ──Hello, position known──> Following ──┐ Delta, Ack, Delta, ...
//!                        │                                    ^       │
//!                        └─Hello, position unknown──> Comparing ──Ack─┘
//!                                                   Inventory, Want, Items, ...
//! any of them ──disconnected, or a newer connection──> Away / Greeting
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::frame::{Change, FromHub, FromSite, Key, Limits, Listed, Position, hash};
use crate::ledger::{Entry, Ledger, TooMuch};
use crate::{Connection, Output, PROTOCOL, Violation};

/// What the hub's half tells its shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The site is at the other end.
    Arrived,
    /// Forget every report of the site: all of them come again.
    ReportsReset,
    /// The state of one thing at the site; none when there is nothing to report any more.
    Report(Key, Option<Arc<str>>),
    /// The site has saved everything up to here.
    Saved(Position),
    /// The site is there; its clock says this (milliseconds since 1970).
    Beat {
        /// The site's clock.
        wall_ms: i64,
    },
}

type Outputs = Vec<Output<FromHub, Told>>;

enum State {
    /// Nobody is connected.
    Away,
    /// Connected; the Hello has not come.
    Greeting,
    /// The site compares what it holds with the inventory at this position.
    Comparing(Position),
    /// Changes are sent as the window allows.
    Following {
        /// The last position sent.
        sent: Position,
        /// Those sent and not acknowledged.
        in_flight: VecDeque<Position>,
    },
}

/// A Hello that has come before the hub knows what the site should hold.
struct Waiting {
    position: Position,
    whole: bool,
    boot: u64,
}

/// The hub's half of the link to one site.
pub struct HubHalf {
    ledger: Ledger,
    /// What gives new numbers their epoch.
    run: u64,
    /// None until the shell has said what the site should hold: before, nothing is sent.
    bodies: Option<BTreeMap<Key, Arc<str>>>,
    connection: Connection,
    state: State,
    /// A Hello that waits for the bodies.
    waiting: Option<Waiting>,
    /// The site's start whose reports are counted, and the last that arrived.
    reports: (u64, u64),
    /// No report has come on this connection: only the first ones may say that they are all there is.
    reports_may_reset: bool,
}

impl HubHalf {
    /// The half that goes on from a ledger. `run` is a random number, never 0, for this start of the hub.
    pub fn new(ledger: Ledger, run: u64) -> Self {
        assert_ne!(run, 0, "0 stands for the time before the first run");
        Self {
            ledger,
            run,
            bodies: None,
            connection: Connection(0),
            state: State::Away,
            waiting: None,
            reports: (0, 0),
            reports_may_reset: false,
        }
    }

    /// The ledger as it is.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Says what the site should hold from now on. More than the link carries is refused and changes nothing.
    pub fn wanted(&mut self, bodies: BTreeMap<Key, Arc<str>>) -> Result<Outputs, TooMuch> {
        for (key, body) in &bodies {
            if key.bytes() > Limits::KEY_BYTES_MAX {
                return Err(TooMuch::Key { bytes: key.bytes() });
            }
            if body.len() > Limits::BODY_BYTES_MAX {
                return Err(TooMuch::Body { key: key.clone(), bytes: body.len() });
            }
        }
        let hashes = bodies.iter().map(|(key, body)| (key.clone(), hash(body))).collect();
        let changed = self.ledger.update(self.run, &hashes)?;
        self.bodies = Some(bodies);
        let mut out = Vec::new();
        if changed {
            out.push(Output::Save(self.ledger.to_bytes()));
        }
        if let Some(hello) = self.waiting.take() {
            self.greet(hello, &mut out);
        }
        self.pump(&mut out);
        Ok(out)
    }

    /// Has the site drop a thing that this hub does not know (an unclaimed one).
    pub fn release(&mut self, key: &Key) -> Outputs {
        let mut out = Vec::new();
        if self.bodies.as_ref().is_some_and(|bodies| !bodies.contains_key(key)) {
            self.ledger.release(self.run, key.clone());
            out.push(Output::Save(self.ledger.to_bytes()));
            self.pump(&mut out);
        }
        out
    }

    /// The site has opened a connection; any other is over.
    pub fn connected(&mut self, connection: Connection) {
        self.connection = connection;
        self.state = State::Greeting;
        self.waiting = None;
    }

    /// A connection has ended.
    pub fn disconnected(&mut self, connection: Connection) {
        if connection == self.connection {
            self.state = State::Away;
            self.waiting = None;
        }
    }

    /// Whether the site is at the other end of the newest connection.
    pub fn is_connected(&self) -> bool {
        !matches!(self.state, State::Away | State::Greeting)
    }

    /// A frame has come.
    pub fn received(&mut self, connection: Connection, frame: FromSite) -> Outputs {
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

    fn take(&mut self, frame: FromSite, out: &mut Outputs) -> Result<(), Violation> {
        match frame {
            FromSite::Hello { protocol, position, whole, boot } => {
                if protocol != PROTOCOL {
                    return Err(Violation::Protocol(protocol));
                }
                if !matches!(self.state, State::Greeting) || self.waiting.is_some() {
                    return Err(Violation::Unexpected("Hello"));
                }
                let hello = Waiting { position, whole, boot };
                if self.bodies.is_some() {
                    self.greet(hello, out);
                } else {
                    self.waiting = Some(hello);
                }
            }
            FromSite::Ack(position) => self.acknowledged(position, out)?,
            FromSite::Want(keys) => self.send_items(keys, out)?,
            FromSite::Reports { reset, from, to, reports } => {
                if matches!(self.state, State::Greeting) {
                    return Err(Violation::Unexpected("Reports"));
                }
                let seen = self.reports.1;
                let reset = reset && std::mem::take(&mut self.reports_may_reset);
                if reset {
                    out.push(Output::Tell(Told::ReportsReset));
                } else if from > seen {
                    return Err(Violation::Gap(from));
                }
                // Not so when they came twice.
                if reset || (from == seen && to > seen) {
                    self.reports_may_reset = false;
                    self.reported(to, reports, out)?;
                }
                out.push(Output::Send(FromHub::ReportAck(self.reports.1)));
            }
            FromSite::Beat { wall_ms } => out.push(Output::Tell(Told::Beat { wall_ms })),
        }
        self.pump(out);
        Ok(())
    }

    fn greet(&mut self, Waiting { position, whole, boot }: Waiting, out: &mut Outputs) {
        if self.reports.0 != boot {
            self.reports = (boot, 0);
        }
        self.reports_may_reset = true;
        out.push(Output::Tell(Told::Arrived));
        out.push(Output::Send(FromHub::Welcome { protocol: PROTOCOL, reports_seen: self.reports.1 }));
        if whole && self.ledger.can_resume(position) {
            self.state = State::Following { sent: position, in_flight: VecDeque::new() };
            return;
        }
        let at = self.ledger.position();
        self.state = State::Comparing(at);
        self.send_inventory(at, whole && self.ledger.knows(position), out);
    }

    fn send_inventory(&self, at: Position, trusted: bool, out: &mut Outputs) {
        let listed = |(key, entry): (&Key, &Entry)| Listed { key: key.clone(), seq: entry.seq, hash: entry.hash };
        let listed: Vec<Listed> = self.ledger.entries().map(listed).collect();
        let mut parts = listed.chunks(Limits::BATCH_ENTRIES_MAX).peekable();
        let history = self.ledger.history().to_vec();
        if parts.peek().is_none() {
            let entries = Vec::new();
            out.push(Output::Send(FromHub::Inventory { at, history, trusted, entries, last: true }));
            return;
        }
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            let (history, entries) = (history.clone(), part.to_vec());
            out.push(Output::Send(FromHub::Inventory { at, history, trusted, entries, last }));
        }
    }

    /// Sends the present state of what was asked for. What has gone meanwhile is said to be gone; a delta follows.
    fn send_items(&mut self, keys: Vec<Key>, out: &mut Outputs) -> Result<(), Violation> {
        if !matches!(self.state, State::Comparing(_)) {
            return Err(Violation::Unexpected("Want"));
        }
        if keys.len() > Limits::BATCH_ENTRIES_MAX {
            return Err(Violation::TooLarge("Want"));
        }
        let items = keys.into_iter().map(|key| self.change(key));
        let epoch = self.ledger.position().epoch;
        for items in batches(items) {
            out.push(Output::Send(FromHub::Items { epoch, items }));
        }
        Ok(())
    }

    fn change(&self, key: Key) -> Change {
        let entry = self.ledger.get(&key);
        let seq = entry.map_or(0, |entry| entry.seq);
        let body = entry.and_then(|entry| entry.hash).and_then(|_| self.bodies.as_ref()?.get(&key).cloned());
        Change { key, seq, body }
    }

    fn acknowledged(&mut self, position: Position, out: &mut Outputs) -> Result<(), Violation> {
        match &mut self.state {
            State::Comparing(at) if *at == position => {
                self.state = State::Following { sent: position, in_flight: VecDeque::new() };
            }
            State::Following { in_flight, .. } => {
                let Some(index) = in_flight.iter().position(|sent| *sent == position) else {
                    // A repeated acknowledgement says nothing new.
                    return Ok(());
                };
                in_flight.drain(..=index);
            }
            _ => return Err(Violation::Unexpected("Ack")),
        }
        // Written with the next change; until then a hub that starts again tells a deletion once more.
        self.ledger.acknowledged(position.seq);
        out.push(Output::Tell(Told::Saved(position)));
        Ok(())
    }

    fn reported(&mut self, to: u64, reports: Vec<(Key, Option<Arc<str>>)>, out: &mut Outputs) -> Result<(), Violation> {
        let too_large = |(key, body): &(Key, Option<Arc<str>>)| {
            key.bytes() > Limits::KEY_BYTES_MAX || body.as_ref().is_some_and(|body| body.len() > Limits::BODY_BYTES_MAX)
        };
        if reports.len() > Limits::BATCH_ENTRIES_MAX || reports.iter().any(too_large) {
            return Err(Violation::TooLarge("Reports"));
        }
        self.reports.1 = to;
        out.extend(reports.into_iter().map(|(key, body)| Output::Tell(Told::Report(key, body))));
        Ok(())
    }

    /// Sends what the window has room for. Nothing waits anywhere: it is read from the ledger when it can go.
    fn pump(&mut self, out: &mut Outputs) {
        loop {
            let State::Following { sent, in_flight } = &self.state else { return };
            if in_flight.len() >= Limits::WINDOW_FRAMES {
                return;
            }
            let from = *sent;
            let keys = self.ledger.after(from.seq).map(|(key, _)| key.clone()).take(Limits::BATCH_ENTRIES_MAX);
            let Some(changes) = batches(keys.map(|key| self.change(key))).next() else { return };
            let seq = changes.last().expect("a batch is not empty").seq;
            let to = Position { epoch: self.ledger.position().epoch, seq };
            out.push(Output::Send(FromHub::Delta { from, to, changes }));
            let State::Following { sent, in_flight } = &mut self.state else { return };
            *sent = to;
            in_flight.push_back(to);
        }
    }
}

/// Parts of at most [`Limits::BATCH_BYTES`], but for a single change that has more.
fn batches(changes: impl Iterator<Item = Change>) -> impl Iterator<Item = Vec<Change>> {
    let mut changes = changes.peekable();
    std::iter::from_fn(move || {
        let mut batch = vec![changes.next()?];
        let mut bytes = batch[0].bytes();
        while let Some(next) = changes.next_if(|next| bytes + next.bytes() <= Limits::BATCH_BYTES) {
            bytes += next.bytes();
            batch.push(next);
        }
        Some(batch)
    })
}
