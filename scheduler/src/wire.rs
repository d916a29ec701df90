//! What nodes say to each other: the messages of the control and bulk streams, and what is published by gossip.
//!
//! A frame is the CBOR of a `Vec<Message>`. Everything in it is untrusted: the receiver checks the sender against the job's
//! spec, terms and awards before it acts. Facts travel as envelopes, signed by their authors, whoever sends them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sinew_crdt_state::certificate::Credential;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Fence, Run};
use sinew_crdt_state::ids::{DiskId, FactId, Hash, JobId, NodeId};
use sinew_crdt_state::reconcile::{Claim, Item, Listing};
use sinew_crdt_state::spec::{BlobRef, Phase, Runners, is_pace_min, pace_min};
use sinew_crdt_state::volume::Volumes;

pub use crate::boots::Seen;

/// Which stream a message takes. Heartbeats and votes never queue behind bulk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Small and urgent.
    Control,
    /// Everything else.
    Bulk,
}

/// Gossip topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// Jobs that look for nodes.
    Advert,
}

/// A lease that a worker wants renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lease {
    /// The job.
    pub job: JobId,
    /// The award.
    pub fence: Fence,
}

/// Where a map output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Located {
    /// The blob.
    pub blob: BlobRef,
    /// Who made it.
    pub node: NodeId,
    /// Who else has it.
    pub copy: Option<NodeId>,
}

pub use sinew_crdt_state::fact::{ShortId, short_id};

