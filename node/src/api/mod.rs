//! The local API: what the command line asks its daemon, over the unix socket `sinew.sock` in the data dir.
//!
//! A connection carries one request, a JSON object on one line, and its replies, one JSON object a line; the last is
//! [`Reply::Done`] or [`Reply::Error`]. The socket's permissions (0600) are the access control: whoever may open it acts
//! as the node.

mod blobs;
pub mod client;
mod forgotten;
mod holders;
mod jobs;
mod logs;
mod outputs;
mod secrets;
pub mod server;
mod views;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::ids::{Hash, JobId, MeshId, NodeId};
use sinew_crdt_state::manifest::JobDraft;
use sinew_crdt_state::spec::Alone;
use sinew_crdt_state::state::Event;
use sinew_scheduler::view::JobView;

use crate::prune::Leftover;
use crate::secrets::SecretBytes;
use crate::secrets::store::SecretView;
use crate::sightings::Seen;

/// Longest request line: a draft with inline files, well below any abuse.
pub const REQUEST_LEN_MAX: usize = 4 << 20;

/// A request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// How is the daemon? One [`Reply::Status`].
    Status,
    /// Who else is there? One [`Reply::Peers`].
    Peers,
    /// Jobs, newest first. One [`Reply::Jobs`].
    Jobs {
        /// At most so many.
        limit: usize,
    },
    /// One job. One [`Reply::Job`].
    Job {
        /// An id or the unambiguous beginning of one.
        job: String,
    },
    /// One job again and again, whenever it changes, until it has ended. [`Reply::Job`]s.
    Watch {
        /// An id or the unambiguous beginning of one.
        job: String,
    },
    /// Accept a job. [`Reply::Progress`]es while inputs are taken in, then one [`Reply::Submitted`].
    Submit {
        /// The job; local paths in it are absolute.
        draft: Box<JobDraft>,
    },
    /// Stop a job.
    Cancel {
        /// An id or the unambiguous beginning of one.
        job: String,
        /// For people.
        reason: String,
    },
    /// What a job's tasks printed. [`Reply::Output`]s, [`Reply::Attempt`]s, [`Reply::Anew`]s and [`Reply::Missing`]s.
    Logs {
        /// An id or the unambiguous beginning of one.
        job: String,
        /// One task only.
        task: Option<u32>,
        /// One attempt only, counted from 1; else the one whose result counts, or the last one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attempt: Option<u32>,
        /// Go on until the job has ended.
        follow: bool,
    },
    /// Write a job's outputs into a directory. [`Reply::File`]s.
    Get {
        /// An id or the unambiguous beginning of one.
        job: String,
        /// An absolute path; made if it is not there.
        out: PathBuf,
    },
    /// Take a file or directory into the blob store. One [`Reply::Blob`].
    BlobAdd {
        /// An absolute path.
        path: PathBuf,
    },
    /// Write a blob to a file, or a directory's to a directory, fetched from a node that has it. One [`Reply::File`].
    BlobGet {
        /// Which.
        hash: Hash,
        /// An absolute path that does not exist yet.
        out: PathBuf,
    },
    /// Fetch a blob, of a directory with all that is in it, into the local store from a node that has it. One [`Reply::Blob`].
    BlobWarm {
        /// Which.
        hash: Hash,
    },
    /// The blobs here. [`Reply::Blob`]s.
    BlobList,
    /// Pin a blob under a name.
    BlobTag {
        /// The name.
        name: String,
        /// The blob.
        hash: Hash,
    },
    /// Remove a name.
    BlobUntag {
        /// The name.
        name: String,
    },
    /// Remove all names that users gave a blob, and the blob, unless something else keeps it. One [`Reply::Removed`].
    BlobRemove {
        /// Which.
        hash: Hash,
    },
    /// An invitation ticket. One [`Reply::Ticket`].
    Invite {
        /// `run,submit,admin`.
        roles: String,
        /// How long it is good for, ms.
        expires_ms: u64,
    },
    /// When which advert was heard, job taken in or task started here lately. One [`Reply::Sightings`].
    Sightings,
    /// Remove what this node no longer needs. One [`Reply::Pruned`].
    Prune {
        /// Only say what would be removed.
        dry_run: bool,
        /// Outputs of forgotten jobs too that are not old yet.
        all: bool,
    },
    /// Keep a secret on this node. One [`Reply::SecretSet`].
    SecretSet {
        /// Its name.
        name: String,
        /// Its value; base64.
        value: SecretBytes,
    },
    /// The secrets of this node, without their values. One [`Reply::Secrets`].
    SecretList,
    /// Remove a secret of this node.
    SecretRemove {
        /// Its name.
        name: String,
    },
    /// End the daemon in good order. It is answered at once; the daemon ends once it has left.
    Shutdown {
        /// Wait for what runs here, and for jobs that only this node can lead ...
        #[serde(default)]
        wait: bool,
        /// ... for so long, ms.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline_ms: Option<u64>,
    },
}

