//! Whose word counts in a job's brain set, now that disks can be lost: a member that lost its disk has forgotten its votes and
//! what it stored for a majority. It counts again once it has caught up from the others.

use crate::ids::{DiskId, NodeId};
use crate::planted::{Bug, planted};
use crate::state::JobState;

impl JobState {
    /// Whether the word of `node`, speaking from `disk`, counts in the brain set: the disk is the one it had when the job was
    /// submitted, or it has caught up since.
    #[must_use]
    pub fn trusts(&self, node: NodeId, disk: DiskId) -> bool {
        self.spec.disk_of(node).is_some_and(|d| d == disk)
            || self.rejoined.contains_key(&(node, disk))
            || self.spec.brain_set.contains(&node) && planted(Bug::VoteForgotten)
    }

    /// The highest term that `node` has promised to follow, by a vote or when it caught up.
    #[must_use]
    pub fn promised_by(&self, node: NodeId) -> u32 {
        let voted = self.votes.iter().rev().find(|(_, v)| v.contains(&node)).map_or(0, |(term, _)| *term);
        let rejoined = self.rejoined.iter().filter(|((n, _), _)| *n == node).map(|(_, term)| *term);
        rejoined.fold(voted, u32::max)
    }

    /// The highest term that anybody has promised to follow.
    #[must_use]
    pub fn promised_by_any(&self) -> u32 {
        let voted = self.votes.last_key_value().map_or(0, |(term, _)| *term);
        self.rejoined.values().copied().fold(voted, u32::max)
    }
}
