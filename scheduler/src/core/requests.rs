//! What users ask of their node: to take a job, to cancel one.

use sinew_crdt_state::certificate::Roles;
use sinew_crdt_state::fact::Fact;
use sinew_crdt_state::ids::{JobId, NodeId};
use sinew_crdt_state::spec::{JobSpec, SignedSpec, SpecFields};

use super::Core;
use crate::brain::Brain;
use crate::io::{CancelError, Effect, NewJob, RequestId, Response, SubmitError};
use crate::membership::NodeState;
use crate::wire::Message;

/// Nodes in the brain set of a job: one that decides and two that could. More would cost latency for little.
const BRAIN_SET: usize = 3;

impl Core {
    pub(super) fn submit(&mut self, id: RequestId, new: NewJob) {
        match self.signed(new) {
            Ok(signed) => {
                let job = signed.id();
                let (submit, _) = self.ctx.state(job, Fact::Submit(signed));
                self.stewards.has_blobs(job);
                if let Some(brain) = Brain::submitted(&mut self.ctx, job, submit, id) {
                    self.brains.insert(job, brain);
                }
            }
            Err(error) => self.ctx.effect(Effect::Answer { id, response: Response::Submitted(Err(error)) }),
        }
    }

    fn signed(&mut self, new: NewJob) -> Result<SignedSpec, SubmitError> {
        if !self.ctx.roles.contains(Roles::SUBMIT) {
            return Err(SubmitError::Role);
        }
        if let Some(reason) = &self.ctx.storage_failing {
            return Err(SubmitError::Disk(reason.clone()));
        }
        let serial = self.serial_last + 1;
        let brain_set = self.choose_brain_set(serial);
        let alone = brain_set.len() == 1 && self.ctx.peers.connected().next().is_none();
        let (own, disk) = (self.ctx.own, self.ctx.disk);
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
            copies: if alone { 1 } else { new.copies },
            network: new.network,
            secrets: new.secrets,
            volumes: new.volumes,
        });
        let signed = SignedSpec::sign(self.ctx.identity(), &spec);
        signed.decode()?;
        self.serial_last = serial;
        Ok(signed)
    }

    /// This node and two stewards, chosen by rendezvous hashing over healthy nodes whose card has come; this node alone where
    /// there are fewer than two.
    fn choose_brain_set(&self, serial: u64) -> Vec<NodeId> {
        let own = self.ctx.own;
        let healthy = |n: &NodeId| {
            let runs = self.ctx.peers.roles(*n).is_some_and(|r| r.contains(Roles::RUN));
            runs && !matches!(self.membership.state(*n), Some(NodeState::Lost | NodeState::Suspect | NodeState::Left))
        };
        // One whose card has not come would be named with a disk that it does not have: it would have to be recalled into the
        // set, by both others, and two such could never be.
        let known = |n: &NodeId| self.ctx.peers.get(*n).is_some_and(|peer| peer.card.is_some());
        let mut others: Vec<([u8; 32], NodeId)> = self
            .ctx
            .peers
            .connected()
            .filter(|n| healthy(n) && known(n))
            .map(|n| {
                let mut hasher = blake3::Hasher::new_derive_key("sinew rendezvous 1");
                hasher.update(&own.0).update(&serial.to_le_bytes()).update(&n.0);
                (*hasher.finalize().as_bytes(), n)
            })
            .collect();
        others.sort_unstable();
        let mut set = vec![own];
        if others.len() + 1 >= BRAIN_SET {
            set.extend(others.into_iter().take(BRAIN_SET - 1).map(|(_, n)| n));
        }
        set
    }

    pub(super) fn cancel(&mut self, id: RequestId, job: JobId, reason: String) {
        let verdict = self.try_cancel(job, reason);
        self.ctx.effect(Effect::Answer { id, response: Response::Cancelled(verdict) });
    }

    fn try_cancel(&mut self, job: JobId, reason: String) -> Result<(), CancelError> {
        if self.ctx.ledger.sealed(&job).is_some() {
            return Err(CancelError::Ended);
        }
        let live = self.ctx.ledger.live(&job).ok_or(CancelError::Unknown(job))?;
        if live.state.outcome().is_some() {
            return Err(CancelError::Ended);
        }
        let spec = live.state.spec.clone();
        if spec.submitter != self.ctx.own && !self.ctx.roles.contains(Roles::ADMIN) {
            return Err(CancelError::Denied);
        }
        let reason = sinew_crdt_state::rules::clip(reason);
        let (_, cancel) = self.ctx.state(job, Fact::Cancel { reason });
        let submit = self.ctx.submit_of(&job);
        let own = self.ctx.own;
        for member in spec.brain_set.iter().copied().filter(|n| *n != own) {
            let facts = submit.iter().cloned().chain([cancel.clone()]).collect();
            self.ctx.send(member, Message::Facts(facts));
        }
        Ok(())
    }
}
