//! Workers that keep their leases and end nothing: an award under which nothing was reported for longer than its tasks may take is
//! not renewed any more, so that it runs out like that of a node that is gone. What such a worker says of its tasks meanwhile is
//! no progress; only reports are.

use sinew_crdt_state::fact::Fence;
use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::program::Runners;
use sinew_crdt_state::spec::{InputFile, JobSpec, Source, Work};

use super::Brain;
use crate::config::{FETCH_BYTES_PER_S, GATHER_MARGIN, OVERDUE_MARGIN, OVERDUE_SHUN_FOR, STORE_BYTES_PER_S};
use crate::ctx::Ctx;
use crate::io::Note;
use crate::time::Span;
use crate::wire::Lease;

impl Brain {
    /// Ends awards whose tasks are past their limit: their nodes are told at the next beat, and the tasks go to others once the lease
    /// has run out, so that an honest node has stopped them.
    pub(super) fn end_overdue(&mut self, ctx: &mut Ctx) {
        if planted(Bug::HogUnseen) {
            return;
        }
        let Some(limit) = limit(&self.spec) else { return };
        let now = ctx.now.at;
        let silent: Vec<(Fence, Span)> = self
            .work
            .seats
            .iter()
            .filter_map(|(fence, seat)| {
                let silent = now - seat.reported;
                let waits = !seat.open.is_empty() && !seat.overdue && seat.answered;
                (waits && silent >= limit + OVERDUE_MARGIN).then_some((*fence, silent))
            })
            .collect();
        if silent.is_empty() {
            return;
        }
        let patience = limit + margin(&self.spec) + self.fetching_margin(ctx);
        for (fence, silent) in silent.into_iter().filter(|(_, silent)| *silent >= patience) {
            let Some(seat) = self.work.seats.get_mut(&fence) else { continue };
            seat.overdue = true;
            let node = seat.node;
            self.work.shunned.insert(node, now + OVERDUE_SHUN_FOR);
            ctx.peers.shun(node, now);
            let lease = Lease { job: self.job, fence };
            ctx.note(Note::Overdue { lease, node, silent_ms: silent.as_ms() });
        }
    }

    /// Time to fetch the map outputs.
    fn fetching_margin(&self, ctx: &Ctx) -> Span {
        if self.phase == 0 {
            return Span(0);
        }
        at_rate(super::results::located(ctx, self.job).iter().map(|at| at.blob.size), FETCH_BYTES_PER_S)
    }
}

/// What the programs of an attempt may take, each up to the time limit.
fn limit(spec: &JobSpec) -> Option<Span> {
    let programs = match &*spec.work {
        Work::Batch(batch) => 1 + u64::from(batch.gather.is_some()),
        Work::MapReduce(round) => 1 + u64::from(round.combine.is_some()),
    };
    Some(Span(spec.limits.timeout_ms?.saturating_mul(1_000 * programs)))
}

/// What an attempt may take beyond its time limit, by what the spec says.
fn margin(spec: &JobSpec) -> Span {
    let inputs = at_rate(spec.input_blobs().iter().map(|blob| blob.size), FETCH_BYTES_PER_S);
    let outputs = at_rate([spec.limits.output_bytes_max].into_iter(), STORE_BYTES_PER_S);
    let outside = |files: &[InputFile]| files.iter().any(|f| !matches!(f.source, Source::Blob(_) | Source::Inline(_)));
    let unknown = match &*spec.work {
        Work::Batch(batch) => batch.gather.is_some() || outside(&batch.inputs),
        Work::MapReduce(round) => outside(&round.files),
    };
    let ready = Runners::PROCESS.union(Runners::NETWORK).contains(spec.runners());
    let gather = if unknown || !ready { GATHER_MARGIN } else { Span(0) };
    OVERDUE_MARGIN + inputs + outputs + gather
}

fn at_rate(bytes: impl Iterator<Item = u64>, per_s: u64) -> Span {
    Span::ms(bytes.fold(0, u64::saturating_add).saturating_mul(1_000) / per_s)
}
