//! Links: connections between nodes, what travels on them, and what cuts do to both.
//!
//! A frame on a connection whose link is cut is held up, as TCP would hold it, and arrives after the cut, in order; unless
//! the cut lasts so long that the connection breaks. Lost packets delay a frame. Whole frames are dropped only when a scenario
//! says so ([`World::lose_frames`]): the mesh drops them when queues are full, and makes no promise either.

use std::collections::{BTreeMap, BTreeSet};

use sinew_crdt_state::cbor;
use sinew_scheduler::io::Input;
use sinew_scheduler::time::{Span, Time};
use sinew_scheduler::wire::{Class, Message};

use crate::lookup::Lookup;
use crate::network::Network;
use crate::queue::{Event, Index, Life};
use crate::world::World;

/// A silent connection is given up after this: as QUIC's default idle timeout.
const CONNECTION_SURVIVES: Span = Span::ms(10_000);
/// After a cut, retransmission takes up to this long to notice.
const RETRANSMIT_MAX_MS: u64 = 200;
/// Connecting again takes up to this long: dialling backs off.
const RECONNECT_MAX_MS: u64 = 300;

/// Messages that go in one frame, on the stream they take.
pub(crate) type Parcel = (Class, Vec<Message>);

/// A frame on its way.
#[derive(Debug)]
struct Stalled {
    class: Class,
    to: Life,
    messages: Vec<Message>,
}

/// The links of a world.
#[derive(Debug)]
pub(crate) struct Links {
    /// What they are like.
    pub(crate) network: Network,
    /// Until when each way of a link is taken.
    pub(crate) free_at: BTreeMap<(Index, Index), Time>,
    /// The same for blobs.
    pub(crate) blobs_free_at: BTreeMap<(Index, Index), Time>,
    /// Links that go up and down, with the number of their flapping.
    pub(crate) flaps: BTreeMap<(Index, Index), u64>,
    pub(crate) flap_last: u64,
    /// Nodes whose links are longer for a while: out and in.
    pub(crate) detours: BTreeMap<Index, (Span, Span)>,
    /// Frames lost, per 10,000.
    pub(crate) loss: u64,
    /// Whether all adverts are lost.
    pub(crate) adverts_lost: bool,
    /// Open connections, from each end.
    connected: Vec<BTreeSet<Index>>,
    /// Connections that are kept, from each end.
    kept: Vec<BTreeSet<Index>>,
    /// See [`World::connections`].
    pub(crate) limits: (usize, usize),
    /// Nodes that the mesh is about to have.
    pub(crate) expected: usize,
    /// Messages that wait for a connection.
    pub(crate) waiting: BTreeMap<(Index, Index), Vec<Parcel>>,
    /// Dials that failed, and when.
    pub(crate) failed: BTreeMap<(Index, Index), Time>,
    /// Who refuses whom.
    pub(crate) bans: crate::ban::Bans,
    /// Directed cuts, each with the number of its making.
    cuts: BTreeMap<(Index, Index), u64>,
    cut_last: u64,
    stalled: BTreeMap<(Index, Index), Vec<Stalled>>,
    /// Where frames are encoded: one after another in the same memory.
    frame: Vec<u8>,
    /// What each frame asks about its link, by [`number_of`].
    links: Lookup<Link>,
}

/// What is between two nodes. One entry for both of its ends: an answer finds it where the question left it.
#[derive(Debug, Default)]
struct Link {
    /// Whether there is a connection.
    connected: bool,
    /// Whether a connection was made for a message, and is to go once it is idle.
    casual: bool,
    /// Each end's incarnation whose core was told that the other is connected; 0 for none. By [`end`].
    told: [u32; 2],
    /// When a casual connection was last used.
    used: Time,
    /// When the last frame of each stream from each end arrives: later ones do not overtake it.
    last_at: [[Time; 2]; 2],
}

/// The number of a link: the same from both ends.
fn number_of(a: Index, b: Index) -> u64 {
    (a.min(b) as u64) << 32 | a.max(b) as u64
}

/// Which end of the link between two nodes the first is.
const fn end(node: Index, peer: Index) -> usize {
    (node > peer) as usize
}

impl Default for Links {
    fn default() -> Self {
        Self {
            network: Network::default(),
            free_at: BTreeMap::new(),
            blobs_free_at: BTreeMap::new(),
            flaps: BTreeMap::new(),
            flap_last: 0,
            loss: 0,
            detours: BTreeMap::new(),
            adverts_lost: false,
            connected: Vec::new(),
            kept: Vec::new(),
            limits: crate::dial::LIMITS,
            expected: 0,
            waiting: BTreeMap::new(),
            failed: BTreeMap::new(),
            bans: crate::ban::Bans::default(),
            cuts: BTreeMap::new(),
            cut_last: 0,
            stalled: BTreeMap::new(),
            links: Lookup::default(),
            frame: Vec::new(),
        }
    }
}

fn insert(sets: &mut Vec<BTreeSet<Index>>, a: Index, b: Index) -> bool {
    if sets.len() <= a.max(b) {
        sets.resize_with(a.max(b) + 1, BTreeSet::new);
    }
    sets[b].insert(a);
    sets[a].insert(b)
}

