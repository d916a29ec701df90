//! The sinew daemon and command line.

pub mod exec;
