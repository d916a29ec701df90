//! The production core in virtual time: a small deterministic world of nodes, disks, links and tasks, driven by one event
//! queue and one seeded random number generator. Idle time is jumped.
//!
//! Everything that decides is the real thing ([`sinew_scheduler::core::Core`]); everything around it is modelled: disks
//! that lose what was not synced, links with latency, loss and cuts, machines that run tasks, blobs as sets of hashes.
//! Nothing here reads a clock, touches a file or a socket, or starts a thread. The same seed gives the same trace.

mod check;
mod clock;
mod condition;
mod dial;
mod disk;
mod distribution;
mod exec;
mod fault;
mod flap;
mod link;
mod machine;
mod network;
mod node;
mod overlay;
mod plan;
mod queue;
mod report;
mod world;
mod write;

pub use check::Violation;
pub use clock::ClockSetup;
pub use condition::{
    Condition, Refusal, Seen, all_of, completed, done, ended, failed, finished, led_by, rejected_result, running,
    started, taken_over,
};
pub use disk::DiskSetup;
pub use distribution::Distribution;
pub use exec::{Execution, Stopped};
pub use network::{Latency, Network};
pub use node::NodeSetup;
pub use overlay::GossipSetup;
pub use plan::{Plan, job, round};
pub use report::{Counters, Took};
pub use world::{World, millis, seconds};
pub use write::CrashPoint;
