//! Carries the core's effects out: to the mesh, the disk, the task threads, the blob store and whoever waits for an answer.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sinew_blobs::{FetchOptions, FetchProgress, Format, OnFetchProgress};
use sinew_crdt_state::fact::Usage;
use sinew_crdt_state::ids::{Hash, JobId, NodeId};
use sinew_crdt_state::spec::{BlobRef, Builtin, Program, Work};
use sinew_mesh::{DropReason, FrameClass, Topic};
use sinew_scheduler::config::FETCHING_EVERY;
use sinew_scheduler::io::{Effect, FetchId, Input, Note, StartTask, TaskResult};
use sinew_scheduler::wire;

use crate::clock::unix_ms;
use crate::daemon::{Shared, gossip_frame};
use crate::engine::Driver;
use crate::frames::encode_messages;
use crate::storage::Storage;
use crate::tasks::TaskPool;

/// The daemon's driver.
#[derive(Debug)]
pub struct Effects {
    shared: Arc<Shared>,
    pool: TaskPool,
    storage: Arc<Storage>,
    runtime: tokio::runtime::Handle,
    published: u64,
    /// Offenders named in the log already: one line each.
    offenders: BTreeSet<NodeId>,
}

impl Effects {
    /// Over the parts of a daemon.
    #[must_use]
    pub fn new(shared: Arc<Shared>, pool: TaskPool, storage: Arc<Storage>, runtime: tokio::runtime::Handle) -> Self {
        // A restarted daemon must not repeat the counters of its predecessor.
        let published = unix_ms() << 16;
        Self { shared, pool, storage, runtime, published, offenders: BTreeSet::new() }
    }

    fn fetch(&self, id: FetchId, job: JobId, blobs: Vec<BlobRef>, providers: Vec<NodeId>) {
        let shared = Arc::clone(&self.shared);
        self.runtime.spawn(async move {
            let ok = match fetch_all(&shared, id, job, &blobs, &providers).await {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!(job = %job.short(), %error, "cannot fetch blobs");
                    false
                }
            };
            shared.engine.input(Input::Fetched { id, ok });
        });
    }

    /// Runs what the blob store is asked, and hands its answer in; what fails is answered like nothing found.
    fn ask_blobs<F, T>(&self, what: &'static str, ask: impl FnOnce(Arc<Shared>) -> F, answer: fn(T) -> Input)
    where
        F: Future<Output = Result<T, sinew_blobs::StoreError>> + Send + 'static,
        T: Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        let asked = ask(Arc::clone(&shared));
        self.runtime.spawn(async move {
            match asked.await {
                Ok(found) => shared.engine.input(answer(found)),
                Err(error) => tracing::warn!(%error, "{what}"),
            }
        });
    }

    fn look(&self, id: FetchId, blobs: Vec<(JobId, Vec<Hash>)>) {
        let look = |shared: Arc<Shared>| async move {
            let mut kept = Vec::new();
            for (job, hashes) in blobs {
                let here = shared.blobs.kept(job, &hashes).await?;
                kept.extend((!here.is_empty()).then_some((job, here)));
            }
            Ok((id, kept))
        };
        self.ask_blobs("cannot look what is kept here", look, |(id, blobs)| Input::Seen { id, blobs });
    }

    fn list_shared(&self, id: FetchId, nodes: BTreeSet<NodeId>, also: Vec<(JobId, Vec<Hash>)>) {
        let list = |shared: Arc<Shared>| async move { Ok((id, shared.blobs.shared_with(&nodes, &also).await?)) };
        let answer = |(id, shared)| Input::SharedWith { id, shared };
        self.ask_blobs("cannot list what is kept here", list, answer);
    }

    fn note_holders(&self, job: JobId, blobs: Vec<Hash>, add: Vec<NodeId>, remove: Vec<NodeId>) {
        let shared = Arc::clone(&self.shared);
        self.runtime.spawn(async move {
            if let Err(error) = shared.blobs.note(job, &blobs, &add, &remove).await {
                tracing::warn!(job = %job.short(), %error, "cannot note who else keeps its outputs");
            }
        });
    }

    fn read_entry(&self, job: JobId) {
        let shared = Arc::clone(&self.shared);
        self.runtime.spawn_blocking(move || match shared.ledger.entry(&job) {
            Ok(facts) => shared.engine.input(Input::Entry { job, facts }),
            Err(error) => tracing::warn!(job = %job.short(), %error, "cannot read an entry"),
        });
    }

    fn load(&self, job: JobId, to: NodeId) {
        let shared = Arc::clone(&self.shared);
        self.runtime.spawn_blocking(move || match shared.ledger.entry(&job) {
            Ok(facts) => shared.engine.input(Input::Loaded { job, to, facts }),
            Err(error) => tracing::warn!(job = %job.short(), %error, "cannot read an entry"),
        });
    }

    fn note(note: &Note) {
        match note {
            Note::Peer { node, state } => tracing::info!(node = %node.short(), %state, "node"),
            Note::Speculated { job, phase, task } => {
                tracing::info!(job = %job.short(), phase, task, "takes long: started a second time");
            }
            Note::Took { job, term } => tracing::info!(job = %job.short(), term, "leading"),
            Note::Lost { lease, node, silent_ms } => {
                let (job, epoch) = (lease.job.short(), lease.fence.epoch);
                tracing::warn!(%job, epoch, node = %node.short(), silent_ms, "award lost; its tasks are awarded anew");
            }
            Note::Overdue { lease, node, silent_ms } => {
                let (job, epoch) = (lease.job.short(), lease.fence.epoch);
                tracing::warn!(%job, epoch, node = %node.short(), silent_ms, "tasks are past their time limit; their award ends");
            }
            Note::MadeAnew { job, phase, tasks, .. } => {
                let (job, tasks) = (job.short(), tasks.len());
                tracing::warn!(%job, phase, tasks, "the outputs of tasks are lost with all who held them; they are made anew");
            }
            Note::Back { .. } => {}
            Note::Fenced { lease } => {
                tracing::warn!(job = %lease.job.short(), epoch = lease.fence.epoch, "lease over; attempts stopped");
            }
            Note::TwoSeals { job, known, other, author } => {
                let (job, known, other, author) = (job.short(), known.short(), other.short(), author.short());
                tracing::error!(
                    %job, %known, %other, %author,
                    "ALARM: two seals of one job say different things; look at the job on other nodes, and at who signed"
                );
            }
            Note::OldDisk { by, seen, started } => {
                let (start, written) = started;
                tracing::warn!(
                    by = %by.short(), start, written, known_start = seen.incarnation, known_written = seen.mark,
                    "this data directory is older than what other nodes remember of this one: it was restored from a copy. It \
                     counts as a lost disk, and gets back from the others what it has forgotten"
                );
            }
            Note::SerialTwice { job } => {
                tracing::warn!(job = %job.short(), "its submitter gave the number of another job to this one; both are kept");
            }
            Note::Stale { lease, from } => {
                let (job, epoch) = (lease.job.short(), lease.fence.epoch);
                tracing::info!(%job, epoch, from = %from.short(), "refused a late result");
            }
        }
    }
}

