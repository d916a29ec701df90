//! What `sinew bench` can measure. The measuring is [`crate::bench`]'s.

use std::path::PathBuf;

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
    /// Every benchmark, each beside its floor; as a table, as JSON, and beside an earlier run
    ///
    /// Exits with 1 if a benchmark fails, or if a count (messages, bytes) grew by more than a tenth with one job at a time. What
    /// else got worse is marked only: it depends on what the machine does besides.
    All {
        /// Small sizes, for a look whether everything runs
        #[arg(long)]
        quick: bool,
        /// Write the figures there, as JSON
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Show the figures beside those of an earlier run, as `--out` wrote them
        #[arg(long, value_name = "FILE")]
        against: Option<PathBuf>,
        /// Measure another build of this program too, by turns, as far as it knows the benchmarks
        #[arg(long, value_name = "PROGRAM")]
        beside: Option<PathBuf>,
        /// Write the table into this page, between its two comments `bench all`
        #[arg(long, value_name = "FILE")]
        page: Option<PathBuf>,
        /// The commit that this program was built from [default: SINEW_COMMIT at build time]
        #[arg(long, value_name = "COMMIT")]
        commit: Option<String>,
        /// Only the benchmarks whose names begin so, such as `submit, 3 nodes`
        #[arg(long, value_name = "NAME")]
        only: Option<String>,
    },
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
    /// How long accepting a job takes, jobs per second, and what each costs: CPU, messages, bytes
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
        /// Jobs under way at once
        #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1_024))]
        at_once: u16,
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
    /// What a lone daemon costs that does nothing
    Idle {
        /// How long it is watched, twice
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3_600))]
        seconds: u32,
        /// Sleeping processes beside it, the second time
        #[arg(long, value_name = "COUNT", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(0..=20_000))]
        foreign: u32,
    },
    /// What jobs cost that wait for a machine which is not there
    Waiting {
        /// How many nodes
        #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
        nodes: u16,
        /// How many jobs
        #[arg(long, value_name = "COUNT", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
        jobs: u32,
        /// How long the daemons are watched, before and after
        #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=3_600))]
        seconds: u32,
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
