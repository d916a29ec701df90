//! What people see of a job: made from the ledger, and from the brain's own books where this node leads.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sinew_crdt_state::fact::{Failure, Outcome, Output};
use sinew_crdt_state::ids::{Hash, JobId, NodeId};
use sinew_crdt_state::spec::{JobSpec, Work};
use sinew_crdt_state::state::{JobState, Status};

use crate::core::Core;

/// A phase's progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseView {
    /// `tasks`, `map` or `reduce`.
    pub name: String,
    /// How many tasks.
    pub tasks: u64,
    /// Finished.
    pub done: u64,
    /// Assigned and not finished, where this node knows.
    pub running: u64,
}

/// A node's share of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareView {
    /// The node.
    pub node: NodeId,
    /// Tasks finished, by phase.
    pub done: Vec<u64>,
    /// Slots awarded now.
    pub slots: u64,
}

/// Consecutive tasks whose results came from one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementView {
    /// The phase.
    pub phase: u8,
    /// First task.
    pub start: u32,
    /// How many.
    pub len: u32,
    /// Who ran them.
    pub node: NodeId,
}

/// Most placements shown: of a larger job the shares say enough.
const PLACEMENTS_MAX: usize = 10_000;

/// A final output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputView {
    /// The task.
    pub task: u32,
    /// The output.
    pub output: Output,
    /// Who made it.
    pub node: NodeId,
    /// Who else has it.
    pub copy: Option<NodeId>,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobView {
    /// Its id.
    pub id: JobId,
    /// What it computes, as a hash: the same for jobs that do the same.
    pub key: Hash,
    /// Its name.
    pub name: String,
    /// `batch` or `map_reduce`.
    pub kind: String,
    /// Its state.
    pub status: Status,
    /// Who submitted it.
    pub submitter: NodeId,
    /// When, unix ms.
    pub submitted_ms: u64,
    /// Who decides for it now.
    pub brain: Option<NodeId>,
    /// The brain's term.
    pub term: u32,
    /// The brain set.
    pub brain_set: Vec<NodeId>,
    /// What a loss of nodes would mean.
    pub durability: String,
    /// Progress, phase by phase.
    pub phases: Vec<PhaseView>,
    /// Who does what.
    pub shares: Vec<ShareView>,
    /// Which node ran which finished tasks; the first 10,000 runs.
    #[serde(default)]
    pub placements: Vec<PlacementView>,
    /// The outputs of the last phase.
    pub outputs: Vec<OutputView>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Members of the brain set that this node does not reach, where too few are left for a majority.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<LostView>,
    /// Inputs of the mesh that its tasks wait for, as far as this node decides for the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked: Option<BlockedView>,
    /// Bytes of its inputs that have come to the other members of its brain set, and how many there are for them, while it is not
    /// acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied: Option<(u64, u64)>,
    /// Whether a cancel is known that has not taken effect.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancelling: bool,
    /// The last failure of each task with failed attempts, by phase and task; the first 100.
    pub failures: Vec<(u8, u32, NodeId, Failure)>,
}

/// What tasks wait for that is out of reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockedView {
    /// Since when, unix ms on the brain's clock.
    pub since_ms: u64,
    /// The blobs, as far as they are known.
    pub missing: Vec<MissingView>,
}

/// A blob that nobody in reach could give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingView {
    /// Which.
    pub blob: Hash,
    /// Who is on record for it; nobody for an input of the job.
    pub holders: Vec<NodeId>,
}

/// What a job waits for whose inputs are out of reach, for people.
#[must_use]
pub fn blocked_text(blocked: &BlockedView) -> String {
    const NAMED: usize = 5;
    let holders: std::collections::BTreeSet<NodeId> =
        blocked.missing.iter().flat_map(|missing| missing.holders.iter().copied()).collect();
    let mut names: Vec<String> = holders.iter().take(NAMED).map(NodeId::short).collect();
    names.extend((holders.len() > NAMED).then(|| format!("{} more", holders.len() - NAMED)));
    let of = if names.is_empty() { String::new() } else { format!(" on {}", names.join(", ")) };
    let what = match blocked.missing.as_slice() {
        [] => "an input".to_owned(),
        [one] => format!("blob {}", one.blob),
        more => format!("{} blobs", more.len()),
    };
    format!("waiting for {what}{of}: out of reach since {} UTC", utc(blocked.since_ms))
}

