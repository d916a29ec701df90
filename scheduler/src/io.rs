//! What goes into the core and what comes out.

use std::collections::BTreeSet;
use std::sync::Arc;

use sinew_crdt_state::certificate::{Credential, Roles};
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::Outcome;
use sinew_crdt_state::ids::{DiskId, FactId, Hash, JobId, NodeId};
use sinew_crdt_state::ledger::{OwnerMark, SealedEntry};
use sinew_crdt_state::network::Network;
use sinew_crdt_state::program::Runners;
use sinew_crdt_state::secret::SecretUse;
use sinew_crdt_state::spec::{BlobRef, Limits, Phase, Resources, Retry, Strategy, Work};
use sinew_crdt_state::submit_key::Asked;

use crate::time::Time;
use crate::wire::{Class, Lease, Message, Seen, Topic};

mod task;

pub use task::{RunId, StartTask, StopWhy, TaskKey, TaskResult};

/// A caller's handle on a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A batch of records on its way to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A fetch of blobs under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FetchId(pub u64);

/// A job as its submitter asks for it; the core adds who, where and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// For people.
    pub name: String,
    /// What to run.
    pub work: Work,
    /// What a task reserves.
    pub resources: Resources,
    /// What a task may use.
    pub limits: Limits,
    /// What happens on failure.
    pub retry: Retry,
    /// Labels a node must have.
    pub labels: std::collections::BTreeMap<String, String>,
    /// How candidates are ranked.
    pub strategy: Strategy,
    /// Nodes that must hold each output.
    pub copies: u8,
    /// What its programs may connect to.
    pub network: Network,
    /// Secrets of this node that the programs are given.
    pub secrets: Vec<SecretUse>,
    /// Directories of nodes that it uses.
    pub volumes: Vec<sinew_crdt_state::volume::Volume>,
    /// The submitter's own name for the request.
    pub key: Option<SubmitKey>,
}

impl NewJob {
    /// What is asked for, whenever it is asked.
    #[must_use]
    pub fn asked(&self) -> Asked<'_> {
        Asked {
            name: &self.name,
            work: &self.work,
            resources: self.resources,
            limits: self.limits,
            retry: self.retry,
            labels: &self.labels,
            strategy: self.strategy,
            network: &self.network,
            secrets: &self.secrets,
            volumes: &self.volumes,
        }
    }
}

/// A request's key, with what only the disk remembers of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubmitKey {
    /// The key.
    pub text: String,
    /// The ended job of this submitter that has it, and its request's digest.
    pub ended: Option<(JobId, Hash)>,
}

/// What a local user asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Accept a job.
    Submit(Box<NewJob>),
    /// Stop a job.
    Cancel {
        /// Which.
        job: JobId,
        /// For people.
        reason: String,
    },
    /// Tell which nodes hold these blobs of a job now. Every node in reach is asked.
    Holders {
        /// The job.
        job: JobId,
        /// Its blobs.
        blobs: Vec<Hash>,
    },
}

/// Why a submit was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// This node's certificate lacks the role.
    #[error("this node may not submit jobs: its certificate has no `submit` role (ask an admin for a new invite)")]
    Role,
    /// The job is malformed.
    #[error(transparent)]
    Spec(#[from] sinew_crdt_state::spec::SpecError),
    /// This node is about to leave.
    #[error("this node is going down and takes no more jobs; nothing was submitted")]
    Leaving,
    /// The disk refused it: nothing of it is anywhere, or it was withdrawn before any of it could start.
    #[error("the job could not be written to disk ({0}); nothing was submitted")]
    Disk(String),
    /// Another request of this submitter had the key first.
    #[error("the key `{key}` belongs to another request, job {job}: give this one a key of its own")]
    KeyTaken {
        /// The key.
        key: String,
        /// The job that has it.
        job: JobId,
    },
    /// Whether the job was taken could not be found out. It may run.
    #[error(
        "it is not known whether job {job} was taken: {why}; {}",
        if *.withdrawing { "it is being withdrawn, and `sinew job` with this id tells how that ends" }
        else { "ask again with the same key, or give it up with `sinew cancel` and this id" }
    )]
    Unknown {
        /// The job.
        job: JobId,
        /// What was missing.
        why: String,
        /// Whether it is cancelled as soon as a majority of its set can be reached. One with a key is not: trying again is
        /// safe.
        withdrawing: bool,
    },
}

