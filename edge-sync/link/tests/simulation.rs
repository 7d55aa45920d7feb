//! A hub and its sites over a link that cuts, loses, repeats and reorders, on disks that lose what was not synced;
//! either side restarts at any moment, and now and then the hub comes back from an older backup. One seed a run.
//!
//! `KEDGE_SEED=n cargo test -p kedge-link --test simulation` replays run `n`; `KEDGE_RUNS` sets how many.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use kedge_link::{
    Connection, FromHub, FromSite, HubHalf, Key, Ledger, Limits, Output, Position, Saved, SiteHalf, Told,
};
use kedge_world::sim::{SimDisk, SimRandom};
use kedge_world::{Disk, Random};

const LEDGER: &str = "/hub/ledger";
const SAVED: &str = "/site/saved";
const STEPS: u64 = 400;

type Body = Arc<str>;

/// Shells that break the contract, to prove that the checks below notice.
#[derive(Clone, Copy, Default, PartialEq)]
struct Broken {
    /// The site acknowledges before it saves.
    site_sends_first: bool,
    /// The hub sends and does not save.
    hub_forgets: bool,
}

/// Frames on their way in one direction, each with its connection.
struct Wire<F> {
    frames: VecDeque<(Connection, F)>,
    /// Of connections that are over; some of them still arrive.
    late: Vec<(Connection, F)>,
}

impl<F: Clone> Wire<F> {
    fn new() -> Self {
        Self { frames: VecDeque::new(), late: Vec::new() }
    }

    fn cut(&mut self) {
        self.late.extend(self.frames.drain(..));
        let drop = self.late.len().saturating_sub(8);
        self.late.drain(..drop);
    }

    /// The next frame to arrive: mostly the first, when faults are on also a late one, a repeated one, or none.
    fn take(&mut self, random: &SimRandom, faults: bool) -> Option<(Connection, F)> {
        if faults && !self.late.is_empty() && random.chance(10) {
            let index = random.below(self.late.len() as u64) as usize;
            return Some(self.late[index].clone());
        }
        if faults && self.frames.len() > 1 && random.chance(3) {
            self.frames.swap(0, 1);
        }
        if faults && random.chance(3) {
            self.frames.pop_front(); // Lost; a later cut is what heals it.
        }
        if faults && random.chance(5) {
            return self.frames.front().cloned(); // Comes once more later.
        }
        self.frames.pop_front()
    }
}

/// A site with the hub's half for it and the link between.
struct Pair {
    random: Arc<SimRandom>,
    broken: Broken,
    hub: Option<HubHalf>,
    hub_disk: SimDisk,
    site: Option<SiteHalf>,
    site_disk: SimDisk,
    to_hub: Wire<FromSite>,
    to_site: Wire<FromHub>,
    connections: u64,
    /// What the hub's user wants now.
    wanted: BTreeMap<Key, Body>,
    /// Everything that was ever wanted: a site can hold nothing else.
    ever: BTreeSet<(Key, Body)>,
    /// What the site last said of each thing, and what arrived.
    reports: BTreeMap<Key, Body>,
    arrived: BTreeMap<Key, Body>,
    /// Positions in the order in which the site took them, and how many of them it has acknowledged.
    positions: Vec<Position>,
    acknowledged: usize,
    /// The hub came back from an older backup at least once.
    restored: bool,
    /// Bodies in deltas, for what is sent twice.
    changes_sent: u64,
    /// What happened in this run, by name.
    happened: BTreeMap<&'static str, u64>,
}

impl Pair {
    fn new(seed: u64, broken: Broken) -> Self {
        let random = Arc::new(SimRandom::seeded(seed));
        let mut pair = Self {
            hub: None,
            hub_disk: SimDisk::new(random.clone()),
            site: None,
            site_disk: SimDisk::new(random.clone()),
            random,
            broken,
            to_hub: Wire::new(),
            to_site: Wire::new(),
            connections: 0,
            wanted: BTreeMap::new(),
            ever: BTreeSet::new(),
            reports: BTreeMap::new(),
            arrived: BTreeMap::new(),
            positions: vec![Position::default()],
            acknowledged: 0,
            restored: false,
            changes_sent: 0,
            happened: BTreeMap::new(),
        };
        pair.start_hub();
        pair.start_site();
        pair
    }

