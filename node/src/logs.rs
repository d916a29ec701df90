//! Live output of tasks: pushed to those who watch, here or elsewhere, as it comes, and read on demand from the files of attempts
//! that run. What is pushed may get lost on the way; who misses something reads it.
//!
//! The whole output of an attempt that is over is a blob: see [`crate::kept_logs`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sinew_blobs::BlobStore;
use sinew_crdt_state::fact::Fence;
use sinew_crdt_state::ids::{JobId, NodeId};
use tokio::sync::{Semaphore, mpsc};

use crate::exec::logs::{LiveLog, LogStream};
use crate::frames::{AttemptLogs, AttemptRef, LISTED_MAX, LogData, LogList, LogMessage, LogPart, LogRead, encode_log};
use crate::mesh_link::MeshLink;

/// Bytes kept of one stream of one attempt: its end, for those who come late.
const TAIL_MAX: usize = 64 * 1024;
/// Attempts whose ends are kept: at most 32 MiB together, in practice a few KB each.
const ATTEMPTS_MAX: usize = 256;
/// Pieces queued for one local watcher; one that reads slower loses some, and reads them itself.
const WATCHER_QUEUE: usize = 1_024;
/// Bytes read at once from what an attempt prints: a megabyte a second still comes over a link with a quarter of a second of delay.
pub const READ_MAX: u64 = 256 * 1024;
/// Questions of other nodes that are answered at once. What comes beyond is dropped: who asked asks again.
const ANSWERS_MAX: usize = 32;
/// Jobs that other nodes watch here, and nodes that watch one: far above use, a bound against a member that subscribes to
/// everything.
const REMOTE_MAX: usize = 4_096;

type Stream = (JobId, u8, u32, u64, bool);

/// What a watcher hears.
#[derive(Debug, Clone)]
pub enum LogNews {
    /// A piece of output, and the node that it comes from; none for this one.
    Data(Option<NodeId>, LogData),
    /// This node has sent all that it had when it was asked.
    Told(NodeId),
    /// What is at a node, or an attempt that ended there; none for this one.
    Listed(Option<NodeId>, LogList),
}

#[derive(Debug)]
struct Tail {
    of: AttemptRef,
    end: u64,
    bytes: VecDeque<u8>,
}

#[derive(Debug, Default)]
struct Inner {
    tails: BTreeMap<Stream, Tail>,
    order: VecDeque<Stream>,
    local: BTreeMap<JobId, Vec<mpsc::Sender<LogNews>>>,
    remote: BTreeMap<JobId, BTreeSet<NodeId>>,
    /// Those of them that asked what there is, and so understand news of it.
    listers: BTreeSet<NodeId>,
    /// Attempts that run here, with their directories.
    running: BTreeMap<(JobId, AttemptRef), PathBuf>,
    /// Who was asked for a watched job's output: nobody else's word is taken for it.
    asked: BTreeMap<JobId, BTreeSet<NodeId>>,
}

/// All live output of this node.
#[derive(Debug, Clone)]
pub struct LogHub {
    inner: Arc<Mutex<Inner>>,
    link: Arc<Mutex<Option<MeshLink>>>,
    store: BlobStore,
    answers: Arc<Semaphore>,
}

impl LogHub {
    /// Over the store where what attempts printed is kept.
    #[must_use]
    pub fn new(store: BlobStore) -> Self {
        Self { inner: Arc::default(), link: Arc::default(), store, answers: Arc::new(Semaphore::new(ANSWERS_MAX)) }
    }

    /// Lets it reach other nodes.
    pub fn connect(&self, link: MeshLink) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(link);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sink for one attempt, whose log files are under `dir`.
    #[must_use]
    pub fn attempt(&self, job: JobId, of: AttemptRef, dir: PathBuf) -> AttemptLog {
        self.lock().running.insert((job, of), dir);
        AttemptLog { hub: self.clone(), job, of }
    }

