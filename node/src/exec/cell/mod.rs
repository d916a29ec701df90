//! Cells: the sandbox around the `process` runner's programs.
//!
//! A cell is set up once for a slot and a job and then runs that job's tasks one after another, because what makes a sandbox
//! (namespaces, mounts, filters) takes longer than a short task. Its first process is this very binary, started as
//! `sinew __cell`: process 1 of a process namespace, with a root of its own, without capabilities, under landlock and a
//! system call filter that its children inherit. It starts programs when told to over a socket, reports how they ended, and
//! kills whatever they left. When it ends (because the daemon closed the socket, died, or killed it), the kernel ends
//! everything in the cell with it.
//!
//! Entry points: [`pool`] (which cell a task gets), [`host`] (the daemon's side of one cell), `init` (the other side),
//! `confine` and `mounts` (what programs may do and see), `cgroup` (what they may use). It knows no jobs beyond their name.

pub(super) mod cgroup;
mod confine;
pub mod host;
mod init;
mod leftovers;
mod mounts;
pub(super) mod network;
pub mod pool;
mod sys;
mod syscalls;
mod wire;

pub use init::{CELL_COMMAND, cell_main};
pub(super) use sys::{SharedWords, process_cpu, same_files, stay_in_memory};
pub use wire::Missing;

/// Holds the directories that are a task's own.
pub const JOB: &str = "/job";
/// Where a program finds its working directory.
pub const WORK: &str = "/job/work";
/// Where a program leaves its outputs.
pub const OUTPUT: &str = "/job/output";
/// Where a program finds the job's files.
pub const INPUT: &str = "/input";
/// Where a program finds secrets that are files.
pub const SECRETS: &str = "/run/secrets";
/// Home and temporary directory of programs, emptied after each task.
pub const TMP: &str = "/tmp";
/// Parts of the system that programs see, read-only, where they exist.
pub const SYSTEM: [&str; 8] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store"];
