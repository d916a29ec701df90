//! `sinew sim`: the production scheduler and ledger in virtual time. Needs no daemon and touches nothing but `--out`.

mod out;
mod pool;

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use sinew_simnet::cli as sim;
use sinew_simnet::run::{Failure, Growth, InvalidOptions, Options};

use self::out::Out;
use self::pool::{Ended, run_all, threads};
use super::super::error::{CliError, EXIT_FAILED};
use super::super::ui::Ui;

/// Lines of a failing run's log that are shown.
const LOG_LINES: usize = 60;

/// `-v` said so often prints every message of a single run.
const MESSAGES_FROM: u8 = 2;

/// What is simulated. The values are read, and refused, by the simulator itself.
#[derive(Debug, Args)]
pub(crate) struct SimArgs {
    /// Where all chance comes from: the same number gives the same run
    #[arg(long, value_name = "N")]
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
    /// The links: lan, wan or geo [default: lan]
    #[arg(long, value_name = "NAME")]
    latency: Option<String>,
    /// jobs, rounds, mixed or clients [default: mixed]
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
    #[arg(long, value_name = "nodes=LIST")]
    sweep: Option<String>,
    /// Runs at once [default: one for each core]
    #[arg(long, value_name = "COUNT")]
    threads: Option<String>,
    /// Write tables, plots and failures into this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(crate) fn sim(ui: Ui, args: &SimArgs) -> Result<u8, CliError> {
    let refused = |error| CliError::Simulation(Box::new(error));
    let mut plans = args.plans().map_err(refused)?;
    if let [plan] = &mut plans[..] {
        plan.verbose = ui.verbose >= MESSAGES_FROM;
    }
    let threads = threads(args.threads.as_deref()).map_err(refused)?;
    let mut out = args.out.as_deref().map(Out::open).transpose().map_err(refused)?;
    let (mut held, mut failed) = (Vec::new(), 0);
    run_all(&plans, threads, |options, ended| {
        match ended {
            Ended::Held(report) => {
                ui.show(&report.to_json(), || if plans.len() > 1 { report.line() + "\n" } else { report.to_string() })?;
                held.push(*report);
            }
            Ended::Failed { failure, smaller } => {
                failed += 1;
                let object = failed_json(options, &failure, &smaller);
                ui.show(&object, || failed_text(options, &failure, &smaller))?;
                out.as_mut().map_or(Ok(()), |out| out.failed(&object))?;
            }
        }
        Ok::<(), CliError>(())
    })?;
    if let Some(out) = &out {
        out.write(&held)?;
    }
    if plans.len() > 1 && !ui.json {
        let growth = Growth::of(&held).map_or_else(String::new, |growth| growth.to_string());
        ui.print(&format!("{growth}{} runs, {failed} failed\n", plans.len()))?;
    }
    Ok(if failed == 0 { 0 } else { EXIT_FAILED })
}

/// What failed, and the commands that show it again.
fn failed_json(options: &Options, failure: &Failure, smaller: &Options) -> Value {
    json!({
        "failed": failure.what, "at_ms": failure.at.as_ms(), "trace": failure.trace.to_string(),
        "again": options.command(), "smaller": smaller.command(),
    })
}

fn failed_text(options: &Options, failure: &Failure, smaller: &Options) -> String {
    let lines: Vec<&str> = failure.log.lines().collect();
    let log = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
    let (what, at) = (&failure.what, failure.at.as_ms());
    format!("{log}\nFAILED at {at} ms: {what}\nagain:   {}\nsmaller: {}\n", options.command(), smaller.command())
}

impl SimArgs {
    /// One description for each run.
    fn plans(&self) -> Result<Vec<Options>, InvalidOptions> {
        let given = [
            ("--seed", &self.seed),
            ("--seeds", &self.seeds),
            ("--nodes", &self.nodes),
            ("--jobs", &self.jobs),
            ("--duration", &self.duration),
            ("--latency", &self.latency),
            ("--workload", &self.workload),
            ("--churn", &self.churn),
            ("--faults", &self.faults),
            ("--strikes", &self.strikes),
            ("--sweep", &self.sweep),
        ];
        let words = given.into_iter().filter_map(|(name, value)| Some([name.to_owned(), value.clone()?])).flatten();
        sim::plans(&words.collect::<Vec<_>>())
    }
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
    fn every_flag_reaches_the_simulator() {
        let line = "--seeds 3..5 --sweep nodes=10,20 --jobs 7 --duration 9s --latency geo --workload jobs --churn 5%/h \
                    --faults crash --strikes 1,2";
        let all = plans(line).expect("plans");
        let found: Vec<(usize, u64)> = all.iter().map(|o| (o.nodes, o.seed)).collect();
        assert_eq!(found, [(10, 3), (10, 4), (20, 3), (20, 4)]);
        let command = all[0].command();
        assert_eq!(
            command,
            "sinew sim --seed 3 --nodes 10 --jobs 7 --duration 9000ms --latency geo --workload jobs --churn 5%/h \
             --faults crash,churn --strikes 1,2"
        );
        let own = command.strip_prefix("sinew sim ").expect("a command");
        assert_eq!(plans(own).expect("it reads back"), all[..1]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_field_and_value() {
        for (line, field, value) in [
            ("--seeds many", "--seeds", "many"),
            ("--seed 1 --seeds 1..3", "--seeds", "1..3"),
            ("--sweep nodes=10,x", "--sweep", "nodes=10,x"),
            ("--faults meteor", "--faults", "meteor"),
            ("--nodes 1 --faults partition", "--faults", "partition"),
        ] {
            let error = plans(line).expect_err(line);
            assert_eq!((error.field, error.value.as_str()), (field, value), "{line}");
        }
    }
}