impl Links {
    pub(crate) fn is_cut(&self, a: Index, b: Index) -> bool {
        self.cuts.contains_key(&(a, b)) || self.cuts.contains_key(&(b, a))
    }

    pub(crate) fn is_connected(&self, a: Index, b: Index) -> bool {
        self.links.get(&number_of(a, b)).is_some_and(|link| link.connected)
    }

    fn link(&mut self, a: Index, b: Index) -> &mut Link {
        self.links.entry(number_of(a, b)).or_default()
    }

    /// When the connection made for a message was last used, if it is one.
    pub(crate) fn casual(&self, a: Index, b: Index) -> Option<Time> {
        self.links.get(&number_of(a, b)).filter(|link| link.casual).map(|link| link.used)
    }

    /// The connection was made for a message, which goes now. Returns whether it was none such before.
    pub(crate) fn make_casual(&mut self, a: Index, b: Index, now: Time) -> bool {
        let link = self.link(a, b);
        link.used = now;
        !std::mem::replace(&mut link.casual, true)
    }

    pub(crate) fn end_casual(&mut self, a: Index, b: Index) {
        self.link(a, b).casual = false;
    }

    /// Whom a node is connected to.
    pub(crate) fn peers(&self, node: Index) -> impl Iterator<Item = Index> {
        self.connected.get(node).into_iter().flatten().copied()
    }

    /// Whom a node keeps a connection to, or tries to.
    pub(crate) fn partners(&self, node: Index) -> impl Iterator<Item = Index> {
        self.kept.get(node).into_iter().flatten().copied()
    }

    pub(crate) fn are_partners(&self, a: Index, b: Index) -> bool {
        self.kept.get(a).is_some_and(|kept| kept.contains(&b))
    }

    pub(crate) fn keep(&mut self, a: Index, b: Index) {
        insert(&mut self.kept, a, b);
    }

    /// How much longer than usual the way is.
    pub(crate) fn detour(&self, from: Index, to: Index) -> Span {
        let (out, _) = self.detours.get(&from).copied().unwrap_or_default();
        let (_, back) = self.detours.get(&to).copied().unwrap_or_default();
        out + back
    }

    fn connect(&mut self, a: Index, b: Index) -> bool {
        self.link(a, b).connected = true;
        insert(&mut self.connected, a, b)
    }

    fn part(&mut self, a: Index, b: Index) -> bool {
        if !self.is_connected(a, b) {
            return false;
        }
        self.link(a, b).connected = false;
        self.connected[a].remove(&b);
        self.connected[b].remove(&a);
        true
    }
}

impl World {
    /// Whether data flows both ways now.
    pub(crate) fn reaches(&self, a: Index, b: Index) -> bool {
        self.nodes[b].is_up() && self.links.is_connected(a, b) && !self.links.is_cut(a, b)
    }

    pub(crate) fn send(&mut self, from: Index, to: Index, class: Class, messages: Vec<Message>) {
        match self.links.links.get_mut(&number_of(from, to)).filter(|link| link.connected) {
            Some(link) => link.used = self.now,
            None => return self.dial_for(from, to, class, messages),
        }
        if self.verbose {
            let text = messages.iter().map(crate::world::brief).collect::<Vec<_>>().join(" ");
            self.say(from, format!("→ {}: {text}", self.nodes[to].name));
        }
        let mut bytes = std::mem::take(&mut self.links.frame);
        self.counters.traffic.encode(&messages, &mut bytes);
        // Decoding would cost the most of all that the simulator does, and gives back what was encoded: tests see to that.
        debug_assert_eq!(cbor::from_slice::<Vec<Message>>(&bytes).as_ref(), Ok(&messages));
        self.counters.frames += 1;
        // Packed as daemons pack it.
        let packed = if class == Class::Bulk { sinew_crdt_state::pack::pack(&bytes) } else { None };
        let len = packed.map_or(bytes.len(), |packed| packed.len()) as u64;
        self.counters.bytes += len;
        self.counters.messages += messages.len() as u64;
        if class == Class::Control {
            self.counters.control_frames += 1;
            self.counters.control_bytes += len;
        }
        self.trace.add(&bytes);
        self.links.frame = bytes;
        if self.links.loss > 0 && self.dice(10_000) < self.links.loss {
            self.counters.lost_frames += 1;
            return;
        }
        let to = self.roll.life(to);
        if self.links.cuts.contains_key(&(from, to.node)) {
            self.counters.stalled_frames += 1;
            self.links.stalled.entry((from, to.node)).or_default().push(Stalled { class, to, messages });
            return;
        }
        let wait = self.transmit(from, to.node, len) + self.retransmit(from, to.node, len);
        let latency = self.latency(from, to.node);
        self.deliver(from, to, class, messages, wait + latency);
    }

