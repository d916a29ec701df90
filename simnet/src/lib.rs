//! The production core in virtual time: a small deterministic world of nodes, disks, links and tasks, driven by one event
//! queue and one seeded random number generator. Idle time is jumped.
//!
//! Everything that decides is the real thing ([`sinew_scheduler::core::Core`]); everything around it is modelled: disks
//! that lose what was not synced, links with latency, loss and cuts, machines that run tasks, blobs as sets of hashes.
//! Nothing here reads a clock, touches a file or a socket, or starts a thread. The same seed gives the same trace.

mod check;
pub mod cli;
mod condition;
mod disk;
mod doubles;
mod exec;
mod fault;
mod link;
pub mod nemesis;
mod node;
mod plan;
mod queue;
mod report;
pub mod run;
mod world;

pub use check::Violation;
pub use condition::{
    Condition, Refusal, Seen, all_of, completed, done, ended, failed, finished, led_by, rejected_result, running,
    started, taken_over,
};
pub use exec::{Execution, Stopped};
pub use node::NodeSetup;
pub use plan::{Plan, job, round};
pub use report::{Counters, Took};
pub use world::{World, millis, seconds};
