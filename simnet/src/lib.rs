//! The production core in virtual time: a small deterministic world of nodes, disks, links and tasks, driven by one event
//! queue and one seeded random number generator. Idle time is jumped.
//!
//! Everything that decides is the real thing ([`sinew_scheduler::core::Core`]); everything around it is modelled: disks
//! that lose what was not synced, links with latency, loss and cuts, machines that run tasks, blobs as sets of hashes.
//! Nothing here reads a clock, touches a file or a socket, or starts a thread. The same seed gives the same trace.

mod attack;
mod audit;
mod ban;
mod batch;
mod books;
mod busy;
mod check;
pub mod cli;
mod clock;
mod condition;
mod custody;
mod dial;
mod disk;
mod distribution;
mod doubles;
mod excuse;
mod exec;
mod fault;
pub mod files;
mod flap;
mod forge;
mod hearing;
mod history;
mod leave;
mod link;
mod lookup;
mod machine;
pub mod nemesis;
mod network;
mod node;
mod overlay;
mod pause;
mod plan;
pub mod plot;
mod queue;
mod recovery;
mod report;
mod roll;
mod rollback;
pub mod run;
mod sight;
mod stop;
mod trace;
mod traffic;
mod units;
mod world;
mod write;

pub use check::Violation;
pub use clock::ClockSetup;
pub use condition::{
    Condition, Refusal, Seen, all_of, answered, completed, done, ended, failed, failed_attempts, fenced, finished,
    finished_at, given_up, led_by, recovered, rejected_result, running, started, taken_over, taken_over_after,
};
pub use disk::DiskSetup;
pub use distribution::Distribution;
pub use exec::{Execution, Stopped};
pub use hearing::Heard;
pub use network::{Latency, Network, Preset, UnknownNetwork};
pub use node::NodeSetup;
pub use overlay::GossipSetup;
pub use plan::{Plan, job, round};
pub use report::{Counters, Took};
pub use rollback::Snapshot;
pub use traffic::{Sent, Traffic};
pub use units::{micros, millis, seconds};
pub use world::World;
pub use write::CrashPoint;
