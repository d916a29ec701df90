//! Results: reports checked against awards, outputs copied to a second node, and what counts written down.

use std::collections::BTreeSet;

use sinew_crdt_state::cbor;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Accepted, Fact, Failure, Fence, ITEMS_MAX, Outcome, Output, ReportItem, Run, Statement};
use sinew_crdt_state::ids::{FactId, JobId, NodeId};
use sinew_crdt_state::spec::BlobRef;

use super::{Brain, Copying, Stage};
use crate::config::{COPY_TIMEOUT, PROGRESS_EVERY};
use crate::ctx::Ctx;
use crate::io::{Effect, Note};
use crate::time::Span;
use crate::wire::{Lease, Located, Message};

/// Bytes of items under one accept fact.
const ACCEPT_BYTES_MAX: usize = 128 * 1024;
/// Accept facts sent along with the verdict: enough for the small jobs that come by the thousand. Who lacks more asks.
const ACCEPTS_ALONG: usize = 4;
/// Longest wait between attempts of one task.
const RETRY_DELAY_MAX_MS: u64 = 60_000;

/// Where the accepted map outputs of a job are, in order of chunks.
pub(super) fn located(ctx: &Ctx, job: JobId) -> Vec<Located> {
    let Some(live) = ctx.ledger.live(&job) else { return Vec::new() };
    let map = live.state.accepted.first().into_iter().flat_map(|m| m.iter());
    // Neighbours that left equal outputs are one run in the map, and one result each all the same.
    map.filter(|(_, r)| !r.outputs.is_empty())
        .flat_map(|(run, r)| (run.start..run.end()).flat_map(move |_| &r.outputs).map(move |o| (o.blob, r)))
        .map(|(blob, r)| Located { blob, node: r.node, copy: r.copy })
        .collect()
}

impl Brain {
    pub(crate) fn on_report(&mut self, ctx: &mut Ctx, from: NodeId, lease: Lease, facts: &[Envelope]) {
        let mut stale = Vec::new();
        for envelope in facts {
            if envelope.entry != lease.job || ctx.admit(from, envelope).is_err() {
                continue;
            }
            let id = envelope.fact_id();
            let Ok(Statement { fact: Fact::Report { fence, phase, items }, .. }) = cbor::from_slice(&envelope.payload)
            else {
                continue;
            };
            let current = matches!(self.stage, Stage::Running)
                && phase == self.phase
                && envelope.author == from
                && self.seats.get(&fence).is_some_and(|s| s.node == from);
            if current {
                self.take_report(ctx, from, fence, id, &items);
            } else if !matches!(self.stage, Stage::Adopting { .. }) {
                stale.push(id);
            }
        }
        if !stale.is_empty() {
            // Settled or not, the worker need not keep it: this brain will not accept it.
            let known = self.reports.iter().chain(self.accepts.values().flatten()).any(|(_, r)| stale.contains(r));
            if !known {
                ctx.note(Note::Stale { lease, from });
            }
            ctx.send(from, Message::Settled { job: self.job, reports: stale });
        }
    }

    fn take_report(&mut self, ctx: &mut Ctx, from: NodeId, fence: Fence, id: FactId, items: &[ReportItem]) {
        let known = self.reports_by.entry(from).or_default();
        if known.contains(&id) {
            return;
        }
        known.push(id);
        self.reports.push((from, id));
        let (mut done, mut failed) = (0u32, 0u32);
        for item in items {
            match item {
                ReportItem::Plain { run, .. } => {
                    done = done.saturating_add(run.len);
                    self.succeeded(ctx, from, fence, *run, &[]);
                }
                ReportItem::Outputs { task, outputs, .. } => {
                    done = done.saturating_add(1);
                    self.succeeded(ctx, from, fence, Run { start: *task, len: 1 }, outputs);
                }
                ReportItem::Failed { task, failure, .. } => {
                    failed = failed.saturating_add(1);
                    self.failed(ctx, from, fence, *task, failure);
                }
            }
        }
        ctx.peers.count_results(from, done, failed);
        if let Some(seat) = self.seats.get_mut(&fence) {
            let span = (ctx.now.at - seat.reported).0.max(1);
            #[expect(clippy::cast_precision_loss, reason = "a rate estimate")]
            let rate = f64::from(done) * 1e6 / span as f64;
            seat.rate = if seat.rate == 0.0 { rate } else { seat.rate * 0.5 + rate * 0.5 };
            seat.reported = ctx.now.at;
        }
        ctx.effect(Effect::Changed(self.job));
    }

