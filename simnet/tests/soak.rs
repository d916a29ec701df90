//! Random faults from many seeds: first safety under all of them, then, healed, every job must end.

use std::collections::BTreeMap;
use std::process::Command;

use sinew_simnet::nemesis::{Class, Fired};
use sinew_simnet::run::{Options, Report, run, shrink};

/// Seeds of each test.
const SEEDS: u64 = 25;
/// Runs that making a failing seed smaller may take.
const SHRINK_RUNS_MAX: usize = 30;
/// A churn that a run of half a minute notices.
const CHURN_PERCENT_PER_HOUR: f64 = 5_000.0;

/// Every class of faults on five to seven nodes.
fn mixed(seed: u64) -> Options {
    Options {
        seed,
        nodes: 5 + usize::try_from(seed % 3).expect("small"),
        faults: Class::ALL.into(),
        churn_percent_per_hour: CHURN_PERCENT_PER_HOUR,
        verbose: std::env::var_os("SIMNET_VERBOSE").is_some(),
        ..Options::default()
    }
}

/// Runs one seed; when it fails, says with which commands it does so again.
fn soak(seed: u64) -> Report {
    let options = mixed(seed);
    run(&options).unwrap_or_else(|failure| {
        // Said first: making it smaller takes a while.
        eprintln!("FAILED: {}\nagain: {}", failure.what, options.command());
        let small = shrink(&options, SHRINK_RUNS_MAX, |o| run(o).is_err()).options;
        panic!(
            "{}\nat {} ms\n{}\nagain: {}\nsmaller: {}",
            failure.what,
            failure.at.as_ms(),
            failure.log,
            options.command(),
            small.command()
        )
    })
}

fn soak_all(from: u64) {
    let mut fired: BTreeMap<Class, Fired> = BTreeMap::new();
    let (mut acknowledged, mut completed) = (0, 0);
    for seed in from..from + SEEDS {
        let report = soak(seed);
        for (class, of) in &report.fired {
            let sum = fired.entry(*class).or_default();
            (sum.struck, sum.felt) = (sum.struck + of.struck, sum.felt + of.felt);
        }
        acknowledged += report.jobs_acknowledged;
        completed += report.jobs_completed;
    }
    // Old copies of disks are put back in quiet moments only, of which there are few here; they have runs of their own (`wide`).
    for class in Class::ALL.into_iter().filter(|class| !matches!(class, Class::Rollback | Class::Clone)) {
        assert!(fired.get(&class).is_some_and(|f| f.felt > 0), "{class} was never felt: {fired:?}");
    }
    // Disks that fail or hang and nodes that hear nobody make a third of all submits fail, as they must.
    assert!(acknowledged > SEEDS * 22 && completed > SEEDS * 20, "{acknowledged} acknowledged, {completed} completed");
}

macro_rules! soaks {
    ($($name:ident: $number:expr),*) => {
        $(
            #[test]
            fn $name() {
                soak_all(1_000 + SEEDS * $number);
            }
        )*
    };
}

soaks!(seeds_0: 0, seeds_1: 1, seeds_2: 2, seeds_3: 3, seeds_4: 4, seeds_5: 5, seeds_6: 6, seeds_7: 7);

/// Runs one seed and prints its trace: `SIMNET_SEED=1013 cargo nextest run -p sinew-simnet replay`.
#[test]
fn replay() {
    if let Some(seed) = std::env::var("SIMNET_SEED").ok().and_then(|seed| seed.parse().ok()) {
        println!("{}", soak(seed));
    }
}

/// One seed in two processes gives one report, trace hash included; another seed gives another.
#[test]
fn two_processes_tell_the_same_story() {
    let story = |seed: &str| {
        let output = Command::new(std::env::current_exe().expect("a test is a program"))
            .args(["--exact", "replay", "--nocapture"])
            .env("SIMNET_SEED", seed)
            .output()
            .expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let text = String::from_utf8(output.stdout).expect("text");
        let lines: Vec<String> =
            text.lines().filter(|l| l.starts_with("trace") || l.starts_with("tasks")).map(str::to_owned).collect();
        assert_eq!(lines.len(), 2, "{text}");
        lines
    };
    let first = story("1013");
    assert_eq!(first, story("1013"));
    assert_ne!(first, story("1014"));
}
