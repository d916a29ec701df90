//! The network policy of a manifest: `"none"`, or a list of hosts.

use super::draft::{DraftBatch, DraftWork, JobDraft};
use super::fields::Item;
use super::problem::{Problem, quoted};
use super::tree::Node;
use crate::network::Network;
use crate::program::ProgramOf;

const MEND: &str = "write \"none\", or hosts in brackets, such as [\"pypi.org\", \"db.example.org:5432\"]";

/// The policy of `item`; what is no host is noted.
pub(super) fn read(item: &Item<'_>, out: &mut Vec<Problem>) -> Network {
    let mut network = Network::default();
    match item.node {
        Node::Text(text) if text == "none" => {}
        Node::Text(text) if text == "mesh" => {
            let problem = "services of the mesh are not available in this version";
            out.push(Problem::new(&item.path, quoted(text), problem, MEND));
        }
        Node::Text(text) => out.push(Problem::new(&item.path, quoted(text), "not a network policy", MEND)),
        Node::List(hosts) if hosts.is_empty() => {
            out.push(Problem::new(&item.path, None, "no host is named", "write \"none\", or leave it out"));
        }
        Node::List(_) => {
            for host in item.list(out) {
                let Some(text) = host.text(out) else { continue };
                if let Err((problem, mend)) = network.allow(text) {
                    out.push(Problem::new(&host.path, quoted(text), problem, mend));
                }
            }
        }
        other => out.push(Problem::new(&item.path, other.describe(), "not a network policy", MEND)),
    }
    network
}

/// Its bounds, and whether anything of the job could use it.
pub(super) fn check(draft: &JobDraft, out: &mut Vec<Problem>) {
    if draft.network.is_none() {
        return;
    }
    if let Err((problem, mend)) = draft.network.check() {
        out.push(Problem::new("network", None, problem, mend));
    }
    let has_sockets = |program: &_| !matches!(program, ProgramOf::Wasm(_) | ProgramOf::Builtin(_));
    let used = match &draft.work {
        DraftWork::Batch(DraftBatch { program, gather, .. }) => gather.is_some() || has_sockets(program),
        DraftWork::MapReduce(round) => {
            [Some(&round.map), round.combine.as_ref(), Some(&round.reduce)].into_iter().flatten().any(has_sockets)
        }
    };
    if !used {
        let mend = "leave it out, fetch what the job needs as inputs or in a gather command, or run a command";
        out.push(Problem::new("network", None, "WebAssembly modules and built-ins have no sockets", mend));
    }
}
