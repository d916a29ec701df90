//! Live output of tasks: kept for a while on the node that runs them, pushed to whoever watches, here or elsewhere.
//!
//! The whole output of a finished task is a blob; this is only for the time before, and for attempts that failed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sinew_crdt_state::ids::{JobId, NodeId};
use tokio::sync::mpsc;

use crate::exec::logs::{LiveLog, LogStream};
use crate::frames::{LogData, LogMessage, encode_log};
use crate::mesh_link::MeshLink;

/// Bytes kept of one stream of one attempt: its end, for those who come late.
const TAIL_MAX: usize = 64 * 1024;
/// Attempts whose ends are kept: at most 32 MiB together, in practice a few KB each.
const ATTEMPTS_MAX: usize = 256;
/// Pieces queued for one local watcher; one that reads slower loses some, and gets the whole from the blob.
const WATCHER_QUEUE: usize = 1_024;
/// Jobs that other nodes watch here, and nodes that watch one: far above use, a bound against a member that subscribes to
/// everything.
const REMOTE_MAX: usize = 4_096;

type Stream = (JobId, u8, u32, u64, bool);

/// What a watcher hears.
#[derive(Debug, Clone)]
pub enum LogNews {
    /// A piece of output.
    Data(LogData),
    /// This node has sent all that it had when it was asked.
    Told(NodeId),
}

#[derive(Debug, Default)]
struct Tail {
    end: u64,
    bytes: VecDeque<u8>,
}

#[derive(Debug, Default)]
struct Inner {
    tails: BTreeMap<Stream, Tail>,
    order: VecDeque<Stream>,
    local: BTreeMap<JobId, Vec<mpsc::Sender<LogNews>>>,
    remote: BTreeMap<JobId, BTreeSet<NodeId>>,
    /// Who was asked for a watched job's output: nobody else's word is taken for it.
    asked: BTreeMap<JobId, BTreeSet<NodeId>>,
}

/// All live output of this node.
#[derive(Debug, Clone, Default)]
pub struct LogHub {
    inner: Arc<Mutex<Inner>>,
    link: Arc<Mutex<Option<MeshLink>>>,
}

impl LogHub {
    /// Lets it reach other nodes.
    pub fn connect(&self, link: MeshLink) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(link);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sink for one attempt.
    #[must_use]
    pub fn attempt(&self, job: JobId, phase: u8, task: u32, attempt: u64) -> AttemptLog {
        AttemptLog { hub: self.clone(), job, phase, task, attempt }
    }

    /// Watches a job's output on this node and on `nodes`.
    pub fn watch(&self, job: JobId, nodes: &[NodeId]) -> mpsc::Receiver<LogNews> {
        let (tx, rx) = mpsc::channel(WATCHER_QUEUE);
        let mut inner = self.lock();
        inner.tidy();
        for data in tails_of(&inner, job) {
            let _ = tx.try_send(LogNews::Data(data));
        }
        inner.local.entry(job).or_default().push(tx);
        drop(inner);
        self.ask(job, nodes);
        rx
    }

    /// Asks further nodes for a job's output.
    pub fn ask(&self, job: JobId, nodes: &[NodeId]) {
        self.lock().asked.entry(job).or_default().extend(nodes);
        if let Some(link) = &*self.link.lock().unwrap_or_else(PoisonError::into_inner) {
            for node in nodes {
                link.send_bulk(*node, encode_log(&LogMessage::Subscribe(job)));
            }
        }
    }

    /// A message from a node of the mesh.
    pub fn on_message(&self, from: NodeId, message: LogMessage) {
        match message {
            LogMessage::Subscribe(job) => {
                let mut inner = self.lock();
                if !inner.subscribe(job, from) {
                    return;
                }
                let tails = tails_of(&inner, job);
                drop(inner);
                for data in tails {
                    self.send(from, &LogMessage::Data(data));
                }
                self.send(from, &LogMessage::Told(job));
            }
            LogMessage::Unsubscribe(job) => {
                let mut inner = self.lock();
                if let Some(nodes) = inner.remote.get_mut(&job) {
                    nodes.remove(&from);
                    if nodes.is_empty() {
                        inner.remote.remove(&job);
                    }
                }
            }
            LogMessage::Data(data) => {
                let mut inner = self.lock();
                if inner.asked.get(&data.job).is_some_and(|nodes| nodes.contains(&from)) {
                    inner.tell(data.job, &LogNews::Data(data));
                }
            }
            LogMessage::Told(job) => {
                let mut inner = self.lock();
                if inner.asked.get(&job).is_some_and(|nodes| nodes.contains(&from)) {
                    inner.tell(job, &LogNews::Told(from));
                }
            }
        }
    }