/// Keeps on record what outputs a job has of which some are here: the ledger forgets that before they go.
async fn keep_record(shared: &Shared, job: JobId) {
    // It is sealed a moment ago: the core knows it still, or the disk does.
    let Ok(view) = crate::api::view_of(shared, job).await else {
        return tracing::warn!(job = %job.short(), "cannot keep the record of its outputs: the ledger does not have it");
    };
    if let Err(error) = crate::records::keep(&shared.store, &crate::records::Record::of(&view)).await {
        tracing::warn!(job = %job.short(), %error, "cannot keep the record of its outputs: they are found for an hour only");
    }
}

/// Tells the core how far a fetch of several blobs is.
#[derive(Clone)]
struct Progress {
    shared: Arc<Shared>,
    id: FetchId,
    total: u64,
    /// Bytes of blobs that are here, and when it was last told.
    state: Arc<Mutex<(u64, Instant)>>,
}

impl Progress {
    fn new(shared: &Arc<Shared>, id: FetchId, blobs: &[BlobRef]) -> Self {
        let total = blobs.iter().map(|b| b.size).fold(0, u64::saturating_add);
        Self { shared: Arc::clone(shared), id, total, state: Arc::new(Mutex::new((0, Instant::now()))) }
    }

    /// Hears of the next blob.
    fn of_next(&self) -> OnFetchProgress {
        let told = self.clone();
        Arc::new(move |progress: FetchProgress| told.tell(progress.resumed.saturating_add(progress.fetched)))
    }

    /// A blob is here.
    fn came(&self, bytes: u64) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0 += bytes;
        self.tell(0);
    }

    /// So much of the blob that is on its way has come.
    fn tell(&self, part: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.1.elapsed() >= Duration::from_millis(FETCHING_EVERY.as_ms()) {
            state.1 = Instant::now();
            let (id, total) = (self.id, self.total);
            let done = state.0.saturating_add(part).min(total);
            self.shared.engine.input(Input::FetchProgress { id, done, total });
        }
    }
}

