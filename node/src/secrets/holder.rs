//! The submitter's side: answers nodes that ask for a job's secrets. A node gets those that the job names, of a job that this node
//! submitted and that has not ended, against an award to that very node, signed by the brain of its term. Nobody else gets anything.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sinew_crdt_state::certificate::Roles;
use sinew_crdt_state::envelope::VerifiedRoots;
use sinew_crdt_state::fact::{Fact, Fence};
use sinew_crdt_state::identity::Identity;
use sinew_crdt_state::ids::{JobId, MeshId, NodeId};
use sinew_crdt_state::ledger::Ledger;
use sinew_crdt_state::rules::brain_of;
use sinew_mesh::{BlobStream, DropReason};
use sinew_scheduler::core::Core;
use tokio::sync::Semaphore;

use super::SecretBytes;
use super::seal::{Purpose, seal};
use super::store::{SecretStore, StoreError};
use super::wire::{ASK_LEN_MAX, Answer, Ask, Refusal, decode_ask, read_message, write_message};
use crate::daemon::Shared;

/// Questions answered at once: each may hold 256 KiB for a moment.
const ANSWERS_MAX: usize = 16;
/// A question must have come, and its answer gone, within this.
const DEADLINE: Duration = Duration::from_secs(10);
/// Questions of one node at once, and then each second: it asks once for each job.
const BURST: f64 = 32.0;
const RATE: f64 = 4.0;

/// What a node keeps for its user, and what it takes to give it out.
#[derive(Debug)]
pub struct Keeper {
    store: SecretStore,
    identity: Identity,
    answers: Semaphore,
    /// What each node may still ask, and since when.
    budgets: Mutex<BTreeMap<NodeId, (f64, Instant)>>,
}

impl Keeper {
    /// Over the secrets of this node.
    #[must_use]
    pub fn new(store: SecretStore, identity: Identity) -> Self {
        Self { store, identity, answers: Semaphore::new(ANSWERS_MAX), budgets: Mutex::default() }
    }

    /// The secrets.
    #[must_use]
    pub const fn store(&self) -> &SecretStore {
        &self.store
    }

    /// This node's keys.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    fn may_ask(&self, node: NodeId, now: Instant) -> bool {
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        let refilled = |(left, at): (f64, Instant)| (left + now.duration_since(at).as_secs_f64() * RATE).min(BURST);
        // Whoever has not asked for a while has all of it, and needs no entry.
        budgets.retain(|_, budget| refilled(*budget) < BURST);
        let left = budgets.get(&node).map_or(BURST, |budget| refilled(*budget));
        budgets.insert(node, (if left >= 1.0 { left - 1.0 } else { left }, now));
        left >= 1.0
    }
}

/// What an asker is entitled to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entitled {
    /// To be sealed for this.
    pub purpose: Purpose,
    /// The secrets of the job.
    pub names: Vec<String>,
}

/// Judges a question of `asker` against what the ledger of `own`, the node that is asked, says. `roles` are the asker's.
///
/// # Errors
/// Why it gets nothing.
pub fn judge(
    ledger: &Ledger,
    mesh: MeshId,
    own: NodeId,
    asker: NodeId,
    roles: Option<Roles>,
    ask: &Ask,
) -> Result<Entitled, Refusal> {
    let denied = |why: &str| Refusal::Denied(why.to_owned());
    let job: JobId = ask.award.entry;
    let live = ledger.live(&job).filter(|_| ledger.sealed(&job).is_none()).ok_or(Refusal::NoJob)?;
    let state = &live.state;
    if state.spec.submitter != own {
        return Err(denied("the job is another node's"));
    }
    if state.outcome().is_some() || state.cancel.is_some() {
        return Err(Refusal::NoJob);
    }
    if !roles.is_some_and(|roles| roles.contains(Roles::RUN)) {
        return Err(denied("the node may not run tasks"));
    }
    let opened = ask.award.open(mesh, &mut VerifiedRoots::default());
    let opened = opened.map_err(|error| Refusal::Denied(format!("the award: {error}")))?;
    let Fact::Award { fence, node, .. } = opened.statement.fact else {
        return Err(denied("what it shows is no award"));
    };
    if node != asker {
        return Err(denied("the award is another node's"));
    }
    if brain_of(&state.spec, fence.term) != Some(ask.award.author) {
        return Err(denied("the award is not by the brain of its term"));
    }
    let known = state.awards.get(&fence);
    if state.equivocations.contains(&fence) || known.is_some_and(|award| award.node != asker) {
        return Err(denied("two nodes have this award"));
    }
    if fence.term < state.term || known.is_some_and(|award| award.revoked.is_some()) {
        return Err(Refusal::Superseded);
    }
    let tasks = state.spec.phases().get(usize::from(ask.phase)).copied().unwrap_or(0);
    if ask.task >= tasks {
        return Err(denied("the job has no such task"));
    }
    let names: Vec<String> = state.spec.secret_names().into_iter().map(str::to_owned).collect();
    if names.is_empty() {
        return Err(denied("the job names no secrets"));
    }
    Ok(Entitled { purpose: purpose(job, fence, ask, asker), names })
}

