//! What a job's tasks printed: live while they run, whole from the blob store once they are done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64;
use sinew_blobs::Format;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::ids::{JobId, NodeId};
use sinew_scheduler::view::{JobView, OutputView};

use super::jobs::fetch_output;
use super::server::Replies;
use super::{ApiError, Reply, views};
use crate::daemon::Shared;
use crate::frames::LogData;

/// Bytes of a log sent in one line.
const PIECE: u64 = 64 * 1024;
/// How often the job is looked at while nothing is printed.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// After the end of a job, live output may still be under way for this long.
const LINGER: Duration = Duration::from_millis(300);

#[derive(Debug, Default)]
struct Following {
    /// Bytes sent of each (task, stderr), and the attempt they are of.
    sent: BTreeMap<(u32, bool), (u64, u64)>,
    asked: BTreeSet<NodeId>,
}

pub(super) async fn stream(
    shared: &Arc<Shared>,
    text: &str,
    task: Option<u32>,
    follow: bool,
    replies: &mut Replies,
) -> Result<(), ApiError> {
    let job = views::find_job(shared, text).await?;
    let (mut view, _) = views::job(shared, job).await?;
    let mut following = Following::default();
    if follow && !view.is_ended() {
        view = following.live(shared, job, task, view, replies).await?;
    }
    // Outputs of tasks that are done so far; after following, whatever was missed.
    let wanted =
        |o: &&OutputView| task.is_none_or(|t| t == o.task) && matches!(&o.output.name[..], "stdout" | "stderr");
    for output in view.outputs.iter().filter(wanted) {
        following.rest(shared, output, replies).await?;
    }
    for (phase, number, _, failure) in &view.failures {
        let unseen = !following.sent.contains_key(&(*number, true));
        if *phase == 0 && task.is_none_or(|t| t == *number) && unseen && !failure.stderr_tail.is_empty() {
            let data = BASE64.encode(failure.stderr_tail.as_bytes());
            replies.send(&Reply::Output { task: *number, stderr: true, data }).await?;
        }
    }
    Ok(())
}

impl Following {
    /// Passes live output on until the job has ended; returns its last view.
    async fn live(
        &mut self,
        shared: &Arc<Shared>,
        job: JobId,
        task: Option<u32>,
        mut view: JobView,
        replies: &mut Replies,
    ) -> Result<JobView, ApiError> {
        let mut rx = shared.logs.watch(job, &[]);
        let mut changes = shared.watchers.subscribe(job);
        let mut deadline = None;
        loop {
            self.ask_new(shared, job, &view);
            tokio::select! {
                data = rx.recv() => {
                    if let Some(data) = data.filter(|d| task.is_none_or(|t| t == d.task)) {
                        self.piece(data, replies).await?;
                        continue;
                    }
                }
                _ = changes.changed() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let now = tokio::time::Instant::now();
            if deadline.is_some_and(|d| now >= d) {
                return Ok(view);
            }
            view = views::job(shared, job).await?.0;
            // A job without failures has everything in blobs; the tail of a failed attempt comes live only.
            if view.is_ended() && view.failures.is_empty() {
                return Ok(view);
            }
            if view.is_ended() && deadline.is_none() {
                deadline = Some(now + LINGER);
            }
        }
    }

    fn ask_new(&mut self, shared: &Shared, job: JobId, view: &JobView) {
        let own = shared.identity.id();
        let new: Vec<NodeId> =
            view.shares.iter().map(|s| s.node).filter(|n| *n != own && self.asked.insert(*n)).collect();
        shared.logs.ask(job, &new);
    }

    async fn piece(&mut self, data: LogData, replies: &mut Replies) -> Result<(), ApiError> {
        let (sent, attempt) = self.sent.entry((data.task, data.stderr)).or_insert((0, data.attempt));
        if *attempt != data.attempt {
            // Another attempt prints anew; what it has in common with the first cannot be told apart.
            (*sent, *attempt) = (0, data.attempt);
        }
        // A gap is filled from the blob at the end; an overlap was sent already.
        let Some(known) = sent.checked_sub(data.offset) else { return Ok(()) };
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        let Some(new) = data.bytes.get(known..).filter(|b| !b.is_empty()) else { return Ok(()) };
        *sent += new.len() as u64;
        replies.send(&Reply::Output { task: data.task, stderr: data.stderr, data: BASE64.encode(new) }).await
    }

    /// Sends what of a finished task's log was not sent yet.
    async fn rest(&mut self, shared: &Shared, output: &OutputView, replies: &mut Replies) -> Result<(), ApiError> {
        let stderr = output.output.name == "stderr";
        let blob = output.output.blob;
        let mut at = self.sent.get(&(output.task, stderr)).map_or(0, |(sent, _)| *sent);
        if at >= blob.size {
            return Ok(());
        }
        let _guard = shared.store.temp_tag(blob.hash, Format::Raw).await;
        fetch_output(shared, output).await?;
        while at < blob.size {
            let piece = shared.store.read_range(blob.hash, at, PIECE.min(blob.size - at)).await;
            let piece = piece.map_err(|e| ApiError::failed(ErrorCode::Storage, e.to_string()))?;
            if piece.is_empty() {
                return Err(ApiError::failed(ErrorCode::Storage, "a log ended early"));
            }
            at += piece.len() as u64;
            replies.send(&Reply::Output { task: output.task, stderr, data: BASE64.encode(&piece) }).await?;
        }
        self.sent.insert((output.task, stderr), (at, 0));
        Ok(())
    }
}