/// Why a cancel was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CancelError {
    /// No such job here.
    #[error("no job {0} is known here")]
    Unknown(JobId),
    /// Neither the submitter nor an admin.
    #[error("only the job's submitter or an admin may cancel it")]
    Denied,
    /// Too late.
    #[error("the job has ended already")]
    Ended,
    /// Nobody could decide in time. The cancel is kept, and takes effect once somebody can.
    #[error(
        "job {job} is not cancelled yet: {why}; the cancel is kept, and the job ends once enough of its set are back"
    )]
    Undecided {
        /// The job.
        job: JobId,
        /// What is missing.
        why: String,
    },
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// To a submit: the job's id; it survives any one node's loss from here on (in a mesh of three or more).
    Submitted(Result<JobId, SubmitError>),
    /// To a cancel.
    Cancelled(Result<(), CancelError>),
    /// To a question about holders: nodes that hold some of the blobs, and which, each by its own word.
    Holders(Vec<(NodeId, Vec<Hash>)>),
}

/// How a node leaves, the less patient the later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leave {
    /// It takes nothing new, and leaves once what it holds is done and no job is left that only this node can lead.
    WhenDone,
    /// It gives back what it holds, hands over what it leads, and leaves.
    HandOver,
    /// It hands over what it leads and leaves, whatever runs.
    AtOnce,
}

/// What happens to the core.
#[derive(Debug, Clone)]
pub enum Input {
    /// A peer's certificate, verified; comes before its [`Self::PeerUp`].
    Member(Credential),
    /// An authenticated member is connected.
    PeerUp {
        /// Who.
        node: NodeId,
        /// Its roles, from its verified certificate.
        roles: Roles,
    },
    /// Its last connection closed.
    PeerDown {
        /// Who.
        node: NodeId,
    },
    /// What can run here, from now on.
    Runners(Runners),
    /// How many members the mesh has, as far as the transport knows, connected or not.
    MeshSize(usize),
    /// A message came in.
    Message {
        /// From an authenticated member.
        from: NodeId,
        /// What it says.
        message: Message,
    },
    /// A gossip message came in, its author verified.
    Gossip {
        /// Its author.
        from: NodeId,
        /// The topic.
        topic: Topic,
        /// CBOR.
        payload: Vec<u8>,
    },
    /// The disk has come so far: a number that grows with everything that it takes, and is there again after a restart. Comes
    /// before the [`Self::Persisted`] of what it counts.
    Mark(u64),
    /// A batch of records is on disk.
    Persisted(Ticket),
    /// The disk refused new records; the driver keeps them and tries on.
    StorageFailing(String),
    /// The disk has not answered for so long that nothing here can be relied on: neither what is to be written, nor programs that
    /// write files. The same as [`Self::StorageFailing`] otherwise.
    StorageHung(String),
    /// The disk takes records again.
    StorageRecovered,
    /// An attempt ended.
    Task {
        /// Which.
        run: RunId,
        /// How.
        result: TaskResult,
    },
    /// An attempt could not begin: blobs of the mesh that it needs are out of reach. It ran nothing.
    Blocked {
        /// Which.
        run: RunId,
        /// The blobs that nobody in reach gave, as far as is known.
        missing: Vec<Hash>,
        /// The same as a failure, for a brain of an earlier version.
        failure: TaskResult,
    },
    /// A fetch has come so far. At most once in [`crate::config::FETCHING_EVERY`].
    FetchProgress {
        /// Which.
        id: FetchId,
        /// Bytes that are here.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// An attempt that was to end, by [`Effect::Stop`] or [`Effect::Drain`], is gone: nothing of it is left. It had no result first.
    NotRun(RunId),
    /// The node is to leave. May be said again, with less patience. [`Effect::Left`] answers.
    Leave(Leave),
    /// A fetch ended.
    Fetched {
        /// Which.
        id: FetchId,
        /// Whether everything is here, on disk.
        ok: bool,
    },
    /// Blobs came to be here, whole: for locality in bids.
    BlobsCame(Vec<Hash>),
    /// These are all blobs that are here, whole: after a collection, or where some were found to be lost or damaged.
    BlobsLeft(Arc<BTreeSet<Hash>>),
    /// The answer to [`Effect::Look`].
    Seen {
        /// Which look.
        id: FetchId,
        /// What is here, whole, and kept for its job.
        blobs: Vec<(JobId, Vec<Hash>)>,
    },
    /// The answer to [`Effect::ListShared`].
    SharedWith {
        /// Which list.
        id: FetchId,
        /// What is here, whole, and should be there too.
        shared: Vec<SharedBlobs>,
    },
    /// The answer to [`Effect::ReadEntry`].
    Entry {
        /// The job.
        job: JobId,
        /// What the disk knows of it.
        facts: Vec<Envelope>,
    },
    /// An entry's facts, read from disk.
    Loaded {
        /// The job.
        job: JobId,
        /// Who asked for it.
        to: NodeId,
        /// The facts.
        facts: Vec<Envelope>,
    },
    /// A local user asks for something.
    Request {
        /// For the answer.
        id: RequestId,
        /// What.
        request: Request,
    },
    /// A round-trip time to a peer was measured.
    Rtt {
        /// Who.
        node: NodeId,
        /// Microseconds.
        rtt_us: u32,
    },
    /// Another daemon with this node's key was here before. From here on the core says and writes nothing.
    Twin,
    /// Time passed.
    Tick,
}

/// Blobs that this node keeps for a job together with others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedBlobs {
    /// The job.
    pub job: JobId,
    /// The blobs.
    pub blobs: Vec<BlobRef>,
    /// Which others, by this node's notes: the same for all of these.
    pub holders: BTreeSet<NodeId>,
}

