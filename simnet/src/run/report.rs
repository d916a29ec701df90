//! What a run says about itself, for people and for programs. The table of many runs is in `table`.

use std::fmt;

use serde_json::{Map, Value, json};
use sinew_crdt_state::ids::Hash;
use sinew_scheduler::kind::Family;
use sinew_scheduler::time::Span;

use crate::nemesis::FiredByClass;
use crate::traffic::{Sent, Traffic};

/// The figures of one run that held. Traffic and events count from the first job's time on; what forming the mesh took is
/// apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The one command that runs just this again.
    pub command: String,
    /// Where it came from.
    pub seed: u64,
    /// Machines.
    pub nodes: usize,
    /// How much virtual time went by, from the first job's time until rest.
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
    /// From submitting a job to its seal as the first node saw it, completed jobs only, sorted.
    pub completions: Vec<Span>,
    /// When jobs were submitted, from the beginning, sorted.
    pub submitted_at: Vec<Span>,
    /// When jobs had completed, from the beginning, sorted.
    pub completed_at: Vec<Span>,
    /// Frames sent from node to node: one may hold several messages.
    pub frames: u64,
    /// Messages and their bytes by kind, gossip by copy.
    pub traffic: Traffic,
    /// All that was sent before the first job, while nodes got acquainted.
    pub forming: Sent,
    /// Adverts that brains published; the traffic has their copies.
    pub adverts: u64,
    /// Copies of gossip that reached nodes that had it; they are part of the traffic.
    pub gossip_duplicates: u64,
    /// Gossipsub's own announcements, requests, grafts and prunes; they are not part of the traffic.
    pub gossip_control: u64,
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

/// The time that so many percent of `sorted` stay within.
#[must_use]
pub fn percentile(sorted: &[Span], percent: usize) -> Option<Span> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get(last * percent.min(100) / 100).copied()
}

pub(crate) fn ms(span: Span) -> f64 {
    span.0 as f64 / 1e3
}

impl Report {
    /// Of a count, the share of one acknowledged job.
    #[must_use]
    pub fn per_job(&self, count: u64) -> f64 {
        count as f64 / self.jobs_acknowledged.max(1) as f64
    }

    /// Of a count, the share of one node in one second.
    #[must_use]
    pub fn per_node_s(&self, count: u64) -> f64 {
        count as f64 / self.nodes.max(1) as f64 / (self.virtual_time.0.max(1) as f64 / 1e6)
    }

    /// The run in one line, for lists of many.
    #[must_use]
    pub fn line(&self) -> String {
        let start = percentile(&self.starts, 99).map_or("-".to_owned(), |t| format!("{:.1} ms", ms(t)));
        let felt: u64 = self.fired.values().map(|fired| fired.felt).sum();
        format!(
            "seed {}: {} nodes, {} of {} jobs completed, start p99 {start}, {felt} faults felt, trace {}",
            self.seed,
            self.nodes,
            self.jobs_completed,
            self.jobs_submitted,
            &self.trace.to_string()[..8]
        )
    }

    /// As JSON: all times in ms.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let sent = |sent: Sent| json!({"messages": sent.messages, "bytes": sent.bytes});
        let fired: Map<String, Value> = self
            .fired
            .iter()
            .map(|(class, fired)| (class.to_string(), json!({"struck": fired.struck, "felt": fired.felt})))
            .collect();
        let families: Map<String, Value> =
            Family::ALL.into_iter().map(|f| (f.name().to_owned(), sent(self.traffic.family(f)))).collect();
        let kinds: Map<String, Value> = self.traffic.kinds().map(|(k, s)| (k.name().to_owned(), sent(s))).collect();
        let total = self.traffic.total();
        let times = |of: &[Span]| json!({"p50": percentile(of, 50).map(ms), "p99": percentile(of, 99).map(ms)});
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
            "start_latency_ms": times(&self.starts),
            "completion_ms": times(&self.completions),
            "converged_ms": ms(self.converged),
            "frames": self.frames,
            "messages": total.messages,
            "bytes": total.bytes,
            "messages_per_job": self.per_job(total.messages),
            "bytes_per_job": self.per_job(total.bytes),
            "messages_per_node_s": self.per_node_s(total.messages),
            "bytes_per_node_s": self.per_node_s(total.bytes),
            "families": families,
            "kinds": kinds,
            "gossip": {"adverts": self.adverts, "duplicates": self.gossip_duplicates, "control": self.gossip_control},
            "forming": sent(self.forming),
            "events": self.events,
            "liars_caught": self.caught,
            "faults": fired,
            "trace": self.trace.to_string(),
            "command": self.command,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
        for (name, times) in [("start", &self.starts), ("completion", &self.completions)] {
            let at = |percent| percentile(times, percent).map_or("-".to_owned(), |t| format!("{:.1} ms", ms(t)));
            writeln!(f, "{name:<10} p50 {}, p99 {}", at(50), at(99))?;
        }
        writeln!(f, "converged  {:.1} s after the faults", s(self.converged))?;
        writeln!(f, "sent       {:>12} {:>12} {:>14} {:>14}", "messages", "a job", "a node and s", "bytes a job")?;
        let families = Family::ALL.into_iter().map(|family| (family.name(), self.traffic.family(family)));
        for (name, sent) in families.chain([("all", self.traffic.total())]) {
            let (job, node) = (self.per_job(sent.messages), self.per_node_s(sent.messages));
            let bytes = self.per_job(sent.bytes);
            writeln!(f, "  {name:<11} {:>9} {job:>12.1} {node:>14.2} {bytes:>14.0}", sent.messages)?;
        }
        for (class, fired) in &self.fired {
            writeln!(f, "fault      {class}: {} times, felt {}", fired.struck, fired.felt)?;
        }
        writeln!(f, "trace      {}", self.trace)
    }
}