/// One message from node to node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Facts that the receiver may not know. No answer.
    Facts(Vec<Envelope>),
    /// Who I am and what I have in total. Sent once a connection is up, and again when it changes.
    Card(Card),
    /// What I have free.
    Load(LoadDigest),
    /// A failure detector packet.
    Swim(#[serde(with = "serde_bytes")] Vec<u8>),

    /// Brain to candidate: would you run tasks of this job? `submit` is the job's spec.
    Offer {
        /// The job's submit fact.
        submit: Box<Envelope>,
        /// Tasks at once that are wanted.
        slots: u32,
    },
    /// Candidate to brain, in answer: yes, by this bid fact.
    Bid(Box<Envelope>),
    /// Candidate to brain, in answer: not now.
    NoBid {
        /// The job.
        job: JobId,
        /// What is free at the candidate, so that it is not asked in vain again.
        load: LoadDigest,
    },
    /// Idle node to brain, on an advert: offer it to me.
    Interest {
        /// The job.
        job: JobId,
        /// Tasks at once that it could run.
        slots: u32,
    },
    /// Brain to bidder: you have it. The award fact, and the first tasks.
    Award {
        /// The award fact.
        award: Box<Envelope>,
        /// The bid that this answers: the lease counts from when it was made.
        bid: FactId,
        /// First tasks.
        assign: Assign,
    },
    /// Bidder to brain: no longer possible.
    Decline {
        /// The award.
        lease: Lease,
    },
    /// Brain to worker: further tasks.
    Assign(Assign),
    /// Brain to worker: where the map outputs are, from number `start`; sent before the first reduce task.
    Sources {
        /// The award.
        lease: Lease,
        /// Number of the first item.
        start: u32,
        /// How many there are in all.
        total: u32,
        /// The map outputs.
        items: Vec<Located>,
    },
    /// Worker to brain: report facts.
    Report {
        /// The award.
        lease: Lease,
        /// The report facts.
        facts: Vec<Envelope>,
    },
    /// Brain to worker: these reports are final; forget them.
    Settled {
        /// The job.
        job: JobId,
        /// The report facts.
        reports: Vec<FactId>,
    },
    /// Brain to worker: stop these tasks (all, when empty), without a report.
    Stop {
        /// The award.
        lease: Lease,
        /// The phase.
        phase: Phase,
        /// The tasks.
        tasks: Vec<Run>,
    },
    /// Brain to worker: the award is over; give the slots back.
    Release {
        /// The award.
        lease: Lease,
    },
    /// Worker to brain: tasks wait for sources that have not arrived; send them (again).
    WantSources {
        /// The award.
        lease: Lease,
    },
    /// Brain to a node: fetch a task's outputs from `from` and keep them for the job.
    Copy {
        /// The job.
        job: JobId,
        /// The task's phase.
        phase: Phase,
        /// The task.
        task: u32,
        /// Who has them.
        from: NodeId,
        /// What.
        blobs: Vec<BlobRef>,
    },
    /// The answer to [`Self::Copy`].
    Copied {
        /// The job.
        job: JobId,
        /// The task's phase.
        phase: Phase,
        /// The task.
        task: u32,
        /// Whether they are here, on disk.
        ok: bool,
    },
    /// To every node in reach: which of these do you hold, whole, on disk and for these jobs? At most
    /// [`crate::config::HELD_BLOBS_MAX`] blobs.
    WhoHolds {
        /// Counts the sender's questions.
        seq: u64,
        /// The blobs, by the jobs that they belong to.
        blobs: Vec<(JobId, Vec<Hash>)>,
    },
    /// The answer to [`Self::WhoHolds`]: these.
    Holds {
        /// The question's number.
        seq: u64,
        /// The blobs.
        blobs: Vec<(JobId, Vec<Hash>)>,
    },
    /// A holder to another node: too few hold these since a node is gone. Fetch them from me and keep them for the job.
    Keep {
        /// The job.
        job: JobId,
        /// What: at most [`crate::config::HELD_BLOBS_MAX`].
        blobs: Vec<BlobRef>,
        /// Others that hold them too.
        holders: Vec<NodeId>,
    },
    /// The answer to [`Self::Keep`].
    Kept {
        /// The job.
        job: JobId,
        /// Whether they are here, on disk, and kept for the job.
        ok: bool,
    },

    /// Worker to brain: these tasks could not begin, as blobs of the mesh that they need are out of reach. Nothing was run, and it is
    /// no attempt: the tasks are the brain's again.
    Blocked {
        /// The award.
        lease: Lease,
        /// The phase.
        phase: Phase,
        /// The tasks.
        tasks: Vec<u32>,
        /// Blobs that nobody in reach gave: at most [`crate::config::MISSING_MAX`].
        missing: Vec<Hash>,
    },
    /// To the brain that waits for it: a fetch has come so far. At most once in [`crate::config::FETCHING_EVERY`].
    Fetching {
        /// The job.
        job: JobId,
        /// Phase and task of a [`Self::Copy`]; none of the job's inputs.
        copy: Option<(Phase, u32)>,
        /// Bytes that are here.
        done: u64,
        /// Bytes in all.
        total: u64,
    },

    /// Brain to steward: put these on disk and say so. Under `term`.
    Replicate {
        /// The job.
        job: JobId,
        /// The sender's term.
        term: u32,
        /// The facts.
        facts: Vec<Envelope>,
    },
    /// Steward to brain: these are on disk here, their input blobs too.
    Stored {
        /// The job.
        job: JobId,
        /// The sender's view of the term.
        term: u32,
        /// Which facts.
        ids: Vec<FactId>,
        /// How far the sender's disk had come when it last promised anything.
        #[serde(default, skip_serializing_if = "is_zero")]
        mark: u64,
    },
    /// To a brain of the past: `term` has begun; step down.
    Deposed {
        /// The job.
        job: JobId,
        /// The higher term.
        term: u32,
    },

    /// Worker to brain, and to stewards while the brain is silent: renew these leases.
    Beat {
        /// Counts the sender's beats.
        seq: u64,
        /// Leases held, each with the number of its tasks not yet reported.
        leases: Vec<(Lease, u32)>,
    },
    /// The answer to [`Self::Beat`].
    BeatAck {
        /// The beat's number.
        seq: u64,
        /// Leases that go on: the sender leads their jobs.
        renewed: Vec<Lease>,
        /// Leases that the sender, a member of the brain set, has nothing against while their brain is silent.
        kept: Vec<Lease>,
        /// Leases that are over.
        void: Vec<Lease>,
    },
    /// Brain to steward: I am here, for all jobs that I lead.
    SetBeat {
        /// Counts the sender's beats.
        seq: u64,
        /// Jobs of which the sender is not sure that it still leads them: it was out of touch with their sets.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        doubts: Vec<JobId>,
        /// How far the sender's disk had come when it last promised anything.
        #[serde(default, skip_serializing_if = "is_zero")]
        mark: u64,
    },
    /// The answer to [`Self::SetBeat`].
    SetBeatAck {
        /// The beat's number.
        seq: u64,
        /// The answerer's disk: what it says counts only for jobs of which that disk has forgotten nothing.
        disk: DiskId,
        /// Leases of the sender's jobs that this member kept alive in its silence, with their holders.
        kept: Vec<(NodeId, Lease)>,
        /// Jobs for which this member has promised a term of another brain.
        moved: Vec<(JobId, u32)>,
        /// Of the jobs in doubt, those that have ended.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        over: Vec<JobId>,
        /// Of the jobs in doubt, those that this member knows nothing of, so that its answer does not count for them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        unknown: Vec<JobId>,
        /// How far the sender's disk had come when it last promised anything.
        #[serde(default, skip_serializing_if = "is_zero")]
        mark: u64,
    },
    /// Steward to brain: I have not heard of these jobs for a while; do you lead them?
    Led(Vec<JobId>),
    /// In answer: not these.
    NotLed(Vec<JobId>),
    /// Candidate to the brain set: promise to follow me in `term`.
    VoteRequest {
        /// The job.
        job: JobId,
        /// The term.
        term: u32,
        /// Whether this only asks what the answer would be: a candidate with a bad link should find out before anyone
        /// promises anything.
        trial: bool,
        /// Facts that the candidate has; none in a trial.
        have: Vec<ShortId>,
        /// The pace of its term: see [`sinew_crdt_state::spec::SpecFields::pace`].
        #[serde(default = "pace_min", skip_serializing_if = "is_pace_min")]
        pace: u8,
    },
    /// Member to candidate, after a trial: I would vote for you.
    Willing {
        /// The job.
        job: JobId,
        /// The term.
        term: u32,
    },
    /// Member to candidate: promised, on disk. With every fact that the candidate lacks.
    Vote {
        /// The job.
        job: JobId,
        /// The term.
        term: u32,
        /// The facts, the vote itself among them.
        facts: Vec<Envelope>,
        /// Facts that the candidate has and this member lacks.
        lacks: Vec<ShortId>,
        /// Leases that this member kept alive in the brain's silence.
        holders: Vec<(NodeId, Fence)>,
        /// How far the sender's disk had come when it last promised anything.
        #[serde(default, skip_serializing_if = "is_zero")]
        mark: u64,
    },
    /// Member to candidate: not now; the brain is alive, or a higher term is promised.
    VoteRefused {
        /// The job.
        job: JobId,
        /// The term asked for.
        term: u32,
        /// The highest term known here.
        highest: u32,
    },
    /// Member to member: I lost my disk since this job was submitted. Tell me all you know of it; I have these.
    Recall {
        /// The job's submit fact.
        submit: Box<Envelope>,
        /// The asker's disk.
        disk: DiskId,
        /// Facts that the asker has.
        have: Vec<ShortId>,
    },
    /// In answer, behind the facts themselves: this is all I know, on disk.
    Recalled {
        /// The job.
        job: JobId,
        /// The asker's disk.
        disk: DiskId,
        /// Whether the answerer counts in the brain set; otherwise it has forgotten too, and this is what it knows again.
        remembers: bool,
        /// Every fact that the answerer has.
        known: Vec<ShortId>,
    },
    /// New brain to worker: I lead; what you hold under earlier terms goes on under one new award; what is it?
    Adopt {
        /// The spec, the lead facts and the new award.
        facts: Vec<Envelope>,
        /// The job.
        job: JobId,
        /// The new award; `None` asks only for reports.
        award: Option<Fence>,
        /// The leader's term.
        term: u32,
    },
    /// Worker to new brain, in answer.
    Holding {
        /// The job.
        job: JobId,
        /// The term of the brain that asked.
        term: u32,
        /// Slots held for the job.
        slots: u32,
        /// Tasks queued or running, by phase.
        tasks: Vec<(Phase, Run)>,
        /// Reports not yet settled.
        reports: Vec<Envelope>,
    },

    /// Whose facts are these that you passed on? At most 64 nodes.
    WhoIs(Vec<NodeId>),
    /// In answer: certificates of those that I know.
    Members(Vec<Credential>),
    /// Anti-entropy where nodes keep only what concerns them: how much I know of entries that concern us both.
    Heads {
        /// The entries, each with a digest of what is known.
        heads: Vec<(JobId, Item)>,
        /// Whether to answer in kind where something differs.
        ask: bool,
    },
    /// Anti-entropy: what I know, range by range.
    Claims(Vec<Claim>),
    /// Anti-entropy: what I know, entry by entry.
    Listings(Vec<Listing>),
    /// Anti-entropy: send me these entries' facts, but for those I have.
    Want(Vec<(JobId, Vec<ShortId>)>),
}

