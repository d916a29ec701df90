//! Facts: what one author states about a job, once, for good. This file is the vocabulary; who may state what is in
//! [`crate::rules`], and what the facts of a job add up to is in [`crate::state`].

use serde::{Deserialize, Serialize};

use crate::error_code::ErrorCode;
use crate::ids::{DiskId, FactId, NodeId};
use crate::spec::{BlobRef, Phase, SignedSpec, is_pace_min, pace_min};

/// Longest encoded fact: a spec plus some framing. Larger reports are cut into several facts.
pub const FACT_LEN_MAX: usize = crate::spec::SPEC_LEN_MAX + 1024;
/// Most items in one report or accept.
pub const ITEMS_MAX: usize = 4_096;
/// Most bytes of an error's message or of a stderr tail in a fact.
pub const TEXT_LEN_MAX: usize = 4_096;

/// The fencing token: whoever acts under a lower one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fence {
    /// The brain's term.
    pub term: u32,
    /// The award's number within the job.
    pub epoch: u32,
}

/// The short form of a fact id in lists of facts of one entry: 8 bytes are enough to tell them apart.
pub type ShortId = u64;

/// [`ShortId`] of `id`.
#[must_use]
pub fn short_id(id: &FactId) -> ShortId {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&id.0[..8]);
    u64::from_le_bytes(bytes)
}

/// Consecutive tasks `start .. start + len` of one phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Run {
    /// First task.
    pub start: u32,
    /// How many.
    pub len: u32,
}

impl Run {
    /// One past the last task.
    #[must_use]
    pub const fn end(self) -> u32 {
        self.start.saturating_add(self.len)
    }
}

/// What an attempt used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Fetching inputs, ms.
    pub gather_ms: u32,
    /// Running, ms.
    pub wall_ms: u32,
    /// CPU time, ms.
    pub cpu_ms: u32,
    /// Largest resident set, bytes.
    pub max_rss_bytes: u64,
    /// Bytes written to stdout, stderr and `output/`.
    pub output_bytes: u64,
}

impl Usage {
    /// Sums times and bytes, keeps the larger memory.
    pub fn add(&mut self, other: Self) {
        self.gather_ms = self.gather_ms.saturating_add(other.gather_ms);
        self.wall_ms = self.wall_ms.saturating_add(other.wall_ms);
        self.cpu_ms = self.cpu_ms.saturating_add(other.cpu_ms);
        self.max_rss_bytes = self.max_rss_bytes.max(other.max_rss_bytes);
        self.output_bytes = self.output_bytes.saturating_add(other.output_bytes);
    }
}

/// A named result of a task.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Output {
    /// `stdout`, `stderr`, `map`, `result`, `tree` (links, modes and empty directories of `output/`), or a path under `output/`.
    pub name: String,
    /// The content.
    pub blob: BlobRef,
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The class of error.
    pub code: ErrorCode,
    /// Exit code, where a program gave one.
    pub exit: Option<i32>,
    /// What happened, for people.
    pub message: String,
    /// The end of the program's stderr.
    pub stderr_tail: String,
    /// Whether another attempt may succeed.
    pub retryable: bool,
}

/// How tasks of an award ended, as their executor reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReportItem {
    /// Tasks that succeeded and left nothing.
    Plain {
        /// Which.
        run: Run,
        /// Of all of them together.
        usage: Usage,
    },
    /// A task that succeeded and left outputs.
    Outputs {
        /// Which.
        task: u32,
        /// What it left, on the executor's disk.
        outputs: Vec<Output>,
        /// What it used.
        usage: Usage,
    },
    /// A task whose attempt failed.
    Failed {
        /// Which.
        task: u32,
        /// Why.
        failure: Failure,
        /// What it used.
        usage: Usage,
    },
}

/// An item of an [`Fact::Accept`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The tasks.
    pub run: Run,
    /// Who ran them.
    pub node: NodeId,
    /// Under which award.
    pub fence: Fence,
    /// What they left; empty for plain successes.
    pub outputs: Vec<Output>,
    /// Who else holds the outputs.
    pub copy: Option<NodeId>,
    /// How often the result was made anew, because nobody held its outputs any more: the highest counts. Never of the last phase,
    /// whose results are final.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub again: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Every task succeeded.
    Completed,
    /// A task failed for good.
    Failed {
        /// Its phase.
        phase: Phase,
        /// Its number.
        task: u32,
        /// Where it ran last.
        node: Option<NodeId>,
        /// Why.
        failure: Failure,
    },
    /// Somebody who may cancelled it.
    Cancelled,
}

/// What one executor did for a job, as it signed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executed {
    /// Tasks that it ran to success.
    pub tasks: u64,
    /// Over all its attempts.
    pub usage: Usage,
    /// BLAKE3 over the output hashes it reported, in order of (phase, task).
    pub outputs: crate::ids::Hash,
}

