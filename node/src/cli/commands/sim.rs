//! `sinew sim`: the production scheduler and ledger in virtual time. Needs no daemon and touches nothing but `--out`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use sinew_simnet::cli as sim;
use sinew_simnet::run::{Failure, InvalidOptions, Options, Report, run, shrink};

use super::super::error::{CliError, EXIT_FAILED};
use super::super::ui::Ui;
use super::file_error;

/// Runs that making a failing one smaller may take.
const SHRINK_RUNS_MAX: usize = 60;
/// Lines of a failing run's log that are shown.
const LOG_LINES: usize = 60;

/// What is simulated. The values are read, and refused, by the simulator itself.
#[derive(Debug, Args)]
pub(crate) struct SimArgs {
    /// Where all chance comes from: the same number gives the same run
    #[arg(long, value_name = "N", conflicts_with = "seeds")]
    seed: Option<String>,
    /// All seeds from A up to, not including, B
    #[arg(long, value_name = "A..B")]
    seeds: Option<String>,
    /// Machines of two cores, 1 to 20,000 [default: 5]
    #[arg(long, value_name = "COUNT")]
    nodes: Option<String>,
    /// Jobs, evenly over the duration [default: 40]
    #[arg(long, value_name = "COUNT")]
    jobs: Option<String>,
    /// How long jobs come and faults strike, in virtual time [default: 34s]
    #[arg(long, value_name = "TIME")]
    duration: Option<String>,
    /// One-way delays: lan, wan or geo [default: lan]
    #[arg(long, value_name = "NAME")]
    latency: Option<String>,
    /// jobs, rounds or mixed [default: mixed]
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// Share of the nodes that leaves in an hour, such as 5%/h
    #[arg(long, value_name = "SHARE")]
    churn: Option<String>,
    /// Classes of faults, with commas; also all, honest, byzantine, none
    #[arg(long, value_name = "NAMES")]
    faults: Option<String>,
    /// Only the faults of these numbers: what a shrunk run has left
    #[arg(long, value_name = "NUMBERS")]
    strikes: Option<String>,
    /// One run for each size: nodes=10,100,1000
    #[arg(long, value_name = "nodes=LIST", conflicts_with = "nodes")]
    sweep: Option<String>,
    /// Write runs.csv and runs.jsonl into this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(crate) fn sim(ui: Ui, args: &SimArgs) -> Result<u8, CliError> {
    let plans = args.plans().map_err(|e| CliError::Simulation(Box::new(e)))?;
    if let Some(out) = &args.out {
        std::fs::create_dir_all(out).map_err(file_error("create", out))?;
    }
    let mut done = Vec::new();
    let mut failed = 0;
    for options in &plans {
        match run(options) {
            Ok(report) => {
                ui.show(&report.to_json(), || format!("{report}\n"))?;
                done.push(report);
            }
            Err(failure) => {
                failed += 1;
                tell(ui, options, &failure)?;
            }
        }
    }
    if let Some(out) = &args.out {
        write_tables(out, &done)?;
    }
    if plans.len() > 1 && !ui.json {
        ui.print(&format!("{} runs, {failed} failed\n", plans.len()))?;
    }
    Ok(if failed == 0 { 0 } else { EXIT_FAILED })
}

/// What failed, and the commands that show it again.
fn tell(ui: Ui, options: &Options, failure: &Failure) -> Result<(), CliError> {
    let small = shrink(options, SHRINK_RUNS_MAX, |o| run(o).is_err()).options;
    let object = json!({
        "failed": failure.what, "at_ms": failure.at.as_ms(), "trace": failure.trace.to_string(),
        "again": options.command(), "smaller": small.command(),
    });
    ui.show(&object, || {
        let lines: Vec<&str> = failure.log.lines().collect();
        let log = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        let (what, at) = (&failure.what, failure.at.as_ms());
        format!("{log}\nFAILED at {at} ms: {what}\nagain:   {}\nsmaller: {}\n", options.command(), small.command())
    })
}

