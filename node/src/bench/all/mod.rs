//! `sinew bench all`: every bench, one after the other, each run by a program of its own, so that an earlier build can be
//! measured by turns with this one. Prints a table, and one beside an earlier run; writes JSON and the documentation's page.

mod compare;
mod figure;
mod page;
mod steps;
mod table;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context;
use serde_json::Value;
use tokio::process::Command;

use self::figure::{Conditions, Figure, Report, human};
use self::steps::Step;

/// What a command line that is not understood exits with.
const USAGE: i32 = 2;

/// What to run, and what to do with the figures.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) quick: bool,
    pub(super) out: Option<PathBuf>,
    pub(super) against: Option<PathBuf>,
    pub(super) beside: Option<PathBuf>,
    pub(super) page: Option<PathBuf>,
    pub(super) commit: Option<String>,
    /// Only benches whose names begin so.
    pub(super) only: Option<String>,
}

/// Runs all benches. The exit code is 1 if one failed or, unless it is quick, a count grew by
/// more than a tenth.
pub(super) async fn run(options: Options, json: bool) -> anyhow::Result<u8> {
    // Before half an hour of work, not after.
    let earlier = options.against.as_deref().map(read).transpose()?;
    let own = std::env::current_exe()?;
    let conditions = Conditions::now(options.commit.clone(), options.quick);
    let mut report = Report { conditions, figures: Vec::new(), failed: Vec::new(), beside: Vec::new() };
    let mut steps = steps::all(options.quick);
    steps.retain(|step| options.only.as_deref().is_none_or(|only| step.name.starts_with(only)));
    anyhow::ensure!(!steps.is_empty(), "no bench has a name that begins with {:?}", options.only);
    for (number, step) in steps.iter().enumerate() {
        eprintln!("bench {}", step.args.join(" "));
        // By turns, and each first as often: what the machine does meanwhile hits both alike.
        let other_first = number % 2 == 1;
        if let (true, Some(other)) = (other_first, &options.beside) {
            report.beside.extend(of_other(other, step).await);
        }
        match figures(&own, step, &step.args).await {
            Ok(figures) => report.figures.extend(figures),
            Err(Failed::Unknown) if step.optional => {}
            Err(failed) => {
                eprintln!("bench {} failed: {failed}", step.name);
                report.failed.push((step.name.clone(), failed.to_string()));
            }
        }
        if let (false, Some(other)) = (other_first, &options.beside) {
            report.beside.extend(of_other(other, step).await);
        }
    }
    finish(&options, &report, earlier.as_ref(), json)
}

fn read(path: &Path) -> anyhow::Result<Report> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not what `bench all --out` writes", path.display()))
}

/// Why a bench gave no figures.
#[derive(Debug, thiserror::Error)]
enum Failed {
    /// The program does not know it.
    #[error("this program does not know that bench")]
    Unknown,
    /// It ran and did not end well.
    #[error("{0}")]
    Ended(String),
    /// It could not be run.
    #[error("the program does not run: {0}")]
    Run(#[from] std::io::Error),
    /// What it printed is not JSON.
    #[error("it printed no figures: {0}")]
    Printed(#[from] serde_json::Error),
}

async fn figures(program: &Path, step: &Step, args: &[String]) -> Result<Vec<Figure>, Failed> {
    let mut command = Command::new(program);
    // Before the bench's own arguments: one of them may end the options.
    command.args(["--json", "bench"]).args(args).stdin(Stdio::null()).kill_on_drop(true);
    let done = command.output().await?;
    if done.status.code() == Some(USAGE) {
        return Err(Failed::Unknown);
    }
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        return Err(Failed::Ended(format!("{}; it said: {}", done.status, said.trim())));
    }
    let printed: Value = serde_json::from_slice(&done.stdout)?;
    Ok(step.figures(&printed))
}

/// Figures of another program, as far as it knows the bench.
async fn of_other(program: &Path, step: &Step) -> Vec<Figure> {
    let mut found = figures(program, step, &step.args).await;
    if let (Err(Failed::Unknown), Some(older)) = (&found, &step.older) {
        found = figures(program, step, older).await;
    }
    found.unwrap_or_else(|why| {
        eprintln!("{}: no figures of {}: {why}", program.display(), step.name);
        Vec::new()
    })
}

fn finish(options: &Options, report: &Report, earlier: Option<&Report>, json: bool) -> anyhow::Result<u8> {
    let text = serde_json::to_string_pretty(report)?;
    if let Some(out) = &options.out {
        std::fs::write(out, &text).with_context(|| format!("cannot write {}", out.display()))?;
    }
    let mut losses = 0;
    let mut tables = own_table(report);
    if let Some(other) = &options.beside {
        let (table, lost) = compare::beside(&report.beside, &report.figures);
        let lost = if report.conditions.quick { 0 } else { lost };
        tables += &format!("\nbeside {}, by turns\n{table}", other.display());
        losses += lost;
    }
    if let (Some(earlier), Some(path)) = (earlier, &options.against) {
        let (table, lost) = compare::beside(&earlier.figures, &report.figures);
        let c = &earlier.conditions;
        let load = c.load_average;
        tables += &format!("\nagainst {}: {}, commit {}, load {load:.2}\n{table}", path.display(), c.date, c.commit);
        if !c.quick && !report.conditions.quick {
            losses += lost;
        } else {
            tables +=
                "One of the two runs is a quick one, too short for counts to be steady: no loss fails this run.\n";
        }
        if c.debug_build != report.conditions.debug_build {
            tables += "One of the two programs was built without optimisation.\n";
        }
    }
    if json {
        println!("{text}");
    } else {
        print!("{tables}");
    }
    if let Some(page) = &options.page {
        page::write(page, report).with_context(|| format!("{} stays as it is", page.display()))?;
    }
    Ok(u8::from(losses > 0 || !report.failed.is_empty()))
}

fn own_table(report: &Report) -> String {
    let optional = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), human);
    let row = |f: &Figure| {
        let met = f.met().map_or("", |met| if met { "met" } else { "missed" });
        let (floor, ratio) = (optional(f.floor), optional(f.ratio));
        vec![f.bench.clone(), f.name.clone(), f.unit.clone(), human(f.value), floor, ratio, met.to_owned()]
    };
    let rows: Vec<Vec<String>> = report.figures.iter().map(row).collect();
    table::lines(&["bench", "figure", "unit", "value", "floor", "ratio", "target"], &rows)
}
