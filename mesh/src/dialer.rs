//! Whom to dial, where and when: the address book with its backoff. Pure; time is handed in, and dialling is the
//! driver's business.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId};

use crate::address::{peer_of, without_peer};
use crate::config::{
    ADDR_LEN_MAX, ADDRS_PER_PEER_MAX, KNOWN_ADDRS, KNOWN_PEERS, REDIAL_FIRST, REDIAL_MAX, REDIAL_MIN, REDIAL_WANTED,
    ROUTES_MAX, STABLE, STRANGER_DIALS_MAX, WANTED_TRIES, YIELD_DELAY,
};
use crate::guard::jittered;

/// How much an address is trusted to lead to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// Someone announced it: mDNS, a routing table. Forgotten when it fails often.
    Rumour,
    /// The ledger, the configuration or the member itself. Never forgotten.
    Member,
}

/// A dial to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dial {
    /// A peer at any of its addresses.
    Peer(PeerId, Vec<Multiaddr>),
    /// Whoever answers at the bootstrap address with this index.
    Bootstrap(usize, Multiaddr),
}

/// An address of a peer.
#[derive(Debug)]
struct Known {
    addr: Multiaddr,
    /// When it last led to the peer.
    worked: Option<Instant>,
    /// Dials to it that failed since.
    failures: u32,
}

#[derive(Debug)]
struct Route {
    /// The newest last.
    addrs: Vec<Known>,
    source: Source,
    connected: bool,
    /// When it was last connected as a member.
    seen: Option<Instant>,
    /// A dial is under way.
    dialing: bool,
    /// When it was last dialled.
    tried: Option<Instant>,
    /// The next dial is to the best addresses only: it comes sooner than the backoff of all.
    wanted: bool,
    /// Dials made beside a connection that is in doubt, since it last was not.
    doubts: u32,
    failures: u32,
    /// Since when it is connected as a member.
    since: Option<Instant>,
    /// Memberships in a row that did not last.
    flaps: u32,
    next: Option<Instant>,
}

#[derive(Debug)]
struct Bootstrap {
    addr: Multiaddr,
    reached: Option<PeerId>,
    failures: u32,
    next: Option<Instant>,
}

/// The address book.
#[derive(Debug)]
pub(crate) struct Dialer {
    me: PeerId,
    routes: HashMap<PeerId, Route>,
    bootstrap: Vec<Bootstrap>,
    /// No dial is due before this.
    wake: Option<Instant>,
    /// What [`Self::known`] gives may have changed.
    changed: bool,
}

impl Route {
    /// The addresses that most likely lead to the peer: those that did, the last first, then those that failed least.
    fn best(&self, most: usize) -> Vec<Multiaddr> {
        let mut order: Vec<(usize, &Known)> = self.addrs.iter().enumerate().collect();
        order
            .sort_by_key(|(place, known)| (std::cmp::Reverse(known.worked), known.failures, std::cmp::Reverse(*place)));
        order.into_iter().take(most).map(|(_, known)| known.addr.clone()).collect()
    }

    /// Makes room for one more address: those that never led anywhere go first.
    fn make_room(&mut self) {
        if self.addrs.len() < ADDRS_PER_PEER_MAX {
            return;
        }
        let worst = |(place, known): &(usize, &Known)| (known.worked, std::cmp::Reverse(known.failures), *place);
        if let Some((place, _)) = self.addrs.iter().enumerate().min_by_key(worst) {
            self.addrs.remove(place);
        }
    }
}

impl Dialer {
    /// A book that begins with the bootstrap addresses, due at once.
    pub(crate) fn new(me: PeerId, bootstrap: &[Multiaddr], now: Instant) -> Self {
        let mut dialer = Self { me, routes: HashMap::new(), bootstrap: Vec::new(), wake: Some(now), changed: false };
        for addr in bootstrap {
            match peer_of(addr) {
                Some(peer) => {
                    dialer.learn(peer, vec![addr.clone()], Source::Member, now);
                    dialer.dial_now(&peer, now);
                }
                None => {
                    let entry = Bootstrap { addr: addr.clone(), reached: None, failures: 0, next: Some(now) };
                    dialer.bootstrap.push(entry);
                }
            }
        }
        dialer
    }

