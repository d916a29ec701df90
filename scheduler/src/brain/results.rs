//! Results: reports checked against awards, outputs copied to a second node, and what counts written down.

use sinew_crdt_state::cbor;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::{Accepted, Fact, Failure, Fence, ITEMS_MAX, Outcome, Output, ReportItem, Run, Statement};
use sinew_crdt_state::ids::{FactId, JobId, NodeId};
use sinew_crdt_state::planted::{Bug, planted};

use super::{Brain, Seat, Stage};
use crate::config::{GIVEN_BACK_MAX, PLACE_AGAIN, PROGRESS_EVERY, SHUN_BRIEFLY, SHUN_FOR};
use crate::ctx::Ctx;
use crate::io::{Effect, Note};
use crate::time::Span;
use crate::wire::{Lease, Located, Message};

/// Bytes of items under one accept fact.
const ACCEPT_BYTES_MAX: usize = 128 * 1024;
/// Accept facts sent along with the verdict: enough for the small jobs that come by the thousand. Who lacks more asks.
const ACCEPTS_ALONG: usize = 4;
/// Longest wait before a task that nodes gave back is tried again.
const GIVEN_BACK_DELAY_MAX: Span = Span::ms(10_000);
/// Longest wait between attempts of one task.
const RETRY_DELAY_MAX_MS: u64 = 60_000;

