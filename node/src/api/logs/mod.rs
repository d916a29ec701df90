//! What a job's tasks printed: live while they run, and kept of attempts that are over, however they ended. Of each task one attempt is
//! sent, whole: the one whose result counts, else the last one. Which attempt is sent, and from where on, is decided in [`task`]; where
//! its bytes come from in [`source`].

mod source;
mod task;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64;
use sinew_crdt_state::fact::{Fence, Outcome};
use sinew_crdt_state::ids::{JobId, NodeId};
use sinew_scheduler::view::{JobView, OutputView};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::server::Replies;
use super::{ApiError, Reply, views};
use crate::daemon::Shared;
use crate::frames::{LogData, LogPart};
use crate::logs::LogNews;
use source::Piece;
use task::{Attempt, AttemptId, Next, TaskLog};

/// How often the job is looked at while nothing is printed.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// So long nodes have to say what they keep of a job: far ones answer within two round trips.
const LISTING: Duration = Duration::from_secs(3);
/// Stdout and stderr, as positions.
const STREAMS: [(usize, bool); 2] = [(0, false), (1, true)];

/// Which logs are wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// One task only.
    pub(super) task: Option<u32>,
    /// One attempt only, counted from 1.
    pub(super) attempt: Option<u32>,
    /// Whether to stay until the job ends.
    pub(super) follow: bool,
}

/// A phase and a task.
type TaskKey = (u8, u32);

struct Following<'a> {
    shared: &'a Arc<Shared>,
    replies: &'a mut Replies,
    news: &'a mut mpsc::Receiver<LogNews>,
    job: JobId,
    wanted: Wanted,
    tasks: BTreeMap<TaskKey, TaskLog>,
    /// Tasks of which there is more to be sent.
    behind: BTreeSet<TaskKey>,
    /// Nodes whose output is pushed here.
    subscribed: BTreeSet<NodeId>,
    /// Nodes that were asked what they keep and have not said all yet.
    listing: BTreeSet<NodeId>,
    /// Nodes that can be asked.
    able: BTreeSet<NodeId>,
}

pub(super) async fn stream(
    shared: &Arc<Shared>,
    text: &str,
    wanted: Wanted,
    replies: &mut Replies,
) -> Result<(), ApiError> {
    let job = views::find_job(shared, text).await?;
    let (mut view, history) = views::job(shared, job).await?;
    let forgotten = super::forgotten::is_forgotten(&view, &history);
    if forgotten && super::forgotten::has_outputs(&view) {
        super::forgotten::restore(shared, &mut view, &history).await?;
    }
    let tasks = view.phases.iter().map(|phase| phase.tasks).max().unwrap_or(0);
    if let Some(task) = wanted.task.filter(|task| u64::from(*task) >= tasks) {
        return Err(ApiError::invalid(format!("there is no task {task}: the job has {tasks}, counted from 0")));
    }
    let mut news = shared.logs.watch(job, &[]);
    let mut following = Following {
        shared,
        replies,
        news: &mut news,
        job,
        wanted,
        tasks: BTreeMap::new(),
        behind: BTreeSet::new(),
        subscribed: BTreeSet::new(),
        listing: BTreeSet::new(),
        able: BTreeSet::new(),
    };
    let done = following.run(&view).await;
    let nothing = following.tasks.is_empty();
    shared.logs.unwatch(job, news);
    done?;
    if forgotten && nothing { Err(super::forgotten::not_kept(shared, &view, &history)) } else { Ok(()) }
}