/// Tasks for a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assign {
    /// The award.
    pub lease: Lease,
    /// Counts the assignments of this award; a lower one than seen is a duplicate.
    pub seq: u32,
    /// Whether `runs` is everything outstanding, sent again because some of it may have been lost.
    pub again: bool,
    /// The phase.
    pub phase: Phase,
    /// The tasks.
    pub runs: Vec<Run>,
    /// Those of them that were started before, with how often: starts that failed, were lost, or go on elsewhere.
    pub attempts: BTreeMap<u32, u32>,
}

/// What a node is and has in total.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// Changes with every start of the daemon.
    pub incarnation: u64,
    /// The node's disk.
    pub disk: DiskId,
    /// Thousandths of a core that tasks may use.
    pub cpu_milli: u32,
    /// Bytes of memory that tasks may use.
    pub memory_bytes: u64,
    /// The operator's labels.
    pub labels: BTreeMap<String, String>,
    /// What can run there.
    pub runners: Runners,
    /// Directories that its operator offers.
    #[serde(default, skip_serializing_if = "Volumes::is_empty")]
    pub volumes: Volumes,
    /// For people: host name, OS, architecture, version.
    pub about: String,
    /// Drawn at random at this start; 0 where nobody drew any.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub nonce: u64,
    /// How far the node's disk had come when this start began.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub from: u64,
    /// The last start of the receiver that the sender remembers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Box<Seen>>,
    /// Whether it answers [`Message::WhoHolds`] and [`Message::Keep`]: builds before these take them for an offence.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub copies: bool,
    /// Whether it understands [`Message::Blocked`] and [`Message::Fetching`], and tells of its own fetches.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fetching: bool,
    /// Whether it understands the messages by which what tasks printed is listed and read, where it is kept: builds before these take
    /// them for an offence.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub logs: bool,
    /// Bytes of disk that tasks may reserve; 0 from builds that know no such reservations.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub disk_bytes: u64,
    /// What a job may let one of its tasks write there at most, bytes, if its operator has set that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_bytes_max: Option<u64>,
}

