//! The end of a job: the verdict made durable, everyone told, receipts gathered, the entry sealed.

use std::collections::BTreeSet;

use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Fact, Outcome};
use sinew_crdt_state::ids::{FactId, JobId, NodeId};
use sinew_crdt_state::planted::{Bug, planted};

use super::{Brain, Stage};
use crate::config::{COPY_BYTES_PER_S, RECEIPTS_WAIT, STOPPED_WAIT, SUBMIT_TIMEOUT};
use crate::ctx::Ctx;
use crate::io::{Effect, Record, RequestId, Response, SubmitError};
use crate::time::{Span, Time};
use crate::wire::{Lease, Message};

impl Brain {
    /// Writes the verdict down; it counts once a majority has it.
    pub(super) fn finish(&mut self, ctx: &mut Ctx, outcome: Outcome) {
        self.drop_offers(ctx);
        if outcome != Outcome::Completed {
            for (fence, seat) in self.work.seats.iter().filter(|(_, seat)| !seat.open.is_empty()) {
                let lease = Lease { job: self.job, fence: *fence };
                ctx.send(seat.node, Message::Stop { lease, phase: self.phase, tasks: Vec::new() });
            }
        }
        let (finish, _) = ctx.state(self.job, Fact::Finish { term: self.term, outcome });
        self.quorum.add(ctx, &[finish]);
        self.stage = Stage::Ending { finish, is_final: false };
        if planted(Bug::SealBeforeFinal) {
            self.finished(ctx);
        }
    }

    /// The verdict is final: tell everyone concerned and ask for receipts.
    pub(super) fn finished(&mut self, ctx: &mut Ctx) {
        let Stage::Ending { finish, .. } = self.stage else { return };
        let mut until = ctx.now.at + RECEIPTS_WAIT.at(self.pace);
        if let Some(refusal) = self.refusal.take() {
            // It was never started, and never will be.
            self.answer_submit(ctx, Err(*refusal));
        }
        let mut concerned: BTreeSet<NodeId> = self.participants(ctx);
        concerned.extend(self.work.seats.values().map(|s| s.node));
        concerned.insert(self.spec.submitter);
        concerned.extend(self.canceller(ctx));
        concerned.extend(self.spec.brain_set.iter().copied());
        concerned.remove(&ctx.own);
        // Of a job that failed or was cancelled programs may run on for the time that they are given to end in good order: their
        // leases go on until they are gone.
        let completed = ctx.ledger.live(&self.job).is_none_or(|l| l.state.outcome() == Some(&Outcome::Completed));
        if let Some(work) = self.work.there() {
            work.seats.retain(|_, seat| !completed && !seat.open.is_empty() && !planted(Bug::SealBeforeGone));
        }
        if !self.work.seats.is_empty() {
            until = until + STOPPED_WAIT;
        }
        self.stage = Stage::Sealing { until };
        ctx.effect(Effect::Changed(self.job));
        let mut verdict: Vec<Envelope> = ctx.submit_of(&self.job).into_iter().collect();
        if let Some(live) = ctx.ledger.live(&self.job) {
            let ids = self.work.accept_ids.iter().chain([&finish]);
            verdict.extend(ids.filter_map(|id| live.facts.get(id).cloned()));
        }
        // A small job has all receipts by now: one message tells the verdict and the seal.
        let seal = self.seal(ctx, until);
        for node in concerned {
            let (known, all) = (self.work.witnesses.get(&node), verdict.iter().chain(seal.iter().flatten()));
            let facts: Vec<Envelope> = match known {
                // What a member stored with the verdict, and what came before that, it has.
                Some(known) if seal.is_some() => {
                    let last = seal.iter().flatten();
                    last.filter(|e| e.author != node && !known.contains(&e.fact_id())).cloned().collect()
                }
                _ => all.cloned().collect(),
            };
            ctx.send(node, Message::Facts(facts));
        }
    }

    /// Nodes that reported anything for the job.
    fn participants(&self, ctx: &Ctx) -> BTreeSet<NodeId> {
        let mut nodes: BTreeSet<NodeId> = self.work.reports_by.keys().copied().collect();
        if let Some(live) = ctx.ledger.live(&self.job) {
            nodes.extend(live.state.accepted.iter().flat_map(|m| m.iter().map(|(_, r)| r.node)));
        }
        nodes
    }

    /// The receipts known: an executor's only report, or the summary that it signed.
    fn receipts(&self, ctx: &Ctx) -> Vec<(NodeId, FactId)> {
        let summaries = ctx.ledger.live(&self.job).map(|l| &l.state.receipts);
        self.participants(ctx)
            .into_iter()
            .filter_map(|node| {
                let summary = summaries.and_then(|s| s.get(&node)).map(|(id, _)| *id);
                let only = self.work.reports_by.get(&node).filter(|r| r.len() == 1).and_then(|r| r.first().copied());
                Some((node, summary.or(only)?))
            })
            .collect()
    }

    pub(super) fn step_sealing(&mut self, ctx: &mut Ctx, until: Time) {
        let Some(facts) = self.seal(ctx, until) else { return };
        let mut to = self.participants(ctx);
        to.extend(self.spec.brain_set.iter().copied());
        to.insert(self.spec.submitter);
        to.extend(self.canceller(ctx));
        to.remove(&ctx.own);
        for node in to {
            ctx.send(node, Message::Facts(facts.clone()));
        }
    }