impl Following<'_> {
    async fn run(&mut self, view: &JobView) -> Result<(), ApiError> {
        self.find_able().await?;
        if self.wanted.follow && !view.is_ended() {
            if self.wanted.attempt.is_none() {
                let known = view.shares.iter().map(|share| share.node).collect();
                self.ask_lists(known, false).await;
            }
            let ended = self.live(view.clone()).await?;
            return self.settle(&ended).await;
        }
        self.settle(view).await
    }

    /// Which nodes understand questions.
    async fn find_able(&mut self) -> Result<(), ApiError> {
        let own = self.shared.identity.id();
        let look = move |core: &sinew_scheduler::core::Core| {
            let able =
                |peer: &sinew_scheduler::peers::Peer| peer.connected && peer.card.as_ref().is_some_and(|c| c.logs);
            core.peers().iter().filter(|(node, peer)| **node != own && able(peer)).map(|(node, _)| *node).collect()
        };
        self.able = self.shared.engine.look(look).await?;
        Ok(())
    }

    /// Passes live output on until the job has ended; returns its last view.
    async fn live(&mut self, mut view: JobView) -> Result<JobView, ApiError> {
        let mut changes = self.shared.watchers.subscribe(self.job);
        let own = self.shared.identity.id();
        while !view.is_ended() {
            self.subscribe(view.shares.iter().map(|share| share.node));
            if view.outcome.is_none() {
                // After that nobody has an award, and no other attempt begins.
                let seats: BTreeSet<NodeId> = view.shares.iter().filter(|s| s.slots > 0).map(|s| s.node).collect();
                self.tasks.values_mut().for_each(|task| task.seats(|node| seats.contains(&node)));
            }
            let looked = Instant::now();
            // A look at the job for each piece would cost more than the piece.
            loop {
                tokio::select! {
                    heard = self.news.recv() => match heard {
                        Some(heard) => self.heard(own, heard, true).await?,
                        None => tokio::time::sleep(LOOK_EVERY).await,
                    },
                    _ = changes.changed() => break,
                    () = tokio::time::sleep_until(looked + LOOK_EVERY) => break,
                }
            }
            self.catch_up().await?;
            view = views::job(self.shared, self.job).await?.0;
        }
        Ok(view)
    }

    fn subscribe(&mut self, nodes: impl Iterator<Item = NodeId>) {
        let own = self.shared.identity.id();
        let new: Vec<NodeId> = nodes.filter(|node| *node != own && !self.subscribed.contains(node)).collect();
        if new.is_empty() {
            return;
        }
        self.shared.logs.ask(self.job, &new);
        for node in &new {
            if self.able.contains(node) {
                // By that it knows that this one understands news of attempts that ended.
                self.shared.logs.ask_list(self.job, *node);
            }
        }
        self.subscribed.extend(new);
    }

    /// Sends the rest of all that is over, in order of tasks.
    async fn settle(&mut self, view: &JobView) -> Result<(), ApiError> {
        let whole = self.wanted.attempt.is_none() && view.kind == "batch" && view.outcome == Some(Outcome::Completed);
        if !whole {
            self.find_able().await?;
            self.ask_lists(self.able.clone(), view.is_ended()).await;
        }
        let mut winners: BTreeMap<u32, Vec<&OutputView>> = BTreeMap::new();
        if view.kind == "batch" {
            view.outputs.iter().for_each(|output| winners.entry(output.task).or_default().push(output));
        }
        let mut keys: BTreeSet<TaskKey> = self.tasks.keys().copied().collect();
        keys.extend(winners.keys().map(|task| (0, *task)));
        keys.extend(view.failures.iter().map(|(phase, task, ..)| (*phase, *task)));
        keys.retain(|(_, task)| self.wanted.task.is_none_or(|wanted| wanted == *task));
        let mut found = false;
        for key in keys {
            found |= match (self.wanted.attempt, winners.get(&key.1).filter(|_| key.0 == 0)) {
                (Some(number), outputs) => self.one_attempt(key, number, outputs.map(Vec::as_slice)).await?,
                (None, Some(outputs)) => self.winner(key, outputs).await?,
                (None, None) if whole => self.winner(key, &[]).await?,
                (None, None) => self.last_attempt(key, view).await?,
            };
        }
        match self.wanted.attempt {
            Some(number) if !found => Err(ApiError::invalid(format!(
                "no node in reach has output of an attempt {number}: it printed nothing, or there was none"
            ))),
            _ => Ok(()),
        }
    }

    /// Sends the attempt whose result counts.
    async fn winner(&mut self, key: TaskKey, outputs: &[&OutputView]) -> Result<bool, ApiError> {
        let named = |name| outputs.iter().find(|output| output.output.name == name).map(|output| output.output.blob);
        let part = |name| named(name).map_or_else(LogPart::default, |b| LogPart { size: b.size, hash: Some(b.hash) });
        let parts = [part("stdout"), part("stderr")];
        let node = outputs.first().map_or(self.shared.identity.id(), |output| output.node);
        let copies: Vec<NodeId> = outputs.iter().flat_map(|output| output.copy).collect();
        let task = self.tasks.entry(key).or_default();
        let is_it = |attempt: &Attempt| attempt.over && attempt.parts == parts;
        let known = task.attempts.iter().rev().find(|(id, attempt)| id.node == node && is_it(attempt));
        let (id, number) = match known {
            Some((id, attempt)) => (*id, attempt.number),
            // It may have gone on under the award of another brain: what it printed tells whether it is one of those that are known.
            None => {
                let fence = Fence { term: u32::MAX, epoch: u32::MAX };
                let latest = task.attempts.iter().rev().find(|(id, _)| id.node == node);
                let number = latest.map_or(0, |(_, attempt)| attempt.number);
                (AttemptId { fence, node, attempt: u64::MAX }, number)
            }
        };
        let before = task.current.and_then(|current| task.attempts.get(&current)).map(|attempt| attempt.number);
        let same = task.current == Some(id);
        task.attempts.insert(id, Attempt { number, over: true, good: true, parts, unseated: None });
        match before {
            _ if same => {}
            Some(before) if before != number => self.switch(key, id).await?,
            _ => task.switch(id),
        }
        self.send_rest(key, &copies, true).await?;
        Ok(true)
    }

    /// Sends the last attempt, of a task that has no result that counts.
    async fn last_attempt(&mut self, key: TaskKey, view: &JobView) -> Result<bool, ApiError> {
        let task = self.tasks.entry(key).or_default();
        if task.current.is_none() && !task.attempts.is_empty() {
            self.go_on(key).await?;
        } else {
            self.send_rest(key, &[], false).await?;
        }
        let task = self.tasks.entry(key).or_default();
        if let Some(last) = task.attempts.keys().next_back().copied().filter(|last| task.current != Some(*last)) {
            self.switch(key, last).await?;
        }
        self.send_rest(key, &[], true).await?;
        self.tail_of_failure(key, view).await?;
        Ok(true)
    }

    /// What a failure carries of stderr, where nothing else is had of it.
    async fn tail_of_failure(&mut self, key: TaskKey, view: &JobView) -> Result<(), ApiError> {
        let unseen = self.tasks.get(&key).is_none_or(|task| task.attempts.values().all(|a| a.parts[1].size == 0));
        let failure = view.failures.iter().find(|(phase, task, ..)| (*phase, *task) == key);
        let Some((_, _, _, failure)) = failure.filter(|(_, _, _, f)| unseen && !f.stderr_tail.is_empty()) else {
            return Ok(());
        };
        let data = BASE64.encode(failure.stderr_tail.as_bytes());
        let (phase, task) = key;
        self.replies.send(&Reply::Output { task, stderr: true, data, phase, attempt: 0 }).await?;
        let why =
            "only the end of its stderr is left; the node that ran it is out of reach, or keeps no logs".to_owned();
        self.replies.send(&Reply::Missing { task, stderr: true, why, phase, attempt: 0 }).await
    }

    /// Sends one attempt, if it is known.
    async fn one_attempt(
        &mut self,
        key: TaskKey,
        number: u32,
        outputs: Option<&[&OutputView]>,
    ) -> Result<bool, ApiError> {
        let task = self.tasks.entry(key).or_default();
        let id = task.attempts.iter().rev().find(|(_, attempt)| attempt.number == number).map(|(id, _)| *id);
        let is_kept = id.and_then(|id| task.attempts.get(&id)).is_some_and(|attempt| attempt.over);
        // The one that counts is named by its result alone; it is the last one.
        let last =
            task.attempts.values().filter(|attempt| attempt.over).map(|attempt| attempt.number).max().unwrap_or(0) + 1;
        match (id, outputs) {
            (_, Some(outputs)) if !is_kept && (number == last || id.is_some()) => self.winner(key, outputs).await,
            (Some(id), _) => {
                task.switch(id);
                self.send_rest(key, &[], true).await?;
                Ok(true)
            }
            (None, _) => Ok(false),
        }
    }
}

