//! Every class of faults at once, but for wiped disks; and, apart, disks that lie. Fewer seeds than the soak, more classes.

use std::collections::{BTreeMap, BTreeSet};

use sinew_simnet::nemesis::{Class, Fired};
use sinew_simnet::run::{Options, run, shrink};

/// Runs that making a failing seed smaller may take.
const SHRINK_RUNS_MAX: usize = 30;

/// Runs these seeds, and requires that each class is felt in one of them.
fn all_hold(seeds: std::ops::Range<u64>, nodes: usize, faults: &BTreeSet<Class>) {
    let churn_percent_per_hour = if faults.contains(&Class::Churn) { 5_000.0 } else { 0.0 };
    let mut fired: BTreeMap<Class, Fired> = BTreeMap::new();
    for seed in seeds {
        let options = Options { seed, nodes, faults: faults.clone(), churn_percent_per_hour, ..Options::default() };
        let report = run(&options).unwrap_or_else(|failure| {
            let small = shrink(&options, SHRINK_RUNS_MAX, |o| run(o).is_err()).options;
            panic!("{}\n{}\nagain: {}\nsmaller: {}", failure.what, failure.log, options.command(), small.command())
        });
        for (class, of) in report.fired {
            fired.entry(class).or_default().felt += of.felt;
        }
    }
    for class in faults {
        assert!(fired.get(class).is_some_and(|f| f.felt > 0), "{class} was never felt: {fired:?}");
    }
}

/// What every promise is meant to survive. Wiped disks and old copies of disks have runs of their own, and what holds after a
/// disk has lied is less.
fn honest_disks() -> BTreeSet<Class> {
    let apart = [Class::Wipe, Class::LostFsync, Class::Rollback, Class::Clone];
    Class::ALL.into_iter().filter(|c| !apart.contains(c)).collect()
}

#[test]
fn everything_at_once_on_six_nodes() {
    all_hold(6_000..6_016, 6, &honest_disks());
}

#[test]
fn everything_at_once_on_nine_nodes() {
    all_hold(6_016..6_022, 9, &honest_disks());
}

/// Among faults that leave somebody in touch who can tell: the rest is luck.
#[test]
fn old_copies_of_disks() {
    all_hold(6_200..6_212, 5, &[Class::Restart, Class::Drop, Class::Reorder, Class::Rollback, Class::Clone].into());
}

/// Jobs that no liar keeps must hold as ever; see `simnet/src/excuse.rs`.
#[test]
fn disks_that_lie() {
    all_hold(6_100..6_106, 5, &[Class::Crash, Class::Partition, Class::OneWay, Class::Drop, Class::LostFsync].into());
}

/// A brain that only had its job left to seal learned that its verdict was overruled. It asked to be called at once, for ever.
#[test]
fn a_brain_whose_verdict_was_overruled_does_not_spin() {
    let faults = Class::ALL.into_iter().filter(|class| *class != Class::Wipe).collect();
    let options = Options { seed: 10_604, nodes: 7, faults, churn_percent_per_hour: 5_000.0, ..Options::default() };
    run(&options).unwrap_or_else(|failure| panic!("{}\n{}", failure.what, failure.log));
}
