//! What `sinew bench` can measure. The measuring is [`crate::bench`]'s.

use clap::{Subcommand, ValueEnum};
use sinew_crdt_state::manifest::units::parse_size;

/// What runs a benchmark's tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchRunner {
    /// Nothing: the cost of everything around a task.
    Noop,
    /// A process per task.
    Process,
    /// A Python function per task, in warm workers.
    Python,
}

/// A benchmark.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum BenchArgs {
    /// Tasks per second through a mesh on this machine
    Tasks {
        /// How many nodes
        #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
        nodes: u16,
        /// How many tasks
        #[arg(long, value_name = "COUNT", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
        tasks: u32,
        /// What runs them [default: process with a CMD, else noop]
        #[arg(long)]
        runner: Option<BenchRunner>,
        /// The program of each task, with `--runner process` [default: true]
        #[arg(last = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// How long accepting a job takes, and jobs per second
    Submit {
        /// How many jobs
        #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
        jobs: u32,
        /// Jobs a second [default: as many as it can]
        #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..))]
        rate: Option<u32>,
        /// How many nodes
        #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
        nodes: u16,
    },
    /// Facts a second through the ledger: signed, checked, folded, merged
    Ledger {
        /// How many facts
        #[arg(long, value_name = "COUNT", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
        facts: u32,
        /// Over how many jobs
        #[arg(long, value_name = "COUNT", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
        jobs: u32,
    },
    /// What a node with many ended jobs takes to start, to keep in memory, and to list
    History {
        /// How many jobs
        #[arg(long, value_name = "COUNT", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(5..))]
        jobs: u32,
    },
    /// Bytes a second from one blob store to another
    Blobs {
        /// How much
        #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_size)]
        size: u64,
    },
    /// How long a message takes to reach every node
    Gossip {
        /// How many nodes
        #[arg(long, value_name = "COUNT", default_value_t = 30, value_parser = clap::value_parser!(u16).range(2..=256))]
        nodes: u16,
    },
    /// The same experiment with daemons and in the simulator, side by side
    SimVsReal {
        /// How many nodes
        #[arg(long, value_name = "COUNT", default_value_t = 30, value_parser = clap::value_parser!(u16).range(3..=50))]
        nodes: u16,
        /// How many jobs
        #[arg(long, value_name = "COUNT", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        jobs: u32,
        /// Jobs a second
        #[arg(long, value_name = "PER_SECOND", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        rate: u32,
        /// How many adverts
        #[arg(long, value_name = "COUNT", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=500))]
        adverts: u32,
        /// Seconds for the mesh to settle, and as many to be watched while idle
        #[arg(long, value_name = "SECONDS", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=600))]
        idle: u32,
    },
}