    fn deliver(&mut self, from: Index, to: Life, class: Class, messages: Vec<Message>, latency: Span) {
        let last = &mut self.links.link(from, to.node).last_at[end(from, to.node)][class as usize];
        let at = (self.now + latency).max(*last);
        *last = at;
        self.queue.push(at, Event::Frame { from, to, messages });
    }

    pub(crate) fn frame_arrived(&mut self, from: Index, to: Life, messages: Vec<Message>) {
        let link = self.links.links.get(&number_of(to.node, from));
        let told = link.is_some_and(|link| link.told[end(to.node, from)] == to.incarnation);
        if !told || !self.is_alive(to) {
            return;
        }
        let id = self.roll.id(from);
        self.watch_reports(to.node, &messages);
        self.inputs(to.node, messages.into_iter().map(|message| Input::Message { from: id, message }));
    }

    /// Dials: soon when `fast`, otherwise after a backoff.
    pub(crate) fn connect_soon(&mut self, a: Index, b: Index, fast: bool) {
        let wait = if fast { Span(1_000 + self.dice(2_000)) } else { Span::ms(20 + self.dice(RECONNECT_MAX_MS)) };
        self.queue.push(self.now + wait, Event::Connect { a, b });
    }

    pub(crate) fn try_connect(&mut self, a: Index, b: Index) {
        // Two nodes that can only dial out never meet; with one, the other end is dialled from there.
        if self.nodes[a].setup.dials_out_only && self.nodes[b].setup.dials_out_only {
            self.counters.unreachable += 1;
            return;
        }
        let awake = self.nodes[a].is_awake() && self.nodes[b].is_awake();
        let possible = awake && !self.links.is_cut(a, b) && !self.links.bans.part(a, b, self.now);
        if !possible || !self.links.connect(a, b) {
            return;
        }
        self.overlay_connected(a, b);
        for (node, peer) in [(a, b), (b, a)] {
            // A leftover of an earlier connection that this end has not seen close.
            self.close_seen(node, peer);
            self.links.link(node, peer).told[end(node, peer)] = self.roll.life(node).incarnation;
            let (id, roles) = (self.roll.id(peer), self.nodes[peer].setup.roles);
            let credential = self.nodes[peer].credential.clone();
            let size = Input::MeshSize(self.nodes.len());
            let rtt_us = u32::try_from(self.round_trip(a, b).0).unwrap_or(u32::MAX);
            let rtt = Input::Rtt { node: id, rtt_us };
            self.inputs(node, [size, Input::Member(credential), Input::PeerUp { node: id, roles }, rtt]);
        }
    }

    pub(crate) fn close_seen(&mut self, node: Index, peer: Index) {
        let current = self.roll.life(node).incarnation;
        let told = &mut self.links.link(node, peer).told[end(node, peer)];
        if std::mem::take(told) == current {
            let id = self.roll.id(peer);
            self.input(node, Input::PeerDown { node: id });
        }
    }

    /// The connection breaks; each end that lives notices after `notice`.
    pub(crate) fn disconnect(&mut self, a: Index, b: Index, notice: Span) {
        if !self.links.part(a, b) {
            return;
        }
        self.links.stalled.remove(&(a, b));
        self.links.stalled.remove(&(b, a));
        self.overlay_disconnected(a, b);
        for (node, peer) in [(a, b), (b, a)] {
            let life = self.roll.life(node);
            self.queue.push(self.now + notice, Event::Closed { life, peer });
        }
    }

    pub(crate) fn closed(&mut self, life: Life, peer: Index) {
        if self.is_alive(life) && !self.links.is_connected(life.node, peer) {
            self.close_seen(life.node, peer);
        }
    }

    /// Cuts the way from `a` to `b`.
    pub(crate) fn cut(&mut self, a: Index, b: Index) {
        self.links.cut_last += 1;
        let cut = self.links.cut_last;
        // A cut that is there already goes on under its own number and timeout. One without a connection has none to end, and
        // as long as it lasts there will be none.
        let new = *self.links.cuts.entry((a, b)).or_insert(cut) == cut;
        if new && self.links.is_connected(a, b) {
            self.queue.push(self.now + CONNECTION_SURVIVES, Event::CutTimeout { a, b, cut });
        }
    }

    pub(crate) fn cut_timed_out(&mut self, a: Index, b: Index, cut: u64) {
        if self.links.cuts.get(&(a, b)) == Some(&cut) {
            self.disconnect(a, b, Span(0));
        }
    }

    /// Mends the way from `a` to `b`.
    pub(crate) fn mend(&mut self, a: Index, b: Index) {
        if self.links.cuts.remove(&(a, b)).is_none() {
            return;
        }
        if self.links.is_connected(a, b) {
            let extra = Span::ms(self.dice(RETRANSMIT_MAX_MS));
            for frame in self.links.stalled.remove(&(a, b)).unwrap_or_default() {
                self.deliver(a, frame.to, frame.class, frame.messages, extra);
            }
        } else if self.links.are_partners(a, b) {
            self.connect_soon(a, b, false);
        }
    }

    pub(crate) fn all_cuts(&self) -> Vec<(Index, Index)> {
        self.links.cuts.keys().copied().collect()
    }
}
