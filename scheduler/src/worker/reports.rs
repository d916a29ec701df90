//! What a worker tells of finished tasks, until it is told that it counts or that nobody wants it.

use std::collections::BTreeMap;

use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Fact, Fence, ReportItem, Run};
use sinew_crdt_state::ids::{FactId, JobId};
use sinew_crdt_state::rules::brain_of;

use super::{Done, Worker};
use crate::config::{REPORT_EVERY, REPORT_ITEMS, RESEND_EVERY};
use crate::ctx::Ctx;
use crate::io::TaskResult;
use crate::wire::{Lease, Message};

/// Bytes of report items under one fact: well below the limit of a fact.
const REPORT_BYTES_MAX: usize = 128 * 1024;

impl Worker {
    pub(crate) fn on_settled(&mut self, job: JobId, reports: &[FactId]) {
        for lease in self.leases_of(job) {
            if let Some(held) = self.held.get_mut(&lease) {
                held.unsettled.retain(|id| !reports.contains(id));
            }
        }
        if let Some(done) = self.done.get_mut(&job) {
            done.orphans.retain(|(id, _)| !reports.contains(id));
        }
    }

    /// Sends what is finished: at once when nothing else is left to do, otherwise in batches.
    pub(crate) fn flush(&mut self, ctx: &mut Ctx) {
        let now = ctx.now.at;
        let due: Vec<Lease> = self
            .held
            .iter()
            .filter(|(_, h)| {
                let idle = h.running.is_empty() && h.queue.is_empty();
                h.buffered > 0 && (idle || h.buffered >= REPORT_ITEMS || now - h.buffer_since >= REPORT_EVERY)
            })
            .map(|(l, _)| *l)
            .collect();
        for lease in due {
            self.report(ctx, lease);
        }
        if ctx.leaving {
            self.give_back(ctx);
        }
    }

    pub(super) fn report(&mut self, ctx: &mut Ctx, lease: Lease) {
        let Some(held) = self.held.get_mut(&lease).filter(|h| h.buffered > 0) else { return };
        held.buffered = 0;
        let mut facts = Vec::new();
        for (phase, items) in std::mem::take(&mut held.buffer) {
            for items in cut_items(items) {
                let (id, envelope) = ctx.state(lease.job, Fact::Report { fence: lease.fence, phase, items });
                held.unsettled.push(id);
                facts.push(envelope);
            }
        }
        held.unsettled_sent = ctx.now.at;
        self.done.entry(lease.job).or_default().reports += u32::try_from(facts.len()).unwrap_or(u32::MAX);
        ctx.send(held.brain, Message::Report { lease, facts });
    }
}

impl Done {
    /// Offers reports of ended awards to whoever leads now: they will not count, but their blobs need not be kept for them.
    pub(super) fn offer_orphans(&mut self, ctx: &mut Ctx, job: JobId) {
        let brain = ctx.ledger.live(&job).and_then(|l| brain_of(&l.state.spec, l.state.term));
        let Some(brain) = brain.filter(|_| ctx.now.at - self.orphans_sent >= RESEND_EVERY) else { return };
        self.orphans_sent = ctx.now.at;
        let mut by_fence: BTreeMap<Fence, Vec<FactId>> = BTreeMap::new();
        for (id, fence) in &self.orphans {
            by_fence.entry(*fence).or_default().push(*id);
        }
        for (fence, ids) in by_fence {
            let facts = envelopes(ctx, job, &ids);
            ctx.send(brain, Message::Report { lease: Lease { job, fence }, facts });
        }
    }
}

pub(super) fn item_run(item: &ReportItem) -> Run {
    match item {
        ReportItem::Plain { run, .. } => *run,
        ReportItem::Outputs { task, .. } | ReportItem::Failed { task, .. } => Run { start: *task, len: 1 },
    }
}

pub(super) fn push_item(items: &mut Vec<ReportItem>, task: u32, result: TaskResult) {
    let usage = result.usage;
    match result.result {
        Ok(outputs) if outputs.is_empty() => match items.last_mut() {
            Some(ReportItem::Plain { run, usage: sum }) if run.end() == task => {
                run.len += 1;
                sum.add(usage);
            }
            _ => items.push(ReportItem::Plain { run: Run { start: task, len: 1 }, usage }),
        },
        Ok(outputs) => items.push(ReportItem::Outputs { task, outputs, usage }),
        Err(mut failure) => {
            failure.message = sinew_crdt_state::rules::clip(failure.message);
            failure.stderr_tail = sinew_crdt_state::rules::clip(failure.stderr_tail);
            items.push(ReportItem::Failed { task, failure, usage });
        }
    }
}

/// Cuts items into facts of bounded size.
pub(super) fn cut_items(items: Vec<ReportItem>) -> Vec<Vec<ReportItem>> {
    let mut cuts: Vec<Vec<ReportItem>> = vec![Vec::new()];
    let mut bytes = 0;
    for item in items {
        let size = match &item {
            ReportItem::Plain { .. } => 64,
            ReportItem::Outputs { outputs, .. } => 96 + outputs.iter().map(|o| o.name.len() + 64).sum::<usize>(),
            ReportItem::Failed { failure, .. } => 160 + failure.message.len() + failure.stderr_tail.len(),
        };
        let full = cuts.last().is_some_and(|c| c.len() >= sinew_crdt_state::fact::ITEMS_MAX);
        if full || (bytes > 0 && bytes + size > REPORT_BYTES_MAX) {
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

/// The envelopes of own facts that are still in the ledger.
pub(super) fn envelopes(ctx: &Ctx, job: JobId, ids: &[FactId]) -> Vec<Envelope> {
    let Some(live) = ctx.ledger.live(&job) else { return Vec::new() };
    ids.iter().filter_map(|id| live.facts.get(id).cloned()).collect()
}
