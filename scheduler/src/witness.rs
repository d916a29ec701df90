//! Jobs that one node decides for because too few members were in reach when they were submitted. As soon as others are, two of
//! them are given what the job consists of: its facts, its inputs, and the outputs that count. They can show it and hand it on;
//! to decide for it is another matter.
//!
//! Nothing here is on disk: after a restart the node asks again, and who has everything says so at once. For a job that ended
//! before the restart that is not done.

use std::collections::{BTreeMap, BTreeSet};

use sinew_crdt_state::ids::{Hash, JobId, NodeId};
use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::reconcile::Digest;
use sinew_crdt_state::spec::{BlobRef, Phase};
use sinew_crdt_state::state::JobState;

use crate::config::{WITNESS_AGAIN, WITNESS_EVERY, WITNESSES};
use crate::ctx::Ctx;
use crate::io::Effect;
use crate::sync;
use crate::time::Time;
use crate::wire::Message;

/// In a request for copies it stands for the whole job. No job has so many phases.
pub(crate) const WHOLE_JOB: Phase = Phase::MAX;

#[derive(Debug, Default)]
pub(crate) struct Witnesses {
    /// Jobs that only this node decides for.
    jobs: BTreeMap<JobId, Watched>,
    at: Time,
    numbers: u32,
}

#[derive(Debug, Default)]
struct Watched {
    /// Of a job that is over: the outputs that stay. Before, its state says what there is.
    ended: Option<BTreeMap<Hash, BlobRef>>,
    nodes: BTreeMap<NodeId, Witness>,
}

#[derive(Debug, Default)]
struct Witness {
    /// The entry as it was when its facts were sent.
    sent: Option<Digest>,
    /// Blobs that it has said to hold.
    holds: BTreeSet<Hash>,
    /// It has answered once.
    answered: bool,
    /// The request under way.
    asked: Option<(u32, Vec<Hash>, Time)>,
}

impl Witness {
    fn has(&self, blobs: &BTreeMap<Hash, BlobRef>) -> bool {
        self.answered && blobs.keys().all(|hash| self.holds.contains(hash))
    }
}

impl Witnesses {
    /// A job became known, or was there at the start.
    pub(crate) fn watch(&mut self, ctx: &Ctx, job: JobId, state: &JobState) {
        let alone = state.spec.alone.is_some() && state.spec.brain_set == [ctx.own];
        if alone && state.seal.is_none() && !planted(Bug::NoWitness) {
            self.jobs.entry(job).or_default();
        }
    }

    /// The job is over: its final outputs are what is left to be held.
    pub(crate) fn on_sealed(&mut self, ctx: &Ctx, job: JobId) {
        if let (Some(watched), Some(live)) = (self.jobs.get_mut(&job), ctx.ledger.live(&job)) {
            let last = live.state.accepted.len().saturating_sub(1);
            watched.ended = Some(outputs(&live.state, last));
            self.at = ctx.now.at;
        }
    }

    pub(crate) fn forget(&mut self, job: &JobId) {
        self.jobs.remove(job);
    }

    pub(crate) fn timeout(&self) -> Option<Time> {
        (!self.jobs.is_empty()).then_some(self.at)
    }

    /// Gives witnesses what they lack. `others` are nodes that could be in a brain set.
    pub(crate) fn tick(&mut self, ctx: &mut Ctx, others: &[NodeId]) {
        if self.jobs.is_empty() || ctx.now.at < self.at {
            return;
        }
        self.at = ctx.now.at + WITNESS_EVERY;
        for (job, watched) in &mut self.jobs {
            let chosen = choose(*job, watched, others);
            let blobs = watched.blobs(ctx, job);
            for node in chosen {
                let witness = watched.nodes.entry(node).or_default();
                send_facts(ctx, *job, node, witness);
                let under_way = witness.asked.as_ref().is_some_and(|(.., at)| ctx.now.at - *at < WITNESS_AGAIN);
                if witness.has(&blobs) || under_way {
                    continue;
                }
                self.numbers = self.numbers.wrapping_add(1);
                let lacks: Vec<BlobRef> =
                    blobs.values().filter(|b| !witness.holds.contains(&b.hash)).copied().collect();
                let hashes = lacks.iter().map(|b| b.hash).collect();
                witness.asked = Some((self.numbers, hashes, ctx.now.at));
                let (phase, task, from) = (WHOLE_JOB, self.numbers, ctx.own);
                ctx.send(node, Message::Copy { job: *job, phase, task, from, blobs: lacks });
            }
        }
    }

