//! Every decision of the mesh, sans-IO: who runs what, who decides it, and what must be on disk first.
//!
//! No clock, randomness of its own, threads, files or sockets. Inputs are handed to [`core::Core::handle`]; what the core
//! wants done comes out as effects.

mod boots;
mod brain;
mod brains;
pub mod config;
pub mod core;
mod ctx;
mod custody;
mod distance;
pub mod io;
pub mod kind;
mod members;
pub mod membership;
mod pace;
pub mod peers;
pub mod resources;
mod restore;
mod serials;
mod sets;
mod steward;
mod stored;
mod sync;
mod table;
pub mod time;
pub mod view;
mod waiting;
pub mod wire;
mod witness;
mod worker;

pub use ctx::Setup;