/// A reply line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// The daemon.
    Status(Box<StatusView>),
    /// The nodes.
    Peers {
        /// This one first.
        peers: Vec<PeerView>,
    },
    /// What was removed, or would be.
    Pruned {
        /// Each thing.
        items: Vec<Leftover>,
    },
    /// Jobs in short.
    Jobs {
        /// Newest first.
        jobs: Vec<JobLine>,
    },
    /// A job in full.
    Job {
        /// The job.
        view: Box<JobView>,
        /// Its history, oldest first; empty in [`Request::Watch`].
        timeline: Vec<Event>,
    },
    /// How far taking in inputs is.
    Progress {
        /// What is being done.
        what: String,
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The job is accepted: it survives from here on.
    Submitted {
        /// Its id.
        job: JobId,
        /// How few members were in reach, where the job rests on this node alone although the mesh is larger.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        alone: Option<Alone>,
    },
    /// Bytes that a task printed.
    Output {
        /// Which task.
        task: u32,
        /// Whether it is stderr.
        stderr: bool,
        /// The bytes, base64.
        data: String,
        /// The phase.
        #[serde(default, skip_serializing_if = "is_zero")]
        phase: u8,
        /// Which attempt of the task, from 1; 0 where that is not known.
        #[serde(default, skip_serializing_if = "is_zero")]
        attempt: u32,
    },
    /// From here on another attempt of a task is sent. What was sent of a stream is the beginning of what this one printed too, unless
    /// a [`Reply::Anew`] follows.
    Attempt {
        /// Which task.
        task: u32,
        /// Which attempt of it, from 1; 0 where that is not known.
        attempt: u32,
        /// Where it ran.
        node: NodeId,
        /// The phase.
        #[serde(default, skip_serializing_if = "is_zero")]
        phase: u8,
    },
    /// What was sent of a stream is not what the attempt that is sent now printed: that one's follows from its beginning.
    Anew {
        /// Which task.
        task: u32,
        /// Whether it is stderr.
        stderr: bool,
        /// The phase.
        #[serde(default, skip_serializing_if = "is_zero")]
        phase: u8,
        /// Which attempt of the task, from 1; 0 where that is not known.
        #[serde(default, skip_serializing_if = "is_zero")]
        attempt: u32,
    },
    /// The rest of what an attempt printed cannot be had.
    Missing {
        /// Which task.
        task: u32,
        /// Whether it is stderr.
        stderr: bool,
        /// Why.
        why: String,
        /// The phase.
        #[serde(default, skip_serializing_if = "is_zero")]
        phase: u8,
        /// Which attempt of the task, from 1; 0 where that is not known.
        #[serde(default, skip_serializing_if = "is_zero")]
        attempt: u32,
    },
    /// A file was written.
    File {
        /// Where.
        path: PathBuf,
        /// Bytes.
        size: u64,
    },
    /// A symbolic link was made.
    Link {
        /// Where.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// An empty directory was made.
    Directory {
        /// Where.
        path: PathBuf,
    },
    /// Something is not part of what was taken in or given out.
    LeftOut {
        /// The task whose output it was, if it was one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        task: Option<u32>,
        /// Its path below the directory.
        name: String,
        /// What it is.
        what: String,
    },
    /// A blob's names are gone.
    Removed {
        /// The names.
        tags: Vec<String>,
        /// Whether the blob is gone too; if not, something else keeps it here, such as a job.
        gone: bool,
    },
    /// A blob.
    Blob {
        /// Which.
        hash: Hash,
        /// Bytes.
        size: u64,
        /// Names that pin it.
        tags: Vec<String>,
    },
    /// What was seen lately.
    Sightings {
        /// Adverts, submits, starts.
        seen: Seen,
    },
    /// A ticket.
    Ticket {
        /// One word.
        ticket: String,
    },
    /// A secret is kept, on disk.
    SecretSet {
        /// Whether it replaced another.
        replaced: bool,
    },
    /// What secrets there are.
    Secrets {
        /// By name.
        secrets: Vec<SecretView>,
    },
    /// The request is done.
    Done,
    /// The request failed.
    Error(ApiError),
}

/// A job as its page shows it.
///
/// # Errors
/// [`ApiError`] when it is not known here, or cannot be read.
pub(crate) async fn view_of(shared: &crate::daemon::Shared, job: JobId) -> Result<JobView, ApiError> {
    Ok(views::job(shared, job).await?.0)
}

fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

/// A failed request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// The class.
    pub code: ErrorCode,
    /// What happened and what would help.
    pub message: String,
    /// The exit code for a command line: 1 failed, 2 usage or not found, 13 denied, 75 nobody knows (try again).
    pub exit: u8,
    /// The job that it is about, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
}

impl ApiError {
    /// Exit code 1.
    #[must_use]
    pub fn failed(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), exit: 1, job: None }
    }

    /// Exit code 2.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { code: ErrorCode::Invalid, message: message.into(), exit: 2, job: None }
    }

    /// Exit code 13.
    #[must_use]
    pub fn denied(message: impl Into<String>) -> Self {
        Self { code: ErrorCode::Deny, message: message.into(), exit: 13, job: None }
    }

    /// Exit code 75, `EX_TEMPFAIL` of `sysexits.h`: whether it happened is not known, and another try may tell.
    #[must_use]
    pub fn unknown(job: JobId, message: impl Into<String>) -> Self {
        Self { code: ErrorCode::Unknown, message: message.into(), exit: 75, job: Some(job) }
    }

    /// About this job.
    #[must_use]
    pub fn of_job(self, job: JobId) -> Self {
        Self { job: Some(job), ..self }
    }
}

