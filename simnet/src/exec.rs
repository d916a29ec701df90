//! Tasks as machines run them: gathering blobs, taking time, leaving outputs or failures.

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::{Fence, Output, Usage};
use sinew_crdt_state::ids::{Hash, JobId, NodeId};
use sinew_crdt_state::spec::{BlobRef, Phase};
use sinew_scheduler::config::FETCHING_EVERY;
use sinew_scheduler::io::{FetchId, Input, RunId, StartTask, TaskResult};
use sinew_scheduler::time::{Span, Time};

use crate::dial::DIAL_ROUND_TRIPS;
use crate::node::{Fetching, Running};
use crate::plan::failure;
use crate::queue::{Event, Index};
use crate::world::World;

/// A fetch opens a stream and asks: two round trips.
const FETCH_ROUND_TRIPS: u64 = 2;
/// ... and no less than this: both ends read and write a disk.
const FETCH_TIME: Span = Span::ms(5);
/// Seeing that a blob is here, and keeping it for one more job.
const LOOK_TIME: Span = Span::ms(1);
/// Reports of progress of one fetch: of one that would take longer nobody in a model waits for the end.
const FETCHING_MAX: u64 = 600;
/// A fetch that no provider answers.
const FETCH_GIVES_UP: Span = Span::ms(300);

/// How an execution ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The program ended well.
    Done,
    /// The program or its gathering failed.
    Failed,
    /// It could not begin: what it needs was out of reach.
    Blocked,
    /// The core stopped it.
    ByCore,
    /// Its lease was over while its daemon stood still.
    BySwitch,
    /// The node went down.
    Crash,
}

/// One attempt of one task on one node.
#[derive(Debug, Clone, Copy)]
pub struct Execution {
    /// The job.
    pub job: JobId,
    /// The phase.
    pub phase: Phase,
    /// The task.
    pub task: u32,
    /// Where, by number of joining.
    pub node: usize,
    /// Under which award it started.
    pub fence: Fence,
    /// The attempt number that the core gave.
    pub attempt: u32,
    /// From when.
    pub start: Time,
    /// Until when and why; `None` while it runs.
    pub end: Option<(Time, Stopped)>,
}

impl World {
    pub(crate) fn start_task(&mut self, node: Index, start: StartTask) {
        if self.nodes[node].hogs {
            self.counters.hogged += 1;
            return self.say(node, format!("HOGS {} {}/{}", start.spec.name, start.key.phase, start.key.task));
        }
        self.books.start(start.key.lease.job, &start.spec.name, self.executions.len());
        let name = start.spec.name.clone();
        let (phase, task) = (start.key.phase, start.key.task);
        let plan = self.plan_of(&name);
        let work = self.work_of(node, &plan, phase, task);
        let needs: Vec<(BlobRef, Vec<NodeId>)> = match &start.sources {
            Some(sources) => sources.iter().map(|s| (s.blob, [s.node].into_iter().chain(s.copy).collect())).collect(),
            None => start.spec.input_blobs().iter().map(|b| (*b, start.providers.to_vec())).collect(),
        };
        let missing: Vec<_> = needs.into_iter().filter(|(blob, _)| !self.nodes[node].disk.has(&blob.hash)).collect();
        // Where those that should have it have not, others are asked.
        let all: Vec<NodeId> = self.nodes.iter().map(crate::node::Node::id).collect();
        let missing: Vec<_> = missing
            .into_iter()
            .map(|(blob, likely)| (blob, likely.into_iter().chain(all.iter().copied()).collect()))
            .collect();
        let lacks = |(blob, from): &(BlobRef, Vec<NodeId>)| {
            self.provider_of(node, &blob.hash, from).is_none().then_some(blob.hash)
        };
        let away: Vec<Hash> = missing.iter().filter_map(lacks).collect();
        let gather = self.gather(node, &missing);
        let (gathered, gather) = (gather.is_some(), gather.unwrap_or(FETCH_GIVES_UP));
        let work = if gathered { work } else { Span(0) };
        let cpu_milli = plan.cpu_milli();
        let execution = self.executions.len();
        self.executions.push(Execution {
            job: start.key.lease.job,
            phase,
            task,
            node,
            fence: start.key.lease.fence,
            attempt: start.attempt,
            start: self.now,
            end: None,
        });
        self.gathered.push(gathered);
        let room = self.nodes[node].setup.cpu_milli.saturating_sub(self.nodes[node].cpu_used());
        if cpu_milli > room {
            self.counters.overbooked += 1;
            self.say(node, format!("OVERBOOKED: {cpu_milli} wanted, {room} free"));
        }
        self.say(
            node,
            format!("start {name} {phase}/{task} fence {:?} attempt {}", start.key.lease.fence, start.attempt),
        );
        let running = Running { execution, cpu_milli, missing: away, ends_at: None, until: start.until };
        self.nodes[node].runs.insert(start.run, running);
        let life = self.roll.life(node);
        self.queue.push(self.now + Span(gather.0 + work.0), Event::TaskEnd { life, run: start.run });
    }