    /// The job ended: nobody needs to be told any more.
    pub fn forget(&self, job: JobId) {
        let mut inner = self.lock();
        inner.remote.remove(&job);
        inner.tidy();
    }

    /// A watcher leaves: when it was the last, other nodes need not send any more.
    pub fn unwatch(&self, job: JobId, watcher: mpsc::Receiver<LogNews>) {
        drop(watcher);
        let mut inner = self.lock();
        let asked = inner.asked.get(&job).cloned().unwrap_or_default();
        inner.tidy();
        let watched = inner.local.contains_key(&job);
        drop(inner);
        if !watched {
            asked.into_iter().for_each(|node| self.send(node, &LogMessage::Unsubscribe(job)));
        }
    }

    fn send(&self, to: NodeId, message: &LogMessage) {
        if let Some(link) = &*self.link.lock().unwrap_or_else(PoisonError::into_inner) {
            link.send_bulk(to, encode_log(message));
        }
    }

    fn see(&self, stream: Stream, bytes: &[u8]) {
        let (job, phase, task, attempt, stderr) = stream;
        let mut inner = self.lock();
        let offset = inner.append(stream, bytes);
        let remote: Vec<NodeId> = inner.remote.get(&job).into_iter().flatten().copied().collect();
        if !inner.local.contains_key(&job) && remote.is_empty() {
            return;
        }
        let data = LogData { job, phase, task, attempt, stderr, offset, bytes: bytes.to_vec() };
        inner.tell(job, &LogNews::Data(data.clone()));
        drop(inner);
        let message = LogMessage::Data(data);
        for node in remote {
            self.send(node, &message);
        }
    }
}

impl Inner {
    /// Lets go of what is kept for watchers that have left.
    fn tidy(&mut self) {
        self.local.retain(|_, watchers| {
            watchers.retain(|w| !w.is_closed());
            !watchers.is_empty()
        });
        let local = &self.local;
        self.asked.retain(|job, _| local.contains_key(job));
    }

    /// Whether `from` may watch the job from now on.
    fn subscribe(&mut self, job: JobId, from: NodeId) -> bool {
        if !self.remote.contains_key(&job) && self.remote.len() >= REMOTE_MAX {
            return false;
        }
        let nodes = self.remote.entry(job).or_default();
        nodes.contains(&from) || (nodes.len() < REMOTE_MAX && nodes.insert(from))
    }

    fn append(&mut self, stream: Stream, bytes: &[u8]) -> u64 {
        if !self.tails.contains_key(&stream) {
            self.order.push_back(stream);
            if self.order.len() > ATTEMPTS_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.tails.remove(&oldest);
            }
        }
        let tail = self.tails.entry(stream).or_default();
        let offset = tail.end;
        tail.end += bytes.len() as u64;
        tail.bytes.extend(bytes);
        let over = tail.bytes.len().saturating_sub(TAIL_MAX);
        tail.bytes.drain(..over);
        offset
    }

    fn tell(&mut self, job: JobId, news: &LogNews) {
        if let Some(watchers) = self.local.get_mut(&job) {
            // A full queue loses the piece, not the watcher: it fills the gap from the blob.
            watchers.retain(|w| !matches!(w.try_send(news.clone()), Err(mpsc::error::TrySendError::Closed(_))));
        }
    }
}

fn tails_of(inner: &Inner, job: JobId) -> Vec<LogData> {
    let mine = inner.tails.iter().filter(|((j, ..), _)| *j == job);
    mine.map(|((job, phase, task, attempt, stderr), tail)| LogData {
        job: *job,
        phase: *phase,
        task: *task,
        attempt: *attempt,
        stderr: *stderr,
        offset: tail.end - tail.bytes.len() as u64,
        bytes: tail.bytes.iter().copied().collect(),
    })
    .collect()
}

/// Takes what one attempt prints.
#[derive(Debug)]
pub struct AttemptLog {
    hub: LogHub,
    job: JobId,
    phase: u8,
    task: u32,
    attempt: u64,
}

impl LiveLog for AttemptLog {
    fn see(&self, stream: LogStream, bytes: &[u8]) {
        let stderr = matches!(stream, LogStream::Stderr);
        self.hub.see((self.job, self.phase, self.task, self.attempt, stderr), bytes);
    }
}