/// What an answer to `ask` is for.
#[must_use]
pub const fn purpose(job: JobId, fence: Fence, ask: &Ask, asker: NodeId) -> Purpose {
    Purpose { job, fence, phase: ask.phase, task: ask.task, asker }
}

/// Serves one question of a member.
pub fn serve(shared: &Arc<Shared>, from: NodeId, stream: BlobStream) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        // One that finds no place asks again: what waits here would be for members to pile up.
        let Ok(_permit) = shared.secrets.answers.try_acquire() else { return };
        let served = tokio::time::timeout(DEADLINE, exchange(&shared, from, stream)).await;
        if let Ok(Err(error)) = served {
            tracing::debug!(node = %from.short(), %error, "a question for secrets failed");
        }
    });
}

async fn exchange(shared: &Shared, from: NodeId, mut stream: BlobStream) -> std::io::Result<()> {
    let bytes = match read_message(&mut stream, ASK_LEN_MAX).await {
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            shared.link.mesh().drop_peer(from, DropReason::Misbehaved);
            return Err(error);
        }
        read => read?,
    };
    let Ok(ask) = decode_ask(&bytes) else {
        shared.link.mesh().drop_peer(from, DropReason::Misbehaved);
        return Err(std::io::ErrorKind::InvalidData.into());
    };
    let answer = if shared.secrets.may_ask(from, Instant::now()) {
        answer(shared, from, ask).await
    } else {
        Answer::Refused(Refusal::Busy)
    };
    write_message(&mut stream, &answer).await?;
    tokio::io::AsyncWriteExt::shutdown(&mut stream).await
}

async fn answer(shared: &Shared, from: NodeId, ask: Ask) -> Answer {
    let job = ask.award.entry;
    let look = move |core: &Core| {
        let roles = core.peers().get(from).map(|peer| peer.roles);
        judge(core.ledger(), core.mesh(), core.own(), from, roles, &ask)
    };
    let judged = shared.engine.look(look).await.unwrap_or(Err(Refusal::Busy));
    let given = judged.and_then(|entitled| {
        let values = values(&shared.secrets, &entitled.names)?;
        let count = values.len();
        let sealed = seal(entitled.purpose, values).map_err(|e| Refusal::Denied(e.to_string()))?;
        Ok((sealed, count, entitled.purpose))
    });
    match given {
        Ok((sealed, secrets, purpose)) => {
            let (term, epoch) = (purpose.fence.term, purpose.fence.epoch);
            tracing::info!(node = %from.short(), job = %job.short(), term, epoch, secrets, "gave a job's secrets");
            Answer::Sealed(sealed)
        }
        Err(refusal) => {
            let code = if matches!(refusal, Refusal::Denied(_)) { "E_DENY" } else { "E_FETCH" };
            tracing::warn!(node = %from.short(), job = %job.short(), code, %refusal, "refused a job's secrets");
            Answer::Refused(refusal)
        }
    }
}

/// The values of `names` on this node.
///
/// # Errors
/// As it is told to others; this node's log has the rest.
pub fn values(keeper: &Keeper, names: &[String]) -> Result<Vec<(String, SecretBytes)>, Refusal> {
    keeper.store.get(names.iter().map(String::as_str)).map_err(|error| match error {
        StoreError::Unknown(name) => Refusal::Unknown(name),
        error => {
            tracing::error!(%error, "cannot read this node's secrets");
            Refusal::Broken
        }
    })
}

#[cfg(test)]
mod tests;