    /// Seals the job if nothing of it runs any more and all receipts are here, or at `until` without those that are missing.
    /// Gives the seal, behind the receipts that it names.
    fn seal(&mut self, ctx: &mut Ctx, until: Time) -> Option<Vec<Envelope>> {
        let runs = self.work.seats.values().any(|seat| ctx.peers.is_connected(seat.node));
        if runs && ctx.now.at < until {
            return None;
        }
        let receipts = self.receipts(ctx);
        let expected = self.participants(ctx).into_iter().filter(|n| ctx.peers.is_connected(*n)).count();
        if receipts.len() < expected && ctx.now.at < until {
            return None;
        }
        let outcome = ctx.ledger.live(&self.job).and_then(|l| l.state.outcome().cloned())?;
        let carried: Vec<FactId> = receipts.iter().map(|(_, id)| *id).collect();
        let anew = ctx.ledger.live(&self.job).map_or(0, |l| l.state.anew());
        let (_, seal) = ctx.state(self.job, Fact::Seal { term: self.term, outcome, receipts, anew });
        let mut facts: Vec<_> = ctx
            .ledger
            .live(&self.job)
            .map(|l| carried.iter().filter_map(|id| l.facts.get(id).cloned()).collect())
            .unwrap_or_default();
        facts.push(seal);
        if let Some(work) = self.work.there() {
            work.seats.clear();
        }
        self.stage = Stage::Over;
        Some(facts)
    }

    /// Who asked to cancel: it waits for the end.
    fn canceller(&self, ctx: &Ctx) -> Option<NodeId> {
        ctx.ledger.live(&self.job)?.state.cancel.as_ref().map(|(node, _)| *node)
    }

    /// Begins to take back a job that is not acknowledged. Others may have stored it, and may run it as soon as this node is
    /// silent: so the cancel is a fact like any other, kept here, on its way to a majority, and the job ends by it.
    pub(super) fn withdraw(&mut self, ctx: &mut Ctx, problem: SubmitError) {
        let reason = sinew_crdt_state::rules::clip(format!("withdrawn: {problem}"));
        if !planted(Bug::WithdrawInMemory) {
            let (cancel, _) = ctx.state(self.job, Fact::Cancel { reason });
            self.quorum.add(ctx, &[cancel]);
        }
        self.refusal = Some(Box::new(problem));
        ctx.effect(Effect::Changed(self.job));
    }

    /// More of the inputs came to a member of the set: the submit's time runs from now, within what a slow link may take for them.
    pub(super) fn on_inputs_copied(&mut self, ctx: &Ctx, from: NodeId, done: u64, total: u64) {
        let all: u64 = self.spec.input_blobs().iter().map(|b| b.size).fold(0, u64::saturating_add);
        if self.stage != Stage::Storing || !self.spec.brain_set.contains(&from) || done > all || total > all {
            return;
        }
        let known = self.work.copied.get(&from).map_or(0, |(known, _)| *known);
        if done <= known {
            return;
        }
        self.work.copied.insert(from, (done, total));
        let latest = self.since + SUBMIT_TIMEOUT + Span::ms(all.saturating_mul(1_000) / COPY_BYTES_PER_S);
        if let Some((_, deadline)) = self.answer.as_mut().filter(|_| !planted(Bug::SubmitByTheClock)) {
            *deadline = (ctx.now.at + SUBMIT_TIMEOUT).min(latest).max(*deadline);
        }
    }

    /// Nobody asks any more how much was copied.
    pub(super) fn forget_copied(&mut self) {
        if let Some(work) = self.work.there() {
            work.copied = std::collections::BTreeMap::new();
        }
    }

    /// How much of the inputs has come to the other members of the set, and how much there is for them; and until when the
    /// submit waits. Only while that is under way.
    pub(crate) fn copied(&self) -> Option<(u64, u64)> {
        if self.stage != Stage::Storing || self.work.copied.is_empty() {
            return None;
        }
        let sum = |(done, total): (u64, u64), of: &(u64, u64)| (done + of.0, total + of.1);
        Some(self.work.copied.values().fold((0, 0), sum))
    }

    /// Who waits for the submit's answer, and until when.
    pub(crate) const fn waits(&self) -> Option<(RequestId, Time)> {
        self.answer
    }

    pub(super) fn why_not_stored(&self) -> String {
        let ms = SUBMIT_TIMEOUT.as_ms();
        match self.copied() {
            Some((done, total)) => format!(
                "no majority of its brain set had stored it, and of its inputs no more came within {ms} ms than {done} of {total} bytes"
            ),
            None => format!("no majority of its brain set had stored it within {ms} ms"),
        }
    }

    /// Answers the submit, if nobody has.
    pub(super) fn answer_submit(&mut self, ctx: &mut Ctx, answer: Result<JobId, SubmitError>) {
        if let Some((id, _)) = self.answer.take() {
            ctx.effect(Effect::Answer { id, response: Response::Submitted(answer) });
        }
    }

    /// Says that nobody knows what becomes of the job.
    pub(super) fn answer_unknown(&mut self, ctx: &mut Ctx, why: &str) {
        let withdrawing = self.refusal.is_some();
        self.answer_submit(ctx, Err(SubmitError::Unknown { job: self.job, why: why.to_owned(), withdrawing }));
    }

    /// The mistake of [`Bug::RefuseUnknown`].
    pub(super) fn drop_unknown(&mut self, ctx: &mut Ctx) {
        self.answer_submit(ctx, Err(SubmitError::Disk("no majority".to_owned())));
        ctx.ledger.retract(&self.job);
        ctx.record(Record::Retract { job: self.job });
        self.stage = Stage::Over;
    }
}
