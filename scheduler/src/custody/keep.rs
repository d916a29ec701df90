//! A node that is asked to hold a copy: it looks whether the job is known here and the blobs are the job's, fetches them, keeps
//! them for the job, and only then says so. One transfer at a time.

use std::collections::{BTreeSet, VecDeque};

use sinew_crdt_state::cbor;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Fact, Statement};
use sinew_crdt_state::ids::{Hash, JobId, NodeId};
use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::spec::BlobRef;
use sinew_crdt_state::state::JobState;

use super::transfer_time;
use crate::config::HELD_BLOBS_MAX;
use crate::ctx::Ctx;
use crate::io::{Effect, FetchId};
use crate::time::{Span, Time};
use crate::wire::Message;

/// Requests that wait at most. Whoever is refused asks somebody else.
const QUEUE_MAX: usize = 8;
/// Other holders named in a request at most.
const HOLDERS_MAX: usize = 16;
/// A disk that has not said by then what it knows of a job has lost the question.
const ENTRY_PATIENCE: Span = Span::ms(10_000);

/// Blobs that a node asks this one to hold.
#[derive(Debug)]
struct Wanted {
    from: NodeId,
    job: JobId,
    blobs: Vec<BlobRef>,
    holders: Vec<NodeId>,
}

#[derive(Debug)]
enum Stage {
    /// The disk is asked what it knows of the job.
    Reading {
        until: Time,
    },
    Fetching(FetchId),
}

#[derive(Debug, Default)]
pub(super) struct Keeper {
    queue: VecDeque<Wanted>,
    current: Option<(Wanted, Stage)>,
    not_before: Time,
}

impl Keeper {
    pub(super) fn on_keep(
        &mut self,
        ctx: &mut Ctx,
        from: NodeId,
        job: JobId,
        blobs: Vec<BlobRef>,
        holders: Vec<NodeId>,
    ) {
        if blobs.is_empty() || blobs.len() > HELD_BLOBS_MAX || holders.len() > HOLDERS_MAX {
            let (blobs, holders) = (blobs.len(), holders.len());
            return ctx.offence(from, format!("wants {blobs} blobs of {holders} holders kept at once"));
        }
        let same = |wanted: &Wanted| wanted.from == from && wanted.job == job;
        if self.queue.iter().any(same) || self.current.as_ref().is_some_and(|(wanted, _)| same(wanted)) {
            return;
        }
        if self.queue.len() >= QUEUE_MAX || ctx.storage_failing.is_some() {
            return ctx.send(from, Message::Kept { job, ok: false });
        }
        self.queue.push_back(Wanted { from, job, blobs, holders });
        self.step(ctx);
    }

    /// Begins with the next request, once the last transfer's time is over.
    pub(super) fn step(&mut self, ctx: &mut Ctx) {
        let now = ctx.now.at;
        if let Some((wanted, _)) =
            self.current.take_if(|(_, stage)| matches!(stage, Stage::Reading { until } if now >= *until))
        {
            ctx.send(wanted.from, Message::Kept { job: wanted.job, ok: false });
        }
        if self.current.is_some() || now < self.not_before {
            return;
        }
        let Some(wanted) = self.queue.pop_front() else { return };
        let job = wanted.job;
        let open = ctx.ledger.live(&job).filter(|_| ctx.ledger.sealed(&job).is_none());
        if let Some(fine) = open.map(|live| is_part_of(&live.state, &wanted.blobs)) {
            return self.decide(ctx, wanted, fine);
        }
        self.current = Some((wanted, Stage::Reading { until: now + ENTRY_PATIENCE }));
        ctx.effect(Effect::ReadEntry { job });
    }

    pub(super) fn on_entry(&mut self, ctx: &mut Ctx, job: JobId, facts: &[Envelope]) {
        let reading =
            |(wanted, stage): &mut (Wanted, Stage)| wanted.job == job && matches!(stage, Stage::Reading { .. });
        if let Some((wanted, _)) = self.current.take_if(reading) {
            let fine = are_outputs(facts, &wanted.blobs);
            self.decide(ctx, wanted, fine);
        }
    }

