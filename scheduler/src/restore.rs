//! Outputs that results say are on this node and that are not: its disk was lost since. They are fetched from whoever else
//! holds them, so that the next loss finds two copies again. What is lost on every holder stays lost.
//!
//! For a running job this follows each result that is learned of; for one that has ended, its final outputs. Until those are
//! here, its entry on disk says so, so that a restart goes on with it.

use std::collections::{BTreeMap, BTreeSet};

use sinew_crdt_state::cbor;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Accepted, Fact, Outcome, Output, Statement};
use sinew_crdt_state::ids::{Hash, JobId, NodeId};
use sinew_crdt_state::spec::BlobRef;
use sinew_crdt_state::state::JobState;

use crate::config::{RESTORE_AT_ONCE, RESTORE_EVERY, RESTORE_FAR_EVERY};
use crate::ctx::Ctx;
use crate::io::{Effect, FetchId, Record};
use crate::time::Time;
use crate::view::{JobRow, row_of};

/// Blobs to fetch for one job, each with the other node that holds it.
type Lacking = BTreeMap<Hash, (BlobRef, NodeId)>;

#[derive(Debug, Default)]
pub(crate) struct Restore {
    lacking: BTreeMap<JobId, Lacking>,
    fetching: BTreeMap<FetchId, (JobId, Vec<Hash>, NodeId)>,
    at: Time,
    /// When holders are tried next to which there is no connection.
    far_at: Time,
}

impl Restore {
    /// A result counts. In the usual course of things its outputs are here when it says so.
    pub(crate) fn on_accept(&mut self, ctx: &Ctx, held: &BTreeSet<Hash>, job: JobId, items: &[Accepted]) {
        for item in items {
            self.note(ctx.own, held, job, item.node, item.copy, &item.outputs);
        }
    }

    fn note(
        &mut self,
        own: NodeId,
        held: &BTreeSet<Hash>,
        job: JobId,
        maker: NodeId,
        copy: Option<NodeId>,
        outputs: &[Output],
    ) {
        let Some(copy) = copy.filter(|copy| maker == own || *copy == own) else { return };
        let other = if maker == own { copy } else { maker };
        for output in outputs.iter().filter(|o| !held.contains(&o.blob.hash)) {
            self.lacking.entry(job).or_default().insert(output.blob.hash, (output.blob, other));
        }
    }

    /// The job is over: only its final outputs are worth having. Says on disk that it is, and whether some of them are missing:
    /// in one record, as the next may not get there.
    pub(crate) fn on_sealed(&mut self, ctx: &mut Ctx, held: &BTreeSet<Hash>, job: JobId) {
        self.lacking.remove(&job);
        if let Some(live) = ctx.ledger.live(&job).filter(|l| l.state.outcome() == Some(&Outcome::Completed)) {
            self.note_final(ctx.own, held, job, &live.state);
        }
        let own = ctx.own;
        let row = ctx.ledger.live(&job).map(|live| {
            let spec = &live.state.spec;
            let key = spec.keyed().filter(|_| spec.submitter == own);
            Box::new(JobRow { key, ..row_of(&live.state) })
        });
        if let Some(entry) = ctx.ledger.set_lacking(&job, self.lacking.contains_key(&job)) {
            ctx.record(Record::Sealed { job, entry, row });
        }
    }

    fn note_final(&mut self, own: NodeId, held: &BTreeSet<Hash>, job: JobId, state: &JobState) {
        for (_, result) in state.accepted.last().into_iter().flat_map(|phase| phase.iter()) {
            self.note(own, held, job, result.node, result.copy, &result.outputs);
        }
    }

    /// Writes down whether something is missing of a sealed job, where that is news.
    fn record(&self, ctx: &mut Ctx, job: JobId) {
        let lacks = self.lacking.contains_key(&job);
        let known = ctx.ledger.sealed(&job).is_some_and(|entry| entry.lacks_outputs != lacks);
        if let Some(entry) = ctx.ledger.set_lacking(&job, lacks).filter(|_| known) {
            ctx.record(Record::Sealed { job, entry, row: None });
        }
    }

    /// Looks what is missing of running jobs, and asks the disk for sealed ones of which something was when this node stopped.
    pub(crate) fn resume(&mut self, ctx: &mut Ctx, held: &BTreeSet<Hash>) {
        for (job, live) in ctx.ledger.iter_live().filter(|(job, _)| ctx.ledger.sealed(job).is_none()) {
            for (_, result) in live.state.accepted.iter().flat_map(|phase| phase.iter()) {
                self.note(ctx.own, held, *job, result.node, result.copy, &result.outputs);
            }
        }
        let jobs: Vec<JobId> = ctx.ledger.iter_sealed().filter(|(_, e)| e.lacks_outputs).map(|(job, _)| *job).collect();
        for job in jobs {
            ctx.effect(Effect::Load { job, to: ctx.own });
        }
    }

