//! How a job begins: what its user asked for, completed, signed, and on its way to a brain set.

use sinew_crdt_state::certificate::Roles;
use sinew_crdt_state::fact::Fact;
use sinew_crdt_state::ids::{FactId, JobId, NodeId};
use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::spec::{JobSpec, PACE_MIN, SignedSpec, SpecFields};

use super::Core;
use super::clients::{BRAIN_SET, Reach};
use crate::brain::Brain;
use crate::ctx::After;
use crate::io::{Effect, NewJob, RequestId, Response, SubmitError};
use crate::time::Span;

/// Nodes asked for an input that is named by its hash and is not here.
const INPUT_PROVIDERS: usize = 16;
/// Stewards whose round trips differ by less count as equally near.
const NEAR: Span = Span::ms(50);

impl Core {
    /// Begins a job.
    pub(super) fn begin(&mut self, id: RequestId, new: NewJob, reach: Reach) {
        match self.signed(new, reach) {
            Ok((signed, spec)) => {
                let job = signed.id();
                if let Some((key, request)) = spec.keyed() {
                    self.clients.keys.insert(key, (job, request));
                }
                let (submit, _) = self.ctx.state(job, Fact::Submit(signed));
                self.stewards.has_blobs(job);
                let inputs = self.ctx.ledger.live(&job).map(|l| l.state.spec.input_blobs()).unwrap_or_default();
                let Some(brain) = Brain::submitted(&mut self.ctx, job, submit, id) else { return };
                self.brains.insert(job, brain);
                if inputs.is_empty() {
                    return self.ctx.after_persist(After::Own { job, ids: vec![submit] });
                }
                // This node's word counts as any steward's: once the inputs are here, on disk, and kept for this very job.
                let id = self.ctx.next_fetch();
                self.own_inputs.insert(id, (job, submit));
                let providers = self.ctx.peers.connected().take(INPUT_PROVIDERS).collect();
                self.ctx.effect(Effect::Fetch { id, job, blobs: inputs, providers });
            }
            Err(error) => self.ctx.effect(Effect::Answer { id, response: Response::Submitted(Err(error)) }),
        }
    }

    /// The inputs of a job submitted here are here and kept for it, or are not.
    pub(super) fn on_own_inputs(&mut self, job: JobId, submit: FactId, ok: bool) {
        if ok {
            self.has_inputs(job);
        }
        let Some(brain) = self.brains.get(&job) else { return };
        // A node alone has nobody else to speak for them: such a job is taken, and fails at its first task if it cannot do
        // without.
        if ok || brain.set().len() == 1 {
            self.ctx.after_persist(After::Own { job, ids: vec![submit] });
        }
    }

    /// Whether this node takes jobs at all.
    pub(super) fn may_submit(&self) -> Result<(), SubmitError> {
        if !self.ctx.roles.contains(Roles::SUBMIT) {
            return Err(SubmitError::Role);
        }
        if self.ctx.leaving {
            return Err(SubmitError::Leaving);
        }
        match &self.ctx.storage_failing {
            Some(reason) => Err(SubmitError::Disk(reason.clone())),
            None => Ok(()),
        }
    }

    fn signed(&mut self, new: NewJob, reach: Reach) -> Result<(SignedSpec, JobSpec), SubmitError> {
        self.may_submit()?;
        let serial = self.serial_last + 1;
        let alone = reach.alone();
        let brain_set = self.choose_brain_set(serial, reach.others);
        // In a mesh of one there will be nobody to hold a second copy. Where others are only out of reach they may come back.
        let only = brain_set.len() == 1 && alone.is_none() && self.ctx.peers.connected().next().is_none();
        let (own, disk) = (self.ctx.own, self.ctx.disk);
        let pace = if planted(Bug::OnePaceForAll) { PACE_MIN } else { self.ctx.peers.pace_of_set(&brain_set) };
        let spec = JobSpec::from(SpecFields {
            mesh: self.ctx.mesh,
            submitter: self.ctx.own,
            serial,
            submitted_ms: self.ctx.now.unix_ms,
            brain_disks: brain_set.iter().map(|n| if *n == own { disk } else { self.ctx.peers.disk(*n) }).collect(),
            brain_set,
            name: new.name,
            work: new.work,
            resources: new.resources,
            limits: new.limits,
            retry: new.retry,
            labels: new.labels,
            strategy: new.strategy,
            copies: if only { 1 } else { new.copies },
            network: new.network,
            secrets: new.secrets,
            volumes: new.volumes,
            alone,
            submit_key: new.key.map(|key| key.text),
            pace,
        });
        let signed = SignedSpec::sign(self.ctx.identity(), &spec);
        signed.decode()?;
        self.serial_last = serial;
        Ok((signed, spec))
    }

    /// This node and two stewards of `others`, healthy nodes whose card has come: near ones first, and of these by rendezvous hashing.
    /// This node alone where there are fewer than two.
    fn choose_brain_set(&self, serial: u64, others: Vec<NodeId>) -> Vec<NodeId> {
        let own = self.ctx.own;
        let mut others: Vec<(u64, [u8; 32], NodeId)> = others
            .into_iter()
            .map(|n| {
                let mut hasher = blake3::Hasher::new_derive_key("sinew rendezvous 1");
                hasher.update(&own.0).update(&serial.to_le_bytes()).update(&n.0);
                let far = self.ctx.peers.trip(n).map_or(0, |trip| trip.smoothed().0 / NEAR.0);
                (far, *hasher.finalize().as_bytes(), n)
            })
            .collect();
        others.sort_unstable();
        let mut set = vec![own];
        if others.len() + 1 >= BRAIN_SET {
            set.extend(others.into_iter().take(BRAIN_SET - 1).map(|(.., n)| n));
        }
        set
    }
}