    /// Notes a success under `fence`, once per task.
    pub(super) fn succeeded(&mut self, ctx: &mut Ctx, from: NodeId, fence: Fence, run: Run, outputs: &[Output]) {
        if let Some(seat) = self.seats.get_mut(&fence) {
            for (part, at) in seat.open.take(run) {
                self.mean.0 += u64::from(part.len);
                self.mean.1 += (ctx.now.at - at).0;
            }
        }
        for part in self.done.gaps_in(run) {
            if part.len == 1 && self.copying.contains_key(&part.start) {
                continue;
            }
            self.stop_elsewhere(ctx, fence, part);
            let accepted = Accepted { run: part, node: from, fence, outputs: outputs.to_vec(), copy: None };
            match self.copy_target(ctx, from).filter(|_| !outputs.is_empty() && self.spec.copies > 1) {
                Some(target) => self.start_copy(ctx, accepted, target),
                None => self.accept(accepted),
            }
        }
    }

    /// Speculated twins of finished tasks are stopped.
    fn stop_elsewhere(&mut self, ctx: &mut Ctx, fence: Fence, run: Run) {
        for task in run.start..run.end() {
            if !self.speculated.remove(&task) {
                continue;
            }
            let (job, phase) = (self.job, self.phase);
            for (other, seat) in self.seats.iter_mut().filter(|(f, _)| **f != fence) {
                let tasks = vec![Run { start: task, len: 1 }];
                if !seat.open.take(tasks[0]).is_empty() {
                    ctx.send(seat.node, Message::Stop { lease: Lease { job, fence: *other }, phase, tasks });
                }
            }
        }
    }

    fn accept(&mut self, accepted: Accepted) {
        self.done.insert(accepted.run, &(), |()| false);
        self.done_count += accepted.run.len;
        match self.ready.last_mut() {
            Some(last)
                if last.outputs.is_empty()
                    && accepted.outputs.is_empty()
                    && (last.node, last.fence) == (accepted.node, accepted.fence)
                    && last.run.end() == accepted.run.start =>
            {
                last.run.len += accepted.run.len;
            }
            _ => self.ready.push(accepted),
        }
    }

    /// A node for the second copy of what `from` made: members of the brain set and nodes with seats, in turn.
    fn copy_target(&mut self, ctx: &Ctx, from: NodeId) -> Option<NodeId> {
        let nodes: BTreeSet<NodeId> = self
            .spec
            .brain_set
            .iter()
            .copied()
            .chain(self.seats.values().map(|s| s.node))
            .filter(|n| *n != from && ctx.peers.is_heard(*n, ctx.now.at))
            .collect();
        self.rotate = self.rotate.wrapping_add(1);
        nodes.into_iter().nth(self.rotate % self.copy_choices(ctx, from).max(1))
    }

    fn copy_choices(&self, ctx: &Ctx, from: NodeId) -> usize {
        let all = self.spec.brain_set.iter().copied().chain(self.seats.values().map(|s| s.node));
        all.filter(|n| *n != from && ctx.peers.is_heard(*n, ctx.now.at)).collect::<BTreeSet<_>>().len()
    }

    fn start_copy(&mut self, ctx: &mut Ctx, accepted: Accepted, target: NodeId) {
        let blobs: Vec<BlobRef> = accepted.outputs.iter().map(|o| o.blob).collect();
        ctx.send(target, Message::Copy { job: self.job, from: accepted.node, blobs });
        self.copying.insert(accepted.run.start, Copying { accepted, target, since: ctx.now.at });
    }