/// One statement about a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    /// The job itself. Author: the submitter.
    Submit(SignedSpec),
    /// An offer to run tasks. Author: the bidder.
    Bid {
        /// Tasks it could run at once.
        slots: u32,
        /// Its own estimate of fit, higher is better.
        score: i32,
        /// Bytes of the job's input blobs it holds already.
        held_bytes: u64,
        /// When it could start, ms from now.
        start_in_ms: u32,
    },
    /// The right to run tasks of the job in `slots` slots. Author: the brain of `fence.term`.
    Award {
        /// The right's number.
        fence: Fence,
        /// Who gets it.
        node: NodeId,
        /// Tasks at once.
        slots: u32,
        /// How long it lasts without an answered heartbeat, ms.
        lease_ms: u32,
    },
    /// Acceptance of an award, resources reserved. Author: the awarded node.
    Claim {
        /// The award.
        fence: Fence,
        /// Slots reserved, at most the award's.
        slots: u32,
    },
    /// How tasks ended. Author: the awarded node.
    Report {
        /// The award.
        fence: Fence,
        /// The phase.
        phase: Phase,
        /// Task by task or run by run.
        items: Vec<ReportItem>,
    },
    /// An award is void: its node went silent, or gave it back. Author: the brain.
    Revoke {
        /// The award.
        fence: Fence,
        /// Whether the node was lost, as opposed to done or declined.
        lost: bool,
    },
    /// Results that count. Author: the brain of `term`. Final once a majority of the brain set has it on disk.
    Accept {
        /// The brain's term.
        term: u32,
        /// The phase.
        phase: Phase,
        /// The tasks.
        items: Vec<Accepted>,
    },
    /// A promise to follow the brain of `term` and no lower one. Author: a member of the brain set.
    Vote {
        /// The term.
        term: u32,
        /// The pace that its brain asked for: see [`crate::spec::SpecFields::pace`].
        #[serde(default = "pace_min", skip_serializing_if = "is_pace_min")]
        pace: u8,
    },
    /// A member of the brain set that lost its disk has caught up from all the other members, and counts again: it knows
    /// everything that was final when its disk was lost. Author: that member.
    Rejoin {
        /// Its new disk.
        disk: DiskId,
        /// The highest term that anybody had promised to follow, as the others told it: it may have promised as much.
        term: u32,
    },
    /// A brain takes office with a majority of votes, and says what it found decided. Author: the brain of `term`.
    Lead {
        /// The term.
        term: u32,
        /// Whose votes.
        voters: Vec<NodeId>,
        /// The accept facts of earlier terms that go on counting, by [`short_id`]; further ones may follow under the same
        /// term. What an earlier brain accepted and this one never saw does not count any more, whenever it turns up.
        base: Vec<ShortId>,
        /// The term's pace: see [`crate::spec::SpecFields::pace`].
        #[serde(default = "pace_min", skip_serializing_if = "is_pace_min")]
        pace: u8,
    },
    /// The job should stop. Author: the submitter or an admin.
    Cancel {
        /// For people.
        reason: String,
    },
    /// How the job ended. Author: the brain of `term`. Final once a majority of the brain set has it on disk.
    Finish {
        /// The brain's term.
        term: u32,
        /// How.
        outcome: Outcome,
    },
    /// An executor's signed summary. Author: the executor.
    Receipt(Executed),
    /// Nothing more will be added that matters. Author: the brain of `term`.
    Seal {
        /// The brain's term.
        term: u32,
        /// How the job ended.
        outcome: Outcome,
        /// The executors' receipts that arrived in time.
        receipts: Vec<(NodeId, FactId)>,
        /// How often results that count were made anew, in all ([`Accepted::again`]): who knows fewer lacks an accept.
        #[serde(default, skip_serializing_if = "is_zero")]
        anew: u32,
    },
}

impl Fact {
    /// The fact's name in timelines and in the protocol's description.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Submit(_) => "submit",
            Self::Bid { .. } => "bid",
            Self::Award { .. } => "award",
            Self::Claim { .. } => "claim",
            Self::Report { .. } => "report",
            Self::Revoke { .. } => "revoke",
            Self::Accept { .. } => "accept",
            Self::Vote { .. } => "vote",
            Self::Rejoin { .. } => "rejoin",
            Self::Lead { .. } => "lead",
            Self::Cancel { .. } => "cancel",
            Self::Finish { .. } => "finish",
            Self::Receipt(_) => "receipt",
            Self::Seal { .. } => "seal",
        }
    }
}

/// A fact and when its author stated it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// Unix ms on the author's clock: for timelines, never for decisions.
    pub at_ms: u64,
    /// What is stated.
    pub fact: Fact,
}
