//! Where the bytes of an attempt come from: the file that it writes here, a blob that is fetched, or the node that runs it, which is
//! asked piece by piece. Nodes are also asked what they have.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use sinew_blobs::{FetchOptions, Format};
use sinew_crdt_state::ids::{Hash, NodeId};
use tokio::time::Instant;

use super::task::{AttemptId, TaskLog};
use super::{Following, LISTING, TaskKey};
use crate::api::ApiError;
use crate::frames::{LogPart, LogRead};
use crate::logs::{LogNews, READ_MAX};

/// A node that runs an attempt has so long to send a piece of what it printed, and is asked so often.
const PIECE_WITHIN: Duration = Duration::from_millis(1_500);
const PIECE_TRIES: u32 = 2;
/// Attempts that end just now are waited for this long in a listing, looked at so often.
const ENDING: Duration = Duration::from_secs(4);
const ENDING_LOOK: Duration = Duration::from_millis(200);

/// What comes of reading.
pub(super) enum Piece {
    /// These.
    Bytes(Bytes),
    /// More is known of the attempt than before: it is to be looked at again.
    Look,
    /// None can be had now, and why.
    None(String),
}

impl Following<'_> {
    /// Bytes of an attempt's stream from `at` on.
    pub(super) async fn read(
        &mut self,
        key: TaskKey,
        id: AttemptId,
        stderr: bool,
        part: LogPart,
        at: u64,
        also: &[NodeId],
    ) -> Result<Piece, ApiError> {
        if let Some(hash) = part.hash {
            return self.read_blob(hash, part.size, at, id.node, also).await;
        }
        let (phase, task) = key;
        let read = LogRead { job: self.job, phase, task, attempt: id.attempt, stderr, offset: at };
        if id.node != self.shared.identity.id() {
            return self.read_from(key, id, read).await;
        }
        let hub = self.shared.logs.clone();
        let found = tokio::task::spawn_blocking(move || hub.read(&read)).await.ok().flatten();
        if let Some(data) = found {
            return Ok(Piece::Bytes(data.bytes.into()));
        }
        // It may have ended a moment ago.
        let known = self.is_kept(key, id, stderr);
        self.list_own().await;
        let news = !known && self.is_kept(key, id, stderr);
        Ok(if news { Piece::Look } else { Piece::None("its log is not there any more".to_owned()) })
    }

    fn is_kept(&self, key: TaskKey, id: AttemptId, stderr: bool) -> bool {
        let attempt = self.tasks.get(&key).and_then(|task| task.attempts.get(&id));
        attempt.is_some_and(|attempt| attempt.over || attempt.parts[usize::from(stderr)].hash.is_some())
    }

    async fn read_blob(
        &self,
        hash: Hash,
        size: u64,
        at: u64,
        node: NodeId,
        also: &[NodeId],
    ) -> Result<Piece, ApiError> {
        let store = &self.shared.store;
        let _guard = store.temp_tag(hash, Format::Raw).await;
        if !store.is_whole(hash).await.unwrap_or(false)
            && let Err(error) = self.fetch(hash, size, node, also).await?
        {
            return Ok(Piece::None(error));
        }
        match store.read_range(hash, at, READ_MAX.min(size - at)).await {
            Ok(bytes) if bytes.is_empty() => Ok(Piece::None("a log ended early".to_owned())),
            Ok(bytes) => Ok(Piece::Bytes(bytes)),
            Err(error) => Ok(Piece::None(error.to_string())),
        }
    }

    /// Has a blob here, from the node that made it, others that are named, or anybody else who is connected.
    async fn fetch(
        &self,
        hash: Hash,
        size: u64,
        node: NodeId,
        also: &[NodeId],
    ) -> Result<Result<(), String>, ApiError> {
        let own = self.shared.identity.id();
        let near = crate::api::holders::near(self.shared).await?.connected;
        let named: Vec<NodeId> = [node].into_iter().chain(also.iter().copied()).filter(|n| *n != own).collect();
        let others: Vec<NodeId> = near.iter().copied().filter(|n| *n != own && !named.contains(n)).collect();
        let first: Vec<NodeId> = named.iter().copied().filter(|n| near.contains(n)).collect();
        let away: Vec<NodeId> = named.iter().copied().filter(|n| !near.contains(n)).collect();
        let options = FetchOptions { max_size: size, ..FetchOptions::default() };
        let mut why = format!("nobody is there to fetch blob {hash} from");
        for providers in [first, others, away].iter().filter(|providers| !providers.is_empty()) {
            match self.shared.store.fetch(hash, providers, &self.shared.link, &options).await {
                Ok(_) => return Ok(Ok(())),
                Err(error) => why = error.to_string(),
            }
        }
        Ok(Err(why))
    }

    /// A piece from the node that runs the attempt.
    async fn read_from(&mut self, key: TaskKey, id: AttemptId, read: LogRead) -> Result<Piece, ApiError> {
        let own = self.shared.identity.id();
        if !self.able.contains(&id.node) {
            self.find_able().await?;
        }
        if !self.able.contains(&id.node) {
            return Ok(Piece::None(format!("node {} is out of reach", id.node.short())));
        }
        for _ in 0..PIECE_TRIES {
            self.shared.logs.ask_read(id.node, read);
            let deadline = Instant::now() + PIECE_WITHIN;
            while let Ok(Some(heard)) = tokio::time::timeout_at(deadline, self.news.recv()).await {
                let piece = match &heard {
                    LogNews::Data(Some(from), data) if *from == id.node => piece_of(&read, data),
                    _ => None,
                };
                self.heard(own, heard, false).await?;
                if let Some(bytes) = piece {
                    return Ok(Piece::Bytes(bytes));
                }
                if self.is_kept(key, id, read.stderr) {
                    return Ok(Piece::Look);
                }
            }
            // It may be over by now, and the news of that lost.
            self.shared.logs.ask_list(self.job, id.node);
        }
        Ok(Piece::None(format!("node {} does not send it", id.node.short())))
    }

    /// What is here.
    async fn list_own(&mut self) {
        let own = self.shared.identity.id();
        for logs in self.shared.logs.list(self.job).await {
            let key = (logs.attempt.phase, logs.attempt.task);
            if let Some(task) = self.task_of(key.0, key.1) {
                task.listed(own, &logs);
                self.behind.insert(key);
            }
        }
    }

    /// Asks nodes what they have of the job, and waits until each has said so. What was told to end has a moment for that.
    pub(super) async fn ask_lists(&mut self, nodes: BTreeSet<NodeId>, wait: bool) {
        let own = self.shared.identity.id();
        let ending = Instant::now() + ENDING;
        loop {
            self.list_own().await;
            self.listing = nodes.intersection(&self.able).copied().collect();
            self.listing.iter().for_each(|node| self.shared.logs.ask_list(self.job, *node));
            let deadline = Instant::now() + LISTING;
            while !self.listing.is_empty() {
                let Ok(Some(heard)) = tokio::time::timeout_at(deadline, self.news.recv()).await else { break };
                // Nothing is sent here, so that nothing can fail.
                let _ = self.heard(own, heard, false).await;
            }
            if !wait || !self.tasks.values().any(TaskLog::runs) || Instant::now() >= ending {
                return;
            }
            tokio::time::sleep(ENDING_LOOK).await;
        }
    }
}

/// The bytes of a piece that begin where they are wanted.
fn piece_of(read: &LogRead, data: &crate::frames::LogData) -> Option<Bytes> {
    let of = (data.phase, data.task, data.attempt, data.stderr);
    if of != (read.phase, read.task, read.attempt, read.stderr) {
        return None;
    }
    let known = usize::try_from(read.offset.checked_sub(data.offset)?).ok()?;
    let bytes = data.bytes.get(known..).filter(|bytes| !bytes.is_empty())?;
    Some(Bytes::copy_from_slice(bytes))
}
