//! What a run says about itself, for people and for programs.

use std::fmt;

use serde_json::{Value, json};
use sinew_crdt_state::ids::Hash;
use sinew_scheduler::time::Span;

use crate::nemesis::FiredByClass;

/// The figures of one run that held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Where it came from.
    pub seed: u64,
    /// Machines.
    pub nodes: usize,
    /// How much virtual time went by.
    pub virtual_time: Span,
    /// Jobs handed to some node.
    pub jobs_submitted: u64,
    /// Of these, acknowledged: they must end.
    pub jobs_acknowledged: u64,
    /// Acknowledged to their submitter and completed.
    pub jobs_completed: u64,
    /// Acknowledged to their submitter and failed or cancelled.
    pub jobs_ended_otherwise: u64,
    /// Refused, or due while no node was up.
    pub jobs_refused: u64,
    /// Attempts.
    pub tasks_started: u64,
    /// Attempts that ended well although an earlier one of the same task had.
    pub tasks_run_again: u64,
    /// Tasks that ran in two places at once although they were meant to run once.
    pub double_starts: u64,
    /// From submitting a job to the start of its first task, sorted.
    pub starts: Vec<Span>,
    /// Frames sent from node to node.
    pub frames: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Events handled.
    pub events: u64,
    /// Offences of liars that somebody reported.
    pub caught: u64,
    /// From the last fault's end until everything had ended and all ledgers were equal.
    pub converged: Span,
    /// How often each class of faults really fired.
    pub fired: FiredByClass,
    /// A hash over everything that happened.
    pub trace: Hash,
}

impl Report {
    /// The start latency that so many of 100 jobs stay within.
    #[must_use]
    pub fn start_percentile(&self, percent: usize) -> Option<Span> {
        let last = self.starts.len().checked_sub(1)?;
        self.starts.get(last * percent.min(100) / 100).copied()
    }

    /// Frames per acknowledged job.
    #[must_use]
    pub fn frames_per_job(&self) -> f64 {
        self.frames as f64 / self.jobs_acknowledged.max(1) as f64
    }

    /// As JSON: all times in ms.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let ms = |span: Span| span.0 as f64 / 1e3;
        let fired: serde_json::Map<String, Value> = self
            .fired
            .iter()
            .map(|(class, fired)| (class.to_string(), json!({"struck": fired.struck, "felt": fired.felt})))
            .collect();
        json!({
            "seed": self.seed,
            "nodes": self.nodes,
            "virtual_ms": ms(self.virtual_time),
            "jobs": {
                "submitted": self.jobs_submitted,
                "acknowledged": self.jobs_acknowledged,
                "completed": self.jobs_completed,
                "ended_otherwise": self.jobs_ended_otherwise,
                "refused": self.jobs_refused,
            },
            "tasks": {
                "started": self.tasks_started,
                "run_again": self.tasks_run_again,
                "double_starts": self.double_starts,
            },
            "start_latency_ms": {
                "p50": self.start_percentile(50).map(ms),
                "p99": self.start_percentile(99).map(ms),
            },
            "frames": self.frames,
            "bytes": self.bytes,
            "frames_per_job": self.frames_per_job(),
            "frames_per_node": self.frames as f64 / self.nodes as f64,
            "bytes_per_job": self.bytes as f64 / self.jobs_acknowledged.max(1) as f64,
            "bytes_per_node": self.bytes as f64 / self.nodes as f64,
            "events": self.events,
            "liars_caught": self.caught,
            "converged_ms": ms(self.converged),
            "faults": fired,
            "trace": self.trace.to_string(),
        })
    }

    /// The first line of [`Self::csv_row`]'s table.
    pub const CSV_HEAD: &str = "seed,nodes,virtual_ms,acknowledged,completed,run_again,double_starts,start_p50_ms,\
                                start_p99_ms,frames,bytes,frames_per_job,frames_per_node,converged_ms,trace";

    /// One line of a table of runs.
    #[must_use]
    pub fn csv_row(&self) -> String {
        let ms = |span: Span| span.0 as f64 / 1e3;
        let start = |percent| self.start_percentile(percent).map_or(String::new(), |s| ms(s).to_string());
        format!(
            "{},{},{},{},{},{},{},{},{},{},{},{:.1},{:.1},{},{}",
            self.seed,
            self.nodes,
            ms(self.virtual_time),
            self.jobs_acknowledged,
            self.jobs_completed,
            self.tasks_run_again,
            self.double_starts,
            start(50),
            start(99),
            self.frames,
            self.bytes,
            self.frames_per_job(),
            self.frames as f64 / self.nodes as f64,
            ms(self.converged),
            self.trace
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |span: Option<Span>| span.map_or_else(|| "-".to_owned(), |s| format!("{:.1} ms", s.0 as f64 / 1e3));
        let s = |span: Span| span.0 as f64 / 1e6;
        writeln!(f, "seed {}: {} nodes, {:.1} virtual seconds", self.seed, self.nodes, s(self.virtual_time))?;
        writeln!(
            f,
            "jobs       {} acknowledged of {}, {} completed, {} ended otherwise, {} refused",
            self.jobs_acknowledged,
            self.jobs_submitted,
            self.jobs_completed,
            self.jobs_ended_otherwise,
            self.jobs_refused
        )?;
        writeln!(
            f,
            "tasks      {} started, {} run again, {} double starts",
            self.tasks_started, self.tasks_run_again, self.double_starts
        )?;
        let (p50, p99) = (self.start_percentile(50), self.start_percentile(99));
        writeln!(f, "start      p50 {}, p99 {}", ms(p50), ms(p99))?;
        writeln!(
            f,
            "messages   {} ({:.1} a job, {:.1} a node), {} bytes",
            self.frames,
            self.frames_per_job(),
            self.frames as f64 / self.nodes as f64,
            self.bytes
        )?;
        writeln!(f, "converged  {:.1} s after the faults", s(self.converged))?;
        for (class, fired) in &self.fired {
            writeln!(f, "fault      {class}: {} times, felt {}", fired.struck, fired.felt)?;
        }
        writeln!(f, "trace      {}", self.trace)
    }
}