/// What a node has free right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadDigest {
    /// Thousandths of a core.
    pub cpu_milli_free: u32,
    /// Bytes.
    pub memory_bytes_free: u64,
    /// Tasks running.
    pub running: u32,
    /// Whether the node takes new work.
    pub eligible: bool,
    /// Whether its disk refuses records or does not answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disk_failing: bool,
    /// Bytes of disk that tasks have reserved, of those that the card names.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub disk_bytes_taken: u64,
}

/// A job that looks for nodes, on the advert topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advert {
    /// The job.
    pub job: JobId,
    /// What a task needs: thousandths of a core.
    pub cpu_milli: u32,
    /// What a task needs: bytes.
    pub memory_bytes: u64,
    /// Labels a node must have.
    pub labels: BTreeMap<String, String>,
    /// What must be able to run there.
    pub runners: Runners,
    /// Directories that must be offered there.
    #[serde(default, skip_serializing_if = "Volumes::is_empty")]
    pub volumes: Volumes,
    /// What a task needs: bytes of disk.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub disk_bytes: u64,
    /// What a task may write at most, bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub output_bytes_max: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Message {
    /// The stream it takes.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Self::Swim(_)
            | Self::Load(_)
            | Self::Beat { .. }
            | Self::BeatAck { .. }
            | Self::SetBeat { .. }
            | Self::SetBeatAck { .. } => Class::Control,
            _ => Class::Bulk,
        }
    }
}

impl Message {
    /// Visits every envelope in the message.
    pub(crate) fn for_each_envelope(&mut self, visit: impl Fn(&mut Envelope)) {
        match self {
            Self::Facts(facts)
            | Self::Report { facts, .. }
            | Self::Replicate { facts, .. }
            | Self::Vote { facts, .. }
            | Self::Adopt { facts, .. } => facts.iter_mut().for_each(visit),
            Self::Holding { reports, .. } => reports.iter_mut().for_each(visit),
            Self::Offer { submit, .. } | Self::Recall { submit, .. } => visit(submit),
            Self::Bid(bid) => visit(bid),
            Self::Award { award, .. } => visit(award),
            _ => {}
        }
    }
}
