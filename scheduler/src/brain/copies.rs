//! Second copies: outputs are on two nodes' disks before a result counts, where the job asks for it.

use std::collections::BTreeSet;

use sinew_crdt_state::fact::{Accepted, Run};
use sinew_crdt_state::ids::{FactId, NodeId};
use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::spec::{BlobRef, Phase};

use super::Brain;
use crate::config::{COPY_AGAIN, COPY_BYTES_PER_S, COPY_SILENCE, COPY_TIMEOUT, MUTE_FOR};
use crate::ctx::Ctx;
use crate::time::{Span, Time};
use crate::wire::Message;

/// A finished task whose outputs are being copied to a second node.
#[derive(Debug)]
pub(super) struct Copying {
    pub(super) accepted: Accepted,
    pub(super) report: Option<FactId>,
    /// Nobody while none is in reach.
    pub(super) target: Option<NodeId>,
    since: Time,
    asked: Time,
    /// When the target last told of more bytes, and how many.
    told: Time,
    done: u64,
}

impl Brain {
    /// Counts a result once its outputs are safe.
    pub(super) fn secure(&mut self, ctx: &mut Ctx, accepted: Accepted, report: Option<FactId>) {
        if accepted.outputs.is_empty() || self.spec.copies < 2 || planted(Bug::SkipCopies) {
            return self.accept(accepted, report);
        }
        let target = self.copy_target(ctx, accepted.node);
        // Where the brain set is this node alone, nobody need come back: one copy is all there can be. Elsewhere a result
        // counts no sooner than another member has it on disk, so that one who can hold the copy is worth waiting for.
        if target.is_none() && self.spec.brain_set.len() == 1 {
            return self.accept(accepted, report);
        }
        let now = ctx.now.at;
        let copying = Copying { accepted, report, target, since: now, asked: now, told: now, done: 0 };
        self.ask_copy(ctx, &copying);
        self.work.copying.insert(copying.accepted.run.start, copying);
    }

    fn ask_copy(&self, ctx: &mut Ctx, copying: &Copying) {
        let Some(target) = copying.target else { return };
        let blobs: Vec<BlobRef> = copying.accepted.outputs.iter().map(|o| o.blob).collect();
        let (phase, task, from) = (self.phase, copying.accepted.run.start, copying.accepted.node);
        ctx.send(target, Message::Copy { job: self.job, phase, task, from, blobs });
    }

    /// A node for the second copy of what `from` made: members of the brain set and nodes with seats, in turn.
    fn copy_target(&mut self, ctx: &Ctx, from: NodeId) -> Option<NodeId> {
        let nodes: BTreeSet<NodeId> = self
            .spec
            .brain_set
            .iter()
            .copied()
            .chain(self.work.seats.values().map(|s| s.node))
            .filter(|n| *n != from && ctx.peers.is_heard(*n, ctx.now.at))
            .collect();
        let speaks = |n: &NodeId| !self.work.mute.contains_key(n);
        let nodes: BTreeSet<NodeId> =
            if nodes.iter().any(speaks) { nodes.into_iter().filter(speaks).collect() } else { nodes };
        self.rotate = self.rotate.wrapping_add(1);
        let turn = self.rotate % nodes.len().max(1);
        nodes.into_iter().nth(turn)
    }

    pub(crate) fn on_copied(&mut self, from: NodeId, phase: Phase, task: u32, ok: bool) {
        if phase != self.phase || self.work.copying.get(&task).is_none_or(|c| c.target != Some(from)) {
            return;
        }
        let Some(copying) = self.work.copying.remove(&task) else { return };
        if ok {
            self.accept(Accepted { copy: Some(from), ..copying.accepted }, copying.report);
        } else {
            // Somebody else is asked at the next beat: at once, it would go round as fast as refusals come while nobody
            // reaches the maker.
            self.work.copying.insert(task, Copying { target: None, ..copying });
        }
    }

