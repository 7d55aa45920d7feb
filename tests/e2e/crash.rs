//! kill -9 at any time: everything that was acknowledged is there, revisions only grow, the kubeconfig still works.
//!
//! `KEDGE_KILLS` sets how often (40 here; `cargo xtask kill9` asks for 200).

use std::collections::BTreeMap;
use std::time::Duration;

use kedge_world::sim::SimRandom;
use serde_json::json;

use crate::harness::{Server, exists};

const CONFIGS: &str = "/api/v1/namespaces/default/configmaps";

#[test]
fn nothing_acknowledged_is_lost_when_the_server_is_killed() {
    let kills: u64 = std::env::var("KEDGE_KILLS").map_or(40, |text| text.parse().expect("KEDGE_KILLS is a number"));
    for engine in ["redb", "sled"] {
        let seed = std::env::var("KEDGE_SEED").map_or(1, |text| text.parse().expect("KEDGE_SEED is a number"));
        println!("{engine}: seed {seed}, {kills} kills");
        run(engine, kills / 2, &SimRandom::seeded(seed));
    }
}

fn run(engine: &str, kills: u64, random: &SimRandom) {
    let mut server = Server::start(&["--disable-agent", "--datastore", engine]);
    let kubeconfig = std::fs::read(server.kubeconfig()).unwrap();
    let mut told: BTreeMap<String, u64> = BTreeMap::new();
    let mut newest = 0;
    for kill in 0..kills {
        let life = Duration::from_millis(random.below(120));
        let mut process = server.take_process();
        let acknowledged = std::thread::scope(|scope| {
            let writer = scope.spawn(|| write_until_dead(&server, kill));
            // The writer goes on until nobody answers: the kill hits it wherever it is.
            std::thread::sleep(life);
            process.kill().unwrap();
            process.wait().unwrap();
            writer.join().unwrap()
        });
        for (name, revision) in acknowledged {
            newest = newest.max(revision);
            told.insert(name, revision);
        }
        server.restart();
        let (code, list) = server.request("GET", CONFIGS, "");
        assert_eq!(code, 200);
        let revision: u64 = list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        assert!(revision >= newest, "{engine}, kill {kill}: the revision went back from {newest} to {revision}");
        let found: BTreeMap<&str, u64> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| {
                let meta = &item["metadata"];
                (meta["name"].as_str().unwrap(), meta["resourceVersion"].as_str().unwrap().parse().unwrap())
            })
            .collect();
        for (name, revision) in &told {
            assert_eq!(found.get(name.as_str()), Some(revision), "{engine}, kill {kill}: {name}");
        }
    }
    assert!(!told.is_empty(), "the server never lived long enough to acknowledge anything");
    assert_eq!(std::fs::read(server.kubeconfig()).unwrap(), kubeconfig, "the kubeconfig changed");
    assert!(exists(&server.folder.path().join("data/server")));
}

/// More objects than a server makes in its short life here.
const WRITES_MAX: u64 = 100_000;

/// Creates objects until the server is dead; what it acknowledged, by name.
fn write_until_dead(server: &Server, kill: u64) -> Vec<(String, u64)> {
    let mut acknowledged = Vec::new();
    for count in 0..WRITES_MAX {
        let name = format!("k{kill}-{count}");
        let body = json!({ "metadata": { "name": name }, "data": { "filler": "x".repeat(1000) } }).to_string();
        let Some((201, made)) = server.try_request("POST", CONFIGS, &body) else { break };
        acknowledged.push((name, made["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()));
    }
    acknowledged
}