    fn decide(&mut self, ctx: &mut Ctx, wanted: Wanted, fine: bool) {
        if !fine {
            ctx.send(wanted.from, Message::Kept { job: wanted.job, ok: false });
            return self.step(ctx);
        }
        let id = ctx.next_fetch();
        let others = wanted.holders.iter().copied().filter(|n| *n != ctx.own && *n != wanted.from);
        let providers = std::iter::once(wanted.from).chain(others).collect();
        let job = if planted(Bug::KeptForNobody) { JobId([0; 32]) } else { wanted.job };
        ctx.effect(Effect::Fetch { id, job, blobs: wanted.blobs.clone(), providers });
        self.current = Some((wanted, Stage::Fetching(id)));
    }

    pub(super) fn on_fetched(&mut self, ctx: &mut Ctx, id: FetchId, ok: bool) -> Option<Vec<Hash>> {
        let ours = |(_, stage): &mut (Wanted, Stage)| matches!(stage, Stage::Fetching(of) if *of == id);
        let (wanted, _) = self.current.take_if(ours)?;
        let Wanted { from, job, blobs, holders } = wanted;
        let hashes: Vec<Hash> = blobs.iter().map(|b| b.hash).collect();
        if ok {
            let others = holders.into_iter().filter(|n| *n != ctx.own && *n != from);
            let add = std::iter::once(from).chain(others).collect();
            ctx.effect(Effect::NoteHolders { job, blobs: hashes.clone(), add, remove: Vec::new() });
            if ctx.ledger.live(&job).is_none() && ctx.ledger.sealed(&job).is_none() {
                // Nobody will tell again that it is forgotten: its outputs' time here runs from now.
                ctx.effect(Effect::Forgot { job });
            }
            self.not_before = ctx.now.at + transfer_time(ctx, blobs.iter().map(|b| b.size).sum());
        }
        ctx.send(from, Message::Kept { job, ok });
        self.step(ctx);
        Some(if ok { hashes } else { Vec::new() })
    }

    pub(super) fn timeout(&self) -> Option<Time> {
        match &self.current {
            Some((_, Stage::Reading { until })) => Some(*until),
            Some((_, Stage::Fetching(_))) => None,
            None => (!self.queue.is_empty()).then_some(self.not_before),
        }
    }
}

/// Whether these are inputs or results of a job under way.
fn is_part_of(state: &JobState, blobs: &[BlobRef]) -> bool {
    let results = state.accepted.iter().flat_map(|phase| phase.iter().flat_map(|(_, r)| r.outputs.iter()));
    let known: BTreeSet<(Hash, u64)> = pairs(results.map(|o| o.blob).chain(state.spec.input_blobs())).collect();
    pairs(blobs.iter().copied()).all(|blob| known.contains(&blob))
}

/// Whether these may be outputs of an ended job of which the disk knows `facts`: where its results are known, they must be
/// among them. Of a job that is forgotten only that it was sealed is known, and its outputs are taken on trust.
fn are_outputs(facts: &[Envelope], blobs: &[BlobRef]) -> bool {
    let open = |e: &Envelope| Some((e.fact_id(), e.author, cbor::from_slice::<Statement>(&e.payload).ok()?));
    let opened: Vec<_> = facts.iter().filter_map(open).collect();
    let spec = opened.iter().find_map(|(_, _, s)| match &s.fact {
        Fact::Submit(signed) => signed.decode().ok(),
        _ => None,
    });
    let Some(state) = spec.map(|spec| JobState::fold(spec, &opened)) else { return false };
    let last = state.accepted.last().into_iter().flat_map(|phase| phase.iter());
    let finals: BTreeSet<(Hash, u64)> = pairs(last.flat_map(|(_, r)| r.outputs.iter().map(|o| o.blob))).collect();
    let known = pairs(blobs.iter().copied()).all(|blob| finals.contains(&blob));
    state.seal.is_some() && (finals.is_empty() || known)
}

fn pairs(blobs: impl Iterator<Item = BlobRef>) -> impl Iterator<Item = (Hash, u64)> {
    blobs.map(|blob| (blob.hash, blob.size))
}
