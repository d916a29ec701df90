//! A member of a brain set that lost its disk, and how it comes to count again.
//!
//! The spec says which disks the set had. A member with another one has forgotten its votes and what it stored for a
//! majority: it votes for nobody, acknowledges nothing and keeps no lease until every other member has told it all that it
//! knows. Of each majority that it was ever part of, another member is left; and whoever asked for its vote had voted
//! for itself before, so that the highest promise that anybody tells of is no lower than any that was forgotten.

use std::collections::BTreeSet;

use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::Fact;
use sinew_crdt_state::ids::{DiskId, JobId, NodeId};

use super::Stewards;
use crate::brains::Brains;
use crate::config::RECALL_EVERY;
use crate::ctx::{After, Ctx};
use crate::io::Effect;
use crate::sync;
use crate::time::Time;
use crate::wire::{Message, ShortId, short_id};

/// A job of which this node's disk has forgotten something, being asked for.
#[derive(Debug)]
pub(super) struct Recall {
    asked: Time,
    told: BTreeSet<NodeId>,
    /// Whether one of them has forgotten nothing.
    remembered: bool,
}

/// Whether this node's word counts in the brain set of the job.
pub(super) fn counts(ctx: &Ctx, job: JobId) -> bool {
    ctx.ledger.live(&job).is_some_and(|live| live.state.trusts(ctx.own, ctx.disk))
}

/// Whether this node's word counts, and it knows that its disk is no old copy.
pub(super) fn speaks(ctx: &Ctx, job: JobId) -> bool {
    let live = ctx.ledger.live(&job);
    live.is_some_and(|live| live.state.trusts(ctx.own, ctx.disk) && ctx.is_sure(&live.state.spec.brain_set))
}

impl Stewards {
    /// This node's disk was an old copy and has another number now. What was submitted here since this start it has not
    /// forgotten; of all else it asks the others.
    pub(crate) fn on_renumbered(&mut self, ctx: &mut Ctx, brains: &mut Brains, serials_from: u64) {
        let own = ctx.own;
        let open = ctx.ledger.iter_live().filter(|(_, live)| live.state.seal.is_none());
        let member = open.filter(|(_, live)| live.state.spec.brain_set.contains(&own));
        let jobs: Vec<(JobId, bool)> = member
            .map(|(job, live)| {
                let spec = &live.state.spec;
                (*job, spec.submitter == own && spec.serial > serials_from && live.state.promised_by_any() <= 1)
            })
            .collect();
        for (job, is_whole) in jobs {
            if is_whole {
                self.on_caught_up(ctx, job);
            } else if let Some(brain) = brains.touch(&job) {
                brain.depose(ctx);
            }
            self.check_by(ctx, job);
        }
    }

    /// Asks the other members what this node has forgotten, again and again until all have said.
    pub(super) fn recall(&mut self, ctx: &mut Ctx, job: JobId) {
        if counts(ctx, job) {
            return;
        }
        let now = ctx.now.at;
        let Some(watched) = self.watched.get_mut(&job) else { return };
        let fresh = watched.recall.is_none();
        let recall = watched
            .recall
            .get_or_insert_with(|| Box::new(Recall { asked: now, told: BTreeSet::new(), remembered: false }));
        if !fresh && now - recall.asked < RECALL_EVERY {
            return;
        }
        recall.asked = now;
        let Some(live) = ctx.ledger.live(&job) else { return };
        let Some(submit) = live.facts.get(&live.submit).cloned() else { return };
        let have: Vec<ShortId> = live.facts.keys().map(short_id).collect();
        let (own, disk) = (ctx.own, ctx.disk);
        let others: Vec<NodeId> = live.state.spec.brain_set.iter().copied().filter(|n| *n != own).collect();
        if others.is_empty() {
            // Nobody else was ever told anything.
            ctx.after_persist(After::CaughtUp { job });
        }
        for to in others.into_iter().filter(|n| !recall.told.contains(n)) {
            ctx.send(to, Message::Recall { submit: Box::new(submit.clone()), disk, have: have.clone() });
        }
    }

    /// Another member lost its disk: it gets everything that is known here, once that is on this disk.
    pub(crate) fn on_recall(ctx: &mut Ctx, from: NodeId, submit: &Envelope, disk: DiskId, have: &[ShortId]) {
        let job = submit.entry;
        let admitted = ctx.admit(from, submit);
        if ctx.ledger.sealed(&job).is_some() {
            return ctx.effect(Effect::Load { job, to: from });
        }
        let Some(live) = ctx.ledger.live(&job) else {
            if admitted.is_err() {
                // Forgotten here: what stayed of it tells how it ended.
                ctx.effect(Effect::Load { job, to: from });
            }
            return;
        };
        if !live.state.spec.brain_set.contains(&from) {
            return ctx.offence(from, "recalls a job that it has no part in".to_owned());
        }
        let remembers = counts(ctx, job);
        let have: BTreeSet<ShortId> = have.iter().copied().collect();
        let known: Vec<ShortId> = live.facts.keys().map(short_id).collect();
        let facts = live.facts.iter().filter(|(id, _)| !have.contains(&short_id(id))).map(|(_, e)| e.clone()).collect();
        sync::send_facts(ctx, from, facts);
        ctx.after_persist(After::Send { to: from, message: Message::Recalled { job, disk, remembers, known } });
    }

    /// A member has told everything: when all have, one of them from a disk that the spec names or that has caught up, and it
    /// all arrived, this node counts again once it is on disk.
    pub(crate) fn on_recalled(
        &mut self,
        ctx: &mut Ctx,
        from: NodeId,
        (job, disk): (JobId, DiskId),
        remembers: bool,
        known: &[ShortId],
    ) {
        if disk != ctx.disk || counts(ctx, job) {
            return;
        }
        let Some(live) = ctx.ledger.live(&job) else { return };
        let spec = &live.state.spec;
        let own: BTreeSet<ShortId> = live.facts.keys().map(short_id).collect();
        let arrived = spec.brain_set.contains(&from) && known.iter().all(|id| own.contains(id));
        let Some(recall) = self.watched.get_mut(&job).and_then(|w| w.recall.as_mut()).filter(|_| arrived) else {
            return;
        };
        recall.told.insert(from);
        recall.remembered |= remembers;
        if recall.remembered && spec.brain_set.iter().all(|n| *n == ctx.own || recall.told.contains(n)) {
            ctx.after_persist(After::CaughtUp { job });
        }
    }

    /// What the others know is on this disk: say so, and count from now on.
    pub(crate) fn on_caught_up(&mut self, ctx: &mut Ctx, job: JobId) {
        if counts(ctx, job) {
            return;
        }
        let Some(live) = ctx.ledger.live(&job).filter(|live| live.state.seal.is_none()) else { return };
        let (own, term) = (ctx.own, live.state.promised_by_any());
        let others: Vec<NodeId> = live.state.spec.brain_set.iter().copied().filter(|n| *n != own).collect();
        let (_, rejoin) = ctx.state(job, Fact::Rejoin { disk: ctx.disk, term });
        for to in others {
            ctx.after_persist(After::Send { to, message: Message::Facts(vec![rejoin.clone()]) });
        }
        if let Some(watched) = self.watched.get_mut(&job) {
            watched.recall = None;
            // The brain may have counted on this node's answers until the disk was lost.
            watched.since = ctx.now.at;
        }
        self.note_promise(ctx, job);
    }
}
