//! Submitting, watching, cancelling, and fetching outputs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sinew_blobs::FetchOptions;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::ids::{Hash, JobId, NodeId};
use sinew_crdt_state::manifest::JobDraft;
use sinew_crdt_state::submit_key::key_hash;
use sinew_scheduler::io::{CancelError, Request as CoreRequest, Response, SubmitError};
use sinew_scheduler::view::{JobView, OutputView};
use tokio::sync::mpsc;

use super::server::Replies;
use super::{ApiError, Reply, views};
use crate::clock::unix_us;
use crate::daemon::Shared;
use crate::engine::Gone;
use crate::submit::{PrepareError, prepare};

/// Views of a watched job are sent this often at most: often enough for a smooth progress bar.
const WATCH_EVERY: Duration = Duration::from_millis(100);
/// How far the copies of a submit's inputs are is told this often.
const COPIED_EVERY: Duration = Duration::from_millis(1_000);
/// ... in these words.
const COPYING: &str = "copying inputs to nodes";
/// A watched job that does not change is looked at this often all the same: its brain may be elsewhere.
const WATCH_IDLE: Duration = Duration::from_millis(1_000);

impl From<PrepareError> for ApiError {
    fn from(error: PrepareError) -> Self {
        match &error {
            PrepareError::Input { source, .. } => super::blobs::not_added(source, error.to_string()),
            PrepareError::Chunks(_) | PrepareError::Store(_) => Self::failed(ErrorCode::Storage, error.to_string()),
            PrepareError::Interrupted => Self::failed(ErrorCode::Lost, error.to_string()),
            _ => Self::invalid(error.to_string()),
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match &error {
            SubmitError::Role => Self::denied(error.to_string()),
            SubmitError::Spec(_) => Self::invalid(error.to_string()),
            SubmitError::Leaving => Self::failed(ErrorCode::Lost, error.to_string()),
            SubmitError::Disk(_) => Self::failed(ErrorCode::Storage, error.to_string()),
            SubmitError::KeyTaken { job, .. } => Self::invalid(error.to_string()).of_job(*job),
            SubmitError::Unknown { job, .. } => Self::unknown(*job, error.to_string()),
        }
    }
}

pub(super) async fn submit(shared: &Arc<Shared>, draft: JobDraft, replies: &mut Replies) -> Result<(), ApiError> {
    super::secrets::check(shared, &draft).await?;
    let (tx, mut rx) = mpsc::unbounded_channel();
    let store = shared.store.clone();
    let preparing = tokio::spawn(async move {
        let report = move |what: &str, done: u64, total: u64| {
            // Whoever listened may have gone; the work goes on.
            let _ = tx.send((what.to_owned(), done, total));
        };
        prepare(&store, draft, &report).await
    });
    while let Some((what, done, total)) = rx.recv().await {
        replies.send(&Reply::Progress { what, done, total }).await?;
    }
    let prepared = preparing.await.map_err(|_| ApiError::from(PrepareError::Interrupted))??;
    let mut job = prepared.job.clone();
    if let Some(key) = &mut job.key {
        key.ended = ended_under(shared, &key.text).await?;
    }
    let request = CoreRequest::Submit(Box::new(job));
    let at_us = unix_us();
    let (id, answer) = shared.begin(request);
    let mut answer = std::pin::pin!(answer);
    let mut look = tokio::time::interval(COPIED_EVERY);
    let answer = loop {
        tokio::select! {
            answer = &mut answer => break answer?,
            _ = look.tick() => {
                if let Some((done, total)) = shared.engine.look(move |core| core.submit_progress(id)).await? {
                    replies.send(&Reply::Progress { what: COPYING.to_owned(), done, total }).await?;
                }
            }
        }
    };
    let Response::Submitted(answer) = answer else {
        return Err(ApiError::failed(ErrorCode::Invalid, "the core answered something else"));
    };
    let keep = |job| async move {
        prepared.keep(&shared.blobs, job).await.map_err(|e| ApiError::failed(ErrorCode::Storage, e.to_string()))
    };
    let job = match answer {
        Ok(job) => job,
        Err(error) => {
            // It may run after all.
            if let SubmitError::Unknown { job, .. } = &error {
                keep(*job).await?;
            }
            return Err(error.into());
        }
    };
    shared.sightings.submit(job, at_us);
    keep(job).await?;
    let alone = shared.engine.look(move |core| core.ledger().live(&job).and_then(|live| live.state.spec.alone)).await?;
    replies.send(&Reply::Submitted { job, alone }).await
}

/// The ended job of this node that has the key: the core remembers only the others.
async fn ended_under(shared: &Arc<Shared>, key: &str) -> Result<Option<(JobId, Hash)>, ApiError> {
    let (ledger, hash) = (shared.ledger.clone(), key_hash(shared.identity.id(), key));
    Ok(tokio::task::spawn_blocking(move || ledger.key(&hash)).await.map_err(|_| Gone)??)
}

pub(super) async fn watch(shared: &Arc<Shared>, text: &str, replies: &mut Replies) -> Result<(), ApiError> {
    let id = views::find_job(shared, text).await?;
    let mut changes = shared.watchers.subscribe(id);
    let mut last: Option<JobView> = None;
    let mut sent = Instant::now();
    loop {
        changes.mark_unchanged();
        let (view, _) = views::job(shared, id).await?;
        let ended = view.is_ended();
        if last.as_ref() != Some(&view) {
            replies.send(&Reply::Job { view: Box::new(view.clone()), timeline: Vec::new() }).await?;
            last = Some(view);
            sent = Instant::now();
        }
        if ended {
            return Ok(());
        }
        // The end is told at once, progress now and then; a brain elsewhere tells nobody here, hence the look all the same.
        let until = tokio::time::Instant::from_std(sent + WATCH_EVERY);
        loop {
            let _ = tokio::time::timeout(WATCH_IDLE, changes.changed()).await;
            if tokio::time::Instant::now() >= until || is_over(shared, id).await? {
                break;
            }
        }
    }
}

/// Whether the job has ended, without making a view of it.
async fn is_over(shared: &Shared, id: JobId) -> Result<bool, ApiError> {
    let over =
        move |core: &sinew_scheduler::core::Core| core.ledger().live(&id).is_none_or(|live| live.state.seal.is_some());
    Ok(shared.engine.look(over).await?)
}

pub(super) async fn cancel(shared: &Arc<Shared>, text: &str, reason: String) -> Result<(), ApiError> {
    let job = views::find_job(shared, text).await?;
    let Response::Cancelled(answer) = shared.ask(CoreRequest::Cancel { job, reason }).await? else {
        return Err(ApiError::failed(ErrorCode::Invalid, "the core answered something else"));
    };
    answer.map_err(|error| match error {
        CancelError::Denied => ApiError::denied(error.to_string()),
        CancelError::Unknown(_) => ApiError::invalid(error.to_string()),
        CancelError::Ended => ApiError::failed(ErrorCode::Invalid, error.to_string()),
        CancelError::Undecided { job, .. } => ApiError::failed(ErrorCode::Lost, error.to_string()).of_job(job),
    })
}

/// Sees to it that an output is in the local store.
pub(super) async fn fetch_output(shared: &Shared, output: &OutputView) -> Result<(), ApiError> {
    let own = shared.identity.id();
    let near = super::holders::near(shared).await?.connected;
    let recorded = || [Some(output.node), output.copy].into_iter().flatten().filter(|n| *n != own);
    let others = near.iter().copied().filter(|n| *n != own && recorded().all(|r| r != *n));
    // Whoever the results name comes first, where there is a connection. What such a node held may have been copied since to
    // any other. At last those are dialled that are not in reach.
    let groups: [Vec<NodeId>; 3] = [
        recorded().filter(|n| near.contains(n)).collect(),
        others.collect(),
        recorded().filter(|n| !near.contains(n)).collect(),
    ];
    let blob = output.output.blob;
    let options = FetchOptions { max_size: blob.size, ..FetchOptions::default() };
    let mut why = None;
    for (number, providers) in groups.iter().enumerate() {
        // The first group also without anybody in it: the blob may be here.
        if number > 0 && providers.is_empty() {
            continue;
        }
        match shared.store.fetch(blob.hash, providers, &shared.link, &options).await {
            Ok(_) => return Ok(()),
            Err(error) => why = Some(error),
        }
    }
    let why = why.map_or_else(|| format!("nobody is there to fetch blob {} from", blob.hash), |e| e.to_string());
    Err(ApiError::failed(ErrorCode::Fetch, why))
}
