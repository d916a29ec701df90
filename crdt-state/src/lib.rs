//! Ids, specs, signed facts and the ledger: the bottom crate of Sinew, pure and sans-IO.
//!
//! No clock, randomness, threads, files or sockets: callers hand in time and bytes, and get values back.

pub mod cbor;
pub mod certificate;
pub mod change;
mod derivation;
pub mod envelope;
pub mod error_code;
pub mod fact;
pub mod facts;
pub mod identity;
pub mod ids;
pub mod intervals;
mod job_key;
pub mod ledger;
pub mod manifest;
pub mod network;
pub mod object;
pub mod pack;
pub mod planted;
pub mod program;
pub mod rare;
pub mod reconcile;
pub mod remote;
pub mod rules;
pub mod secret;
pub mod spec;
pub mod state;
pub mod submit_key;
pub mod tally;
pub mod terms;
mod trust;
pub mod volume;