    /// Remembers addresses of `peer` and dials it soon if it is not connected. Returns whether it is in the book.
    pub(crate) fn learn(&mut self, peer: PeerId, addrs: Vec<Multiaddr>, source: Source, now: Instant) -> bool {
        let full = self.routes.len() >= ROUTES_MAX && !self.routes.contains_key(&peer);
        if peer == self.me || full || (addrs.is_empty() && !self.routes.contains_key(&peer)) {
            return false;
        }
        let delay = if self.me < peer { Duration::ZERO } else { jittered(YIELD_DELAY) };
        let route = self.routes.entry(peer).or_insert_with(|| Route {
            addrs: Vec::new(),
            source,
            connected: false,
            seen: None,
            dialing: false,
            tried: None,
            wanted: false,
            doubts: 0,
            failures: 0,
            since: None,
            flaps: 0,
            next: Some(now + delay),
        });
        route.source = route.source.max(source);
        for addr in addrs.into_iter().take(ADDRS_PER_PEER_MAX).map(without_peer) {
            if addr.len() > ADDR_LEN_MAX || route.addrs.iter().any(|known| known.addr == addr) {
                continue;
            }
            route.make_room();
            route.addrs.push(Known { addr, worked: None, failures: 0 });
            self.changed |= source == Source::Member;
            if !route.connected && !route.dialing {
                // News is worth a dial even in the middle of a long backoff.
                let soon = now + delay;
                route.next = Some(route.next.map_or(soon, |next| next.min(soon)));
            }
        }
        self.wake_by(self.routes.get(&peer).and_then(|route| route.next));
        true
    }

    /// Dials `peer` at once if it is known and not connected.
    pub(crate) fn dial_now(&mut self, peer: &PeerId, now: Instant) {
        if let Some(route) = self.routes.get_mut(peer).filter(|route| !route.connected && !route.dialing) {
            route.next = Some(now);
            self.wake_by(Some(now));
        }
    }

    /// Dials `peer` soon because there is something for it. `false` when that has just failed or no address is known: a member
    /// that did not just come and go is then tried again sooner than its backoff has it, at the addresses that are the best.
    pub(crate) fn nudge(&mut self, peer: &PeerId, now: Instant) -> bool {
        let Some(route) = self.routes.get_mut(peer) else { return false };
        if route.connected || route.failures == 0 && route.flaps < 2 && !route.addrs.is_empty() {
            self.dial_now(peer, now);
            return true;
        }
        if route.source == Source::Member && route.flaps < 2 && !route.dialing {
            let every = if route.failures < WANTED_TRIES { REDIAL_WANTED } else { REDIAL_WANTED * 5 };
            let soon = route.tried.map_or(now, |tried| tried + every);
            if route.next.is_some_and(|next| next > soon) {
                (route.next, route.wanted) = (Some(soon), true);
                self.wake_by(Some(soon));
            }
        }
        false
    }

    /// Where to dial `peer` beside its connections, of which it is in doubt whether they still lead anywhere; `None` when that
    /// was tried a moment ago. Each time in a row it is longer before the next.
    pub(crate) fn beside(&mut self, peer: &PeerId, now: Instant) -> Option<Vec<Multiaddr>> {
        let route = self.routes.get_mut(peer).filter(|route| route.connected && !route.addrs.is_empty())?;
        let wait = REDIAL_WANTED.saturating_mul(1 << route.doubts.min(16)).min(REDIAL_MAX);
        if route.doubts > 0 && route.tried.is_some_and(|tried| now < tried + wait) {
            return None;
        }
        (route.tried, route.doubts) = (Some(now), route.doubts.saturating_add(1));
        Some(route.best(KNOWN_ADDRS))
    }

    /// A connection to `peer` carries something.
    pub(crate) fn not_in_doubt(&mut self, peer: &PeerId) {
        if let Some(route) = self.routes.get_mut(peer) {
            route.doubts = 0;
        }
    }

    /// This host has another address: whoever could not be reached may be now. Members are dialled soon, not all at once.
    pub(crate) fn network_changed(&mut self, now: Instant) {
        let mut wake = None;
        for route in self.routes.values_mut() {
            let waits = !route.connected && !route.dialing && route.source == Source::Member;
            let soon = now + spread(REDIAL_WANTED);
            let tried = route.tried.is_some_and(|tried| now < tried + REDIAL_WANTED);
            if waits && !tried && route.next.is_some_and(|next| next > soon) {
                route.next = Some(soon);
                wake = Some(wake.map_or(soon, |wake: Instant| wake.min(soon)));
            }
        }
        self.wake_by(wake);
    }