    /// A node that holds a copy, or a member of the set that takes in the inputs, says how far it is.
    pub(crate) fn on_fetching(&mut self, ctx: &Ctx, from: NodeId, copy: Option<(Phase, u32)>, done: u64, total: u64) {
        match copy {
            None => self.on_inputs_copied(ctx, from, done, total),
            Some((phase, task)) if phase == self.phase => {
                let copying = self.work.there().and_then(|work| work.copying.get_mut(&task));
                if let Some(copying) = copying.filter(|c| c.target == Some(from) && done > c.done) {
                    copying.done = done;
                    copying.told = ctx.now.at;
                }
            }
            Some(_) => {}
        }
    }

    /// Gives copies whose target went away or silent, or takes too long, to somebody else; asks again where no answer came.
    /// What is to be copied from a node that is gone itself is made again.
    pub(super) fn watch_copies(&mut self, ctx: &mut Ctx) {
        let now = ctx.now.at;
        for node in self.makers_gone(ctx) {
            self.drop_copies_from(ctx, node);
        }
        let mut silent: BTreeSet<NodeId> = BTreeSet::new();
        let heard = |target: Option<NodeId>| target.is_some_and(|n| ctx.peers.is_heard(n, now));
        let tells = |target: Option<NodeId>| target.is_some_and(|n| ctx.peers.understands_fetching(n));
        let mute = |c: &Copying| !planted(Bug::MuteUnseen) && tells(c.target) && now - c.told >= COPY_SILENCE;
        let slow =
            |c: &Copying| now - c.since >= COPY_TIMEOUT + Span::ms(c.done.saturating_mul(1_000) / COPY_BYTES_PER_S);
        let (mut move_on, mut again) = (Vec::new(), Vec::new());
        for (task, copying) in &self.work.copying {
            if !heard(copying.target) {
                move_on.push(*task);
            } else if mute(copying) || slow(copying) {
                silent.extend(copying.target);
                move_on.push(*task);
            } else if now - copying.asked >= COPY_AGAIN {
                again.push(*task);
            }
        }
        for node in silent {
            self.work.mute.insert(node, now + MUTE_FOR);
        }
        for task in move_on {
            if let Some(copying) = self.work.copying.remove(&task) {
                self.secure(ctx, copying.accepted, copying.report);
            }
        }
        for task in again {
            if let Some(mut copying) = self.work.copying.remove(&task) {
                copying.asked = now;
                self.ask_copy(ctx, &copying);
                self.work.copying.insert(task, copying);
            }
        }
    }

    /// Nodes that nothing is heard of and whose outputs are being copied. While one has a seat, its lease decides; but seats
    /// are given back when their tasks are done, copied or not.
    fn makers_gone(&self, ctx: &Ctx) -> BTreeSet<NodeId> {
        let seated = |node: NodeId| self.work.seats.values().any(|s| s.node == node);
        let makers = self.work.copying.values().map(|c| c.accepted.node);
        makers.filter(|n| !seated(*n) && !ctx.peers.is_heard(*n, ctx.now.at)).collect()
    }

    /// The disk of `node` was lost, with all that it made or stored.
    pub(crate) fn on_disk_lost(&mut self, ctx: &mut Ctx, node: NodeId) {
        self.quorum.forget_holder(node);
        self.note_wiped(ctx, node);
        self.drop_copies_from(ctx, node);
    }

    /// Outputs that only a lost node has are as good as gone.
    pub(super) fn drop_copies_from(&mut self, ctx: &mut Ctx, node: NodeId) {
        let gone: Vec<u32> =
            self.work.copying.iter().filter(|(_, c)| c.accepted.node == node).map(|(task, _)| *task).collect();
        for task in gone {
            let report = self.work.copying.remove(&task).and_then(|c| c.report);
            if let Some((node, report)) = report.and_then(|report| self.close_part(report)) {
                self.settled(ctx, node, report);
            }
            self.pending.push_front(Run { start: task, len: 1 });
        }
    }
}