    /// Reads on in what an attempt that runs here has printed; `None` where there is nothing.
    #[must_use]
    pub fn read(&self, read: &LogRead) -> Option<LogData> {
        let LogRead { job, phase, task, attempt, stderr, offset } = *read;
        let inner = self.lock();
        let (of, dir) =
            inner.running_of(job).find(|(of, _)| (of.phase, of.task, of.attempt) == (phase, task, attempt))?;
        let (of, path) = (*of, dir.join("logs").join(if stderr { "stderr" } else { "stdout" }));
        drop(inner);
        let mut bytes = Vec::new();
        let mut file = std::fs::File::open(path).ok()?;
        file.seek(SeekFrom::Start(offset)).ok()?;
        file.take(READ_MAX).read_to_end(&mut bytes).ok()?;
        (!bytes.is_empty()).then(|| data_of(job, of, stderr, offset, bytes))
    }

    /// What is here of what a job's tasks printed: of those that run, and kept of those that are over.
    pub async fn list(&self, job: JobId) -> Vec<AttemptLogs> {
        let mut all: BTreeMap<AttemptRef, AttemptLogs> = BTreeMap::new();
        let size = |dir: &PathBuf, name| std::fs::metadata(dir.join("logs").join(name)).map_or(0, |meta| meta.len());
        for (of, dir) in self.lock().running_of(job) {
            let part = |name| LogPart { size: size(dir, name), hash: None };
            let (stdout, stderr) = (part("stdout"), part("stderr"));
            let logs = AttemptLogs { attempt: *of, running: true, good: false, stdout, stderr };
            all.insert(*of, logs);
        }
        match crate::kept_logs::list(&self.store, job).await {
            Ok(kept) => all.extend(kept.into_iter().map(|logs| (logs.attempt, logs))),
            Err(error) => tracing::warn!(job = %job.short(), %error, "cannot list the job's logs"),
        }
        all.into_values().collect()
    }

    /// Asks a node that understands it what is there of what a job's tasks printed.
    pub fn ask_list(&self, job: JobId, node: NodeId) {
        self.lock().asked.entry(job).or_default().insert(node);
        self.send(node, &LogMessage::List(job));
    }

    /// Asks a node that understands it for a piece of what an attempt has printed.
    pub fn ask_read(&self, node: NodeId, read: LogRead) {
        self.send(node, &LogMessage::Read(read));
    }

    /// Answers another node, unless there is too much to answer.
    fn answer(&self, to: NodeId, message: LogMessage) {
        let Ok(permit) = Arc::clone(&self.answers).try_acquire_owned() else { return };
        let hub = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            match message {
                LogMessage::List(job) => hub.tell_list(to, job).await,
                LogMessage::Read(read) => {
                    let reader = hub.clone();
                    let piece = tokio::task::spawn_blocking(move || reader.read(&read)).await;
                    if let Ok(Some(data)) = piece {
                        hub.send(to, &LogMessage::Data(data));
                    }
                }
                _ => {}
            }
        });
    }

    async fn tell_list(&self, to: NodeId, job: JobId) {
        let mut left = self.list(job).await;
        let record = crate::records::find(&self.store, job).await.ok().flatten();
        loop {
            let rest = left.split_off(left.len().min(LISTED_MAX));
            let last = rest.is_empty();
            self.send(to, &LogMessage::Listed(LogList { job, attempts: left, last, record }));
            if last {
                return;
            }
            left = rest;
        }
    }

    /// Watches a job's output on this node and on `nodes`.
    pub fn watch(&self, job: JobId, nodes: &[NodeId]) -> mpsc::Receiver<LogNews> {
        let (tx, rx) = mpsc::channel(WATCHER_QUEUE);
        let mut inner = self.lock();
        inner.tidy();
        for data in tails_of(&inner, job) {
            let _ = tx.try_send(LogNews::Data(None, data));
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
                    inner.tell(data.job, &LogNews::Data(Some(from), data));
                }
            }
            LogMessage::Told(job) => {
                let mut inner = self.lock();
                if inner.asked.get(&job).is_some_and(|nodes| nodes.contains(&from)) {
                    inner.tell(job, &LogNews::Told(from));
                }
            }
            LogMessage::Listed(list) => {
                let mut inner = self.lock();
                if list.attempts.len() <= LISTED_MAX
                    && inner.asked.get(&list.job).is_some_and(|nodes| nodes.contains(&from))
                {
                    inner.tell(list.job, &LogNews::Listed(Some(from), list));
                }
            }
            LogMessage::List(_) => {
                self.lock().understands(from);
                self.answer(from, message);
            }
            LogMessage::Read(_) => self.answer(from, message),
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

    fn see(&self, job: JobId, of: AttemptRef, stderr: bool, bytes: &[u8]) {
        let mut inner = self.lock();
        let offset = inner.append(job, of, stderr, bytes);
        let remote: Vec<NodeId> = inner.remote.get(&job).into_iter().flatten().copied().collect();
        if !inner.local.contains_key(&job) && remote.is_empty() {
            return;
        }
        let data = data_of(job, of, stderr, offset, bytes.to_vec());
        inner.tell(job, &LogNews::Data(None, data.clone()));
        drop(inner);
        let message = LogMessage::Data(data);
        for node in remote {
            self.send(node, &message);
        }
    }

    /// An attempt is over: what it printed is kept from now on, and no longer read from its directory.
    fn ended(&self, job: JobId, logs: AttemptLogs) {
        let list = LogList { job, attempts: vec![logs], last: false, record: None };
        let mut inner = self.lock();
        inner.running.remove(&(job, logs.attempt));
        inner.tell(job, &LogNews::Listed(None, list.clone()));
        let remote = inner.remote.get(&job).into_iter().flatten();
        let able: Vec<NodeId> = remote.filter(|node| inner.listers.contains(*node)).copied().collect();
        drop(inner);
        let message = LogMessage::Listed(list);
        able.into_iter().for_each(|node| self.send(node, &message));
    }
}

