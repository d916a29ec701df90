//! Secrets from the command line to programs on other nodes: who gets them, who does not, and where they are never found.

mod away;
mod cli;
mod delivery;
mod rig;
mod runners;
mod strangers;
