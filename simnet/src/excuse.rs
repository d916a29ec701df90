//! What disks that lie may be blamed for. A disk that calls written what a crash then takes breaks the one promise that the
//! core builds on, and its node does not know: it votes, stores and decides as if it had never promised anything. Hence no
//! promise is made for jobs in whose brain set is a node that has lost such writes; that they are not lost, decided once, run
//! once and their outputs kept is then luck. All else is demanded: of every other job everything, of these that nobody invents or forges a
//! result, and that no node is overbooked or accused. Such a job may also stay open: its member states anew, in other words, what
//! it forgot that it had stated, and ledgers keep whichever they heard first.

use std::collections::{BTreeMap, BTreeSet};

use sinew_crdt_state::ids::{JobId, NodeId};
use sinew_crdt_state::reconcile::Digest;

use crate::check::Violation;
use crate::queue::Index;
use crate::world::World;

impl World {
    /// Keeps a job's brain set, if a disk may lose it.
    pub(crate) fn note_set(&mut self, node: Index, job: JobId) {
        let core = self.nodes[node].core.as_ref().filter(|_| self.watch.lying);
        let Some(live) = core.and_then(|core| core.ledger().live(&job)) else { return };
        self.watch.sets.insert(job, live.state.spec.brain_set.clone());
    }

    /// Whether a disk that lied may have brought this about.
    pub(crate) fn is_excused(&self, violation: &Violation) -> bool {
        if matches!(violation, Violation::Roots | Violation::Leftover(_)) {
            return self.is_restless_by_excuse();
        }
        let (Violation::Lost(job)
        | Violation::Diverged(job)
        | Violation::DoubleStart(job, ..)
        | Violation::Revived(job, ..)
        | Violation::Rerun(job, ..)
        | Violation::CopyMissing(_, job)
        | Violation::CancelledRan(job)
        | Violation::CancelUndone(job)
        | Violation::TwoSeals(job)
        | Violation::AcceptReplaced(job)) = violation
        else {
            return false;
        };
        !self.watch.forgot.is_empty() && self.set_of(job).iter().any(|id| self.has_forgotten(*id))
    }

    /// Whether jobs that a disk that lied may have harmed are all that is not at rest.
    pub(crate) fn is_restless_by_excuse(&self) -> bool {
        if self.watch.forgot.is_empty() {
            return false;
        }
        let cores = || self.nodes.iter().filter_map(|n| n.core.as_ref());
        let mut jobs: BTreeSet<JobId> = BTreeSet::new();
        let mut digests: BTreeMap<JobId, Vec<Digest>> = BTreeMap::new();
        for core in cores() {
            jobs.extend(core.led().map(|(job, _)| job).chain(core.leases().map(|(lease, _)| lease.job)));
            let open = core.ledger().iter_live().filter(|(job, _)| core.ledger().sealed(job).is_none());
            jobs.extend(open.map(|(job, _)| *job));
            for (job, digest) in core.ledger().index().iter() {
                digests.entry(*job).or_default().push(*digest);
            }
        }
        let up = cores().count();
        let same = |all: &[Digest]| all.len() == up && all.iter().all(|d| *d == all[0]);
        jobs.extend(digests.iter().filter(|(_, all)| !same(all)).map(|(job, _)| *job));
        jobs.iter().all(|job| self.is_excused(&Violation::Lost(*job)))
    }

    fn has_forgotten(&self, node: NodeId) -> bool {
        self.index_of(node).is_some_and(|node| self.watch.forgot.contains(&node))
    }

    fn set_of(&self, job: &JobId) -> Vec<NodeId> {
        let on_disk =
            || self.nodes.iter().find_map(|n| self.state(&n.name, job)).map(|state| state.spec.brain_set.clone());
        self.watch.sets.get(job).cloned().or_else(on_disk).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::DiskSetup;
    use crate::plan::job;
    use crate::units::seconds;

    #[test]
    fn only_jobs_whose_brain_set_forgot_are_excused() {
        let mut world = World::seed(3).nodes(["a", "b", "c", "d"]);
        world.set_disk("a", DiskSetup { lies: true, ..DiskSetup::default() });
        let first = world.submit("a", &job());
        world.run_for(seconds(1));
        assert!(!world.is_excused(&Violation::Lost(first)), "nothing is lost yet");
        let lost = world.counters.lost_syncs;
        while world.counters.lost_syncs == lost {
            world.kill("a");
            world.restart("a");
            world.run_for(seconds(1));
        }
        assert!(world.is_restless_by_excuse(), "only this job is not at rest, if any");
        assert!(world.is_excused(&Violation::Lost(first)) && !world.is_excused(&Violation::Invented(first, 0, 0)));
        world.set_disk("a", DiskSetup::default());
        world.kill("a");
        world.run_for(seconds(5));
        let second = world.submit("b", &job().lasting(seconds(9)));
        assert!(!world.is_restless_by_excuse(), "the second job is under way, and no disk is to blame");
        assert!(!world.brain_set(&second).contains(&"a".to_owned()));
        assert!(!world.is_excused(&Violation::Lost(second)), "a is not in its brain set");
    }
}
