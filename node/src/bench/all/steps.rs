//! Which benches `bench all` runs, at which sizes, and what their figures are called.

use serde_json::Value;

use super::figure::Better::{Higher, Lower};
use super::figure::Kind::{Clock, Count};
use super::figure::Target::{Ratio, Value as Of};
use super::figure::{Better, Figure, Kind, Target};

/// One bench, run by a program of its own.
pub(super) struct Step {
    /// What its figures are filed under.
    pub(super) name: String,
    /// The command line after `sinew bench`.
    pub(super) args: Vec<String>,
    /// The same for a program that does not know those arguments.
    pub(super) older: Option<Vec<String>>,
    /// Whether a program that does not know the bench has failed.
    pub(super) optional: bool,
    /// Whether what it counts is the same in each run. With many jobs under way it depends on what travels together, hence on
    /// how busy the machine is.
    steady: bool,
    figures: &'static [Spec],
}

/// Where a figure is in a bench's JSON, and what it means.
struct Spec {
    key: &'static str,
    name: &'static str,
    unit: &'static str,
    better: Better,
    kind: Kind,
    floor: Option<&'static str>,
    target: Option<Target>,
}

const fn spec(key: &'static str, name: &'static str, unit: &'static str, better: Better, kind: Kind) -> Spec {
    Spec { key, name, unit, better, kind, floor: None, target: None }
}

impl Spec {
    const fn floor(mut self, key: &'static str) -> Self {
        self.floor = Some(key);
        self
    }

    const fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }
}

const NOOP: &[Spec] = &[
    spec("tasks_per_s", "tasks", "/s", Higher, Clock).target(Of(80_000.0)),
    spec("cpu_us_per_task", "CPU of all daemons per task", "µs", Lower, Clock).target(Of(15.0)),
];
const PROCESSES: &[Spec] = &[
    spec("bare_tasks_per_s", "bare tasks, floor posix_spawn", "/s", Higher, Clock)
        .floor("floor_posix_spawn_per_s")
        .target(Ratio(0.8)),
    spec("sandboxed_tasks_per_s", "sandboxed tasks, floor bare ones", "/s", Higher, Clock)
        .floor("bare_tasks_per_s")
        .target(Ratio(0.7)),
    spec("daemon_cpu_us_per_task", "daemon's CPU per bare task", "µs", Lower, Clock),
    spec("daemon_cpu_us_per_sandboxed_task", "daemon's CPU per sandboxed task", "µs", Lower, Clock),
];
const PYTHON: &[Spec] = &[
    spec("runner_calls_per_s", "calls by the runner alone", "/s", Higher, Clock).target(Of(10_000.0)),
    spec("daemon_calls_per_s", "calls as tasks, floor the runner", "/s", Higher, Clock).floor("runner_calls_per_s"),
    spec("daemon_cpu_us_per_call", "daemon's CPU per call", "µs", Lower, Clock),
];
const SUBMIT: &[Spec] = &[
    spec("p50_ms", "submit to result, p50, floor fsync", "ms", Lower, Clock).floor("fsync_floor_ms"),
    spec("p99_ms", "submit to result, p99", "ms", Lower, Clock),
    spec("p50_beyond_two_fsyncs_ms", "one alone, p50 beyond two fsyncs", "ms", Lower, Clock).target(Of(5.0)),
    spec("jobs_per_s", "durable jobs", "/s", Higher, Clock),
    spec("cpu_us_per_job", "CPU of all daemons per job", "µs", Lower, Clock),
    spec("messages_per_job", "messages per job", "", Lower, Count),
    spec("messages_per_job_brain", "brain's messages per job", "", Lower, Count),
    spec("bytes_per_job", "bytes sent per job", "B", Lower, Count),
    spec("written_bytes_per_job_and_node", "bytes written per job and node", "B", Lower, Count),
    spec("kept_bytes_per_job_and_node", "bytes kept per job and node", "B", Lower, Count),
];
const LEDGER: &[Spec] = &[
    spec("facts_per_s_per_core", "facts verified and merged", "/s", Higher, Clock).target(Of(20_000.0)),
    spec("admit_us_per_fact_many_known", "a fact with many jobs known, floor with few", "µs", Lower, Clock)
        .floor("admit_us_per_fact_few_known"),
    spec("rss_per_sealed_entry_bytes", "memory per sealed job", "B", Lower, Clock),
];
const BLOBS: &[Spec] = &[spec("mb_per_s", "store to store, floor raw stream", "MB/s", Higher, Clock)
    .floor("floor_raw_stream_mb_per_s")
    .target(Ratio(0.75))];
