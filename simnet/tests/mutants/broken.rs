//! A core that stops the clock or panics: a run reports it like a violated invariant, and is made smaller.

use sinew_crdt_state::planted::{Bug, plant};
use sinew_scheduler::time::Span;
use sinew_simnet::nemesis::Class;
use sinew_simnet::run::{Options, run, shrink};

/// A run with faults that the mistakes need.
fn faulty(seed: u64) -> Options {
    let faults = [Class::Partition, Class::Crash, Class::Drop].into();
    Options { seed, nodes: 6, duration: Span::ms(20_000), jobs: 24, faults, ..Options::default() }
}

/// The first seeds' first failure, with its options.
fn first_failure() -> (Options, String) {
    let failed = |seed| run(&faulty(seed)).err().map(|failure| (faulty(seed), failure.what));
    (crate::FIRST..crate::FIRST + 10).find_map(failed).expect("ten seeds suffice")
}

/// With `bug` planted, what a run fails of begins like this, again and again, and shrinking keeps it.
fn is_told_and_shrunk(bug: Bug, what: &str) {
    crate::hush();
    crate::EXPECTED.set(true);
    plant(Some(bug));
    let (options, why) = first_failure();
    let again = run(&options).expect_err("it failed before").what;
    let small = shrink(&options, 30, |o| run(o).is_err_and(|failure| failure.what.contains(what))).options;
    let smaller = run(&small).expect_err("what is left fails").what;
    plant(None);
    crate::EXPECTED.set(false);
    assert!(why.contains(what), "{why}");
    assert_eq!(why, again, "the same each time");
    assert!(smaller.contains(what), "{smaller}");
    assert!(small.faults.len() < options.faults.len(), "{}", small.command());
    run(&small).expect("without the mistake it holds");
}

#[test]
fn a_core_that_asks_to_be_called_at_once_for_ever() {
    is_told_and_shrunk(Bug::FenceNever, "asks to be called at once, for ever");
}

#[test]
fn a_core_that_panics() {
    is_told_and_shrunk(Bug::PanicAtStale, "panicked: a result that comes too late");
}
