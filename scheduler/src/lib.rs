//! Every decision of the mesh, sans-IO: who runs what, who decides it, and what must be on disk first.
//!
//! No clock, randomness of its own, threads, files or sockets. Inputs are handed to [`core::Core::handle`]; what the core
//! wants done comes out as effects.

pub mod time;
