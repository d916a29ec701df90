//! What the world counted and saw: for assertions that a fault really happened, and for messages when one fails.

use sinew_crdt_state::ids::JobId;
use sinew_scheduler::time::Time;

use crate::traffic::Traffic;

/// Counts of things that happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Events handled.
    pub events: u64,
    /// Times that a core told how long tasks may run on.
    pub lease_effects: u64,
    /// Tasks ended because their lease was over while their daemon stood still.
    pub switched: u64,
    /// Times that a daemon stood still while its tasks ran on.
    pub stalls: u64,
    /// Times that a busy core collected inputs before it answered.
    pub batches: u64,
    /// Attempts that could not begin because an input was out of reach.
    pub blocked: u64,
    /// Tasks that a node took and never began.
    pub hogged: u64,
    /// Awards that ended because their tasks were past their limit.
    pub overdue: u64,
    /// Results that were made anew.
    pub made_anew: u64,
    /// Frames sent.
    pub frames: u64,
    /// Bytes of frames.
    pub bytes: u64,
    /// Messages in frames.
    pub messages: u64,
    /// Of the frames, those on control streams.
    pub control_frames: u64,
    /// Bytes of these.
    pub control_bytes: u64,
    /// Messages in frames and copies of gossip, by kind.
    pub traffic: Traffic,
    /// Frames lost by chance.
    pub lost_frames: u64,
    /// Adverts lost at their source.
    pub lost_adverts: u64,
    /// Frames held up by a cut.
    pub stalled_frames: u64,
    /// Packets of frames sent again because they were lost.
    pub retransmitted: u64,
    /// Frames and gossip messages that took the long way.
    pub reordered: u64,
    /// Messages that waited for a link's bandwidth.
    pub queued_frames: u64,
    /// Frames and gossip messages that took longer than usual, because a node's links did.
    pub detours: u64,
    /// Gossip messages lost on the way.
    pub lost_gossip: u64,
    /// Gossip messages that arrived twice for no reason of the protocol's.
    pub doubled_gossip: u64,
    /// Times a flapping link went down.
    pub flaps: u64,
    /// Dials between nodes that can only dial out.
    pub unreachable: u64,
    /// Gossip messages that cores published.
    pub gossip_published: u64,
    /// Copies of gossip messages sent from node to node.
    pub gossip_sent: u64,
    /// Bytes of these.
    pub gossip_bytes: u64,
    /// Copies that reached nodes that had the message.
    pub gossip_duplicates: u64,
    /// Announcements of a gossip message to a node that lacked it.
    pub ihave: u64,
    /// Gossip messages asked for after an announcement.
    pub iwant: u64,
    /// Adverts that nodes other than their authors should have had.
    pub adverts_due: u64,
    /// Of these, those that never came.
    pub adverts_missed: u64,
    /// Gossip messages that an attacker did not pass on to a peer of its mesh.
    pub gossip_withheld: u64,
    /// Slots of a victim's gossip mesh that attackers took.
    pub slots_taken: u64,
    /// Peers taken into a gossip mesh because they do better than those in it.
    pub improved: u64,
    /// Peers taken into a gossip mesh.
    pub grafts: u64,
    /// Peers let go of, or not taken.
    pub prunes: u64,
    /// Dials for a message to a node that was not connected.
    pub dials: u64,
    /// Connections closed because nobody used them.
    pub idle_closed: u64,
    /// Syncs of disks: batches that wait at the same time share one.
    pub syncs: u64,
    /// Batches of records that cores asked to have written.
    pub writes: u64,
    /// Batches lost in crashes before they were acknowledged.
    pub lost_writes: u64,
    /// Batches lost in crashes although they were acknowledged.
    pub lost_syncs: u64,
    /// Batches of which a crash left a part.
    pub torn_writes: u64,
    /// Disks that ran full.
    pub full_disks: u64,
    /// Syncs that failed.
    pub failed_syncs: u64,
    /// Attempts that failed by chance.
    pub random_failures: u64,
    /// Dates that jumped.
    pub clock_jumps: u64,
    /// Nodes killed.
    pub kills: u64,
    /// Times that a node refused a peer for a while, because it broke the protocol.
    pub bans: u64,
    /// Nodes told to leave.
    pub leaves: u64,
    /// Nodes that were given an old copy of their disk.
    pub rollbacks: u64,
    /// Nodes started again.
    pub restarts: u64,
    /// Machines that stood still for a while.
    pub pauses: u64,
    /// Blobs that vanished from disks.
    pub lost_blobs: u64,
    /// Results that a brain refused as stale.
    pub stale_results: u64,
    /// Seals that said something else than those known.
    pub two_seals: u64,
    /// Leases that a worker ended by itself.
    pub fenced: u64,
    /// Leases that a brain gave up.
    pub lost_leases: u64,
    /// Protocol offences reported of nodes that do not lie.
    pub offences: u64,
    /// Facts that a scenario had a node forge.
    pub lies: u64,
    /// Offences of such nodes.
    pub lies_refused: u64,
    /// Tasks that a core started on a node without room for them.
    pub overbooked: u64,
}

/// A brain took office.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Took {
    /// When.
    pub at: Time,
    /// Which node, by number of joining.
    pub node: usize,
    /// The job.
    pub job: JobId,
    /// The term.
    pub term: u32,
}
