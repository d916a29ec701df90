//! Views as text: pure functions from what the daemon answered to lines of at most 80 columns. Ids are shortened in tables;
//! `--json` has them whole.

mod job;
mod lists;
pub(crate) mod pace;
mod status;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use job::{job, outcome_word};
pub(crate) use lists::{blobs, files, jobs, peers, pruned, secrets};
pub(crate) use status::status;