    fn start_hub(&mut self) {
        self.cut();
        let ledger = match self.hub_disk.read(Path::new(LEDGER)) {
            Ok(bytes) => Ledger::from_bytes(&bytes).expect("a ledger is whole after a power cut"),
            Err(error) => {
                assert!(error.is_not_found(), "{error}");
                Ledger::default()
            }
        };
        self.hub = Some(HubHalf::new(ledger, self.random.number() | 1));
        self.arrived.clear();
        let outputs = self.hub.as_mut().unwrap().wanted(self.wanted.clone()).unwrap();
        self.obey_hub(outputs);
    }

    fn start_site(&mut self) {
        self.cut();
        let saved = match self.site_disk.read(Path::new(SAVED)) {
            Ok(bytes) => Saved::from_bytes(&bytes).expect("what was saved is whole after a power cut"),
            Err(error) => {
                assert!(error.is_not_found(), "{error}");
                Saved::default()
            }
        };
        // What was acknowledged is here.
        let index = self.positions.iter().rposition(|position| *position == saved.position);
        let index = index.expect("a site comes back with a position that it had");
        assert!(index >= self.acknowledged, "acknowledged {:?}, found {:?}", self.positions[self.acknowledged], saved);
        self.positions.truncate(index + 1);
        for (key, held) in &saved.held {
            assert!(self.ever.contains(&(key.clone(), held.body.clone())), "nobody wanted {key}: {:?}", held.body);
        }
        let mut site = SiteHalf::new(saved, self.random.number());
        for (key, body) in &self.reports {
            let outputs = site.report(key.clone(), Some(body.clone()));
            assert!(outputs.is_empty(), "nobody is connected");
        }
        self.site = Some(site);
    }

    /// The disk lost its power, or the process ended: the site comes back with what its disk holds.
    fn site_dies(&mut self) {
        self.site = None;
        self.site_disk.power_cut();
        self.start_site();
    }

    fn hub_dies(&mut self) {
        loop {
            self.hub = None;
            self.hub_disk.power_cut();
            self.start_hub();
            if self.hub.is_some() {
                return;
            }
        }
    }

