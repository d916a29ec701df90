//! Simulated runs on several threads, each on one. What they give is handed on in the order of the plans.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use sinew_crdt_state::ids::Hash;
use sinew_scheduler::time::Span;
use sinew_simnet::run::{Failure, InvalidOptions, Options, Report, run, shrink};

/// Runs that making a failing one smaller may take.
const SHRINK_RUNS_MAX: usize = 60;
/// More threads than any machine has cores for are a slip of the keyboard.
const THREADS_MAX: usize = 1_024;

/// How a run ended.
#[derive(Debug)]
pub(super) enum Ended {
    Held(Box<Report>),
    Failed {
        failure: Box<Failure>,
        /// A smaller run that fails too, or the same.
        smaller: Options,
    },
}

/// As many threads as were asked for, or as there are cores.
pub(super) fn threads(asked: Option<&str>) -> Result<usize, InvalidOptions> {
    let Some(text) = asked else {
        return Ok(std::thread::available_parallelism().map_or(1, NonZero::get));
    };
    text.parse().ok().filter(|n| (1..=THREADS_MAX).contains(n)).ok_or_else(|| InvalidOptions {
        field: "--threads",
        value: text.to_owned(),
        mend: format!("write how many runs go on at once, from 1 to {THREADS_MAX}"),
    })
}

/// Makes all runs and hands each to `each`, in order. Runs of another size begin when all of one size are done, as large ones
/// need the memory for themselves.
///
/// # Errors
/// The first of `each`; runs under way are then brought to their ends, and no others begun.
pub(super) fn run_all<E>(
    plans: &[Options],
    threads: usize,
    mut each: impl FnMut(&Options, Ended) -> Result<(), E>,
) -> Result<(), E> {
    plans.chunk_by(|a, b| a.nodes == b.nodes).try_for_each(|plans| run_some(plans, threads, &mut each))
}

fn run_some<E>(
    plans: &[Options],
    threads: usize,
    each: &mut impl FnMut(&Options, Ended) -> Result<(), E>,
) -> Result<(), E> {
    let next = &AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..threads.min(plans.len()) {
            let sender = sender.clone();
            scope.spawn(move || {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(options) = plans.get(number) else { return };
                    if sender.send((number, end_of(options))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut early = BTreeMap::new();
        let mut due = plans.iter().enumerate();
        for (number, ended) in receiver {
            early.insert(number, ended);
            while let Some((number, options)) = due.clone().next()
                && let Some(ended) = early.remove(&number)
            {
                due.next();
                each(options, ended)?;
            }
        }
        Ok(())
    })
}

fn end_of(options: &Options) -> Ended {
    match attempt(options) {
        Ok(report) => Ended::Held(Box::new(report)),
        Err(failure) => {
            let options = &Options { verbose: false, ..options.clone() };
            let smaller = shrink(options, SHRINK_RUNS_MAX, |o| attempt(o).is_err()).options;
            Ended::Failed { failure, smaller }
        }
    }
}

/// A run; a panic in it is a failure like any other, or it would hide the seed and end all other runs.
fn attempt(options: &Options) -> Result<Report, Box<Failure>> {
    catch_unwind(AssertUnwindSafe(|| run(options))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default();
        Err(Box::new(Failure {
            what: format!("panicked: {text}"),
            at: Span(0),
            log: String::new(),
            trace: Hash([0; 32]),
        }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plans(seeds: std::ops::Range<u64>) -> Vec<Options> {
        let of = |seed| Options { seed, nodes: 3, jobs: 3, duration: Span::ms(1_000), ..Options::default() };
        seeds.map(of).collect()
    }

    #[test]
    fn several_threads_give_what_one_gives_in_the_same_order() {
        let traces = |threads| {
            let mut all = Vec::new();
            let each = |options: &Options, ended: Ended| {
                let Ended::Held(report) = ended else { return Err(options.seed) };
                assert_eq!(report.seed, options.seed);
                all.push((report.seed, report.trace));
                Ok(())
            };
            assert_eq!(run_all(&plans(5..13), threads, each), Ok(()));
            all
        };
        let one = traces(1);
        assert_eq!(one.iter().map(|(seed, _)| *seed).collect::<Vec<_>>(), (5..13).collect::<Vec<_>>());
        assert_eq!(traces(4), one);
    }

    #[test]
    fn the_first_error_ends_it() {
        let mut seen = Vec::new();
        let each = |options: &Options, _| {
            seen.push(options.seed);
            if options.seed == 6 { Err("enough") } else { Ok(()) }
        };
        assert_eq!(run_all(&plans(5..200), 2, each), Err("enough"));
        assert_eq!(seen, [5, 6]);
    }

    /// Options that no command line lets through make the world panic: there is nobody to submit to.
    #[test]
    fn a_panic_is_a_failure_of_its_seed() {
        let none = Options { nodes: 0, ..plans(1..2).remove(0) };
        let failure = attempt(&none).expect_err("no run has no nodes");
        assert!(failure.what.contains("divisor of zero"), "{}", failure.what);
    }

    #[test]
    fn threads_are_as_asked_or_as_there_are_cores() {
        assert!(threads(None).expect("cores") >= 1);
        assert_eq!(threads(Some("3")).expect("three"), 3);
        for bad in ["0", "many", "5000"] {
            let error = threads(Some(bad)).expect_err(bad);
            assert_eq!((error.field, error.value.as_str()), ("--threads", bad));
        }
    }
}