    /// What [`Self::resume`] asked for.
    pub(crate) fn on_loaded(&mut self, ctx: &mut Ctx, held: &BTreeSet<Hash>, facts: &[Envelope]) {
        let Some(job) = facts.first().map(|e| e.entry).filter(|job| ctx.ledger.sealed(job).is_some()) else { return };
        let open = |e: &Envelope| Some((e.fact_id(), e.author, cbor::from_slice::<Statement>(&e.payload).ok()?));
        let opened: Vec<_> = facts.iter().filter_map(open).collect();
        let spec = opened.iter().find_map(|(_, _, s)| match &s.fact {
            Fact::Submit(signed) => signed.decode().ok(),
            _ => None,
        });
        if let Some(spec) = spec {
            self.note_final(ctx.own, held, job, &JobState::fold(spec, &opened));
        }
        self.record(ctx, job);
    }

    /// Fetches what is missing, from holders that are connected; now and then from others too, which the transport has to dial.
    pub(crate) fn tick(&mut self, ctx: &mut Ctx, held: &BTreeSet<Hash>) {
        if self.lacking.is_empty() || ctx.now.at < self.at {
            return;
        }
        self.at = ctx.now.at + RESTORE_EVERY;
        self.drop_held(ctx, held);
        let far = ctx.now.at >= self.far_at;
        if far {
            self.far_at = ctx.now.at + RESTORE_FAR_EVERY;
        }
        let mut asked = Vec::new();
        for (job, lacking) in &self.lacking {
            let mut by_holder: BTreeMap<NodeId, Vec<BlobRef>> = BTreeMap::new();
            let under_way =
                |hash: &Hash| self.fetching.values().any(|(j, hashes, _)| j == job && hashes.contains(hash));
            for (hash, (blob, holder)) in lacking.iter().filter(|(_, (_, n))| far || ctx.peers.is_connected(*n)) {
                if !under_way(hash) {
                    by_holder.entry(*holder).or_default().push(*blob);
                }
            }
            asked.extend(by_holder.into_iter().map(|(holder, blobs)| (*job, holder, blobs)));
        }
        asked.sort_by_key(|(_, holder, _)| !ctx.peers.is_connected(*holder));
        for (job, holder, blobs) in asked.into_iter().take(RESTORE_AT_ONCE.saturating_sub(self.fetching.len())) {
            let id = ctx.next_fetch();
            self.fetching.insert(id, (job, blobs.iter().map(|b| b.hash).collect(), holder));
            ctx.effect(Effect::Fetch { id, job, blobs, providers: vec![holder] });
        }
    }

    /// A running job's outputs may also have come in another way.
    fn drop_held(&mut self, ctx: &mut Ctx, held: &BTreeSet<Hash>) {
        let ledger = &ctx.ledger;
        self.lacking.retain(|job, _| ledger.live(job).is_some() || ledger.sealed(job).is_some());
        for lacking in self.lacking.values_mut() {
            lacking.retain(|hash, _| !held.contains(hash));
        }
        let done: Vec<JobId> = self.lacking.iter().filter(|(_, l)| l.is_empty()).map(|(job, _)| *job).collect();
        for job in done {
            self.lacking.remove(&job);
            self.record(ctx, job);
        }
    }

    /// A fetch ended. Returns the blobs that are here now; `None` when the fetch was somebody else's.
    pub(crate) fn on_fetched(&mut self, ctx: &mut Ctx, id: FetchId, ok: bool) -> Option<Vec<Hash>> {
        let (job, hashes, holder) = self.fetching.remove(&id)?;
        // Looked at again at the next tick: at once when it went well, for what else is missing.
        if ok {
            self.at = ctx.now.at;
            let (blobs, add) = (hashes.clone(), vec![holder]);
            ctx.effect(Effect::NoteHolders { job, blobs, add, remove: Vec::new() });
        }
        Some(if ok { hashes } else { Vec::new() })
    }

    /// A holder may have come back.
    pub(crate) const fn on_peer_up(&mut self, ctx: &Ctx) {
        self.at = ctx.now.at;
    }

    /// Whether everything is here that should be.
    pub(crate) fn is_done(&self, ctx: &Ctx) -> bool {
        self.lacking.is_empty() && ctx.ledger.iter_sealed().all(|(_, entry)| !entry.lacks_outputs)
    }

    pub(crate) fn timeout(&self) -> Option<Time> {
        (!self.lacking.is_empty()).then_some(self.at)
    }
}
