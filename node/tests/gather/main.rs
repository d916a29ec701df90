//! Inputs from outside the mesh: real servers on loopback, real git, and daemons that fetch from them.

mod ceilings;
mod daemons;
mod git;
mod http;
mod network;
mod objects;
mod prune;
mod server;

use std::path::Path;
use std::sync::Arc;

use sinew_node::exec::guardian::NodeTag;
use sinew_node::gather::{Gather, GatherOptions, Hosts};

/// Fetches from these hosts.
fn gather(hosts: &[&str], ca: Option<&Path>) -> Gather {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let options = GatherOptions { hosts: Hosts::parse(&hosts).expect("hosts"), ca: ca.map(Path::to_owned) };
    Gather::new(options, NodeTag::new("gather")).expect("gather")
}

/// A way to answer.
type Answer = Arc<dyn Fn(&server::Asked) -> Vec<u8> + Send + Sync>;

fn answer(answer: impl Fn(&server::Asked) -> Vec<u8> + Send + Sync + 'static) -> Answer {
    Arc::new(answer)
}