    /// The members of whom it is worth remembering where they are, those connected and those seen last first.
    pub(crate) fn known(&self) -> Vec<(PeerId, Vec<Multiaddr>)> {
        let mut members: Vec<(&PeerId, &Route)> =
            self.routes.iter().filter(|(_, route)| route.source == Source::Member && !route.addrs.is_empty()).collect();
        members.sort_by_key(|(peer, route)| (std::cmp::Reverse((route.connected, route.seen)), **peer));
        members.truncate(KNOWN_PEERS);
        members.into_iter().map(|(peer, route)| (*peer, route.best(KNOWN_ADDRS))).collect()
    }

    /// Whether [`Self::known`] may have changed since this was asked.
    pub(crate) const fn take_changed(&mut self) -> bool {
        std::mem::replace(&mut self.changed, false)
    }

    /// Strikes `peer` from the book.
    pub(crate) fn forget(&mut self, peer: &PeerId) {
        self.routes.remove(peer);
    }

    /// Does not dial `peer` before `until`.
    pub(crate) fn hold(&mut self, peer: &PeerId, until: Instant) {
        if let Some(route) = self.routes.get_mut(peer) {
            route.next = Some(until);
            self.wake_by(Some(until));
        }
    }

    /// A connection stands; whether it is a member shows later.
    pub(crate) fn connected(&mut self, peer: &PeerId) {
        if let Some(route) = self.routes.get_mut(peer) {
            (route.connected, route.dialing, route.wanted) = (true, false, false);
            route.next = None;
        }
    }

    /// `addr` led to `peer`.
    pub(crate) fn worked(&mut self, peer: &PeerId, addr: &Multiaddr, now: Instant) {
        let addr = without_peer(addr.clone());
        let route = self.routes.get_mut(peer);
        if let Some(known) = route.and_then(|route| route.addrs.iter_mut().find(|known| known.addr == addr)) {
            self.changed |= known.worked.is_none();
            (known.worked, known.failures) = (Some(now), 0);
        }
    }

    /// `addr` did not lead to `peer`.
    pub(crate) fn missed(&mut self, peer: &PeerId, addr: &Multiaddr) {
        let addr = without_peer(addr.clone());
        let route = self.routes.get_mut(peer);
        if let Some(known) = route.and_then(|route| route.addrs.iter_mut().find(|known| known.addr == addr)) {
            known.failures = known.failures.saturating_add(1);
        }
    }

    /// The bootstrap address `index` led to `peer`.
    pub(crate) fn reached(&mut self, index: usize, peer: PeerId) {
        if let Some(entry) = self.bootstrap.get_mut(index) {
            entry.reached = Some(peer);
            entry.next = None;
        }
    }

    /// `peer` has shown membership: its past failures no longer count.
    pub(crate) fn ready(&mut self, peer: &PeerId, now: Instant) {
        if let Some(route) = self.routes.get_mut(peer) {
            self.changed |= route.seen.is_none();
            (route.failures, route.source) = (0, Source::Member);
            route.since = route.since.or(Some(now));
            route.seen = Some(now);
        }
        for entry in self.bootstrap.iter_mut().filter(|entry| entry.reached == Some(*peer)) {
            entry.failures = 0;
        }
    }

    /// The last connection to `peer` closed. `member` tells whether it had shown membership.
    pub(crate) fn disconnected(&mut self, peer: &PeerId, member: bool, now: Instant) {
        if let Some(route) = self.routes.get_mut(peer) {
            (route.connected, route.dialing, route.doubts) = (false, false, 0);
            if member {
                route.seen = Some(now);
                if route.since.take().is_some_and(|since| now.saturating_duration_since(since) >= STABLE) {
                    route.flaps = 0;
                }
                let delay = if route.flaps == 0 { jittered(REDIAL_FIRST) } else { backoff(route.flaps) };
                route.flaps = route.flaps.saturating_add(1);
                let next = Some(now + delay);
                route.next = next;
                self.wake_by(next);
            } else {
                self.failed(peer, now);
            }
        }
        let mut wake = None;
        for entry in self.bootstrap.iter_mut().filter(|entry| entry.reached == Some(*peer)) {
            entry.failures = entry.failures.saturating_add(1);
            entry.next = Some(now + backoff(entry.failures));
            wake = entry.next;
        }
        self.wake_by(wake);
    }