    fn obey_hub(&mut self, outputs: Vec<Output<FromHub, Told>>) {
        for output in outputs {
            match output {
                Output::Save(_) if self.broken.hub_forgets && self.random.chance(50) => {}
                Output::Save(bytes) => {
                    if self.hub_disk.replace(Path::new(LEDGER), &bytes).is_err() {
                        self.count("the hub lost its power while it saved");
                        self.hub = None;
                        return;
                    }
                }
                Output::Send(frame) => {
                    check_hub_frame(&frame);
                    match &frame {
                        FromHub::Inventory { trusted: true, .. } => self.count("compared"),
                        FromHub::Inventory { trusted: false, .. } => self.count("compared with an older backup"),
                        FromHub::Delta { from, .. } if from.seq > 0 => self.count("resumed or followed"),
                        _ => {}
                    }
                    if let FromHub::Delta { changes, .. } | FromHub::Items { items: changes, .. } = &frame {
                        self.changes_sent += changes.len() as u64;
                    }
                    self.to_site.frames.push_back((Connection(self.connections), frame));
                }
                Output::Tell(Told::Report(key, Some(body))) => drop(self.arrived.insert(key, body)),
                Output::Tell(Told::Report(key, None)) => drop(self.arrived.remove(&key)),
                Output::Tell(Told::ReportsReset) => self.arrived.clear(),
                Output::Tell(_) => {}
                Output::Close(_) => {
                    self.count("the hub closed");
                    self.cut();
                }
            }
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.happened.entry(what).or_default() += 1;
    }

    fn obey_site(&mut self, mut outputs: Vec<Output<FromSite, kedge_link::HeldChanged>>) {
        if self.broken.site_sends_first {
            outputs.sort_by_key(|output| matches!(output, Output::Save(_)));
        }
        let position = self.site.as_ref().map(|site| site.saved().position).unwrap();
        if self.positions.last() != Some(&position) {
            self.positions.push(position);
        }
        for output in outputs {
            match output {
                Output::Save(bytes) => {
                    if self.site_disk.replace(Path::new(SAVED), &bytes).is_err() {
                        self.count("the site lost its power while it saved");
                        self.site_dies();
                        return;
                    }
                }
                Output::Send(frame) => {
                    if let FromSite::Ack(position) = frame {
                        let index = self.positions.iter().rposition(|taken| *taken == position).unwrap();
                        self.acknowledged = self.acknowledged.max(index);
                    }
                    self.to_hub.frames.push_back((Connection(self.connections), frame));
                }
                Output::Tell(_) => {}
                Output::Close(_) => {
                    self.count("the site closed");
                    self.cut();
                }
            }
        }
    }

    fn cut(&mut self) {
        self.to_hub.cut();
        self.to_site.cut();
        let connection = Connection(self.connections);
        // Either side may not hear of it: it finds out when the next connection begins.
        if let Some(hub) = self.hub.as_mut().filter(|_| self.random.chance(70)) {
            hub.disconnected(connection);
        }
        if let Some(site) = self.site.as_mut().filter(|_| self.random.chance(70)) {
            site.disconnected(connection);
        }
    }

    fn connect(&mut self) {
        self.to_hub.cut();
        self.to_site.cut();
        self.connections += 1;
        let connection = Connection(self.connections);
        self.hub.as_mut().unwrap().connected(connection);
        let outputs = self.site.as_mut().unwrap().connected(connection);
        self.obey_site(outputs);
    }

    fn deliver_to_site(&mut self, faults: bool) -> bool {
        let Some((connection, frame)) = self.to_site.take(&self.random, faults) else { return false };
        let outputs = self.site.as_mut().unwrap().received(connection, frame);
        self.obey_site(outputs);
        true
    }

    fn deliver_to_hub(&mut self, faults: bool) -> bool {
        let Some((connection, frame)) = self.to_hub.take(&self.random, faults) else { return false };
        let outputs = self.hub.as_mut().unwrap().received(connection, frame);
        self.obey_hub(outputs);
        if self.hub.is_none() {
            self.hub_dies();
        }
        true
    }

    fn change_wanted(&mut self) {
        for _ in 0..=self.random.below(3) {
            let key = Key::new(&format!("Model/default/m{}", self.random.below(12)));
            if self.random.chance(30) {
                self.wanted.remove(&key);
            } else {
                let length = if self.random.chance(5) { Limits::BODY_BYTES_MAX / 2 } else { 20 };
                let body: Body = format!("{:x}{}", self.random.number(), "x".repeat(length)).into();
                self.ever.insert((key.clone(), body.clone()));
                self.wanted.insert(key, body);
            }
        }
        let outputs = self.hub.as_mut().unwrap().wanted(self.wanted.clone()).unwrap();
        self.obey_hub(outputs);
        if self.hub.is_none() {
            self.hub_dies();
        }
    }

    fn change_report(&mut self) {
        let key = Key::new(&format!("Model/default/m{}", self.random.below(12)));
        let report = (!self.random.chance(30)).then(|| Body::from(format!("{:x}", self.random.number())));
        match &report {
            Some(body) => drop(self.reports.insert(key.clone(), body.clone())),
            None => drop(self.reports.remove(&key)),
        }
        let outputs = self.site.as_mut().unwrap().report(key, report);
        self.obey_site(outputs);
    }

    fn step(&mut self, backups: &mut Backups) {
        match self.random.below(100) {
            0..12 => self.change_wanted(),
            12..22 => self.change_report(),
            22..55 => drop(self.deliver_to_site(true)),
            55..85 => drop(self.deliver_to_hub(true)),
            85..88 => self.cut(),
            88..94 => self.connect(),
            94 => self.site_dies(),
            95 => self.hub_dies(),
            96 => self.site_disk.cut_after(self.random.below(3)),
            97 => self.hub_disk.cut_after(self.random.below(3)),
            98 => {
                backups.hub.extend(self.hub_disk.read(Path::new(LEDGER)));
                backups.site.extend(self.site_disk.read(Path::new(SAVED)));
            }
            _ if self.random.chance(20) => {
                if let Some(backup) = backups.site.first().cloned() {
                    self.site = None;
                    self.site_disk.power_cut();
                    self.site_disk.replace(Path::new(SAVED), &backup).unwrap();
                    self.positions = vec![Saved::from_bytes(&backup).unwrap().position];
                    self.acknowledged = 0;
                    self.start_site();
                }
            }
            _ => {
                if let Some(backup) = backups.hub.first().filter(|_| self.random.chance(20)).cloned() {
                    self.restored = true;
                    self.hub = None;
                    self.hub_disk.power_cut();
                    self.hub_disk.replace(Path::new(LEDGER), &backup).unwrap();
                    self.start_hub();
                }
            }
        }
    }

    /// No more faults: everything that is on its way arrives.
    fn settle(&mut self) {
        if self.hub_disk.is_off() || self.random.chance(30) {
            self.hub_dies();
        }
        if self.site_disk.is_off() || self.random.chance(30) {
            self.site_dies();
        }
        self.hub_disk.cut_after(u64::MAX);
        self.site_disk.cut_after(u64::MAX);
        self.connect();
        for _ in 0..10_000 {
            let moved = self.deliver_to_site(false) | self.deliver_to_hub(false);
            if !moved {
                return;
            }
        }
        panic!("the two halves talk for ever");
    }

    fn check_in_step(&self) {
        let site = self.site.as_ref().unwrap();
        let held: BTreeMap<_, _> = site.saved().held.iter().filter(|(_, held)| !held.unclaimed).collect();
        let held: BTreeMap<_, _> = held.into_iter().map(|(key, held)| (key.clone(), held.body.clone())).collect();
        assert_eq!(held, self.wanted);
        let unclaimed: Vec<_> = site.saved().held.iter().filter(|(_, held)| held.unclaimed).collect();
        assert!(self.restored || unclaimed.is_empty(), "unclaimed without a restored hub: {unclaimed:?}");
        assert_eq!(site.saved().position, self.hub.as_ref().unwrap().ledger().position());
        assert_eq!(self.arrived, self.reports);
    }
}

/// Copies of either side's state.
#[derive(Default)]
struct Backups {
    hub: Vec<Vec<u8>>,
    site: Vec<Vec<u8>>,
}

/// Bounds that every frame keeps.
fn check_hub_frame(frame: &FromHub) {
    match frame {
        FromHub::Delta { from, to, changes } => {
            assert!(changes.iter().all(|change| change.seq > from.seq && change.seq <= to.seq), "{from:?} {to:?}");
            assert!(changes.windows(2).all(|pair| pair[0].seq < pair[1].seq));
            check_bytes(changes);
        }
        FromHub::Items { items, .. } => check_bytes(items),
        FromHub::Inventory { entries, .. } => assert!(entries.len() <= Limits::BATCH_ENTRIES_MAX),
        FromHub::Welcome { .. } | FromHub::ReportAck(_) => {}
    }
}

fn check_bytes(changes: &[kedge_link::Change]) {
    let bytes: usize = changes.iter().filter_map(|change| Some(change.body.as_ref()?.len())).sum();
    assert!(bytes <= Limits::BATCH_BYTES.max(Limits::BODY_BYTES_MAX) && changes.len() <= Limits::BATCH_ENTRIES_MAX);
}

/// Runs one seed; what happened.
fn run(seed: u64, broken: Broken) -> BTreeMap<&'static str, u64> {
    let mut pair = Pair::new(seed, broken);
    let mut backups = Backups::default();
    for _ in 0..STEPS {
        pair.step(&mut backups);
    }
    pair.settle();
    pair.check_in_step();
    // What is unclaimed after an older backup goes when the hub says so.
    let unclaimed: Vec<Key> =
        pair.site.as_ref().unwrap().saved().held.iter().filter(|(_, h)| h.unclaimed).map(|(k, _)| k.clone()).collect();
    for key in unclaimed {
        pair.count("released");
        let outputs = pair.hub.as_mut().unwrap().release(&key);
        pair.obey_hub(outputs);
    }
    while pair.deliver_to_site(false) | pair.deliver_to_hub(false) {}
    assert_eq!(pair.site.as_ref().unwrap().saved().held.len(), pair.wanted.len());
    // In step: a further connection carries nothing that is already there.
    let before = pair.changes_sent;
    pair.connect();
    while pair.deliver_to_site(false) | pair.deliver_to_hub(false) {}
    assert_eq!(pair.changes_sent, before, "sent again though the site holds it");
    pair.happened
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn site_and_hub_come_into_step_whatever_the_link_and_the_disks_do() {
    let first = setting("KEDGE_SEED", 0);
    let runs = if std::env::var("KEDGE_SEED").is_ok() { 1 } else { setting("KEDGE_RUNS", 400) };
    let mut happened: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in first..first + runs {
        println!("seed {seed}");
        for (what, times) in run(seed, Broken::default()) {
            *happened.entry(what).or_default() += times;
        }
    }
    println!("{happened:#?}");
    // A simulation in which nothing goes wrong proves nothing.
    let dull = WHAT_MUST_HAPPEN.iter().find(|what| happened.get(**what).is_none_or(|times| *times < runs / 40));
    assert!(dull.is_none() || runs < 100, "{dull:?} hardly ever happened");
}

const WHAT_MUST_HAPPEN: &[&str] = &[
    "compared",
    "compared with an older backup",
    "resumed or followed",
    "the hub lost its power while it saved",
    "the site lost its power while it saved",
    "the hub closed",
    "the site closed",
    "released",
];

/// Whether some seed notices a shell that breaks the contract.
fn is_noticed(broken: Broken) -> bool {
    let silent = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let noticed = (0..2000).any(|seed| std::panic::catch_unwind(|| run(seed, broken)).is_err());
    std::panic::set_hook(silent);
    noticed
}

#[test]
fn the_simulation_notices_shells_that_break_the_contract() {
    assert!(is_noticed(Broken { site_sends_first: true, ..Broken::default() }), "acknowledged before it was saved");
    assert!(is_noticed(Broken { hub_forgets: true, ..Broken::default() }), "sent before it was saved");
}

#[test]
fn a_year_offline_costs_one_comparison() {
    let mut pair = Pair::new(1, Broken::default());
    pair.connect();
    for n in 0..600 {
        let key = Key::new(&format!("Model/default/m{n}"));
        pair.wanted.insert(key, "the first".into());
    }
    let all = pair.wanted.clone();
    pair.ever.extend(all);
    let outputs = pair.hub.as_mut().unwrap().wanted(pair.wanted.clone()).unwrap();
    pair.obey_hub(outputs);
    while pair.deliver_to_site(false) | pair.deliver_to_hub(false) {}
    pair.cut();
    // A hundred runs of the hub, each with a change: more than a ledger remembers.
    for n in 0..100 {
        pair.hub_dies();
        let (key, body) = (Key::new("Model/default/m0"), Body::from(format!("version {n}")));
        pair.ever.insert((key.clone(), body.clone()));
        pair.wanted.insert(key, body);
        let outputs = pair.hub.as_mut().unwrap().wanted(pair.wanted.clone()).unwrap();
        pair.obey_hub(outputs);
    }
    let before = pair.changes_sent;
    pair.connect();
    while pair.deliver_to_site(false) | pair.deliver_to_hub(false) {}
    pair.check_in_step();
    assert_eq!(pair.changes_sent - before, 1, "only what differs is sent");
}