async fn fetch_all(
    shared: &Arc<Shared>,
    id: FetchId,
    job: JobId,
    blobs: &[BlobRef],
    providers: &[NodeId],
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let own = shared.identity.id();
    let others: Vec<NodeId> = providers.iter().copied().filter(|n| *n != own).collect();
    let progress = Progress::new(shared, id, blobs);
    for blob in blobs.iter().filter(|b| b.size > 0) {
        // Tagged first, so that what arrives is not collected in between.
        let guard = shared.store.temp_tag(blob.hash, Format::Raw).await;
        let options =
            FetchOptions { max_size: blob.size, on_progress: Some(progress.of_next()), ..FetchOptions::default() };
        if let Err(error) = shared.store.fetch(blob.hash, &others, &shared.link, &options).await {
            // What came is there for the next try.
            crate::prune::keep_partial(&shared.store, blob.hash).await?;
            return Err(error.into());
        }
        shared.blobs.keep(job, blob.hash).await?;
        progress.came(blob.size);
        drop(guard);
    }
    let hashes: Vec<_> = blobs.iter().filter(|b| b.size > 0).map(|b| b.hash).collect();
    shared.store.ensure_all_durable(&hashes).await?;
    for hash in &hashes {
        if !shared.store.is_whole(*hash).await? {
            return Err(format!("the file of blob {hash} is missing or has another length").into());
        }
    }
    Ok(())
}

/// A task that does nothing is done at once, on the core's thread.
fn is_noop(task: &StartTask) -> bool {
    match &*task.spec.work {
        Work::Batch(batch) => batch.program == Program::Builtin(Builtin::Noop) && batch.inputs.is_empty(),
        Work::MapReduce(_) => false,
    }
}

impl Driver for Effects {
    fn carry_out(&mut self, effect: Effect, inputs: &mut Vec<Input>) {
        match effect {
            Effect::Send { to, class, messages } => {
                let class = match class {
                    wire::Class::Control => FrameClass::Control,
                    wire::Class::Bulk => FrameClass::Bulk,
                };
                self.shared.link.count_messages(messages.len());
                for frame in encode_messages(&messages) {
                    self.shared.link.send(to, class, frame);
                }
            }
            Effect::Publish { topic, payload } => {
                self.published += 1;
                let topic = match topic {
                    wire::Topic::Advert => Topic::Advert,
                };
                self.shared.sightings.advert(&payload);
                self.shared.link.mesh().publish(topic, gossip_frame(self.published, &payload));
            }
            Effect::Persist { ticket, records, urgent } => self.storage.persist(ticket, records, urgent),
            Effect::Start(task) if is_noop(&task) => {
                self.shared.sightings.start(task.key.lease.job);
                let result = TaskResult { result: Ok(Vec::new()), usage: Usage::default() };
                inputs.push(Input::Task { run: task.run, result });
            }
            Effect::Start(task) => {
                self.shared.sightings.start(task.key.lease.job);
                self.pool.start(task);
            }
            Effect::Stop { run, why } => self.pool.stop(run, why),
            Effect::Lease { runs, until } => self.pool.renew(&runs, until),
            Effect::Drain(run) => self.pool.drain(run),
            Effect::Reach(node) => self.shared.link.mesh().reach(node),
            Effect::Left => self.shared.left.notify_one(),
            Effect::Fetch { id, job, blobs, providers } => self.fetch(id, job, blobs, providers),
            Effect::EndJob { job, keep, .. } => {
                let pool = self.pool.clone();
                let shared = Arc::clone(&self.shared);
                self.runtime.spawn(async move {
                    pool.host().end_job(job, &keep).await;
                    if !keep.is_empty() && shared.blobs.has(job) {
                        keep_record(&shared, job).await;
                    }
                });
            }
            Effect::Forgot { job } if !self.shared.blobs.has(job) => {}
            Effect::Forgot { job } => {
                let shared = Arc::clone(&self.shared);
                self.runtime.spawn(async move {
                    if let Err(error) = crate::prune::forgot(&shared.store, job).await {
                        tracing::warn!(job = %job.short(), %error, "cannot note when its outputs may go");
                    }
                });
            }
            Effect::Look { id, blobs } => self.look(id, blobs),
            Effect::NoteHolders { job, blobs, add, remove } => self.note_holders(job, blobs, add, remove),
            Effect::ListShared { id, nodes, also } => self.list_shared(id, nodes, also),
            Effect::ReadEntry { job } => self.read_entry(job),
            Effect::Load { job, to } => self.load(job, to),
            Effect::Answer { id, response } => self.shared.answer(id, response),
            Effect::Learned(credential) => {
                let valid =
                    credential.node().filter(|n| credential.verify(self.shared.membership.mesh, *n, unix_ms()).is_ok());
                if let Some(node) = valid {
                    self.shared.link.mesh().add_member(node, credential);
                }
            }
            Effect::Changed(job) => self.shared.watchers.changed(job),
            Effect::Offence { peer, what } => {
                if self.offenders.insert(peer) {
                    tracing::warn!(node = %peer.short(), what, "dropping a peer that broke the protocol");
                }
                self.shared.link.mesh().drop_peer(peer, DropReason::Misbehaved);
            }
            Effect::Note(note) => Self::note(&note),
        }
    }
}
