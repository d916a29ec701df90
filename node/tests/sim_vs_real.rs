//! The benchmark that holds the simulator against daemons, in small: it runs, it counts, and both worlds agree in what does
//! not depend on the machine.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

/// Real and simulated figures by name.
fn figures(report: &Value) -> BTreeMap<String, (f64, f64)> {
    let rows = report["rows"].as_array().expect("rows");
    let number = |row: &Value, which: &str| row[which].as_f64().expect("a number");
    rows.iter()
        .map(|row| (row["figure"].as_str().expect("name").to_owned(), (number(row, "real"), number(row, "simulated"))))
        .collect()
}

#[test]
fn the_experiment_runs_in_both_worlds_and_the_counters_count() {
    let words = "--json bench sim-vs-real --nodes 4 --jobs 20 --rate 10 --adverts 4 --idle 5";
    let run = Command::new(env!("CARGO_BIN_EXE_sinew")).args(words.split(' ')).output().expect("run");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let report: Value = serde_json::from_slice(&run.stdout).expect("one JSON object");
    let figures = figures(&report);
    let both = |name: &str| {
        let (real, simulated) = *figures.get(name).unwrap_or_else(|| panic!("no `{name}` in {figures:?}"));
        [real, simulated]
    };
    for world in 0..2 {
        assert_eq!(both("adverts that missed a node")[world], 0.0);
        assert_eq!(both("jobs that did not start")[world], 0.0);
        // With three others, nobody sends more than three copies.
        let copies = both("copies of an advert a node gets")[world];
        assert!((1.0..=3.0).contains(&copies), "{copies}");
        let peers = both("peers in a node's gossip mesh")[world];
        assert!((2.0..=3.0).contains(&peers), "{peers}");
        assert!(both("advert to a node, p50")[world] > 0.0);
        let (acknowledged, started) =
            (both("submit to acknowledged, p50")[world], both("submit to started, p50")[world]);
        assert!(acknowledged > 0.0 && started > 0.0 && started < 1_000.0, "{acknowledged} {started}");
        // Every idle node has its connections probed; every job is stored with two others at least.
        assert!(both("control frames an idle node and second")[world] > 0.0);
        assert!(both("bulk frames a job")[world] > 4.0);
        assert!(both("bulk bytes a job")[world] > 1_000.0);
    }
    // The same core says the same things.
    let [real, simulated] = both("messages a job");
    assert!(real / simulated > 0.5 && real / simulated < 2.0, "{real} {simulated}");
}
