//! Every subcommand and flag, as clap reads them. Says what may be typed, not what it does: the doc comments here are the
//! help texts and the man pages.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use sinew_crdt_state::certificate::Roles;
use sinew_crdt_state::ids::Hash;
use sinew_crdt_state::manifest::units::{parse_cpus, parse_duration, parse_size, parse_split};
use sinew_crdt_state::manifest::{PARTITIONS_DEFAULT, Split};

use super::bench::BenchArgs;
use super::commands::sim::SimArgs;
use super::up::UpArgs;
use super::values::{parse_env, parse_label};

/// Run work on all your machines: one daemon on each, no server.
#[derive(Debug, Parser)]
#[command(name = "sinew", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// The node's directory [default: ~/.local/share/sinew]
    #[arg(long, global = true, env = "SINEW_DATA_DIR", value_name = "DIR", hide_env_values = true)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Print JSON: one object, or one object a line while something goes on
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say more; twice for still more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 usage or not found, 13 denied, 130 interrupted.
`sinew run` exits with its program's own code.";

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make an identity and a new mesh in the data dir
    Init {
        /// The mesh's name, for people
        #[arg(long, value_name = "NAME", default_value = "sinew")]
        mesh: String,
    },
    /// Print a ticket that lets another machine join
    Invite {
        /// What it may do: run, submit, admin, separated by commas
        #[arg(long, value_name = "ROLES", default_value = "run,submit")]
        role: Roles,
        /// How long the ticket is good for
        #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_duration)]
        expires: u64,
    },
    /// Join the mesh that a ticket leads to
    Join {
        /// The word that `sinew invite` printed
        ticket: String,
    },
    /// Start this node's daemon, in the foreground
    Up(Box<UpArgs>),
    /// End this node's daemon in good order: it hands its work and its jobs on, and the others know that it has left
    Down {
        /// Take nothing new, wait until what runs here has ended, and the jobs that no other node can lead, and until the daemon has
        #[arg(long)]
        wait: bool,
        /// Hand on what has not ended by then
        #[arg(long, value_name = "DURATION", requires = "wait", value_parser = parse_duration)]
        deadline: Option<u64>,
    },
    /// List the nodes of the mesh
    Peers,
    /// How this node's daemon is
    Status,
    /// Remove what this node no longer needs: old outputs, leftover directories, blobs that nothing refers to
    Prune {
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
        /// Outputs of forgotten jobs too that are not old yet (see --outputs-kept of `sinew up`)
        #[arg(long)]
        all: bool,
    },
    /// List jobs, newest first
    Jobs {
        /// At most so many
        #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 50)]
        limit: usize,
    },
    /// Show a job: progress, nodes, failures, outputs, history
    Job {
        /// Its id, or the beginning of it
        job: String,
    },
    /// Print what a job's tasks printed
    Logs {
        /// Its id, or the beginning of it
        job: String,
        /// Go on until the job has ended
        #[arg(short, long)]
        follow: bool,
        /// One task only
        #[arg(long, value_name = "NUMBER")]
        task: Option<u32>,
        /// One attempt only, counted from 1 [default: the one whose result counts, else the last]
        #[arg(long, value_name = "NUMBER", conflicts_with = "follow")]
        attempt: Option<u32>,
    },
    /// Wait until jobs have ended; 0 only if all of them completed
    Wait {
        /// Ids, or the beginnings of them
        #[arg(required = true, value_name = "JOB")]
        jobs: Vec<String>,
    },
    /// Stop a job
    Cancel {
        /// Its id, or the beginning of it
        job: String,
        /// Why, for the job's history
        #[arg(long, value_name = "TEXT", default_value = "cancelled from the command line")]
        reason: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Run one task somewhere, with its output here, and exit with its code
    Run(Box<RunArgs>),
    /// Submit a job manifest and print the job's id
    Submit {
        /// TOML, YAML or JSON; `-` is standard input. Paths in it start at its directory
        manifest: PathBuf,
        /// Your own name for this request: with the same key it never makes a second job
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
    },
    /// Run a map-reduce round and fetch its result
    MapReduce(Box<MapReduceArgs>),
    /// Fetch a job's outputs
    Get {
        /// Its id, or the beginning of it
        job: String,
        /// Where to [default: ./sinew- and the beginning of the id]
        #[arg(short, long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Write into a directory that is not empty
        #[arg(short, long)]
        yes: bool,
    },
    /// Add, fetch, list and name blobs
    #[command(subcommand)]
    Blob(BlobCommand),
    /// Keep values on this node that only its jobs get: passwords, tokens, keys
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Start a mesh on this machine, run a word count on it, and clean up
    Demo {
        /// How many nodes
        #[arg(long, value_name = "COUNT", default_value_t = 3)]
        nodes: usize,
        /// What to count [default: a text that it makes]
        #[arg(long, value_name = "PATH", num_args = 1..)]
        input: Vec<PathBuf>,
    },
    /// Run a mesh in virtual time, with faults, and check that nothing is lost
    Sim(Box<SimArgs>),
    /// Measure this version on this machine
    #[command(subcommand)]
    Bench(BenchArgs),
    /// Print the job manifest's JSON Schema, for editors
    Schema,
    /// Print a shell's completions
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Write the man pages
    Man {
        /// Where to
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Waits for its daemon's end and ends what the daemon left; the daemon starts it.
    #[command(name = crate::exec::guardian::GUARDIAN_COMMAND, hide = true)]
    Guardian {
        /// Marks the daemon's processes.
        tag: String,
        /// The socket of the Docker engine that the daemon uses.
        engine: Option<PathBuf>,
    },
}

/// One task.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Cores to reserve
    #[arg(long, value_name = "CORES", default_value = "1", value_parser = parse_cpus)]
    pub(crate) cpus: u32,
    /// Memory to reserve
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_size)]
    pub(crate) memory: u64,
    /// Disk to reserve; what it may write, unless --output-max says less
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_size)]
    pub(crate) disk: u64,
    /// End it after so long
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) timeout: Option<u64>,
    /// The most it may write to stdout, stderr and $SINEW_OUTPUT
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) output_max: Option<u64>,
    /// Files and directories that it finds in its working directory
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub(crate) input: Vec<PathBuf>,
    /// Files that it leaves in $SINEW_OUTPUT, to fetch into this directory
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub(crate) output: Vec<String>,
    /// A variable of its environment
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_env)]
    pub(crate) env: Vec<(String, String)>,
    /// Only on nodes with this label
    #[arg(long, value_name = "K=V", value_parser = parse_label)]
    pub(crate) label: Vec<(String, String)>,
    /// Tries after a failed one
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub(crate) retries: u32,
    /// The job's name [default: the program's]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Your own name for this request: with the same key it never makes a second job
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// Overwrite outputs that are here already
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// The program and its arguments; no shell sees them
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

