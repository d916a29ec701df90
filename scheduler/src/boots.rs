//! Starts of nodes, as others remember them: how a node finds out that its disk is an older copy of what it once was.
//!
//! A data directory that was restored from a backup has the same disk number and fewer votes, and nothing on it says so. But
//! others heard what the node said before. Each node remembers of each other one the last start that it heard of and how far
//! its disk had come when it last promised anything, and tells it when they connect. A node that hears of a start of its disk
//! that it does not know, or of promises beyond those that its disk had when it started, takes the disk for lost: it gives it
//! a new number, and decision 007 does the rest. Until those that it should listen to have spoken, and for a short while at
//! most, its word counts for nothing ([`Ctx::is_sure`]).
//!
//! Two daemons that live at the same time are told apart by the mesh, before any of this.

use std::collections::BTreeMap;

use rand::RngExt;
use serde::{Deserialize, Serialize};
use sinew_crdt_state::ids::{DiskId, NodeId};
use sinew_crdt_state::planted::{Bug, planted};

use crate::config::{BOOT_NOTED_EVERY, SURE_AFTER};
use crate::ctx::{After, Ctx};
use crate::io::{Note, Record};
use crate::time::{Span, Time};
use crate::wire::{Card, Message};

/// Disks remembered that a node had before: each is one more loss.
const RETIRED_MAX: usize = 16;

/// The last start of a node that another one has heard of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Its disk.
    pub disk: DiskId,
    /// Which start of that disk it was.
    pub incarnation: u64,
    /// The number that the start drew at random.
    pub nonce: u64,
    /// How far its disk had come when it last promised anything; the greatest number once it turned out to be an old copy.
    pub mark: u64,
    /// Disks that it had before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<DiskId>,
}

/// A start of a node, as it shows itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) disk: DiskId,
    pub(crate) incarnation: u64,
    pub(crate) nonce: u64,
    /// How far the disk had come when it began.
    pub(crate) from: u64,
}

impl Seen {
    /// Whether a node that started like this does not know all that it said before.
    pub(crate) fn is_ahead_of(&self, start: Start) -> bool {
        if self.disk != start.disk {
            return self.retired.contains(&start.disk);
        }
        self.incarnation > start.incarnation
            || self.incarnation == start.incarnation && self.nonce != start.nonce
            || self.lacks_promises(start)
    }

    /// Whether it is a later start of the disk, and the disk has not come as far as it had when it last promised anything.
    fn lacks_promises(&self, start: Start) -> bool {
        self.disk == start.disk && self.incarnation < start.incarnation && self.mark > start.from
    }

    /// Takes note of a later start.
    fn follow(&mut self, start: Start) {
        if self.disk != start.disk {
            if self.incarnation > 0 {
                self.retired.retain(|disk| *disk != start.disk);
                self.retired.push(self.disk);
                let surplus = self.retired.len().saturating_sub(RETIRED_MAX);
                self.retired.drain(..surplus);
            }
            self.mark = 0;
        }
        (self.disk, self.incarnation, self.nonce) = (start.disk, start.incarnation, start.nonce);
        self.mark = self.mark.max(start.from);
    }
}

/// What a node knows of its own start, and of others'.
#[derive(Debug)]
pub(crate) struct Boots {
    began: Time,
    /// This start.
    own: Start,
    /// How far this node's disk has come.
    mark: u64,
    /// ... when it last promised anything.
    promised: u64,
    /// Nothing was ever promised on this disk before.
    fresh: bool,
    /// The disk turned out to be an old copy, and gets a new number.
    renumbering: bool,
    seen: BTreeMap<NodeId, Seen>,
    /// Of these, the ones that are to be written with whatever is written next, and from when on.
    unwritten: BTreeMap<NodeId, Time>,
    /// When each was written last.
    written: BTreeMap<NodeId, Time>,
}

impl Boots {
    pub(crate) const fn new(own: Start, began: Time) -> Self {
        let fresh = own.incarnation <= 1;
        Self {
            began,
            own,
            mark: own.from,
            promised: own.from,
            fresh,
            renumbering: false,
            seen: BTreeMap::new(),
            unwritten: BTreeMap::new(),
            written: BTreeMap::new(),
        }
    }

    pub(crate) fn restore(&mut self, seen: impl IntoIterator<Item = (NodeId, Seen)>) {
        self.seen.extend(seen);
    }

    /// The disk has come so far.
    pub(crate) fn moved(&mut self, mark: u64) {
        self.mark = self.mark.max(mark);
    }

    /// Something that others may count on is on disk.
    pub(crate) const fn promised(&mut self) {
        self.promised = self.mark;
    }

    pub(crate) const fn own_mark(&self) -> u64 {
        self.promised
    }

    /// Shows this start on a card for `to`, with what is remembered of it.
    pub(crate) fn show(&self, card: &mut Card, to: NodeId) {
        (card.nonce, card.from) = (self.own.nonce, self.own.from);
        card.seen = self.seen.get(&to).cloned().map(Box::new);
    }

