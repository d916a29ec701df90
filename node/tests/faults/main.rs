//! Real daemons on this machine, killed and cut off in the middle of their work: what was acknowledged survives, what was
//! finished is not run again, results stay byte-identical to a shell pipeline, and nothing is left behind.

mod blobs;
mod clients;
mod clones;
mod copies;
mod directories;
mod faults;
mod logs;
mod net;
mod partition;
mod processes;
mod support;