/// The daemon and its node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// This node.
    pub node: NodeId,
    /// Its mesh.
    pub mesh: MeshId,
    /// The mesh's name.
    pub mesh_name: String,
    /// `run,submit,admin`.
    pub roles: String,
    /// Sinew's version.
    pub version: String,
    /// The daemon's process.
    pub pid: u32,
    /// Ms since the daemon started.
    pub uptime_ms: u64,
    /// Where it listens.
    pub listen: Vec<String>,
    /// Connected members.
    pub peers: usize,
    /// Thousandths of a core: for tasks, and free of them.
    pub cpu_milli: (u32, u32),
    /// Bytes of memory: for tasks, and free of them.
    pub memory_bytes: (u64, u64),
    /// Bytes of disk: for tasks to reserve, and free of them.
    #[serde(default)]
    pub disk_bytes: (u64, u64),
    /// Bytes that a job may let one of its tasks write here at most, if there is a ceiling.
    #[serde(default)]
    pub output_bytes_max: Option<u64>,
    /// Tasks running here.
    pub tasks_running: usize,
    /// Jobs whose brain this node is.
    pub jobs_led: usize,
    /// Live and sealed entries in the ledger.
    pub ledger_entries: (usize, usize),
    /// The ledger's fingerprint: equal on two nodes when they know the same.
    pub ledger_root: String,
    /// Blobs held, and their bytes.
    pub blobs: (u64, u64),
    /// Why the disk refuses records, if it does.
    pub storage_problem: Option<String>,
    /// What was wrong with the ledger when this node started, what was done, and what is still awaited.
    #[serde(default)]
    pub storage_remark: Option<String>,
    /// How programs are isolated: what was asked for.
    pub sandbox: String,
    /// What this machine does not give to that, piece by piece.
    pub sandbox_missing: Vec<String>,
    /// Why no program runs here, if that is so.
    pub sandbox_refusal: Option<String>,
    /// The node's runners, each with why it cannot run anything now, if so.
    pub runners: Vec<(String, Option<String>)>,
    /// Peers refused so far, by reason.
    pub refused: Vec<(String, u64)>,
    /// Whether this node can be dialled, as far as AutoNAT knows.
    pub nat: String,
    /// What this node sent and heard since it started.
    pub traffic: TrafficView,
}

/// Traffic between daemons since this one started. Blob streams and libp2p's own protocols are not in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficView {
    /// Frames on control streams.
    pub control: FramesView,
    /// Frames on bulk streams.
    pub bulk: FramesView,
    /// Messages of the core sent in these frames.
    pub messages_sent: u64,
    /// Gossip messages published here.
    pub gossip_published: u64,
    /// Gossip messages of others heard here, each once.
    pub gossip_heard: u64,
    /// Gossip messages that peers sent here, those that were here already among them.
    pub gossip_copies: u64,
    /// Bytes of these copies, with signatures and headers.
    pub gossip_copies_bytes: u64,
    /// Peers to which this node passes on adverts.
    pub gossip_peers: usize,
}

/// Frames of one class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FramesView {
    /// Frames sent.
    pub sent: u64,
    /// Bytes sent, headers not counted.
    pub sent_bytes: u64,
    /// Frames received.
    pub received: u64,
    /// Bytes received, headers not counted.
    pub received_bytes: u64,
}

/// A node as this one sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerView {
    /// Which.
    pub node: NodeId,
    /// Whether it is this one.
    pub own: bool,
    /// `healthy`, `suspect`, `lost`, ...
    pub state: String,
    /// Its roles.
    pub roles: String,
    /// Whether a connection is open.
    pub connected: bool,
    /// Where it was reached, and how: `tcp`, `quic`, `relay`.
    pub address: Option<String>,
    /// Round-trip time, microseconds.
    pub rtt_us: Option<u32>,
    /// Thousandths of a core: total and free.
    pub cpu_milli: Option<(u32, u32)>,
    /// Bytes of memory: total and free.
    pub memory_bytes: Option<(u64, u64)>,
    /// Labels, `K=V`.
    pub labels: Vec<String>,
    /// What can run there: names with commas between.
    pub runners: String,
    /// Host, system, version.
    pub about: String,
    /// Protocol offences counted.
    pub offences: u64,
}

/// A job in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobLine {
    /// Its id.
    pub id: JobId,
    /// Its name.
    pub name: String,
    /// `batch` or `map_reduce`.
    pub kind: String,
    /// Its state; for sealed jobs how they ended; `waiting for a majority: ...` where nobody can decide.
    pub status: String,
    /// Finished tasks and all tasks.
    pub tasks: (u64, u64),
    /// Who submitted it.
    pub submitter: NodeId,
    /// When, unix ms.
    pub submitted_ms: u64,
}