    /// A dial to `peer` failed. A rumour that keeps failing is forgotten.
    pub(crate) fn failed(&mut self, peer: &PeerId, now: Instant) {
        let Some(route) = self.routes.get_mut(peer).filter(|route| !route.connected) else { return };
        route.dialing = false;
        route.failures = route.failures.saturating_add(1);
        if route.source == Source::Rumour && route.failures >= STRANGER_DIALS_MAX {
            self.routes.remove(peer);
            return;
        }
        route.next = Some(now + backoff(route.failures));
        let next = route.next;
        self.wake_by(next);
    }

    /// `peer` could not be dialled just now because someone else's dial to it is under way.
    pub(crate) fn put_off(&mut self, peer: &PeerId, now: Instant) {
        let Some(route) = self.routes.get_mut(peer).filter(|route| !route.connected) else { return };
        route.dialing = false;
        let next = Some(now + jittered(REDIAL_MIN));
        route.next = next;
        self.wake_by(next);
    }

    /// A dial to the bootstrap address `index` failed. Returns whether that is news.
    pub(crate) fn bootstrap_failed(&mut self, index: usize, now: Instant) -> bool {
        let Some(entry) = self.bootstrap.get_mut(index) else { return false };
        entry.failures = entry.failures.saturating_add(1);
        entry.next = Some(now + backoff(entry.failures));
        let (next, news) = (entry.next, entry.failures == 1);
        self.wake_by(next);
        news
    }

    /// `addr` leads to someone else than `peer`.
    pub(crate) fn wrong(&mut self, peer: &PeerId, addr: &Multiaddr) {
        if let Some(route) = self.routes.get_mut(peer) {
            let addr = without_peer(addr.clone());
            route.addrs.retain(|known| known.addr != addr);
        }
    }

    /// Whether an address of `peer` is known.
    #[cfg(test)]
    fn knows(&self, peer: &PeerId) -> bool {
        self.routes.get(peer).is_some_and(|route| !route.addrs.is_empty())
    }

    /// Whether `peer` is one of the configured bootstrap nodes.
    pub(crate) fn is_bootstrap(&self, peer: &PeerId, configured: &[Multiaddr]) -> bool {
        self.bootstrap.iter().any(|entry| entry.reached == Some(*peer))
            || configured.iter().any(|addr| peer_of(addr) == Some(*peer))
    }

    /// When [`Self::due`] is worth calling.
    pub(crate) const fn wake(&self) -> Option<Instant> {
        self.wake
    }

    /// The dials that are due. Each stays pending until its outcome is reported.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Dial> {
        if self.wake.is_none_or(|wake| wake > now) {
            return Vec::new();
        }
        let (mut dials, mut wake) = (Vec::new(), None::<Instant>);
        let mut later = |next: Instant| wake = Some(wake.map_or(next, |wake: Instant| wake.min(next)));
        for (peer, route) in self.routes.iter_mut().filter(|(_, route)| !route.connected) {
            match route.next {
                Some(next) if next <= now => {
                    // Should the outcome never be reported, the dial is made again long after any backoff.
                    route.next = Some(now + REDIAL_MAX * 2);
                    later(now + REDIAL_MAX * 2);
                    if !route.addrs.is_empty() {
                        let most = if std::mem::take(&mut route.wanted) { KNOWN_ADDRS } else { ADDRS_PER_PEER_MAX };
                        (route.dialing, route.tried) = (true, Some(now));
                        dials.push(Dial::Peer(*peer, route.best(most)));
                    }
                }
                Some(next) => later(next),
                None => {}
            }
        }
        for (index, entry) in self.bootstrap.iter_mut().enumerate() {
            let connected = entry.reached.is_some_and(|p| self.routes.get(&p).is_some_and(|route| route.connected));
            match entry.next {
                Some(_) if connected => entry.next = None,
                Some(next) if next <= now => {
                    entry.next = Some(now + REDIAL_MAX * 2);
                    later(now + REDIAL_MAX * 2);
                    dials.push(Dial::Bootstrap(index, entry.addr.clone()));
                }
                Some(next) => later(next),
                None => {}
            }
        }
        self.wake = wake;
        dials
    }

    fn wake_by(&mut self, next: Option<Instant>) {
        if let Some(next) = next {
            self.wake = Some(self.wake.map_or(next, |wake| wake.min(next)));
        }
    }
}

/// A random duration up to `most`.
fn spread(most: Duration) -> Duration {
    (jittered(most) - most) * 5
}

fn backoff(failures: u32) -> Duration {
    jittered(REDIAL_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(REDIAL_MAX))
}

#[cfg(test)]
mod tests;
