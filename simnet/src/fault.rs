//! Faults that a scenario causes, by name.

use sinew_scheduler::io::Input;
use sinew_scheduler::time::Span;
use sinew_scheduler::wire::Topic;

use crate::disk::Disk;
use crate::exec::Stopped;
use crate::queue::{Event, Index};
use crate::world::World;
use crate::write::HUNG_AFTER;

/// A reset reaches the other end well after the last frames did.
const RESET_SEEN_AFTER: Span = Span::ms(5);

/// What waits for a disk that hangs is looked at again after this.
const HANGS_ON_FOR: Span = Span::ms(200);

impl World {
    /// Ends a node's process at once, as `kill -9` would: what was not synced may be lost, peers see a reset.
    pub fn kill(&mut self, name: &str) {
        let node = self.index(name);
        assert!(self.nodes[node].is_up(), "{name} is down already");
        let pending = self.nodes[node].disk.pending() as u64;
        let kept = usize::try_from(self.dice(pending + 1)).unwrap_or(0);
        self.crash(node, kept);
    }

    /// Ends a node's process at once, and nothing that was not synced is on the platter.
    pub fn cut_power(&mut self, name: &str) {
        let node = self.index(name);
        assert!(self.nodes[node].is_up(), "{name} is down already");
        self.crash(node, 0);
    }

    /// Ends a node with so many of its pending writes on the platter.
    pub(crate) fn crash(&mut self, node: Index, kept: usize) {
        self.say(node, "KILLED".to_owned());
        self.counters.kills += 1;
        let tears = self.nodes[node].disk.setup.tears;
        let part = if tears { usize::try_from(self.dice(1_000)).unwrap_or(0) } else { 0 };
        let now = self.now;
        let n = &mut self.nodes[node];
        n.core = None;
        let damage = n.disk.crash(kept, part);
        self.counters.lost_syncs += damage.lied;
        self.counters.lost_writes += damage.unsynced;
        self.counters.torn_writes += u64::from(damage.torn);
        let n = &mut self.nodes[node];
        n.disk_at = None;
        n.crash_at = None;
        n.fetches.clear();
        let frozen = n.frozen.take();
        self.standing_still -= usize::from(frozen.is_some());
        let runs = std::mem::take(&mut n.runs);
        let stopping = std::mem::take(&mut n.stopping);
        self.roll.begin_life(node);
        // What stood still until it died did nothing meanwhile.
        self.pauses.extend(frozen.filter(|f| !f.daemon_alone).map(|f| f.until(node, now)));
        if damage.lied > 0 {
            self.watch.forgot.insert(node);
        }
        for execution in runs.into_values().map(|r| r.execution).chain(stopping.into_values().map(|s| s.execution)) {
            // It may have ended while its daemon stood still.
            self.executions[execution].end.get_or_insert((now, Stopped::Crash));
        }
        for peer in self.links.peers(node).collect::<Vec<_>>() {
            // A reset cannot cross a cut: that end finds out as it would of any silence.
            let notice = if self.links.is_cut(node, peer) { Span::ms(10_000) } else { RESET_SEEN_AFTER };
            self.disconnect(node, peer, notice);
        }
    }

    /// Starts a node again from its disk.
    pub fn restart(&mut self, name: &str) {
        let node = self.index(name);
        assert!(!self.nodes[node].is_up(), "{name} is up");
        self.say(node, "RESTARTED".to_owned());
        self.counters.restarts += 1;
        self.boot(node);
        for peer in self.links.partners(node).collect::<Vec<_>>() {
            self.connect_soon(node, peer, false);
        }
    }

    /// A node's disk is replaced by an empty one. Only while it is down.
    pub fn wipe(&mut self, name: &str) {
        let node = self.index(name);
        assert!(!self.nodes[node].is_up(), "{name} is up");
        self.say(node, "WIPED".to_owned());
        let n = &mut self.nodes[node];
        n.disk = Disk::new(n.disk.setup.clone(), n.id(), Some(n.disk.id()));
    }

    /// A node loses every blob it has, and does not know it: somebody tidied up in its directory.
    pub fn lose_blobs(&mut self, name: &str) {
        let node = self.index(name);
        self.say(node, "BLOBS LOST".to_owned());
        self.counters.lost_blobs += self.nodes[node].disk.lose_blobs();
    }

    /// Every write fails from now on.
    pub fn fail_disk(&mut self, name: &str) {
        let node = self.index(name);
        self.say(node, "DISK FAILS".to_owned());
        self.nodes[node].disk.failing = true;
    }

    /// The next sync of a node's disk fails.
    pub fn fail_next_sync(&mut self, name: &str) {
        let node = self.index(name);
        self.nodes[node].disk.fails_next = true;
    }