fn write_tables(out: &Path, reports: &[Report]) -> Result<(), CliError> {
    let mut csv = format!("{}\n", Report::CSV_HEAD);
    let mut lines = String::new();
    for report in reports {
        let _ = writeln!(csv, "{}", report.csv_row());
        let _ = writeln!(lines, "{}", report.to_json());
    }
    for (name, text) in [("runs.csv", csv), ("runs.jsonl", lines)] {
        let path = out.join(name);
        std::fs::write(&path, text).map_err(file_error("write", &path))?;
    }
    Ok(())
}

impl SimArgs {
    /// One description for each run.
    fn plans(&self) -> Result<Vec<Options>, InvalidOptions> {
        let given = [
            ("--seed", &self.seed),
            ("--nodes", &self.nodes),
            ("--jobs", &self.jobs),
            ("--duration", &self.duration),
            ("--latency", &self.latency),
            ("--workload", &self.workload),
            ("--churn", &self.churn),
            ("--faults", &self.faults),
            ("--strikes", &self.strikes),
        ];
        let common: Vec<(&str, String)> = given.into_iter().filter_map(|(n, v)| Some((n, v.clone()?))).collect();
        let sizes = self.sweep.as_deref().map(sizes).transpose()?;
        let seeds = self.seeds.as_deref().map(seeds).transpose()?;
        let mut plans = Vec::new();
        for size in sizes.map_or_else(|| vec![None], |sizes| sizes.into_iter().map(Some).collect()) {
            for seed in seeds.clone().map_or_else(|| vec![None], |seeds| seeds.map(Some).collect()) {
                let more = [("--nodes", size.clone()), ("--seed", seed.map(|s: u64| s.to_string()))];
                let more = more.into_iter().filter_map(|(n, v)| Some((n, v?)));
                let words = common.iter().cloned().chain(more).flat_map(|(n, v)| [n.to_owned(), v]);
                plans.push(sim::parse(&words.collect::<Vec<_>>())?);
            }
        }
        Ok(plans)
    }
}

fn sizes(text: &str) -> Result<Vec<String>, InvalidOptions> {
    let list = text.strip_prefix("nodes=").filter(|list| !list.is_empty());
    let list =
        list.ok_or_else(|| bad("--sweep", text, "write nodes= and sizes with commas, such as nodes=10,100,1000"))?;
    Ok(list.split(',').map(|size| size.trim().to_owned()).collect())
}

fn seeds(text: &str) -> Result<std::ops::Range<u64>, InvalidOptions> {
    let ends = text.split_once("..").and_then(|(a, b)| Some(a.trim().parse().ok()?..b.trim().parse().ok()?));
    let range = ends.filter(|range: &std::ops::Range<u64>| !range.is_empty());
    range.ok_or_else(|| bad("--seeds", text, "write the first and the one after the last, such as 1..201"))
}

fn bad(field: &'static str, value: &str, mend: &str) -> InvalidOptions {
    InvalidOptions { field, value: value.to_owned(), mend: mend.to_owned() }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: SimArgs,
    }

    fn plans(line: &str) -> Result<Vec<Options>, InvalidOptions> {
        Line::try_parse_from(["sim"].into_iter().chain(line.split_whitespace())).expect("flags").args.plans()
    }

    #[test]
    fn seeds_and_sizes_become_runs() {
        let all = plans("--seeds 3..5 --sweep nodes=10,20 --faults crash").expect("plans");
        let found: Vec<(usize, u64)> = all.iter().map(|o| (o.nodes, o.seed)).collect();
        assert_eq!(found, [(10, 3), (10, 4), (20, 3), (20, 4)]);
        assert_eq!(plans("").expect("plans"), [Options::default()]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_field_and_value() {
        for (line, field, value) in [
            ("--seeds 5..5", "--seeds", "5..5"),
            ("--seeds many", "--seeds", "many"),
            ("--sweep 10,20", "--sweep", "10,20"),
            ("--sweep nodes=10,x", "--nodes", "x"),
            ("--faults meteor", "--faults", "meteor"),
            ("--nodes 1 --faults partition", "--faults", "partition"),
        ] {
            let error = plans(line).expect_err(line);
            assert_eq!((error.field, error.value.as_str()), (field, value), "{line}");
        }
    }
}
