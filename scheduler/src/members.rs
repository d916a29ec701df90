//! Certificates of members that this node may never have met: without an author's certificate its facts cannot be judged,
//! and two ledgers would stay apart. Who passes such facts on can also show the certificate.

use std::collections::{BTreeMap, BTreeSet};

use sinew_crdt_state::certificate::{Credential, Roles};
use sinew_crdt_state::ids::NodeId;

use crate::ctx::Ctx;
use crate::io::{Effect, Record};
use crate::sync;
use crate::wire::Message;

/// Certificates asked for, or shown, in one message: a chain takes about 300 bytes a link.
const ASK_MAX: usize = 64;
/// Certificates kept: enough for any mesh we aim at, a bound against floods.
const KNOWN_MAX: usize = 100_000;

#[derive(Debug, Default)]
pub(crate) struct Members {
    known: BTreeMap<NodeId, Credential>,
    /// Authors of facts that could not be judged, with who passed them on.
    unknown: BTreeSet<(NodeId, NodeId)>,
}

impl Members {
    /// Facts by `author` came from `from` and could not be judged.
    pub(crate) fn missing(&mut self, from: NodeId, author: NodeId) {
        if self.unknown.len() < KNOWN_MAX {
            self.unknown.insert((from, author));
        }
    }
}

/// A certificate from this node's own hands: of a connected peer, verified, or from disk.
pub(crate) fn keep(ctx: &mut Ctx, credential: &Credential, fresh: bool) {
    let Some(node) = credential.node() else { return };
    if ctx.members.known.get(&node) == Some(credential) || ctx.members.known.len() >= KNOWN_MAX {
        return;
    }
    ctx.members.known.insert(node, credential.clone());
    ctx.peers.learn(node, credential.roles(), ctx.now.at);
    if fresh {
        ctx.record(Record::Member { credential: credential.clone() });
    }
}

/// Other members that run work and whose certificates are good.
pub(crate) fn that_run(ctx: &Ctx) -> impl Iterator<Item = NodeId> {
    let good = |credential: &Credential| credential.chain.iter().all(|link| link.body.expires_ms > ctx.now.unix_ms);
    let runs = |credential: &Credential| credential.roles().contains(Roles::RUN);
    let others = ctx.members.known.iter().filter(|(node, _)| **node != ctx.own);
    others.filter(move |(_, credential)| runs(credential) && good(credential)).map(|(node, _)| *node)
}

/// Asks about the authors that could not be judged since the last flush.
pub(crate) fn ask(ctx: &mut Ctx) {
    let mut by_peer: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
    for (from, author) in std::mem::take(&mut ctx.members.unknown) {
        let authors = by_peer.entry(from).or_default();
        if authors.len() < ASK_MAX {
            authors.push(author);
        }
    }
    for (from, authors) in by_peer {
        ctx.send(from, Message::WhoIs(authors));
    }
}

pub(crate) fn on_who_is(ctx: &mut Ctx, from: NodeId, nodes: &[NodeId]) {
    let known: Vec<Credential> =
        nodes.iter().take(ASK_MAX).filter_map(|node| ctx.members.known.get(node).cloned()).collect();
    if !known.is_empty() {
        ctx.send(from, Message::Members(known));
    }
}

/// Certificates from a peer, of others. One that has expired still tells what its holder was allowed to state while it was
/// good; whether its holder is talked to is decided elsewhere, by the clock.
pub(crate) fn on_members(ctx: &mut Ctx, from: NodeId, credentials: &[Credential]) {
    let mut learned = false;
    for credential in credentials.iter().take(ASK_MAX) {
        let Some(node) = credential.node().filter(|n| !ctx.members.known.contains_key(n)) else { continue };
        let issued_ms = credential.chain.first().map_or(0, |c| c.body.issued_ms);
        match credential.verify(ctx.mesh, node, issued_ms) {
            Ok(_) => {
                keep(ctx, credential, true);
                ctx.effect(Effect::Learned(credential.clone()));
                learned = true;
            }
            Err(error) => ctx.offence(from, error.to_string()),
        }
    }
    if learned {
        sync::start(ctx, from);
    }
}