    /// A witness answers. One that could not is asked again later.
    pub(crate) fn on_copied(&mut self, ctx: &Ctx, from: NodeId, job: JobId, number: u32, ok: bool) {
        let witness = self.jobs.get_mut(&job).and_then(|watched| watched.nodes.get_mut(&from));
        let Some(witness) = witness.filter(|w| w.asked.as_ref().is_some_and(|(n, ..)| *n == number)) else { return };
        if ok && let Some((_, hashes, _)) = witness.asked.take() {
            witness.answered = true;
            witness.holds.extend(hashes);
        } else if let Some((.., at)) = &mut witness.asked {
            // It has not got the facts yet, or could not fetch: at the next look but one.
            *at = Time(ctx.now.at.0.saturating_sub(WITNESS_AGAIN.0.saturating_sub(WITNESS_EVERY.0)));
        }
    }

    /// A node came back with another disk: what it held is gone.
    pub(crate) fn on_disk_lost(&mut self, node: NodeId) {
        for watched in self.jobs.values_mut() {
            watched.nodes.remove(&node);
        }
    }

    /// Other nodes that have everything of the job, as far as is known here.
    pub(crate) fn count(&self, ctx: &Ctx, job: &JobId) -> usize {
        let Some(watched) = self.jobs.get(job) else { return 0 };
        let blobs = watched.blobs(ctx, job);
        watched.nodes.values().filter(|witness| witness.has(&blobs)).count()
    }
}

impl Watched {
    /// What the job consists of beside its facts: inputs and results while it is open, results afterwards.
    fn blobs(&self, ctx: &Ctx, job: &JobId) -> BTreeMap<Hash, BlobRef> {
        if let Some(ended) = &self.ended {
            return ended.clone();
        }
        let Some(live) = ctx.ledger.live(job) else { return BTreeMap::new() };
        let inputs = live.state.spec.input_blobs().into_iter().map(|blob| (blob.hash, blob));
        inputs.chain(outputs(&live.state, 0)).collect()
    }
}

/// Outputs that count, from phase `first` on.
fn outputs(state: &JobState, first: usize) -> BTreeMap<Hash, BlobRef> {
    let results = state.accepted.iter().skip(first).flat_map(|phase| phase.iter());
    results.flat_map(|(_, result)| result.outputs.iter().map(|o| (o.blob.hash, o.blob))).collect()
}

/// Those that are witnesses already and in reach, and others up to the number that there should be, the same ones each time.
fn choose(job: JobId, watched: &Watched, others: &[NodeId]) -> Vec<NodeId> {
    let mut ranked: Vec<(bool, [u8; 32], NodeId)> = others
        .iter()
        .map(|node| {
            let mut hasher = blake3::Hasher::new_derive_key("sinew witness 1");
            hasher.update(&job.0).update(&node.0);
            (!watched.nodes.contains_key(node), *hasher.finalize().as_bytes(), *node)
        })
        .collect();
    ranked.sort_unstable();
    ranked.into_iter().take(WITNESSES).map(|(.., node)| node).collect()
}

/// Where nodes keep only what concerns them, a witness gets the facts from here; elsewhere everybody gets everything.
fn send_facts(ctx: &mut Ctx, job: JobId, node: NodeId, witness: &mut Witness) {
    let digest = ctx.ledger.index().get(&job);
    if sync::keeps_all(ctx) || witness.sent == digest {
        return;
    }
    witness.sent = digest;
    match ctx.ledger.live(&job) {
        Some(live) => {
            let submit = live.submit;
            let rest = live.facts.iter().filter(|(id, _)| **id != submit);
            let facts = live.facts.get(&submit).cloned().into_iter().chain(rest.map(|(_, e)| e.clone())).collect();
            sync::send_facts(ctx, node, facts);
        }
        None => ctx.effect(Effect::Load { job, to: node }),
    }
}
