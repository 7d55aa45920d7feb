//! What every engine must do; run on each of them.

use std::collections::BTreeMap;
use std::path::Path;

use kedge_world::{Disk, RealDisk};

use super::{Change, Engine, EngineError, RedbEngine, SledEngine};

type Open = fn(&Path) -> Result<Box<dyn Engine>, EngineError>;

const ENGINES: [(&str, Open); 2] = [
    ("redb", |folder| Ok(Box::new(RedbEngine::open(&RealDisk, &folder.join("state.redb"))?))),
    ("sled", |folder| Ok(Box::new(SledEngine::open(&folder.join("sled"))?))),
];

fn on_each(test: impl Fn(&str, &Path, Open)) {
    for (name, open) in ENGINES {
        let folder = tempfile::tempdir().unwrap();
        test(name, folder.path(), open);
    }
}

fn put(key: &str, value: &str) -> Change {
    Change { key: key.into(), value: Some(value.into()) }
}

fn content(engine: &dyn Engine) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    engine
        .load(&mut |key, value| {
            out.insert(text(key), text(value));
            Ok(())
        })
        .unwrap();
    out
}

#[test]
fn a_commit_lasts_and_later_changes_win() {
    on_each(|name, folder, open| {
        let mut engine = open(folder).unwrap();
        engine.commit(&[put("a", "1"), put("b", "2"), put("c", "")]).unwrap();
        engine.commit(&[put("a", "3"), Change { key: "b".into(), value: None }]).unwrap();
        drop(engine);
        let engine = open(folder).unwrap();
        let expected = BTreeMap::from([("a".into(), "3".into()), ("c".into(), "".into())]);
        assert_eq!(content(&*engine), expected, "{name}");
    });
}

#[test]
fn keys_come_in_order_and_a_visitor_can_stop_the_load() {
    on_each(|name, folder, open| {
        let mut engine = open(folder).unwrap();
        engine.commit(&(0..50).rev().map(|n| put(&format!("{n:03}"), "x")).collect::<Vec<_>>()).unwrap();
        let mut seen = Vec::new();
        let result = engine.load(&mut |key, _| {
            seen.push(key.to_vec());
            if seen.len() == 10 { Err(EngineError::damaged(folder, "enough")) } else { Ok(()) }
        });
        assert!(result.is_err() && seen.len() == 10 && seen.is_sorted(), "{name}");
    });
}

#[test]
fn damage_is_named_with_the_file_and_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    for garbage in [&b"not a database, and long enough to look at twice"[..], &[0x42; 70_000]] {
        RealDisk.replace(&path, garbage).unwrap();
        let error = RedbEngine::open(&RealDisk, &path).err().expect("garbage is refused").to_string();
        assert!(error.contains("state.redb is damaged") && error.contains("snapshot"), "{error}");
    }
}