/// A member of a brain set that is not in reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostView {
    /// Which.
    pub node: NodeId,
    /// When it was heard last, or since when it should have been, unix ms on this node's clock.
    pub since_ms: u64,
}

/// What a job waits for whose set has no majority, for people.
#[must_use]
pub fn waiting_text(lost: &[LostView]) -> String {
    let names: Vec<String> = lost.iter().map(|member| member.node.short()).collect();
    let since = lost.iter().map(|member| member.since_ms).max().unwrap_or(0);
    format!("waiting for a majority: {} lost since {} UTC", names.join(", "), utc(since))
}

/// Unix ms as `2026-07-31 11:59:29`.
#[must_use]
pub fn utc(ms: u64) -> String {
    let (days, seconds) = (ms / 86_400_000, ms / 1_000 % 86_400);
    // Days from 0000-03-01: the leap day is then the last of its year (Hinnant, "chrono-compatible low-level date algorithms").
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

/// How a job ended, in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// Every task succeeded.
    Completed,
    /// A task failed for good.
    Failed,
    /// Somebody who may cancelled it.
    Cancelled,
}

/// An ended job in a list: kept beside its facts, so that nobody opens these to list it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRow {
    /// Its name.
    pub name: String,
    /// `batch` or `map_reduce`.
    pub kind: String,
    /// How it ended; `None` only of a job of which too few facts are here to tell.
    pub ending: Option<Ending>,
    /// Finished tasks and all tasks.
    pub tasks: (u64, u64),
    /// Who submitted it.
    pub submitter: NodeId,
    /// When, unix ms.
    pub submitted_ms: u64,
    /// Of a job that this node submitted under a key: the key's hash and the request's digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<(Hash, Hash)>,
}

/// The row of a job in a list.
#[must_use]
pub fn row_of(state: &JobState) -> JobRow {
    let spec = &state.spec;
    let done = state.accepted.iter().map(sinew_crdt_state::intervals::IntervalMap::count).sum();
    let ending = state.outcome().map(|outcome| match outcome {
        Outcome::Completed => Ending::Completed,
        Outcome::Failed { .. } => Ending::Failed,
        Outcome::Cancelled => Ending::Cancelled,
    });
    JobRow {
        name: spec.name.clone(),
        kind: kind(spec).to_owned(),
        ending,
        tasks: (done, spec.phases().iter().map(|tasks| u64::from(*tasks)).sum()),
        submitter: spec.submitter,
        submitted_ms: spec.submitted_ms,
        key: None,
    }
}

impl JobView {
    /// Whether the job has ended and nothing about its result will change: a verdict alone may yet be overruled, as when its
    /// brain was cut off before a majority had it. The seal comes after that.
    #[must_use]
    pub const fn is_ended(&self) -> bool {
        matches!(self.status, Status::Sealed)
    }
}

/// The view of a job from its facts alone.
#[must_use]
pub fn from_state(id: JobId, state: &JobState) -> JobView {
    let spec = &state.spec;
    let done: Vec<u64> = state.accepted.iter().map(sinew_crdt_state::intervals::IntervalMap::count).collect();
    let mut shares: BTreeMap<NodeId, ShareView> = BTreeMap::new();
    let blank = |node| ShareView { node, done: vec![0; done.len()], slots: 0 };
    for (phase, accepted) in state.accepted.iter().enumerate() {
        for (run, result) in accepted.iter() {
            shares.entry(result.node).or_insert_with(|| blank(result.node)).done[phase] += u64::from(run.len);
        }
    }
    if state.outcome().is_none() {
        for award in state.awards.iter().filter(|(f, a)| a.revoked.is_none() && f.term == state.term).map(|(_, a)| a) {
            shares.entry(award.node).or_insert_with(|| blank(award.node)).slots += u64::from(award.slots);
        }
    }
    JobView {
        id,
        key: spec.key(),
        name: spec.name.clone(),
        kind: kind(spec).to_owned(),
        status: state.status(),
        submitter: spec.submitter,
        submitted_ms: spec.submitted_ms,
        brain: sinew_crdt_state::rules::brain_of(spec, state.term),
        term: state.term,
        brain_set: spec.brain_set.clone(),
        durability: durability(spec),
        phases: phases(spec, &done),
        shares: shares.into_values().collect(),
        placements: placements(state),
        outputs: outputs(state),
        outcome: state.outcome().cloned(),
        lost: Vec::new(),
        blocked: None,
        copied: None,
        cancelling: state.cancel.is_some() && state.outcome().is_none(),
        failures: failures(state),
    }
}