    pub(crate) fn task_ended(&mut self, node: Index, run: RunId) {
        if self.was_drained(node, run) {
            return;
        }
        let Some(running) = self.nodes[node].runs.remove(&run) else { return };
        let execution = self.executions[running.execution];
        let name = self.name_of(&execution.job);
        let plan = self.plan_of(&name);
        let before = self
            .executions_of(&execution.job)
            .filter(|e| (e.phase, e.task) == (execution.phase, execution.task))
            .filter(|e| matches!(e.end, Some((_, Stopped::Failed))))
            .count();
        let failed = if self.gathered[running.execution] {
            let planned = plan.failure(execution.phase, execution.task, u32::try_from(before).unwrap_or(u32::MAX));
            if planned.is_none() && self.chance(plan.failing_chance()) {
                self.counters.random_failures += 1;
                Some(failure(ErrorCode::Exit, true))
            } else {
                planned
            }
        } else {
            Some(failure(ErrorCode::Fetch, true))
        };
        let by_switch = matches!(execution.end, Some((_, Stopped::BySwitch)));
        let failed = if by_switch { Some(failure(ErrorCode::Lost, true)) } else { failed };
        let usage = Usage { wall_ms: 1, cpu_ms: 1, ..Usage::default() };
        let stopped = match &failed {
            _ if by_switch => Stopped::BySwitch,
            _ if !self.gathered[running.execution] => Stopped::Blocked,
            Some(_) => Stopped::Failed,
            None => Stopped::Done,
        };
        // It may have ended while its daemon stood still.
        let at = execution.end.map_or(self.now, |(at, _)| at);
        self.executions[running.execution].end = Some((at, stopped));
        let result = match failed {
            Some(failure) => Err(failure),
            None => {
                let blob = plan.output(&name, execution.phase, execution.task);
                if let Some(blob) = blob {
                    self.nodes[node].disk.keep(blob, execution.job);
                }
                Ok(blob.map(|blob| Output { name: "stdout".to_owned(), blob }).into_iter().collect())
            }
        };
        let result = TaskResult { result, usage };
        if stopped == Stopped::Blocked {
            self.counters.blocked += 1;
            return self.input(node, Input::Blocked { run, missing: running.missing, failure: result });
        }
        self.input(node, Input::Task { run, result });
    }

    pub(crate) fn start_fetch(
        &mut self,
        node: Index,
        id: FetchId,
        job: JobId,
        blobs: Vec<BlobRef>,
        providers: Vec<NodeId>,
    ) {
        if self.nodes[node].mute {
            self.counters.hogged += 1;
            return;
        }
        let missing = blobs.iter().filter(|b| !self.nodes[node].disk.has(&b.hash));
        let wants: Vec<_> = missing.map(|b| (*b, providers.clone())).collect();
        let wait = self.gather(node, &wants).unwrap_or(FETCH_TIME).max(LOOK_TIME);
        let wants_bytes = blobs.iter().map(|b| b.size).sum();
        self.nodes[node].fetches.insert(id, Fetching { job, blobs, providers });
        let life = self.roll.life(node);
        let total: u64 = wants_bytes;
        for told in 1..=(wait.0 / FETCHING_EVERY.0).min(FETCHING_MAX) {
            let after = Span(told * FETCHING_EVERY.0);
            let done = u64::try_from(u128::from(total) * u128::from(after.0) / u128::from(wait.0)).unwrap_or(total);
            let input = Box::new(Input::FetchProgress { id, done: done.min(total), total });
            self.queue.push(self.now + after, Event::Answered { life, input });
        }
        self.queue.push(self.now + wait, Event::Fetched { life, id });
    }

    /// How long these blobs take to come, all at once; `None` when one of them is nowhere. They share links with everything
    /// else.
    fn gather(&mut self, node: Index, blobs: &[(BlobRef, Vec<NodeId>)]) -> Option<Span> {
        let sources: Option<Vec<(Index, u64)>> = blobs
            .iter()
            .map(|(blob, providers)| self.provider_of(node, &blob.hash, providers).map(|from| (from, blob.size)))
            .collect();
        let mut longest = Span(0);
        for (from, size) in sources? {
            let round_trip = self.round_trip(node, from);
            let dial = if self.links.is_connected(node, from) { 0 } else { DIAL_ROUND_TRIPS };
            let trips = Span(round_trip.0 * (FETCH_ROUND_TRIPS + dial)).max(FETCH_TIME);
            let transfer = self.transmit_blob(from, node, size) + self.retransmit(from, node, size);
            longest = longest.max(trips + transfer);
        }
        Some(longest)
    }

    pub(crate) fn fetch_ended(&mut self, node: Index, id: FetchId) {
        let Some(fetch) = self.nodes[node].fetches.remove(&id) else { return };
        let ok = fetch.blobs.iter().all(|blob| {
            self.nodes[node].disk.has(&blob.hash) || self.provider_of(node, &blob.hash, &fetch.providers).is_some()
        });
        if ok {
            for blob in &fetch.blobs {
                self.nodes[node].disk.keep(*blob, fetch.job);
            }
        }
        self.input(node, Input::Fetched { id, ok });
    }

    /// A node among `providers` that is up, connected to `node` or to be dialled for this, and has the blob.
    fn provider_of(&self, node: Index, hash: &Hash, providers: &[NodeId]) -> Option<Index> {
        let index = |id: &NodeId| self.index_of(*id);
        let serves = |p: &Index| self.nodes[*p].frozen.is_none() && self.nodes[*p].disk.has(hash);
        let near = |p: &Index| self.reaches(node, *p) || self.would_answer(node, *p);
        providers.iter().filter_map(index).find(|p| near(p) && serves(p))
    }
}