const GOSSIP: &[Spec] = &[
    spec("p50_ms", "advert to all, p50", "ms", Lower, Clock),
    spec("p99_ms", "advert to all, p99", "ms", Lower, Clock).target(Of(150.0)),
    spec("deliveries_missed", "deliveries missed", "", Lower, Count).target(Of(0.0)),
    spec("idle_cpu_percent_per_daemon", "idle daemon of the mesh, CPU", "% of a core", Lower, Clock).target(Of(1.0)),
    spec("idle_rss_mb_max", "idle daemon of the mesh, memory", "MB", Lower, Clock).target(Of(45.0)),
];
const IDLE: &[Spec] = &[
    spec("idle_cpu_percent", "lone idle daemon, CPU", "% of a core", Lower, Clock).target(Of(0.3)),
    spec("idle_cpu_percent_beside_foreign", "the same beside foreign processes", "% of a core", Lower, Clock)
        .floor("idle_cpu_percent")
        .target(Of(0.3)),
    spec("idle_rss_mb", "lone idle daemon, memory", "MB", Lower, Clock),
];
const WAITING: &[Spec] = &[
    spec("waiting_cpu_percent_per_daemon", "daemon while jobs wait, floor idle", "% of a core", Lower, Clock)
        .floor("floor_idle_cpu_percent_per_daemon")
        .target(Of(1.0)),
    spec("waiting_rss_mb_max", "its memory, floor idle", "MB", Lower, Clock)
        .floor("floor_idle_rss_mb_max")
        .target(Of(100.0)),
    spec("drained_per_s", "the queue drains, floor unqueued", "jobs/s", Higher, Clock).floor("floor_unqueued_per_s"),
];
const HISTORY: &[Spec] = &[
    spec("list_of_5_p50_ms", "`jobs -n 5`", "ms", Lower, Clock).target(Of(15.0)),
    spec("start_ms", "start, floor without jobs", "ms", Lower, Clock).floor("start_empty_ms").target(Of(500.0)),
    spec("start_after_kill_ms", "start after a kill, floor without jobs", "ms", Lower, Clock)
        .floor("start_empty_ms")
        .target(Of(500.0)),
    spec("rss_bytes", "memory, floor without jobs", "B", Lower, Clock).floor("rss_empty_bytes").target(Ratio(1.1)),
    spec("ledger_bytes_per_job", "kept per job", "B", Lower, Count).target(Of(4_096.0)),
];

/// Jobs under way at once.
const AT_ONCE: [u16; 3] = [1, 8, 64];

fn step(name: &str, line: &str, figures: &'static [Spec]) -> Step {
    let args = line.split_whitespace().map(str::to_owned).collect();
    Step { name: name.to_owned(), args, older: None, optional: false, steady: true, figures }
}

