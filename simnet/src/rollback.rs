//! Old copies of disks: a backup that is put back, and a copy of a node that runs in its place for a while.
//!
//! Nothing on such a disk says that it is old. What must be so: once the node is in touch with anybody who remembers more than its
//! disk knows, the disk counts as lost. Where nobody who is in reach remembers, the node cannot know either; then
//! no promise is made for the jobs of whose brain sets it is (`excuse`).

use std::collections::BTreeMap;

use sinew_crdt_state::cbor;
use sinew_crdt_state::fact::{Fact, Statement};
use sinew_crdt_state::ids::{DiskId, JobId, NodeId};
use sinew_scheduler::core::Core;
use sinew_scheduler::time::{Span, Time};

use crate::check::Violation;
use crate::disk::Image;
use crate::queue::Index;
use crate::world::World;

/// A node that was told of a later start has a new disk number by then: a sync on the slowest of disks.
const RENUMBERED_WITHIN: Span = Span::ms(10_000);

/// What was on a node's disk at some time, blobs too.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub(crate) image: Image,
    /// When it was taken.
    at: Time,
}

/// A node that was started on an old copy.
#[derive(Debug, Clone)]
pub(crate) struct Aged {
    disk: DiskId,
    mark: u64,
    started: Option<Time>,
    /// Of its starts since: what these promised it knows.
    nonces: Vec<u64>,
}

impl World {
    /// What is on the platter of a node's disk now.
    #[must_use]
    pub fn snapshot(&self, name: &str) -> Snapshot {
        Snapshot { image: self.nodes[self.index(name)].disk.image(), at: self.now }
    }

    /// A node's disk is as it was when the snapshot was taken. Only while the node is down.
    pub fn roll_back(&mut self, name: &str, snapshot: Snapshot) {
        let node = self.index(name);
        assert!(!self.nodes[node].is_up(), "{name} is up");
        self.say(node, format!("DISK IS AN OLD COPY of {:.3} s", snapshot.at.0 as f64 / 1e6));
        self.counters.rollbacks += 1;
        let n = &mut self.nodes[node];
        n.disk.replace(snapshot.image);
        self.watch
            .aged
            .insert(node, Aged { disk: n.disk.id(), mark: n.disk.mark(), started: None, nonces: Vec::new() });
    }

    pub(crate) fn note_start_of_aged(&mut self, node: Index, nonce: u64) {
        if let Some(aged) = self.watch.aged.get_mut(&node) {
            aged.started = Some(self.now);
            aged.nonces.push(nonce);
        }
    }

    /// Whether somebody who is in touch with the node remembers more, of an earlier start, than it knew when it was started.
    fn is_remembered(&self, node: Index, aged: &Aged) -> bool {
        let id = self.nodes[node].id();
        let knows = |core: &Core| {
            core.remembers(id).is_some_and(|seen| {
                seen.retired.contains(&aged.disk)
                    || seen.disk == aged.disk && !aged.nonces.contains(&seen.nonce) && seen.mark > aged.mark
            })
        };
        self.links
            .peers(node)
            .any(|peer| self.nodes[peer].is_awake() && self.nodes[peer].core.as_ref().is_some_and(knows))
    }

    /// Nodes that go on with an old copy of their disk although somebody told them. Those whom nobody could tell are noted.
    pub(crate) fn old_disks(&mut self) -> Vec<Violation> {
        let mut found = Vec::new();
        for (node, aged) in self.watch.aged.clone() {
            let Some(core) = self.nodes[node].core.as_ref() else { continue };
            if core.disk() != aged.disk {
                self.watch.aged.remove(&node);
                continue;
            }
            let Some(started) = aged.started else { continue };
            if self.now - started < RENUMBERED_WITHIN {
                continue;
            }
            if !self.is_remembered(node, &aged) {
                // It was on its own, or nothing was promised since.
                self.watch.forgot.insert(node);
                self.watch.lying = true;
            } else if self.nodes[node].is_awake() && !self.nodes[node].disk.failing {
                found.push(Violation::OldDisk(self.nodes[node].name.clone()));
            }
        }
        found
    }

    /// Different jobs of one submitter with one number.
    pub(crate) fn serials_given_twice(&self) -> Vec<Violation> {
        let mut known: BTreeMap<(NodeId, u64), JobId> = BTreeMap::new();
        let mut found = Vec::new();
        for node in &self.nodes {
            for envelope in node.disk.submits() {
                let Ok(Statement { fact: Fact::Submit(signed), .. }) = cbor::from_slice(&envelope.payload) else {
                    continue;
                };
                let Ok(spec) = signed.decode() else { continue };
                let first = *known.entry((spec.submitter, spec.serial)).or_insert(envelope.entry);
                let violation = Violation::SerialTwice(first, envelope.entry);
                if first != envelope.entry && !found.contains(&violation) {
                    found.push(violation);
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::job;
    use crate::units::{millis, seconds};

    #[test]
    fn an_old_copy_is_told_apart_and_a_restart_is_not() {
        let mut world = World::seed(5).nodes(["a", "b", "c"]);
        world.submit("a", &job().tasks(3));
        world.run_until_idle();
        let disk = |world: &World| world.nodes[1].core.as_ref().map(Core::disk);
        let before = disk(&world);
        let old = world.snapshot("b");
        world.kill("b");
        world.restart("b");
        world.run_for(seconds(12));
        assert_eq!(disk(&world), before, "a restart");
        world.submit("a", &job().tasks(3).lasting(seconds(1)));
        world.run_until_idle();
        world.kill("b");
        world.roll_back("b", old);
        world.restart("b");
        world.run_for(millis(500));
        assert_ne!(disk(&world), before, "an old copy");
        world.run_for(seconds(12));
        assert_eq!(world.old_disks(), []);
        assert!(world.watch.forgot.is_empty());
        world.run_until_idle();
        world.check_invariants();
        assert_eq!(world.counters().rollbacks, 1);
    }
}
