//! The execution data plane: runs programs on this node and moves lines between them. Blocking code for plain threads, one per
//! slot; data comes as [`std::io::Read`] and goes out as files. It knows nothing of the mesh, the ledger, the blob store or
//! leases, and decides nothing about what runs where.
//!
//! Entry points, in the order in which a daemon meets them: [`guardian`] (no process outlives the daemon), [`slot`] (where tasks
//! work), [`split`] and [`walk`] (what a round's chunks are), [`task`] (run one), [`outcome`] (how it ended).

pub mod allowlist;
mod attributes;
pub mod bench;
mod body;
mod builtin;
pub mod cell;
mod control;
pub mod docker;
mod drive;
pub mod files;
pub mod guardian;
mod lines;
pub mod logs;
mod lookup;
pub mod mapfile;
pub mod merge;
pub mod open_files;
pub mod outcome;
pub(crate) mod outputs;
pub mod own_program;
pub mod process;
mod procfs;
pub mod python;
mod removal;
pub mod runner;
pub mod set;
mod shown;
pub mod shuffle;
pub mod slot;
mod sort;
pub mod split;
pub mod stop;
pub mod sweep;
pub mod switch;
pub mod task;
pub mod unlinked;
pub mod volumes;
pub mod walk;
pub mod wasm;