/// A map-reduce round. Commands are split into words, quotes respected; no shell sees them.
#[derive(Debug, Args)]
pub(crate) struct MapReduceArgs {
    /// Files, or directories for all files in them
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    pub(crate) input: Vec<PathBuf>,
    /// How inputs are cut: lines:COUNT, bytes:SIZE or files
    #[arg(long, value_name = "HOW", default_value = "bytes:16MiB", value_parser = parse_split)]
    pub(crate) split: Split,
    /// Lines in, key<TAB>value lines out
    #[arg(long, value_name = "CMD")]
    pub(crate) map: String,
    /// Reduces one chunk's sorted output before it travels
    #[arg(long, value_name = "CMD")]
    pub(crate) combine: Option<String>,
    /// A partition's sorted lines in, result lines out
    #[arg(long, value_name = "CMD")]
    pub(crate) reduce: String,
    /// Reduce tasks, hence output files
    #[arg(long, value_name = "COUNT", default_value_t = PARTITIONS_DEFAULT)]
    pub(crate) partitions: u32,
    /// Program files that the commands find in their directory
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub(crate) file: Vec<PathBuf>,
    /// Where the result goes: part-00000, part-00001, ...
    #[arg(short, long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Cores that one task reserves
    #[arg(long, value_name = "CORES", default_value = "1", value_parser = parse_cpus)]
    pub(crate) cpus: u32,
    /// Memory that one task reserves
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_size)]
    pub(crate) memory: u64,
    /// Disk that one task reserves; what it may write, unless --output-max says less
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_size)]
    pub(crate) disk: u64,
    /// End a task after so long
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) timeout: Option<u64>,
    /// The most that a task may write
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) output_max: Option<u64>,
    /// A variable of the tasks' environment
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_env)]
    pub(crate) env: Vec<(String, String)>,
    /// Only on nodes with this label
    #[arg(long, value_name = "K=V", value_parser = parse_label)]
    pub(crate) label: Vec<(String, String)>,
    /// Your own name for this request: with the same key it never makes a second job
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// The job's name [default: the map program's]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Write into a directory that is not empty
    #[arg(short, long)]
    pub(crate) yes: bool,
}

/// What to do with secrets.
#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// Keep a value: from a file, from standard input, or typed in without being shown
    ///
    /// Never as an argument: every user of the machine can read those. All bytes are kept; where the value becomes a variable or a
    /// password, a line end behind it is left out.
    Set {
        /// Its name, as manifests name it
        name: String,
        /// Where the value is [default: standard input]
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// List names, sizes and when they were set; never values
    Ls,
    /// Remove a secret; jobs that name it cannot be submitted, or start on further nodes, any more
    Rm {
        /// Its name
        name: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
}

/// What to do with blobs.
#[derive(Debug, Subcommand)]
pub(crate) enum BlobCommand {
    /// Take a file or directory into the store and print its hash
    Add {
        /// Which
        path: PathBuf,
    },
    /// Fetch a file or directory from the nodes that have it
    Get {
        /// Its hash, in base32 or hexadecimal
        hash: Hash,
        /// Where to
        #[arg(short, long, value_name = "PATH")]
        out: PathBuf,
        /// Overwrite a file that is there
        #[arg(short, long)]
        yes: bool,
    },
    /// Fetch a file or directory into this node's store, where it stays until it is collected unless you tag it
    Warm {
        /// Its hash, in base32 or hexadecimal
        hash: Hash,
    },
    /// List the blobs on this node
    Ls,
    /// Pin a file, or a directory with all that is in it, under a name
    Tag {
        /// The name
        name: String,
        /// The blob
        hash: Hash,
    },
    /// Remove a name; a blob without names may be collected
    Untag {
        /// The name
        name: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Remove all your names of a blob, and the blob from this node unless a job needs it
    Rm {
        /// Its hash, in base32 or hexadecimal
        hash: Hash,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
}
