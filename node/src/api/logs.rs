//! What a job's tasks printed: live while they run, whole from the blob store once they are done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64;
use sinew_blobs::Format;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::ids::{JobId, NodeId};
use sinew_scheduler::view::{JobView, OutputView};
use tokio::sync::mpsc;

use super::jobs::fetch_output;
use super::server::Replies;
use super::{ApiError, Reply, views};
use crate::daemon::Shared;
use crate::frames::LogData;
use crate::logs::LogNews;

/// Bytes of a log sent in one line.
const PIECE: u64 = 64 * 1024;
/// How often the job is looked at while nothing is printed.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// After the end of a job, nodes where it failed have this long to tell what it printed there.
const LINGER: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Following {
    job: JobId,
    /// The one that is wanted, or all.
    task: Option<u32>,
    /// Whether to stay until the job ends.
    follow: bool,
    /// Bytes sent of each (task, stderr), and the attempt they are of.
    sent: BTreeMap<(u32, bool), (u64, u64)>,
    /// Nodes that were asked, and how many answers each owes.
    asked: BTreeMap<NodeId, u32>,
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
    let mut following = Following { job, task, follow, sent: BTreeMap::new(), asked: BTreeMap::new() };
    // What failed attempts printed is in no blob. It may be over before anybody could begin to watch.
    if (follow && !view.is_ended()) || !view.failures.is_empty() {
        let mut news = shared.logs.watch(job, &[]);
        let ended = following.live(shared, view, &mut news, replies).await;
        shared.logs.unwatch(job, news);
        view = ended?;
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
    /// Passes live output on, until the job has ended when it is to be followed; returns the last view.
    async fn live(
        &mut self,
        shared: &Arc<Shared>,
        mut view: JobView,
        news: &mut mpsc::Receiver<LogNews>,
        replies: &mut Replies,
    ) -> Result<JobView, ApiError> {
        let mut changes = shared.watchers.subscribe(self.job);
        while self.follow && !view.is_ended() {
            self.ask_new(shared, view.shares.iter().map(|s| s.node));
            tokio::select! {
                heard = news.recv() => {
                    if let Some(heard) = heard {
                        self.heard(heard, replies).await?;
                        continue;
                    }
                }
                _ = changes.changed() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            view = views::job(shared, self.job).await?.0;
        }
        self.last_words(shared, &view, news, replies).await?;
        Ok(view)
    }

    /// Asks the nodes where tasks failed once more, and waits until each has told all.
    async fn last_words(
        &mut self,
        shared: &Arc<Shared>,
        view: &JobView,
        news: &mut mpsc::Receiver<LogNews>,
        replies: &mut Replies,
    ) -> Result<(), ApiError> {
        let own = shared.identity.id();
        let failed: BTreeSet<NodeId> =
            view.failures.iter().map(|(_, _, node, _)| *node).filter(|n| *n != own).collect();
        self.ask(shared, failed.iter().copied());
        let deadline = tokio::time::Instant::now() + LINGER;
        loop {
            let heard = match news.try_recv() {
                Ok(heard) => heard,
                Err(_) if failed.iter().all(|node| self.asked.get(node) == Some(&0)) => return Ok(()),
                Err(_) => match tokio::time::timeout_at(deadline, news.recv()).await {
                    Ok(Some(heard)) => heard,
                    // Gone: what is missing stays missing.
                    Ok(None) | Err(_) => return Ok(()),
                },
            };
            self.heard(heard, replies).await?;
        }
    }

    async fn heard(&mut self, heard: LogNews, replies: &mut Replies) -> Result<(), ApiError> {
        match heard {
            LogNews::Data(data) => self.piece(data, replies).await,
            LogNews::Told(node) => {
                let owed = self.asked.entry(node).or_default();
                *owed = owed.saturating_sub(1);
                Ok(())
            }
        }
    }

    fn ask_new(&mut self, shared: &Shared, nodes: impl Iterator<Item = NodeId>) {
        let own = shared.identity.id();
        let new: Vec<NodeId> = nodes.filter(|n| *n != own && !self.asked.contains_key(n)).collect();
        self.ask(shared, new.into_iter());
    }

    fn ask(&mut self, shared: &Shared, nodes: impl Iterator<Item = NodeId>) {
        let nodes: BTreeSet<NodeId> = nodes.collect();
        for node in &nodes {
            *self.asked.entry(*node).or_default() += 1;
        }
        if !nodes.is_empty() {
            shared.logs.ask(self.job, &nodes.into_iter().collect::<Vec<_>>());
        }
    }

    async fn piece(&mut self, data: LogData, replies: &mut Replies) -> Result<(), ApiError> {
        if self.task.is_some_and(|t| t != data.task) {
            return Ok(());
        }
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