    /// A node showed a start. Says whether it should be told that there was a later one.
    fn on_start(&mut self, node: NodeId, start: Start, now: Time) -> bool {
        if start.nonce == 0 || start.incarnation <= 1 && start.from == 0 && !self.seen.contains_key(&node) {
            // It does not take part in this, or has yet to promise anything.
            return false;
        }
        let seen = self.seen.entry(node).or_default();
        if seen.is_ahead_of(start) {
            if seen.lacks_promises(start) && seen.mark < u64::MAX {
                // It may crash before it is another disk, and have written as much as it had lost by then.
                seen.mark = u64::MAX;
                self.unwritten.insert(node, now);
            }
            return true;
        }
        if (seen.disk, seen.incarnation, seen.nonce) != (start.disk, start.incarnation, start.nonce) {
            seen.follow(start);
            self.unwritten.insert(node, now);
        }
        false
    }

    /// A node said how far its disk had come when it last promised anything.
    pub(crate) fn on_mark(&mut self, node: NodeId, mark: u64, start: Option<Start>, now: Time) {
        let Some(start) = start.filter(|start| start.nonce != 0 && mark > 0) else { return };
        let seen = self.seen.entry(node).or_default();
        if seen.is_ahead_of(start) {
            return;
        }
        if (seen.disk, seen.nonce) != (start.disk, start.nonce) {
            seen.follow(start);
            self.unwritten.insert(node, now);
        }
        if mark > seen.mark {
            seen.mark = mark;
            let due = self.written.get(&node).map_or(now, |at| *at + BOOT_NOTED_EVERY);
            self.unwritten.entry(node).or_insert(due);
        }
    }

    /// What is to be written along with other records. By itself none of it is worth a sync.
    pub(crate) fn due(&mut self, now: Time) -> Vec<Record> {
        if self.unwritten.is_empty() {
            return Vec::new();
        }
        let due: Vec<NodeId> = self.unwritten.iter().filter(|(_, at)| **at <= now).map(|(node, _)| *node).collect();
        for node in &due {
            self.unwritten.remove(node);
            self.written.insert(*node, now);
        }
        due.iter().filter_map(|node| Some(Record::Seen { node: *node, seen: self.seen.get(node)?.clone() })).collect()
    }

    /// Whether this start, or any of a node that had none before, is older than that.
    pub(crate) fn began_before(&self, now: Time, span: Span) -> bool {
        self.fresh || now - self.began >= span
    }

    /// What is remembered of a node, for checks.
    pub(crate) fn seen(&self, node: NodeId) -> Option<&Seen> {
        self.seen.get(&node)
    }
}

/// The start that a card shows.
pub(crate) const fn start_of(card: &Card) -> Start {
    Start { disk: card.disk, incarnation: card.incarnation, nonce: card.nonce, from: card.from }
}

impl Ctx {
    /// Whether this node's word may count for something that was decided with `others`: all of them have told which start of
    /// this node they remember, or had the time to. What it promised to those it cannot reach it may have forgotten all the
    /// same: it cannot wait for ever.
    pub(crate) fn is_sure<'a>(&self, others: impl IntoIterator<Item = &'a NodeId>) -> bool {
        let boots = &self.boots;
        if boots.renumbering {
            return false;
        }
        let spoke = |node: &NodeId| *node == self.own || self.peers.get(*node).is_some_and(|p| p.card.is_some());
        boots.fresh || self.now.at - boots.began >= SURE_AFTER || others.into_iter().all(spoke)
    }

    /// A card came: remembers its start, and hears which start of this node the sender remembers.
    /// Says whether to show this node's own card in answer.
    pub(crate) fn on_boot(&mut self, from: NodeId, card: &Card) -> bool {
        let start = start_of(card);
        let known = self.peers.get(from).and_then(|peer| peer.card.as_ref()).map(|card| card.nonce);
        let behind = self.boots.on_start(from, start, self.now.at);
        if let Some(seen) = card.seen.as_deref() {
            self.on_remembered(from, seen);
        }
        // It has been started anew, without this node having noticed, or on an old copy of its disk.
        (behind || known.is_some_and(|nonce| nonce != card.nonce)) && from != self.own
    }

    /// Another node remembers this start of this one.
    fn on_remembered(&mut self, by: NodeId, seen: &Seen) {
        let own = self.boots.own;
        let behind = seen.is_ahead_of(own) && !planted(Bug::RollbackUnseen);
        let outrun = seen.nonce != own.nonce && seen.incarnation >= own.incarnation;
        if self.boots.renumbering || !behind && !outrun {
            return;
        }
        let incarnation = own.incarnation.max(seen.incarnation).saturating_add(1);
        // A disk that is merely new was started less often than the one before it: only the count goes on from there.
        let disk = if behind { DiskId(self.rng.random()) } else { own.disk };
        if behind {
            self.boots.renumbering = true;
            self.note(Note::OldDisk { by, seen: Box::new(seen.clone()), started: (own.incarnation, own.from) });
        }
        self.record(Record::Disk { disk, incarnation });
        self.after_persist(After::Renumbered { disk, incarnation });
    }

    /// This node's disk has its new number.
    pub(crate) fn on_renumbered(&mut self, disk: DiskId, incarnation: u64) {
        (self.disk, self.incarnation) = (disk, self.incarnation.max(incarnation));
        (self.boots.own.disk, self.boots.own.incarnation) = (self.disk, self.incarnation);
        self.boots.renumbering = false;
    }
}

