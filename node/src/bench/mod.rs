//! `sinew bench`: figures of this version on this machine, each beside a floor measured in the same run.

mod all;
mod blobs;
mod compare;
mod counts;
mod gossip;
mod history;
mod idle;
pub(crate) mod ledger;
mod meter;
mod python;
mod submit;
mod tasks;
mod waiting;

use serde_json::Value;

use crate::cli::bench::{BenchArgs, BenchRunner};

/// Runs one benchmark and prints its figures; returns the exit code.
///
/// # Errors
/// Whatever went wrong, in words.
pub async fn run(args: BenchArgs, json: bool) -> anyhow::Result<u8> {
    let report = match args {
        BenchArgs::SimVsReal { nodes, jobs, rate, adverts, idle } => {
            let idle = std::time::Duration::from_secs(u64::from(idle));
            return compare::run(compare::Experiment { nodes: usize::from(nodes), adverts, jobs, rate, idle }, json)
                .await;
        }
        BenchArgs::All { quick, out, against, beside, page, commit, only } => {
            return all::run(all::Options { quick, out, against, beside, page, commit, only }, json).await;
        }
        BenchArgs::Idle { seconds, foreign } => idle::run(seconds, foreign).await?,
        BenchArgs::Waiting { nodes, jobs, seconds } => waiting::run(usize::from(nodes), jobs, seconds).await?,
        BenchArgs::Tasks { nodes, tasks, runner, command } => {
            let process = runner == Some(BenchRunner::Process) || !command.is_empty();
            if process {
                tasks::processes(tasks, command).await?
            } else if runner == Some(BenchRunner::Python) {
                python::run(tasks).await?
            } else {
                tasks::noop(usize::from(nodes), tasks).await?
            }
        }
        BenchArgs::Submit { jobs, rate, nodes, at_once } => {
            submit::run(usize::from(nodes), submit::Load { jobs, at_once: u32::from(at_once), rate }).await?
        }
        BenchArgs::Ledger { facts, jobs } => tokio::task::spawn_blocking(move || ledger::run(facts, jobs)).await??,
        BenchArgs::History { jobs } => history::run(u64::from(jobs)).await?,
        BenchArgs::Blobs { size } => blobs::run(size).await?,
        BenchArgs::Gossip { nodes } => gossip::run(usize::from(nodes)).await?,
    };
    if json {
        println!("{report}");
    } else {
        print_lines(&report);
    }
    Ok(0)
}

/// One figure a line, names aligned.
fn print_lines(report: &Value) {
    let Some(figures) = report.as_object() else { return };
    let width = figures.keys().map(String::len).max().unwrap_or(0);
    for (name, value) in figures {
        let text = match value {
            Value::Number(n) => n.as_f64().map_or_else(|| n.to_string(), human),
            other => other.as_str().map_or_else(|| other.to_string(), str::to_owned),
        };
        println!("{:width$}  {text}", name.replace('_', " "));
    }
}

fn human(value: f64) -> String {
    if value.fract() == 0.0 || value.abs() >= 1_000.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}
