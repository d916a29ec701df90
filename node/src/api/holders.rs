//! Where a job's outputs are now, as the nodes that hold them say: for its page, and for those who want them.

use std::collections::{BTreeMap, BTreeSet};

use sinew_crdt_state::fact::Outcome;
use sinew_crdt_state::ids::{Hash, NodeId};
use sinew_scheduler::io::{Request as CoreRequest, Response};
use sinew_scheduler::view::JobView;

use super::ApiError;
use crate::clock::now;
use crate::daemon::Shared;

/// Nodes that are connected, those that are heard, and this one.
pub(super) struct Near {
    pub(super) connected: BTreeSet<NodeId>,
    heard: BTreeSet<NodeId>,
}

/// The nodes in reach.
pub(super) async fn near(shared: &Shared) -> Result<Near, ApiError> {
    let look = |core: &sinew_scheduler::core::Core| {
        let at = now().at;
        let peers = core.peers();
        let connected = peers.iter().filter(|(_, p)| p.connected).map(|(n, _)| *n).collect();
        let heard = peers.iter().map(|(n, _)| *n).filter(|n| peers.is_heard(*n, at)).collect();
        Near { connected, heard }
    };
    Ok(shared.engine.look(look).await?)
}

/// Puts into a job's page what would be lost with which node as things are now, in place of what was promised once.
pub(super) async fn tell(shared: &Shared, view: &mut JobView) -> Result<(), ApiError> {
    let near = near(shared).await?;
    if !view.is_ended() {
        view.durability = brain_set(view, &near).unwrap_or_else(|| view.durability.clone());
        return Ok(());
    }
    let blobs: BTreeSet<Hash> =
        view.outputs.iter().filter(|o| o.output.blob.size > 0).map(|o| o.output.blob.hash).collect();
    if blobs.is_empty() {
        let known = view.outcome != Some(Outcome::Completed) || view.phases.iter().all(|p| p.done == p.tasks);
        let text = if known {
            "ended, without outputs"
        } else {
            "only its receipt is kept: where its outputs are is not known"
        };
        text.clone_into(&mut view.durability);
        return Ok(());
    }
    let request = CoreRequest::Holders { job: view.id, blobs: blobs.iter().copied().collect() };
    let Response::Holders(said) = shared.ask(request).await? else { return Ok(()) };
    let mut holders: BTreeMap<Hash, BTreeSet<NodeId>> = blobs.into_iter().map(|hash| (hash, BTreeSet::new())).collect();
    for (node, hashes) in said {
        for hash in hashes {
            if let Some(nodes) = holders.get_mut(&hash) {
                nodes.insert(node);
            }
        }
    }
    let copied = view.outputs.iter().any(|o| o.copy.is_some());
    let away = view.outputs.iter().flat_map(|o| [Some(o.node), o.copy]).flatten().any(|n| !near.heard.contains(&n));
    view.durability = describe(&holders, copied, away && near.heard.len() > 1);
    Ok(())
}

/// What is true of outputs with these holders, each named by its own word. `copied` tells whether the job asked for second
/// copies, `again` whether one is gone and another node there to take its place.
fn describe(holders: &BTreeMap<Hash, BTreeSet<NodeId>>, copied: bool, again: bool) -> String {
    let all: BTreeSet<NodeId> = holders.values().flatten().copied().collect();
    let few = holders.values().map(BTreeSet::len).min().unwrap_or(0);
    let (gone, total) = (holders.values().filter(|nodes| nodes.is_empty()).count(), holders.len());
    let same = holders.values().all(|nodes| nodes.len() == all.len());
    match few {
        0 if all.is_empty() => "none of the nodes that hold its outputs is in reach".to_owned(),
        0 => format!("{gone} of {total} outputs are on no node in reach; the others on {}", names(&all)),
        1 if !copied => format!("on one node, as asked: {}", names(&all)),
        1 => {
            let single: BTreeSet<NodeId> = holders.values().filter(|n| n.len() == 1).flatten().copied().collect();
            let next = if again { "; copying again" } else { "" };
            format!("one copy left, on {}{next}", names(&single))
        }
        _ if same => format!("outputs on {} nodes: {}", all.len(), names(&all)),
        _ => format!("each output on {few} nodes or more, of {}", names(&all)),
    }
}

/// What a loss would mean for a job under way, where part of its brain set is out of reach.
fn brain_set(view: &JobView, near: &Near) -> Option<String> {
    let (here, away): (BTreeSet<NodeId>, BTreeSet<NodeId>) =
        view.brain_set.iter().partition(|node| near.heard.contains(*node));
    let (all, majority) = (view.brain_set.len(), view.brain_set.len() / 2 + 1);
    if away.is_empty() || all == 1 || here.len() < majority {
        return None;
    }
    let (here, count) = (names(&here), here.len());
    Some(format!(
        "{count} of the {all} nodes that decide are in reach: {here}; with one less it waits for {}",
        names(&away)
    ))
}

fn names(nodes: &BTreeSet<NodeId>) -> String {
    nodes.iter().map(NodeId::short).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(nodes: &[&[u8]]) -> BTreeMap<Hash, BTreeSet<NodeId>> {
        let set = |nodes: &&[u8]| nodes.iter().map(|n| NodeId([*n; 32])).collect();
        (0u8..).map(|n| Hash([n; 32])).zip(nodes.iter().map(set)).collect()
    }

    #[test]
    fn a_page_says_what_is_true_now() {
        let [a, b, c] = [1, 2, 3].map(|n| NodeId([n; 32]).short());
        assert_eq!(describe(&on(&[&[1, 2]]), true, true), format!("outputs on 2 nodes: {a}, {b}"));
        assert_eq!(describe(&on(&[&[1, 2], &[2]]), true, true), format!("one copy left, on {b}; copying again"));
        assert_eq!(describe(&on(&[&[1]]), true, false), format!("one copy left, on {a}"));
        assert_eq!(describe(&on(&[&[1]]), false, true), format!("on one node, as asked: {a}"));
        assert_eq!(
            describe(&on(&[&[1, 2], &[2, 3]]), true, true),
            format!("each output on 2 nodes or more, of {a}, {b}, {c}")
        );
        assert!(describe(&on(&[&[], &[]]), true, true).contains("none"));
        assert!(describe(&on(&[&[1, 2], &[]]), true, true).starts_with("1 of 2 outputs are on no node in reach"));
    }
}