/// What is heard, and what comes of it.
impl Following<'_> {
    fn task_of(&mut self, phase: u8, task: u32) -> Option<&mut TaskLog> {
        let wanted = self.wanted.task.is_none_or(|wanted| wanted == task);
        wanted.then(|| self.tasks.entry((phase, task)).or_default())
    }

    /// Notes what is told; pieces that fit are passed on at once where `pass` says so.
    async fn heard(&mut self, own: NodeId, heard: LogNews, pass: bool) -> Result<(), ApiError> {
        match heard {
            LogNews::Data(from, data) => {
                let node = from.unwrap_or(own);
                let Some(task) = self.task_of(data.phase, data.task) else { return Ok(()) };
                let id = task.piece(node, &data);
                self.behind.insert((data.phase, data.task));
                if pass {
                    self.pass(id, &data).await?;
                }
            }
            LogNews::Told(_) => {}
            LogNews::Listed(from, list) => {
                let node = from.unwrap_or(own);
                if list.last {
                    self.listing.remove(&node);
                }
                for logs in &list.attempts {
                    let key = (logs.attempt.phase, logs.attempt.task);
                    if let Some(task) = self.task_of(key.0, key.1) {
                        task.listed(node, logs);
                        self.behind.insert(key);
                    }
                }
            }
        }
        Ok(())
    }

    /// Passes a piece on, as far as it goes on where the last one of its attempt ended.
    async fn pass(&mut self, id: AttemptId, data: &LogData) -> Result<(), ApiError> {
        let key = (data.phase, data.task);
        if self.tasks.get(&key).is_some_and(|task| task.current.is_none()) {
            self.switch(key, id).await?;
        }
        let Some(task) = self.tasks.get(&key).filter(|task| task.current == Some(id)) else { return Ok(()) };
        let at = task.streams[usize::from(data.stderr)].wanted();
        let known = at.checked_sub(data.offset).and_then(|known| usize::try_from(known).ok());
        match known.and_then(|known| data.bytes.get(known..)).filter(|bytes| !bytes.is_empty()) {
            Some(bytes) => self.take(key, data.stderr, bytes).await,
            None => Ok(()),
        }
    }

    /// Takes bytes of a task's current attempt that begin where the next ones are wanted.
    async fn take(&mut self, key: TaskKey, stderr: bool, bytes: &[u8]) -> Result<(), ApiError> {
        let Some(log) = self.tasks.get_mut(&key) else { return Ok(()) };
        let number = log.current.and_then(|id| log.attempts.get(&id)).map_or(0, |attempt| attempt.number);
        let next = log.streams[usize::from(stderr)].take(bytes);
        self.say(key, stderr, number, next).await
    }

    async fn say(
        &mut self,
        (phase, task): TaskKey,
        stderr: bool,
        attempt: u32,
        next: Next<'_>,
    ) -> Result<(), ApiError> {
        match next {
            Next::Nothing => Ok(()),
            Next::Anew => self.replies.send(&Reply::Anew { task, stderr, phase, attempt }).await,
            Next::Send(bytes) => {
                let data = BASE64.encode(bytes);
                self.replies.send(&Reply::Output { task, stderr, data, phase, attempt }).await
            }
        }
    }

    /// Goes on with another attempt of a task, and says so.
    async fn switch(&mut self, key: TaskKey, to: AttemptId) -> Result<(), ApiError> {
        let Some(log) = self.tasks.get_mut(&key) else { return Ok(()) };
        let is_first = log.current.is_none();
        log.switch(to);
        let attempt = log.attempts.get(&to).map_or(0, |attempt| attempt.number);
        let (phase, task) = key;
        if is_first && attempt <= 1 {
            return Ok(());
        }
        self.replies.send(&Reply::Attempt { task, attempt, node: to.node, phase }).await
    }

    /// Sends what is known but was not pushed, or got lost.
    async fn catch_up(&mut self) -> Result<(), ApiError> {
        for key in std::mem::take(&mut self.behind) {
            self.go_on(key).await?;
        }
        // What waits for the end of an attempt is looked at again.
        let waiting = self.tasks.iter().filter(|(_, task)| task.next().is_some()).map(|(key, _)| *key);
        self.behind.extend(waiting);
        Ok(())
    }

    /// Sends a task's current attempt as far as it is known, and then the next one, if there is one.
    async fn go_on(&mut self, key: TaskKey) -> Result<(), ApiError> {
        loop {
            if !self.send_rest(key, &[], false).await? {
                self.behind.insert(key);
            }
            let Some(next) = self.tasks.get(&key).and_then(TaskLog::next) else { return Ok(()) };
            if let Some(silent) = self.tasks.get(&key).and_then(TaskLog::silent) {
                // It may have ended, and the news of that been lost.
                self.ask_lists(BTreeSet::from([silent]), false).await;
                if self.tasks.get(&key).is_some_and(|task| !task.is_level()) {
                    continue;
                }
            }
            self.switch(key, next).await?;
        }
    }

    /// Sends what of a task's current attempt was not sent yet; says whether that is all that is known of it. What cannot be had is
    /// said at the `end`.
    async fn send_rest(&mut self, key: TaskKey, also: &[NodeId], end: bool) -> Result<bool, ApiError> {
        let (phase, number) = key;
        for (index, stderr) in STREAMS {
            loop {
                let Some(log) = self.tasks.get_mut(&key) else { return Ok(true) };
                let Some(id) = log.current else { return Ok(true) };
                let Some(attempt) = log.attempts.get(&id) else { return Ok(true) };
                let (part, attempt_number, over) = (attempt.parts[index], attempt.number, attempt.over);
                let at = log.streams[index].wanted();
                if at >= part.size {
                    let next = if over || end { log.streams[index].close(part.size) } else { Next::Nothing };
                    if next == Next::Nothing {
                        break;
                    }
                    self.say(key, stderr, attempt_number, next).await?;
                    continue;
                }
                match self.read(key, id, stderr, part, at, also).await? {
                    Piece::Bytes(bytes) => self.take(key, stderr, &bytes).await?,
                    Piece::Look => {}
                    Piece::None(why) => {
                        if end {
                            let why = format!("{why}; {at} of {} bytes came", part.size);
                            let missing = Reply::Missing { task: number, stderr, why, phase, attempt: attempt_number };
                            self.replies.send(&missing).await?;
                        }
                        break;
                    }
                }
            }
        }
        Ok(self.tasks.get(&key).is_none_or(TaskLog::is_level))
    }
}