    /// A node's disk does not answer from now on, and programs that write files there do not end.
    pub fn hang_disk(&mut self, name: &str) {
        let node = self.index(name);
        self.say(node, "DISK HANGS".to_owned());
        self.nodes[node].disk.hung_since = Some(self.now);
        let life = self.roll.life(node);
        self.queue.push(self.now + HUNG_AFTER, Event::Disk(life));
    }

    /// A disk that hung goes on where it was.
    pub fn thaw_disk(&mut self, name: &str) {
        let node = self.index(name);
        if self.nodes[node].disk.hung_since.take().is_some() {
            self.say(node, "DISK GOES ON".to_owned());
            self.input(node, Input::StorageRecovered);
            self.schedule_disk(node);
        }
    }

    /// Bytes on a node's disk are no longer what was written. Only while it is down.
    pub fn rot(&mut self, name: &str) {
        let node = self.index(name);
        assert!(!self.nodes[node].is_up(), "{name} is up");
        self.say(node, "BITS ROT".to_owned());
        let n = &mut self.nodes[node];
        let owner = n.id();
        n.disk.rot(owner);
    }

    /// Writes succeed again, those that failed first.
    pub fn mend_disk(&mut self, name: &str) {
        let node = self.index(name);
        self.say(node, "DISK RECOVERS".to_owned());
        self.nodes[node].disk.failing = false;
        self.nodes[node].disk.setup.room = None;
        self.input(node, Input::StorageRecovered);
        self.schedule_disk(node);
    }

    /// Cuts every link between the two groups, both ways. Connections notice after ten seconds.
    pub fn partition<'a>(&mut self, one: impl IntoIterator<Item = &'a str>, other: impl IntoIterator<Item = &'a str>) {
        let one: Vec<Index> = one.into_iter().map(|n| self.index(n)).collect();
        let other: Vec<Index> = other.into_iter().map(|n| self.index(n)).collect();
        self.say(one[0], format!("PARTITION {one:?} | {other:?}"));
        for a in &one {
            for b in &other {
                self.cut(*a, *b);
                self.cut(*b, *a);
            }
        }
    }

    /// From now on a node takes tasks, answers every beat, and begins none of them.
    pub fn hog(&mut self, name: &str) {
        let node = self.index(name);
        self.say(node, "HOGS from now on".to_owned());
        self.nodes[node].hogs = true;
    }

    /// From now on a node begins every fetch that it is asked for, and none of them ends.
    pub fn mute(&mut self, name: &str) {
        let node = self.index(name);
        self.say(node, "MUTE from now on".to_owned());
        self.nodes[node].mute = true;
    }

    /// Cuts the way from one node to another, and only that way.
    pub fn cut_one_way(&mut self, from: &str, to: &str) {
        let (from, to) = (self.index(from), self.index(to));
        self.say(from, format!("CUT towards {to}"));
        self.cut(from, to);
    }

    /// Mends the way from one node to another, and only that way.
    pub fn mend_one_way(&mut self, from: &str, to: &str) {
        let (from, to) = (self.index(from), self.index(to));
        self.say(from, format!("MENDED towards {to}"));
        self.mend(from, to);
    }

    /// Mends every cut.
    pub fn heal(&mut self) {
        self.say(0, "HEALED".to_owned());
        for (a, b) in self.all_cuts() {
            self.mend(a, b);
        }
    }

    /// From now on, so many of 10,000 frames are lost.
    pub const fn lose_frames(&mut self, per_ten_thousand: u64) {
        self.links.loss = per_ten_thousand;
    }

    /// From now on no advert arrives anywhere, or all do again.
    pub fn lose_adverts(&mut self, lose: bool) {
        self.say(0, format!("ADVERTS {}", if lose { "LOST" } else { "ARRIVE" }));
        self.links.adverts_lost = lose;
    }

    pub(crate) fn publish_advert_or_load(&mut self, from: Index, topic: Topic, payload: &[u8]) {
        if self.links.adverts_lost && topic == Topic::Advert {
            self.counters.lost_adverts += 1;
        } else {
            self.publish(from, topic, payload);
        }
    }

    pub(crate) fn fetched_due(&mut self, life: crate::queue::Life, event: Event) {
        if self.is_alive(life) {
            let hangs = self.nodes[life.node].disk.hung_since.is_some();
            if hangs && matches!(event, Event::Fetched { .. } | Event::TaskEnd { .. }) {
                return self.queue.push(self.now + HANGS_ON_FOR, event);
            }
            match event {
                Event::Fetched { id, .. } => self.fetch_ended(life.node, id),
                Event::TaskEnd { run, .. } => self.task_ended(life.node, run),
                Event::Loaded { job, to, facts, .. } => self.input(life.node, Input::Loaded { job, to, facts }),
                Event::Answered { input, .. } => self.input(life.node, *input),
                _ => {}
            }
        }
    }
}