    pub(crate) fn on_copied(&mut self, ctx: &mut Ctx, from: NodeId, blobs: &[BlobRef], ok: bool) {
        let matches = |c: &Copying| {
            c.target == from
                && c.accepted.outputs.len() == blobs.len()
                && c.accepted.outputs.iter().zip(blobs).all(|(o, b)| o.blob == *b)
        };
        let tasks: Vec<u32> = self.copying.iter().filter(|(_, c)| matches(c)).map(|(t, _)| *t).collect();
        for task in tasks {
            let Some(copying) = self.copying.remove(&task) else { continue };
            if ok {
                self.accept(Accepted { copy: Some(from), ..copying.accepted });
            } else {
                self.copy_again(ctx, copying);
            }
        }
    }

    fn copy_again(&mut self, ctx: &mut Ctx, copying: Copying) {
        match self.copy_target(ctx, copying.accepted.node) {
            Some(target) => self.start_copy(ctx, copying.accepted, target),
            // Nobody else is left to hold it: one copy is all there can be.
            None => self.accept(copying.accepted),
        }
    }

    /// Gives copies whose target went away or silent, or takes too long, to somebody else.
    pub(super) fn drop_slow_copies(&mut self, ctx: &mut Ctx) {
        let now = ctx.now.at;
        let stuck = |c: &Copying| now - c.since >= COPY_TIMEOUT || !ctx.peers.is_heard(c.target, now);
        let tasks: Vec<u32> = self.copying.iter().filter(|(_, c)| stuck(c)).map(|(t, _)| *t).collect();
        for task in tasks {
            if let Some(copying) = self.copying.remove(&task) {
                self.copy_again(ctx, copying);
            }
        }
    }

    fn failed(&mut self, ctx: &mut Ctx, from: NodeId, fence: Fence, task: u32, failure: &Failure) {
        let had = self.seats.get_mut(&fence).is_some_and(|s| !s.open.take(Run { start: task, len: 1 }).is_empty());
        let elsewhere = self.seats.values().any(|s| s.open.get(task).is_some());
        if !had || elsewhere || self.done.get(task).is_some() {
            return;
        }
        self.speculated.remove(&task);
        let attempts = self.attempts.entry(task).or_default();
        *attempts += 1;
        if failure.retryable && *attempts <= self.spec.retry.attempts {
            let doubled = self.spec.retry.delay_ms.saturating_mul(1 << (*attempts - 1).min(16));
            let delay = Span::ms(doubled.min(RETRY_DELAY_MAX_MS));
            self.later.entry(ctx.now.at + delay).or_default().push(task);
        } else {
            let failure = failure.clone();
            self.verdict = Some(Outcome::Failed { phase: self.phase, task, node: Some(from), failure });
        }
    }

    /// Writes down what is ready: when the phase is complete, or every so often.
    pub(super) fn write_accepts(&mut self, ctx: &mut Ctx) {
        let complete = self.done_count == self.total && self.copying.is_empty();
        let due = ctx.now.at - self.accepted_at >= PROGRESS_EVERY;
        if self.ready.is_empty() || !(complete || due) {
            return;
        }
        self.accepted_at = ctx.now.at;
        let settle = if self.copying.is_empty() { std::mem::take(&mut self.reports) } else { Vec::new() };
        let mut ids = Vec::new();
        for items in cut_accepts(std::mem::take(&mut self.ready)) {
            let (id, _) = ctx.state(self.job, Fact::Accept { term: self.term, phase: self.phase, items });
            self.accepts.insert(id, Vec::new());
            ids.push(id);
        }
        if let Some(last) = ids.last() {
            self.accepts.insert(*last, settle);
        }
        self.accept_ids.extend(ids.iter().take(ACCEPTS_ALONG - self.accept_ids.len()));
        self.quorum.add(ctx, &ids);
    }
}

fn cut_accepts(items: Vec<Accepted>) -> Vec<Vec<Accepted>> {
    let mut cuts: Vec<Vec<Accepted>> = Vec::new();
    let mut bytes = usize::MAX;
    for item in items {
        let size = 128 + item.outputs.iter().map(|o| o.name.len() + 64).sum::<usize>();
        let full = cuts.last().is_none_or(|c| c.len() >= ITEMS_MAX) || bytes.saturating_add(size) > ACCEPT_BYTES_MAX;
        if full {
            cuts.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(cut) = cuts.last_mut() {
            cut.push(item);
        }
    }
    cuts
}
