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

/// The kind of machine that this is: what other kinds need was never downloaded.
fn host() -> String {
    let output = Command::new("rustc").arg("-vV").output().expect("rustc runs");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc says for whom it builds").to_owned()
}

/// What cargo resolves for the whole workspace, tests included, with no feature asked for.
fn metadata() -> Value {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--manifest-path", manifest])
        .args(["--filter-platform", &host()])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo prints JSON")
}

/// Planted bugs are for `mutants` alone: no build, and no test's dependency, may turn them on for everybody.
#[test]
fn no_build_plants_bugs_unasked() {
    let metadata = metadata();
    let nodes = metadata["resolve"]["nodes"].as_array().cloned().unwrap_or_default();
    let planted = |node: &&Value| node["features"].as_array().is_some_and(|f| f.iter().any(|f| f == "planted"));
    let of_ours = |node: &&Value| node["id"].as_str().is_some_and(|id| id.contains("crdt-state"));
    assert_eq!(nodes.iter().filter(of_ours).count(), 1, "the walk works");
    assert_eq!(nodes.iter().find(planted), None);
}

#[test]
fn the_core_and_its_simulator_cannot_reach_the_outside_world() {
    let metadata = metadata();
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