/// A change to the node's disk.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// A fact.
    Fact {
        /// Its id.
        id: FactId,
        /// The whole envelope.
        envelope: Envelope,
    },
    /// A job was sealed.
    Sealed {
        /// The job.
        job: JobId,
        /// What stays in memory.
        entry: SealedEntry,
        /// Its row in the list of ended jobs. Not there when only the entry changed since.
        row: Option<Box<crate::view::JobRow>>,
    },
    /// A job is forgotten but for its receipt: the submit, seal and receipt envelopes.
    Forget {
        /// The job.
        job: JobId,
        /// Its owner.
        owner: NodeId,
        /// The owner's mark.
        mark: OwnerMark,
    },
    /// A member's certificate.
    Member {
        /// The certificate.
        credential: Credential,
    },
    /// A job that was never acknowledged is withdrawn.
    Retract {
        /// The job.
        job: JobId,
    },
    /// The last start of another node that this one heard of.
    Seen {
        /// Whose.
        node: NodeId,
        /// The start.
        seen: Seen,
    },
    /// This node's disk has this number from now on, and counts its starts from here.
    Disk {
        /// The number.
        disk: DiskId,
        /// The number of this start.
        incarnation: u64,
    },
}

/// What the core wants done.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Send messages to a peer, in order, or drop them if it cannot be reached.
    Send {
        /// Who.
        to: NodeId,
        /// Which stream.
        class: Class,
        /// What.
        messages: Vec<Message>,
    },
    /// Publish by gossip.
    Publish {
        /// The topic.
        topic: Topic,
        /// CBOR.
        payload: Vec<u8>,
    },
    /// Write records, in order. Urgent ones are fsynced at once and acknowledged by [`Input::Persisted`]; others may wait
    /// for company (100 ms at most) and are acknowledged too.
    Persist {
        /// For the acknowledgement.
        ticket: Ticket,
        /// What.
        records: Vec<Record>,
        /// Whether something waits for it.
        urgent: bool,
    },
    /// Run a task.
    Start(StartTask),
    /// Stop a task: nobody wants its result. Say when nothing of it is left, by [`Input::NotRun`], or by [`Input::Task`] if it
    /// had a result first; until then its room counts as taken. May be said again with another reason.
    Stop {
        /// Which.
        run: RunId,
        /// Why, and so how.
        why: StopWhy,
    },
    /// The lease of these tasks ends at another time now. Something that does not depend on this core ends them then, should it
    /// stand still: nothing else would.
    Lease {
        /// Which.
        runs: Vec<RunId>,
        /// Until when they may run.
        until: Time,
    },
    /// End a task and say when nothing of it is left: by [`Input::NotRun`], or by [`Input::Task`] if it had a result first.
    Drain(RunId),
    /// This node has left, as it was asked to by [`Input::Leave`]. What was said before this is to be sent; then the driver may end.
    Left,
    /// Nothing is heard of a member although something should be, and it looks connected: find another way to it, if there is one.
    Reach(NodeId),
    /// See to it that blobs are here, whole and on disk, fetched where they are not, and kept for this job too, no matter for
    /// which others; answer with [`Input::Fetched`]. Nothing that an earlier answer said is taken for granted.
    Fetch {
        /// For the answer.
        id: FetchId,
        /// For the job.
        job: JobId,
        /// What.
        blobs: Vec<BlobRef>,
        /// Who may have them, best first.
        providers: Vec<NodeId>,
    },
    /// A job ended: drop its work files and let go of its blobs, but for these.
    EndJob {
        /// The job.
        job: JobId,
        /// Final outputs.
        keep: Vec<Hash>,
        /// How it ended.
        outcome: Outcome,
    },
    /// The ledger has forgotten a job for good.
    Forgot {
        /// The job.
        job: JobId,
    },
    /// Look which of these blobs are here, whole, and kept for these jobs; answer with [`Input::Seen`].
    Look {
        /// For the answer.
        id: FetchId,
        /// The blobs.
        blobs: Vec<(JobId, Vec<Hash>)>,
    },
    /// Note on disk which other nodes keep these blobs for the job too. A note goes when the blob is no longer kept for the job.
    NoteHolders {
        /// The job.
        job: JobId,
        /// Which.
        blobs: Vec<Hash>,
        /// They do.
        add: Vec<NodeId>,
        /// They do not.
        remove: Vec<NodeId>,
    },
    /// List what is kept here that, by these notes, any of some nodes keeps too, with all other holders noted; answer with
    /// [`Input::SharedWith`].
    ListShared {
        /// For the answer.
        id: FetchId,
        /// The other nodes.
        nodes: BTreeSet<NodeId>,
        /// Further blobs to list, as far as they are kept here, of which jobs' facts say that one of the nodes keeps them.
        also: Vec<(JobId, Vec<Hash>)>,
    },
    /// Read what the disk knows of a job; answer with [`Input::Entry`].
    ReadEntry {
        /// The job.
        job: JobId,
    },
    /// Read an entry from disk for a peer and answer with [`Input::Loaded`].
    Load {
        /// The job.
        job: JobId,
        /// Who wants it.
        to: NodeId,
    },
    /// Answer a local user.
    Answer {
        /// Whose request.
        id: RequestId,
        /// What.
        response: Response,
    },
    /// A member's certificate became known; it may have expired.
    Learned(Credential),
    /// Something about a job changed that a watcher would show.
    Changed(JobId),
    /// A peer broke the protocol; drop it.
    Offence {
        /// Who.
        peer: NodeId,
        /// What it did.
        what: String,
    },
    /// Something an operator should see in the log.
    Note(Note),
}