fn kind(spec: &JobSpec) -> &'static str {
    match &*spec.work {
        Work::Batch(_) => "batch",
        Work::MapReduce(_) => "map_reduce",
    }
}

fn durability(spec: &JobSpec) -> String {
    let why = match spec.alone {
        _ if spec.brain_set.len() > 1 => return "survives the loss of any one node".to_owned(),
        Some(alone) => format!("{alone} when it was submitted"),
        None => "the mesh had fewer than three nodes that run work".to_owned(),
    };
    format!("one node decides: {why}; if it is lost, the job waits for its return")
}

fn phases(spec: &JobSpec, done: &[u64]) -> Vec<PhaseView> {
    let names: &[&str] = match &*spec.work {
        Work::Batch(_) => &["tasks"],
        Work::MapReduce(_) => &["map", "reduce"],
    };
    let counts = spec.phases();
    names
        .iter()
        .zip(counts)
        .zip(done)
        .map(|((name, tasks), done)| PhaseView {
            name: (*name).to_owned(),
            tasks: u64::from(tasks),
            done: *done,
            running: 0,
        })
        .collect()
}

fn placements(state: &JobState) -> Vec<PlacementView> {
    let mut found: Vec<PlacementView> = Vec::new();
    for (phase, accepted) in (0u8..).zip(&state.accepted) {
        for (run, result) in accepted.iter() {
            let full = found.len() == PLACEMENTS_MAX;
            match found.last_mut() {
                Some(last) if last.phase == phase && last.node == result.node && last.start + last.len == run.start => {
                    last.len += run.len;
                }
                _ if full => return found,
                _ => found.push(PlacementView { phase, start: run.start, len: run.len, node: result.node }),
            }
        }
    }
    found
}

fn outputs(state: &JobState) -> Vec<OutputView> {
    let last = state.accepted.last().into_iter().flat_map(|m| m.iter());
    // Neighbours that left equal outputs are one run in the map, and one result each all the same.
    last.filter(|(_, result)| !result.outputs.is_empty())
        .flat_map(|(run, result)| (run.start..run.end()).map(move |task| (task, result)))
        .flat_map(|(task, result)| {
            result.outputs.iter().map(move |output| OutputView {
                task,
                output: output.clone(),
                node: result.node,
                copy: result.copy,
            })
        })
        .collect()
}

fn failures(state: &JobState) -> Vec<(u8, u32, NodeId, Failure)> {
    const SHOWN: usize = 100;
    let tasks: Vec<(u8, u32)> = state.failed_tasks().take(SHOWN).collect();
    tasks
        .into_iter()
        .filter_map(|(phase, task)| {
            let last = state.failures(phase, task).last()?;
            Some((phase, task, last.node, last.failure))
        })
        .collect()
}

impl Core {
    /// A job that is not sealed, or was sealed a moment ago. Sealed ones are on disk.
    #[must_use]
    pub fn view(&self, id: &JobId) -> Option<JobView> {
        let live = self.ledger().live(id)?;
        let mut view = from_state(*id, &live.state);
        if let Some(brain) = self.brain(id) {
            let (phase, done, running) = brain.progress();
            if let Some(view) = view.phases.get_mut(usize::from(phase)) {
                view.done = view.done.max(done);
                view.running = running;
            }
            view.blocked = self.blocked(brain);
            view.copied = brain.copied();
            if brain.is_storing() {
                view.durability = "not acknowledged yet: its inputs and spec are being copied to stewards".to_owned();
            }
        }
        let witnesses = self.witnesses(id);
        if witnesses > 0 {
            let nodes = if witnesses == 1 { "another node holds" } else { "two others hold" };
            view.durability = format!("{}; {nodes} its facts, inputs and outputs", view.durability);
        }
        if !view.is_ended() {
            view.lost = self.lost_majority(&live.state.spec);
            if !view.lost.is_empty() {
                view.status = Status::Waiting;
            }
        }
        Some(view)
    }
}
