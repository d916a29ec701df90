//! Clients that try again under keys and cancel, under faults: what each was told must be so.

use sinew_simnet::nemesis::Class;
use sinew_simnet::run::{Options, Workload, run};

/// Seeds of each test.
const SEEDS: u64 = 10;

fn clients(from: u64, faults: impl IntoIterator<Item = Class>) {
    let faults: std::collections::BTreeSet<Class> = faults.into_iter().collect();
    for seed in from..from + SEEDS {
        let options = Options {
            seed,
            nodes: 5,
            workload: Workload::Clients,
            faults: faults.clone(),
            verbose: std::env::var_os("SIMNET_VERBOSE").is_some(),
            ..Options::default()
        };
        if let Err(failure) = run(&options) {
            panic!("{}\nat {} ms, seed {seed}\n{}", failure.what, failure.at.as_ms(), failure.log);
        }
    }
}

#[test]
fn deaf_nodes() {
    clients(9_000, [Class::Deaf, Class::OneWay]);
}

#[test]
fn partitions_and_restarts() {
    clients(9_100, [Class::Partition, Class::Restart, Class::Deaf]);
}

#[test]
fn crashes_and_full_disks() {
    clients(9_200, [Class::Crash, Class::FullDisk, Class::SlowDisk]);
}