/// A result that counts but is not written down yet, and the reports that brought it, one for each part.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) accepted: Accepted,
    pub(super) reports: Vec<FactId>,
}

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
            if envelope.entry != lease.job {
                continue;
            }
            let Ok(id) = ctx.admit(from, envelope).map(|admitted| admitted.id()) else { continue };
            let Ok(Statement { fact: Fact::Report { fence, phase, items }, .. }) = cbor::from_slice(&envelope.payload)
            else {
                continue;
            };
            let awarded = |s: &Seat| s.node == from || planted(Bug::AcceptUnawarded);
            let current = matches!(self.stage, Stage::Running)
                && phase == self.phase
                && envelope.author == from
                && self.work.seats.get(&fence).map_or(planted(Bug::SkipEpochCheck), awarded);
            if current {
                self.take_report(ctx, from, fence, id, &items);
            } else if self.stage != Stage::Adopting && !self.work.reports.contains_key(&id) {
                stale.push(id);
            }
        }
        if !stale.is_empty() {
            // Settled or not, the worker need not keep it: this brain will not accept it.
            let taken = self.work.reports_by.get(&from).is_some_and(|known| stale.iter().all(|id| known.contains(id)));
            if !taken {
                assert!(!planted(Bug::PanicAtStale), "a result that comes too late");
                ctx.note(Note::Stale { lease, from });
            }
            ctx.send(from, Message::Settled { job: self.job, reports: stale });
        }
    }

    fn take_report(&mut self, ctx: &mut Ctx, from: NodeId, fence: Fence, id: FactId, items: &[ReportItem]) {
        if self.work.reports_by.get(&from).is_some_and(|known| known.contains(&id)) {
            // Sent again: because it is not final yet, or because the word that it is got lost.
            if !self.work.reports.contains_key(&id) {
                self.settled(ctx, from, id);
            }
            return;
        }
        self.fruitless = 0;
        self.open_report(from, id);
        let (mut done, mut failed) = (0u32, 0u32);
        for item in items {
            match item {
                ReportItem::Plain { run, .. } => {
                    done = done.saturating_add(run.len);
                    self.succeeded(ctx, from, fence, Some(id), *run, &[]);
                }
                ReportItem::Outputs { task, outputs, .. } => {
                    done = done.saturating_add(1);
                    self.succeeded(ctx, from, fence, Some(id), Run { start: *task, len: 1 }, outputs);
                }
                ReportItem::Failed { task, failure, .. } => {
                    failed = failed.saturating_add(1);
                    self.failed(ctx, from, fence, *task, failure);
                }
            }
        }
        if let Some((node, report)) = self.settle_report(id) {
            self.settled(ctx, node, report);
        }
        ctx.peers.count_results(from, done, failed);
        if let Some(seat) = self.work.seats.get_mut(&fence) {
            let span = (ctx.now.at - seat.reported).0.max(1);
            #[expect(clippy::cast_precision_loss, reason = "a rate estimate")]
            let rate = f64::from(done) * 1e6 / span as f64;
            seat.rate = if seat.rate == 0.0 { rate } else { seat.rate * 0.5 + rate * 0.5 };
            seat.reported = ctx.now.at;
        }
        ctx.effect(Effect::Changed(self.job));
    }

    /// Notes a success under `fence`, once per task.
    pub(super) fn succeeded(
        &mut self,
        ctx: &mut Ctx,
        from: NodeId,
        fence: Fence,
        report: Option<FactId>,
        run: Run,
        outputs: &[Output],
    ) {
        if let Some(seat) = self.work.seats.get_mut(&fence) {
            let adopted = seat.adopted;
            let taken = seat.open.take(run);
            let last = taken.iter().map(|(_, at)| *at).max();
            // Those that it had from an earlier brain began before that.
            for (part, at) in taken.into_iter().filter(|(_, at)| adopted != Some(*at)) {
                self.work.mean.0 += u64::from(part.len);
                self.work.mean.1 += (ctx.now.at - at).0 * u64::from(part.len);
            }
            self.unblocked(last);
        }
        for part in self.work.done.gaps_in(run) {
            if part.len == 1 && self.work.copying.contains_key(&part.start) {
                continue;
            }
            self.stop_elsewhere(ctx, fence, part);
            let again = if outputs.is_empty() { 0 } else { self.made_before(ctx, part.start) };
            if again > 0 {
                outputs.iter().for_each(|o| _ = self.work.wiped.remove(&o.blob.hash));
            }
            let accepted = Accepted { run: part, node: from, fence, outputs: outputs.to_vec(), copy: None, again };
            if let Some((_, open)) = report.and_then(|id| self.work.reports.get_mut(&id)) {
                *open += 1;
            }
            self.secure(ctx, accepted, report);
        }
    }

    /// Speculated twins of finished tasks are stopped.
    fn stop_elsewhere(&mut self, ctx: &mut Ctx, fence: Fence, run: Run) {
        for task in run.start..run.end() {
            if !self.work.speculated.remove(&task) {
                continue;
            }
            let (job, phase) = (self.job, self.phase);
            for (other, seat) in self.work.seats.iter_mut().filter(|(f, _)| **f != fence) {
                let tasks = vec![Run { start: task, len: 1 }];
                if !seat.open.take(tasks[0]).is_empty() {
                    ctx.send(seat.node, Message::Stop { lease: Lease { job, fence: *other }, phase, tasks });
                }
            }
        }
    }

    pub(super) fn accept(&mut self, accepted: Accepted, report: Option<FactId>) {
        self.work.done.insert(accepted.run, &(), |()| false);
        self.done_count += if planted(Bug::LostChunkCounter) { 1 } else { accepted.run.len };
        match self.work.ready.last_mut() {
            Some(Ready { accepted: last, reports })
                if last.outputs.is_empty()
                    && accepted.outputs.is_empty()
                    && (last.node, last.fence) == (accepted.node, accepted.fence)
                    && last.run.end() == accepted.run.start =>
            {
                last.run.len += accepted.run.len;
                reports.extend(report);
            }
            _ => self.work.ready.push(Ready { accepted, reports: report.into_iter().collect() }),
        }
    }

    /// Notes a report whose results are about to be taken.
    pub(super) fn open_report(&mut self, from: NodeId, id: FactId) {
        self.work.reports_by.entry(from).or_default().insert(id);
        self.work.reports.entry(id).or_insert((from, 0));
    }

    /// One result of a report became final, or will never count. Gives the report, and whose it is, if it was the last.
    pub(super) fn close_part(&mut self, report: FactId) -> Option<(NodeId, FactId)> {
        if let Some((_, open)) = self.work.reports.get_mut(&report) {
            *open = open.saturating_sub(1);
        }
        self.settle_report(report)
    }

    /// Gives a report of which nothing is left to become final, and whose it is: its executor may forget it.
    pub(super) fn settle_report(&mut self, report: FactId) -> Option<(NodeId, FactId)> {
        let (node, 0) = self.work.reports.get(&report).copied()? else { return None };
        self.work.reports.remove(&report);
        Some((node, report))
    }

    fn failed(&mut self, ctx: &mut Ctx, from: NodeId, fence: Fence, task: u32, failure: &Failure) {
        let had = self.work.seats.get_mut(&fence).is_some_and(|s| !s.open.take(Run { start: task, len: 1 }).is_empty());
        let elsewhere = self.work.seats.values().any(|s| s.open.get(task).is_some());
        if !had || elsewhere || self.work.done.get(task).is_some() {
            return;
        }
        self.work.speculated.remove(&task);
        // What one node may not do, or cannot fetch, another may.
        if failure.code == ErrorCode::Fetch || (failure.code == ErrorCode::Deny && failure.retryable) {
            self.work.shunned.insert(from, ctx.now.at + SHUN_FOR);
        }
        if failure.code == ErrorCode::Lost && self.given_back(ctx, from, task) {
            return;
        }
        let attempts = self.work.attempts.entry(task).or_default();
        *attempts += u32::from(!planted(Bug::ForgetFailures));
        if failure.retryable && *attempts <= self.spec.retry.attempts {
            let doubled = self.spec.retry.delay_ms.saturating_mul(1 << attempts.saturating_sub(1).min(16));
            let delay = Span::ms(doubled.min(RETRY_DELAY_MAX_MS));
            self.work.later.entry(ctx.now.at + delay).or_default().push(task);
        } else {
            let failure = failure.clone();
            self.verdict = Some(Box::new(Outcome::Failed { phase: self.phase, task, node: Some(from), failure }));
        }
    }

    /// A node could not run a task for a reason of its own, which counts as no attempt: another node gets it at once, and where there
    /// is none this one after a while. Says whether that is so: a task that comes back again and again may be what breaks nodes.
    fn given_back(&mut self, ctx: &Ctx, from: NodeId, task: u32) -> bool {
        let times = self.work.given_back.entry(task).or_default();
        if *times >= GIVEN_BACK_MAX {
            return false;
        }
        *times += 1;
        let delay = if *times == 1 { 0 } else { (PLACE_AGAIN.0 << (*times - 2)).min(GIVEN_BACK_DELAY_MAX.0) };
        self.work.later.entry(ctx.now.at + Span(delay)).or_default().push(task);
        let until = self.work.shunned.entry(from).or_default();
        *until = (*until).max(ctx.now.at + SHUN_BRIEFLY);
        true
    }

    /// Writes down what is ready: when the phase is complete, or every so often.
    pub(super) fn write_accepts(&mut self, ctx: &mut Ctx) {
        let complete = self.done_count == self.total && self.work.copying.is_empty();
        let due = ctx.now.at - self.accepted_at >= PROGRESS_EVERY;
        if self.work.ready.is_empty() || !(complete || due) {
            return;
        }
        self.accepted_at = ctx.now.at;
        let mut ids = Vec::new();
        for (items, reports) in cut_accepts(std::mem::take(&mut self.work.ready)) {
            let (id, _) = ctx.state(self.job, Fact::Accept { term: self.term, phase: self.phase, items });
            self.work.accepts.insert(id, reports);
            ids.push(id);
        }
        let room = ACCEPTS_ALONG - self.work.accept_ids.len();
        self.work.accept_ids.extend(ids.iter().take(room));
        self.quorum.add(ctx, &ids);
    }
}

/// Cuts results into facts of bounded size, each with the reports that it settles parts of.
fn cut_accepts(ready: Vec<Ready>) -> Vec<(Vec<Accepted>, Vec<FactId>)> {
    let mut cuts: Vec<(Vec<Accepted>, Vec<FactId>)> = Vec::new();
    let mut bytes = usize::MAX;
    for Ready { accepted, reports } in ready {
        let size = 128 + accepted.outputs.iter().map(|o| o.name.len() + 64).sum::<usize>();
        let full =
            cuts.last().is_none_or(|(c, _)| c.len() >= ITEMS_MAX) || bytes.saturating_add(size) > ACCEPT_BYTES_MAX;
        if full {
            cuts.push((Vec::new(), Vec::new()));
            bytes = 0;
        }
        bytes += size;
        if let Some((items, of)) = cuts.last_mut() {
            items.push(accepted);
            of.extend(reports);
        }
    }
    cuts
}
