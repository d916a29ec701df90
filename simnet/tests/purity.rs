//! What the simulator must never reach: the crates that talk to the outside world.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Crates that bring clocks, sockets or threads of their own.
const BANNED: [&str; 6] = ["tokio", "libp2p", "libp2p-swarm", "iroh-blobs", "redb", "mio"];

/// The resolved dependencies of `root`, build dependencies and tests' own left out, as names.
fn reachable(metadata: &Value, root: &str) -> BTreeSet<String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name_of: BTreeMap<String, String> =
        list(&metadata["packages"]).iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
    let deps_of: BTreeMap<String, Vec<Value>> =
        list(&metadata["resolve"]["nodes"]).iter().map(|node| (text(&node["id"]), list(&node["deps"]))).collect();
    let mut seen = BTreeSet::new();
    let mut next: Vec<String> = name_of.iter().filter(|(_, name)| *name == root).map(|(id, _)| id.clone()).collect();
    while let Some(id) = next.pop() {
        if seen.insert(id.clone()) {
            let normal = |dep: &&Value| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
            next.extend(deps_of[&id].iter().filter(normal).map(|dep| text(&dep["pkg"])));
        }
    }
    seen.iter().map(|id| name_of[id].clone()).collect()
}

#[test]
fn the_core_and_its_simulator_cannot_reach_the_outside_world() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--manifest-path", manifest])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    for root in ["sinew-simnet", "sinew-scheduler", "sinew-crdt-state"] {
        let reached = reachable(&metadata, root);
        assert!(reached.contains("blake3"), "the walk works");
        for banned in BANNED {
            assert!(!reached.contains(banned), "{root} reaches {banned}");
        }
    }
    // The ban means something only as long as these are what the daemon uses.
    let daemon = reachable(&metadata, "sinew-node");
    assert!(daemon.contains("tokio") && daemon.contains("libp2p"));
}
