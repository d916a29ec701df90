//! What the world counted and saw: for assertions that a fault really happened, and for messages when one fails.

use sinew_crdt_state::ids::JobId;
use sinew_scheduler::time::Time;

/// Counts of things that happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Events handled.
    pub events: u64,
    /// Frames sent.
    pub frames: u64,
    /// Bytes of frames.
    pub bytes: u64,
    /// Frames lost by chance.
    pub lost_frames: u64,
    /// Frames held up by a cut.
    pub stalled_frames: u64,
    /// Nodes killed.
    pub kills: u64,
    /// Nodes started again.
    pub restarts: u64,
    /// Results that a brain refused as stale.
    pub stale_results: u64,
    /// Leases that a worker ended by itself.
    pub fenced: u64,
    /// Leases that a brain gave up.
    pub lost_leases: u64,
    /// Protocol offences reported of nodes that do not lie.
    pub offences: u64,
    /// Protocol offences reported of nodes that do.
    pub caught: u64,
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