impl Message {
    /// Says in it how far the sender's disk has come.
    pub(crate) const fn set_mark(&mut self, to: u64) {
        if let Self::Stored { mark, .. }
        | Self::Vote { mark, .. }
        | Self::SetBeat { mark, .. }
        | Self::SetBeatAck { mark, .. } = self
        {
            *mark = to;
        }
    }

    /// How far the sender's disk has come, if it says so.
    pub(crate) const fn mark(&self) -> u64 {
        match self {
            Self::Stored { mark, .. }
            | Self::Vote { mark, .. }
            | Self::SetBeat { mark, .. }
            | Self::SetBeatAck { mark, .. } => *mark,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: DiskId = DiskId(5);

    fn start(incarnation: u64, nonce: u64, from: u64) -> Start {
        Start { disk: D, incarnation, nonce, from }
    }

    fn seen(incarnation: u64, nonce: u64, mark: u64) -> Seen {
        Seen { disk: D, incarnation, nonce, mark, retired: vec![DiskId(4)] }
    }

    #[test]
    fn a_restart_is_fine_and_everything_older_is_not() {
        let last = seen(3, 30, 120);
        assert!(!last.is_ahead_of(start(4, 40, 120)), "a restart");
        assert!(!last.is_ahead_of(start(4, 40, 125)), "... that wrote more than was told");
        assert!(!last.is_ahead_of(start(3, 30, 90)), "the same start");
        assert!(last.is_ahead_of(start(4, 40, 119)), "promises are missing");
        assert!(last.is_ahead_of(start(2, 20, 80)), "an older start");
        assert!(last.is_ahead_of(start(3, 31, 120)), "the same count, on a copy");
        assert!(last.is_ahead_of(Start { disk: DiskId(4), ..start(9, 90, 999) }), "a disk that was replaced");
        assert!(!last.is_ahead_of(Start { disk: DiskId(6), ..start(1, 10, 0) }), "a new disk");
    }

    #[test]
    fn a_disk_that_is_followed_by_another_is_retired() {
        let mut last = Seen::default();
        last.follow(start(3, 30, 7));
        assert_eq!((last.mark, last.retired.len()), (7, 0));
        last.follow(Start { disk: DiskId(6), ..start(1, 10, 0) });
        assert_eq!((last.mark, &last.retired[..]), (0, &[D][..]));
        assert!(last.is_ahead_of(start(4, 40, 9)));
        for disk in 100..200 {
            last.follow(Start { disk: DiskId(disk), ..start(1, 10, 0) });
        }
        assert_eq!(last.retired.len(), RETIRED_MAX);
    }

    /// It is told, and crashes before it is another disk, when it has written more than it had lost.
    #[test]
    fn an_old_copy_stays_one_whatever_it_writes() {
        let (node, at) = (NodeId([1; 32]), |ms: u64| Time(ms * 1_000));
        let mut boots = Boots::new(start(1, 1, 0), at(0));
        boots.on_mark(node, 100, Some(start(5, 50, 0)), at(1));
        assert!(!boots.on_start(node, start(6, 60, 100), at(2)), "a restart");
        boots.on_mark(node, 110, Some(start(6, 60, 100)), at(3));
        assert!(boots.on_start(node, start(7, 70, 90), at(4)), "an old copy");
        assert!(boots.on_start(node, start(8, 80, 150), at(5)), "... that went on for a while");
        assert!(!boots.on_start(node, Start { disk: DiskId(6), ..start(9, 90, 150) }, at(6)), "it is another disk now");
        assert!(
            !boots.on_start(node, Start { disk: DiskId(6), ..start(10, 100, 160) }, at(7)),
            "... with marks of its own"
        );
    }

    #[test]
    fn marks_are_written_with_other_records_and_not_each() {
        let (node, at) = (NodeId([1; 32]), |ms: u64| Time(ms * 1_000));
        let mut boots = Boots::new(start(1, 1, 0), at(0));
        boots.on_mark(node, 5, Some(start(1, 9, 0)), at(1));
        assert_eq!(boots.due(at(2)).len(), 1);
        boots.on_mark(node, 6, Some(start(1, 9, 0)), at(3));
        assert!(boots.due(at(4)).is_empty(), "not so soon");
        assert_eq!(boots.due(at(3) + BOOT_NOTED_EVERY).len(), 1);
        boots.on_mark(node, 6, Some(start(1, 9, 0)), at(60_000));
        assert!(boots.due(at(90_000)).is_empty(), "no news");
        assert!(!boots.on_start(node, start(2, 10, 6), at(91_000)));
        assert_eq!(boots.due(at(91_000)).len(), 1, "a start is written at once");
        assert!(boots.on_start(node, start(3, 11, 5), at(92_000)), "an old copy");
        assert_eq!(boots.seen(node).map(|s| s.incarnation), Some(2), "which is not what is remembered");
    }
}
