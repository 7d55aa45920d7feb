//! The store on a disk that loses, keeps or tears whatever was not synced, from one seed a run.
//!
//! `KEDGE_SEED=n cargo test -p kedge-store --test simulation` replays run `n`; `KEDGE_RUNS` sets how many.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use kedge_store::engine::{Engine, EngineError, RedbEngine, Reopening, Visit};
use kedge_store::{
    Action, Change, Durability, Expect, Facets, ObjectKey, Payload, Refusal, ResourceId, Store, Write, Writer,
};
use kedge_world::sim::{SimDisk, SimRandom};

const FILE: &str = "/data/state.redb";

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn acknowledged_writes_survive_power_cuts_and_revisions_never_go_back() {
    let first = std::env::var("KEDGE_SEED").map_or(0, |text| text.parse().expect("a number"));
    let runs = if std::env::var("KEDGE_SEED").is_ok() { 1 } else { setting("KEDGE_RUNS", 60) };
    let mut full = 0;
    for seed in first..first + runs {
        println!("seed {seed}");
        full += run(seed);
    }
    assert!(
        runs == 1 || full >= runs / 2,
        "the disk was full {full} times in {runs} runs: too seldom to tell anything"
    );
}

/// On a full disk what is there changes and goes, and nothing comes, until there is room.
#[test]
fn a_full_disk_lets_things_go() {
    let disk = SimDisk::new(Arc::new(SimRandom::seeded(1)));
    let open = {
        let disk = disk.clone();
        move || Ok(Box::new(RedbEngine::open(&disk, Path::new(FILE))?) as Box<dyn Engine>)
    };
    let boot = || {
        let engine = Reopening::new(open.clone()).unwrap().with_reserve(Arc::new(disk.clone()));
        Writer::open(Box::new(engine)).unwrap()
    };
    let mut writer = boot();
    let put = |name: &str, expect: Expect, bytes: usize| Write {
        resource: things(),
        key: ObjectKey::new("", name),
        expect,
        action: Action::Put(Payload::new(
            format!("{{\"metadata\":{{\"name\":\"{name}\"}},\"x\":\"{}\"}}", "x".repeat(bytes)).into_bytes(),
            13,
            Facets::default(),
        )),
        durability: Durability::Durable,
    };
    let mut revisions = Vec::new();
    disk.limit(Some(disk.used() + (64 << 10)));
    while let Ok(done) = writer.write(vec![vec![put(&format!("n{}", revisions.len()), Expect::Absent, 3000)]]).remove(0)
    {
        revisions.push(done[0].entry.revision);
    }
    assert!(revisions.len() > 3, "{}", revisions.len());
    // One after the other, as a graceful deletion goes; a creation in the same group is refused alone.
    for (number, revision) in revisions.iter().copied().enumerate() {
        let name = format!("n{number}");
        let marked = put(&name, Expect::Revision(revision), 3000);
        let mut verdicts = writer.write(vec![vec![put("late", Expect::Absent, 200_000)], vec![marked]]);
        let marked = verdicts.remove(1).unwrap_or_else(|e| panic!("{name}: {e}"))[0].entry.revision;
        assert!(matches!(&verdicts[0], Err(Refusal::Engine(e)) if matches!(**e, EngineError::Full { .. })), "{name}");
        let delete = Write { action: Action::Delete, ..put(&name, Expect::Revision(marked), 0) };
        writer.write(vec![vec![delete]]).remove(0).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    assert_eq!(Store::peek(&writer, &things()).1, []);
    drop(writer);
    let mut writer = boot();
    disk.limit(None);
    writer.write(vec![vec![put("late", Expect::Absent, 200_000)]]).remove(0).unwrap();
}

/// What a client was told.
#[derive(Default)]
struct Told {
    /// Durable values by name; none: deleted.
    durable: BTreeMap<String, Option<u64>>,
    /// Names of which the disk may hold something else until the next group that succeeds.
    doubtful: BTreeSet<String>,
    revision: u64,
    /// How often the disk was full.
    full: u64,
}

/// One run; how often the disk was full in it.
fn run(seed: u64) -> u64 {
    let random = Arc::new(SimRandom::seeded(seed));
    let disk = SimDisk::new(random.clone());
    let mut told = Told::default();
    for boot in 0..6 {
        disk.limit(None);
        disk.cut_after(2 + random.below(30));
        // A cut during opening is as good as any other.
        let opened = disk.clone();
        let open = move || Ok(Box::new(RedbEngine::open(&opened, Path::new(FILE))?) as Box<dyn Engine>);
        match Reopening::new(open) {
            Ok(engine) => {
                let mut writer =
                    Writer::open(Box::new(engine)).unwrap_or_else(|e| panic!("seed {seed} boot {boot}: {e}"));
                check(&writer, &told, seed, boot);
                work(&mut writer, &disk, &random, &mut told);
                std::mem::forget(writer); // The process dies without a word.
            }
            Err(error) => assert!(disk.is_off(), "seed {seed} boot {boot}: the power is on, and yet: {error}"),
        }
        disk.power_cut();
    }
    told.full
}

fn check(writer: &Writer, told: &Told, seed: u64, boot: u32) {
    let (revision, found) = Store::peek(writer, &things());
    assert!(
        revision >= told.revision,
        "seed {seed} boot {boot}: revision went back from {} to {revision}",
        told.revision
    );
    for (name, value) in told.durable.iter().filter(|(name, _)| !told.doubtful.contains(*name)) {
        let here = found.iter().find(|entry| *entry.key.name == **name).map(|entry| entry.revision);
        assert_eq!(here, *value, "seed {seed} boot {boot}: {name}");
    }
}

fn things() -> ResourceId {
    ResourceId::new("", "things")
}

/// Random groups until the power goes; what happened to an unanswered group is open until the next boot.
fn work(writer: &mut Writer, disk: &SimDisk, random: &SimRandom, told: &mut Told) {
    loop {
        // Now and then the disk fills up, and somebody makes room.
        disk.limit(random.chance(30).then(|| disk.used() + random.below(32 << 10)));
        let mut names: Vec<String> = (0..=random.below(3)).map(|_| format!("n{}", random.below(8))).collect();
        names.sort();
        names.dedup();
        let soft = random.chance(20);
        let (before, found) = Store::peek(writer, &things());
        let group: Vec<Vec<Write>> = names.iter().map(|name| vec![write(name, soft, random, &found)]).collect();
        let verdicts = writer.write(group.clone());
        if verdicts.iter().all(|v| matches!(v, Err(Refusal::Engine(e)) if matches!(**e, EngineError::Full { .. }))) {
            assert_eq!(Store::peek(writer, &things()), (before, found), "a group that failed shows nothing");
            told.doubtful.extend(names);
            told.full += 1;
            continue;
        }
        let lasts = verdicts.iter().all(Result::is_ok);
        for ((name, writes), verdict) in names.iter().zip(&group).zip(verdicts) {
            match verdict {
                Ok(done) => {
                    told.revision = told.revision.max(done[0].entry.revision);
                    let value = matches!(writes[0].action, Action::Put(_)).then_some(done[0].entry.revision);
                    if soft {
                        // A soft write may be lost, and then the durable one before it is back: both are allowed.
                        told.durable.remove(name);
                    } else {
                        told.durable.insert(name.clone(), value);
                    }
                }
                Err(_) => {
                    // Not acknowledged: it may or may not have reached the disk.
                    for name in &names {
                        told.durable.remove(name);
                    }
                    return;
                }
            }
        }
        if lasts {
            told.doubtful.clear();
        }
    }
}

fn write(name: &str, soft: bool, random: &SimRandom, found: &[Arc<kedge_store::Entry>]) -> Write {
    let current = found.iter().find(|entry| &*entry.key.name == name);
    let delete = current.is_some() && random.chance(30);
    let filler = "x".repeat(random.below(3000) as usize);
    let json = format!("{{\"metadata\":{{\"name\":\"{name}\",\"filler\":\"{filler}\"}}}}").into_bytes();
    Write {
        resource: things(),
        key: ObjectKey::new("", name),
        expect: current.map_or(Expect::Absent, |entry| Expect::Revision(entry.revision)),
        action: if delete { Action::Delete } else { Action::Put(Payload::new(json, 13, Facets::default())) },
        durability: if soft { Durability::Soft } else { Durability::Durable },
    }
}

/// An engine that acknowledges and forgets.
struct Forgetful;

impl Engine for Forgetful {
    fn load(&self, _visit: &mut Visit<'_>) -> Result<(), EngineError> {
        Ok(())
    }
    fn commit(&mut self, _changes: &[Change]) -> Result<(), EngineError> {
        Ok(())
    }
    fn location(&self) -> &Path {
        Path::new("nowhere")
    }
}

#[test]
fn the_simulation_notices_a_store_that_forgets() {
    // What such an engine acknowledged is gone at the next boot; a check that let that pass would prove nothing.
    let random = SimRandom::seeded(1);
    let mut writer = Writer::open(Box::new(Forgetful)).unwrap();
    let done = writer.write(vec![vec![write("n0", false, &random, &[])]]).remove(0).unwrap();
    let mut told = Told::default();
    told.durable.insert("n0".into(), Some(done[0].entry.revision));
    let rebooted = Writer::open(Box::new(Forgetful)).unwrap();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&rebooted, &told, 1, 1)));
    assert!(caught.is_err());
}
