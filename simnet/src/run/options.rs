//! What a run is made of, what of that is possible, and the command that repeats it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use sinew_scheduler::time::Span;

use crate::nemesis::Class;
use crate::network::Preset;

/// Of this many nodes one lies, when any does.
const LIARS_ONE_OF: usize = 10;
/// With fewer nodes than this a liar would be in every brain set that matters.
const LIAR_NODES_MIN: usize = 4;
/// The largest mesh that a run's memory is meant for.
const NODES_MAX: usize = 20_000;

/// What is submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// Single tasks of 100 ms.
    Jobs,
    /// Map-reduce rounds of 2 to 24 chunks and 3 partitions.
    Rounds,
    /// Batches of 1 to 12 tasks, and every fourth job a round.
    Mixed,
    /// The same from clients who try again under keys and cancel.
    Clients,
}

/// Everything that a run follows from.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Where all chance comes from.
    pub seed: u64,
    /// Machines, of two cores each.
    pub nodes: usize,
    /// Jobs, submitted evenly over the duration.
    pub jobs: u32,
    /// How long jobs come and faults strike. The run goes on until everything has ended.
    pub duration: Span,
    /// The links: their delays, losses and bandwidth.
    pub latency: Preset,
    /// What the jobs are.
    pub workload: Workload,
    /// Of the nodes, the share that leaves in an hour, in percent.
    pub churn_percent_per_hour: f64,
    /// The classes of faults that strike.
    pub faults: BTreeSet<Class>,
    /// Only strikes of these numbers, when given: what is left after shrinking.
    pub strikes: Option<BTreeSet<u32>>,
    /// Whether every message is printed.
    pub verbose: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            nodes: 5,
            jobs: 40,
            duration: Span::ms(34_000),
            latency: Preset::Lan,
            workload: Workload::Mixed,
            churn_percent_per_hour: 0.0,
            faults: BTreeSet::new(),
            strikes: None,
            verbose: false,
        }
    }
}

/// A value that no run can have, or two that no run can have together: field, value, and what would do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} `{value}`: {mend}")]
pub struct InvalidOptions {
    /// Which.
    pub field: &'static str,
    /// As given.
    pub value: String,
    /// What to write instead.
    pub mend: String,
}

impl Options {
    /// # Errors
    /// The first thing about these options that cannot be.
    pub fn check(&self) -> Result<(), InvalidOptions> {
        let bad = |field, value: String, mend: &str| Err(InvalidOptions { field, value, mend: mend.to_owned() });
        if self.nodes == 0 || self.nodes > NODES_MAX {
            return bad("--nodes", self.nodes.to_string(), &format!("write a number from 1 to {NODES_MAX}"));
        }
        if self.jobs == 0 {
            return bad("--jobs", "0".to_owned(), "a run without jobs says nothing: write 1 or more");
        }
        if self.duration.0 == 0 {
            return bad("--duration", "0".to_owned(), "write how long jobs come, such as 60s");
        }
        if let Some(class) = self.faults.iter().find(|c| c.is_byzantine() && self.nodes < LIAR_NODES_MIN) {
            let mend = format!("needs a liar among honest nodes: --nodes {LIAR_NODES_MIN} or more");
            return bad("--faults", class.to_string(), &mend);
        }
        if let Some(class) = self.faults.iter().find(|c| c.needs_peers() && self.nodes < 2) {
            return bad("--faults", class.to_string(), "needs a link: --nodes 2 or more");
        }
        let churns = self.churn_percent_per_hour > 0.0;
        if self.faults.contains(&Class::Churn) != churns {
            let mend = "churn is a fault with a rate: give both `--churn 5%/h` and the fault `churn`, or neither";
            return bad("--churn", format!("{}%/h", self.churn_percent_per_hour), mend);
        }
        Ok(())
    }

    /// How many nodes lie.
    pub(crate) fn liars(&self) -> usize {
        if self.faults.iter().any(|c| c.is_byzantine()) { (self.nodes / LIARS_ONE_OF).max(1) } else { 0 }
    }

    /// Nodes that leave, each second, in the whole mesh.
    pub(crate) fn churn_per_s(&self) -> f64 {
        self.churn_percent_per_hour / 100.0 / 3_600.0 * self.nodes as f64
    }

    /// The one command that runs just this again.
    #[must_use]
    pub fn command(&self) -> String {
        let mut text = format!(
            "sinew sim --seed {} --nodes {} --jobs {} --duration {}ms --latency {} --workload {}",
            self.seed,
            self.nodes,
            self.jobs,
            self.duration.as_ms(),
            self.latency,
            self.workload
        );
        if self.churn_percent_per_hour > 0.0 {
            text += &format!(" --churn {}%/h", self.churn_percent_per_hour);
        }
        if !self.faults.is_empty() {
            text += &format!(" --faults {}", comma(self.faults.iter()));
        }
        if let Some(strikes) = &self.strikes {
            text += &format!(" --strikes {}", comma(strikes.iter()));
        }
        text
    }
}

fn comma<T: fmt::Display>(all: impl Iterator<Item = T>) -> String {
    all.map(|t| t.to_string()).collect::<Vec<_>>().join(",")
}

impl Workload {
    const ALL: [(Self, &'static str); 4] =
        [(Self::Jobs, "jobs"), (Self::Rounds, "rounds"), (Self::Mixed, "mixed"), (Self::Clients, "clients")];
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL[*self as usize].1)
    }
}

impl FromStr for Workload {
    type Err = InvalidOptions;

    fn from_str(text: &str) -> Result<Self, InvalidOptions> {
        Self::ALL.iter().find(|w| w.1 == text).map(|w| w.0).ok_or_else(|| InvalidOptions {
            field: "--workload",
            value: text.to_owned(),
            mend: "write jobs, rounds, mixed or clients".to_owned(),
        })
    }
}