/// A line for the log, structured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A node's state changed.
    Peer {
        /// Who.
        node: NodeId,
        /// The new state.
        state: crate::membership::NodeState,
    },
    /// This node leads a job it did not lead before.
    Took {
        /// The job.
        job: JobId,
        /// The term.
        term: u32,
    },
    /// An award was revoked because its node went silent.
    Lost {
        /// The lease.
        lease: Lease,
        /// Whose it was.
        node: NodeId,
        /// How long it had been silent, ms.
        silent_ms: u64,
    },
    /// A task that takes long is started a second time.
    Speculated {
        /// The job.
        job: JobId,
        /// The phase.
        phase: Phase,
        /// The task.
        task: u32,
    },
    /// A node kept its lease and reported nothing for longer than the tasks' limit allows: the award ends.
    Overdue {
        /// The lease.
        lease: Lease,
        /// Whose it is.
        node: NodeId,
        /// How long it reported nothing, ms.
        silent_ms: u64,
    },
    /// Nobody holds the outputs of these tasks any more: they run again, and what they leave takes the place of what was lost.
    MadeAnew {
        /// The job.
        job: JobId,
        /// The term of the brain that says so.
        term: u32,
        /// The phase.
        phase: Phase,
        /// The tasks.
        tasks: Vec<u32>,
    },
    /// An award came back: its node says that nothing of it runs there.
    Back {
        /// The lease.
        lease: Lease,
    },
    /// This node stopped its own attempts because nobody answered.
    Fenced {
        /// The lease.
        lease: Lease,
    },
    /// This node's disk is an older copy of what others remember: it counts as lost, and gets a new number.
    OldDisk {
        /// Who remembers.
        by: NodeId,
        /// What.
        seen: Box<Seen>,
        /// This start's number, and how far the disk had come.
        started: (u64, u64),
    },
    /// Two jobs of one submitter have one number.
    SerialTwice {
        /// The second.
        job: JobId,
    },
    /// A late or foreign result was refused.
    Stale {
        /// The lease it came under.
        lease: Lease,
        /// From whom.
        from: NodeId,
    },
    /// A member signed another seal of a job that is sealed here, and the two say different things: one of them is wrong.
    TwoSeals {
        /// The job.
        job: JobId,
        /// The seal known here.
        known: FactId,
        /// The other one.
        other: FactId,
        /// Who signed that.
        author: NodeId,
    },
}