fn data_of(job: JobId, of: AttemptRef, stderr: bool, offset: u64, bytes: Vec<u8>) -> LogData {
    let AttemptRef { phase, task, fence, attempt, number } = of;
    LogData { job, phase, task, attempt, stderr, offset, bytes, fence: Some(fence), number }
}

impl Inner {
    fn running_of(&self, job: JobId) -> impl Iterator<Item = (&AttemptRef, &PathBuf)> {
        let fence = Fence { term: 0, epoch: 0 };
        let first = AttemptRef { phase: 0, task: 0, fence, attempt: 0, number: 0 };
        self.running.range((job, first)..).take_while(move |((of, _), _)| *of == job).map(|((_, of), dir)| (of, dir))
    }

    /// Notes that a node understands what is told of attempts that ended.
    fn understands(&mut self, node: NodeId) {
        if self.listers.len() < REMOTE_MAX {
            self.listers.insert(node);
        }
    }

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

    fn append(&mut self, job: JobId, of: AttemptRef, stderr: bool, bytes: &[u8]) -> u64 {
        let stream = (job, of.phase, of.task, of.attempt, stderr);
        if !self.tails.contains_key(&stream) {
            self.order.push_back(stream);
            if self.order.len() > ATTEMPTS_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.tails.remove(&oldest);
            }
        }
        let tail = self.tails.entry(stream).or_insert_with(|| Tail { of, end: 0, bytes: VecDeque::new() });
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
    let mine = inner.tails.iter().filter(|((of, ..), _)| *of == job);
    let piece = |((_, _, _, _, stderr), tail): (&Stream, &Tail)| {
        let offset = tail.end - tail.bytes.len() as u64;
        data_of(job, tail.of, *stderr, offset, tail.bytes.iter().copied().collect())
    };
    mine.map(piece).collect()
}

/// Takes what one attempt prints. Dropped, it says that nothing of the attempt is kept.
#[derive(Debug)]
pub struct AttemptLog {
    hub: LogHub,
    job: JobId,
    of: AttemptRef,
}

impl AttemptLog {
    /// The attempt.
    #[must_use]
    pub const fn of(&self) -> AttemptRef {
        self.of
    }

    /// The attempt is over, well or not, and what it printed is kept as these blobs.
    pub fn ended(&self, good: bool, stdout: LogPart, stderr: LogPart) {
        self.hub.ended(self.job, AttemptLogs { attempt: self.of, running: false, good, stdout, stderr });
    }
}

impl Drop for AttemptLog {
    fn drop(&mut self) {
        self.hub.lock().running.remove(&(self.job, self.of));
    }
}

impl LiveLog for AttemptLog {
    fn see(&self, stream: LogStream, bytes: &[u8]) {
        self.hub.see(self.job, self.of, matches!(stream, LogStream::Stderr), bytes);
    }
}