/// All benches, in order; `quick` at the sizes of a test.
pub(super) fn all(quick: bool) -> Vec<Step> {
    let pick = |full, small| if quick { small } else { full };
    let mut steps = vec![
        step("tasks noop", &format!("tasks --runner noop --nodes 3 --tasks {}", pick(1_000_000, 2_000)), NOOP),
        step("tasks process", &format!("tasks --tasks {} -- true", pick(10_000, 40)), PROCESSES),
        step("tasks python", &format!("tasks --runner python --tasks {}", pick(40_000, 100)), PYTHON),
    ];
    steps.extend([1, 3].into_iter().flat_map(|nodes| AT_ONCE.map(|at_once| submit(nodes, at_once, quick))));
    let facts = format!("ledger --facts {} --jobs {}", pick(100_000, 800), pick(300_000, 1_000));
    let gossip = if quick { "gossip --nodes 3" } else { "gossip --nodes 30" };
    let idle = format!("idle --seconds {} --foreign {}", pick(60, 1), pick(2_000, 5));
    let waiting = format!("waiting --nodes 3 --jobs {} --seconds {}", pick(20_000, 10), pick(20, 1));
    steps.push(step("ledger", &facts, LEDGER));
    steps.push(step("blobs", if quick { "blobs --size 1MiB" } else { "blobs --size 1GiB" }, BLOBS));
    steps.push(step("gossip", gossip, GOSSIP));
    steps.push(step("idle", &idle, IDLE));
    steps.push(step("waiting", &waiting, WAITING));
    let history = step("history", &format!("history --jobs {}", pick(1_000_000, 20)), HISTORY);
    steps.push(Step { optional: true, ..history });
    steps
}

fn submit(nodes: u16, at_once: u16, quick: bool) -> Step {
    // Some seconds of each. One at a time as many as it takes until journals have their length, and segments are full.
    let jobs = match at_once {
        _ if quick => 20,
        1 => 3_000,
        8 => 4_000,
        _ => 10_000,
    };
    let line = format!("submit --nodes {nodes} --jobs {jobs}");
    let name = format!("submit, {nodes} node{}, {at_once} at once", if nodes == 1 { "" } else { "s" });
    let mut step = step(&name, &format!("{line} --at-once {at_once}"), SUBMIT);
    step.steady = at_once == 1;
    if at_once == 64 {
        // What it was before it could be said.
        step.older = Some(line.split(' ').map(str::to_owned).collect());
    }
    step
}

impl Step {
    /// The figures in what the bench printed, as far as they are there.
    pub(super) fn figures(&self, printed: &Value) -> Vec<Figure> {
        let number = |key: &str| printed.get(key).and_then(Value::as_f64).filter(|n| n.is_finite());
        let figure = |spec: &Spec| {
            let value = number(spec.key)?;
            let floor = spec.floor.and_then(number);
            Some(Figure {
                bench: self.name.clone(),
                name: spec.name.to_owned(),
                unit: spec.unit.to_owned(),
                value,
                floor,
                ratio: floor.filter(|floor| *floor != 0.0).map(|floor| value / floor),
                target: spec.target,
                better: spec.better,
                kind: if self.steady { spec.kind } else { Clock },
            })
        };
        self.figures.iter().filter_map(figure).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_step_is_a_command_line_of_this_program() {
        for quick in [false, true] {
            let mut names: Vec<String> = Vec::new();
            for step in all(quick).into_iter().filter(|step| !step.optional) {
                let line = ["sinew", "bench"].map(str::to_owned).into_iter().chain(step.args.clone());
                assert!(crate::cli::is_command(line), "{:?}", step.args);
                assert!(!names.contains(&step.name), "{} is there twice", step.name);
                names.push(step.name);
            }
        }
    }

    #[test]
    fn figures_have_floors_of_the_same_run_and_lack_what_was_not_printed() {
        let step = submit(3, 64, true);
        let printed = json!({ "p50_ms": 4.0, "fsync_floor_ms": 0.5, "messages_per_job": 9, "other": 1 });
        let figures = step.figures(&printed);
        assert_eq!(figures.len(), 2);
        assert_eq!((figures[0].floor, figures[0].ratio), (Some(0.5), Some(8.0)));
        assert_eq!((figures[1].value, figures[1].kind), (9.0, Clock), "it depends on what travels together");
        assert_eq!(submit(3, 1, true).figures(&printed)[1].kind, Count);
        assert_eq!(step.older.expect("older").join(" "), "submit --nodes 3 --jobs 20");
    }
}
