//! Whom to dial, where and when: the address book with its backoff. Pure; time is handed in, and dialling is the
//! driver's business.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId};

use crate::address::{peer_of, without_peer};
use crate::config::{
    ADDRS_PER_PEER_MAX, REDIAL_FIRST, REDIAL_MAX, REDIAL_MIN, ROUTES_MAX, STABLE, STRANGER_DIALS_MAX, YIELD_DELAY,
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

#[derive(Debug)]
struct Route {
    addrs: Vec<Multiaddr>,
    source: Source,
    connected: bool,
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
}

impl Dialer {
    /// A book that begins with the bootstrap addresses, due at once.
    pub(crate) fn new(me: PeerId, bootstrap: &[Multiaddr], now: Instant) -> Self {
        let mut dialer = Self { me, routes: HashMap::new(), bootstrap: Vec::new(), wake: Some(now) };
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
            failures: 0,
            since: None,
            flaps: 0,
            next: Some(now + delay),
        });
        route.source = route.source.max(source);
        for addr in addrs.into_iter().map(without_peer) {
            if route.addrs.contains(&addr) {
                continue;
            }
            if route.addrs.len() >= ADDRS_PER_PEER_MAX {
                route.addrs.remove(0);
            }
            route.addrs.push(addr);
            if !route.connected {
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
        if let Some(route) = self.routes.get_mut(peer).filter(|route| !route.connected) {
            route.next = Some(now);
            self.wake_by(Some(now));
        }
    }

    /// Dials `peer` soon because there is something for it. `false` when that has just failed or no address is known:
    /// then the backoff stands.
    pub(crate) fn nudge(&mut self, peer: &PeerId, now: Instant) -> bool {
        let hope =
            |route: &Route| route.connected || (route.failures == 0 && route.flaps < 2 && !route.addrs.is_empty());
        let hopeful = self.routes.get(peer).is_some_and(hope);
        if hopeful {
            self.dial_now(peer, now);
        }
        hopeful
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
            route.connected = true;
            route.next = None;
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
            (route.failures, route.source) = (0, Source::Member);
            route.since = route.since.or(Some(now));
        }
        for entry in self.bootstrap.iter_mut().filter(|entry| entry.reached == Some(*peer)) {
            entry.failures = 0;
        }
    }

    /// The last connection to `peer` closed. `member` tells whether it had shown membership.
    pub(crate) fn disconnected(&mut self, peer: &PeerId, member: bool, now: Instant) {
        if let Some(route) = self.routes.get_mut(peer) {
            route.connected = false;
            if member {
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
            route.addrs.retain(|known| *known != addr);
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
                        dials.push(Dial::Peer(*peer, route.addrs.clone()));
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

fn backoff(failures: u32) -> Duration {
    jittered(REDIAL_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(REDIAL_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> Multiaddr {
        format!("/ip4/127.0.0.1/tcp/{port}").parse().expect("addr")
    }

    fn two() -> (PeerId, PeerId) {
        let (a, b) = (PeerId::random(), PeerId::random());
        if a < b { (a, b) } else { (b, a) }
    }

    #[test]
    fn backs_off_from_one_second_to_sixty() {
        let ((me, peer), mut now) = (two(), Instant::now());
        let mut dialer = Dialer::new(me, &[], now);
        dialer.learn(peer, vec![addr(1)], Source::Member, now);
        let mut last = Duration::ZERO;
        for _ in 0..10 {
            assert_eq!(dialer.due(now).len(), 1);
            assert_eq!(dialer.due(now).len(), 0, "a dial is made once");
            dialer.failed(&peer, now);
            let wait = dialer.wake().expect("a retry is due") - now;
            assert!(wait >= last.min(REDIAL_MAX) && wait <= REDIAL_MAX.mul_f64(1.21), "{wait:?} after {last:?}");
            (last, now) = (wait, now + wait);
        }
        assert!(last >= REDIAL_MAX);
        dialer.connected(&peer);
        dialer.ready(&peer, now);
        dialer.disconnected(&peer, true, now);
        assert!(dialer.due(now).is_empty());
        assert_eq!(dialer.due(now + REDIAL_FIRST * 2).len(), 1, "the first redial is quick");
        dialer.connected(&peer);
        dialer.ready(&peer, now);
        dialer.disconnected(&peer, true, now);
        assert!(dialer.due(now + REDIAL_FIRST * 2).is_empty(), "a peer that flaps is backed off");
        assert!(!dialer.nudge(&peer, now), "and sending does not undo that");
    }

    #[test]
    fn a_dial_that_was_put_off_is_made_soon_and_counts_for_nothing() {
        let ((me, peer), now) = (two(), Instant::now());
        let mut dialer = Dialer::new(me, &[], now);
        dialer.learn(peer, vec![addr(1)], Source::Member, now);
        assert_eq!(dialer.due(now).len(), 1);
        dialer.put_off(&peer, now);
        assert!(dialer.due(now).is_empty());
        assert_eq!(dialer.due(now + REDIAL_MIN * 2).len(), 1);
        assert!(dialer.nudge(&peer, now), "it did not fail");
    }

    #[test]
    fn rumours_are_forgotten_and_members_are_not() {
        let ((me, peer), now) = (two(), Instant::now());
        let mut dialer = Dialer::new(me, &[], now);
        for (source, known) in [(Source::Rumour, false), (Source::Member, true)] {
            dialer.learn(peer, vec![addr(1)], source, now);
            for _ in 0..STRANGER_DIALS_MAX {
                dialer.failed(&peer, now);
            }
            assert_eq!(dialer.knows(&peer), known);
        }
    }

    #[test]
    fn a_bootstrap_address_is_dialled_until_someone_stays() {
        let ((me, peer), now) = (two(), Instant::now());
        let mut dialer = Dialer::new(me, &[addr(1)], now);
        assert_eq!(dialer.due(now), vec![Dial::Bootstrap(0, addr(1))]);
        dialer.bootstrap_failed(0, now);
        assert_eq!(dialer.due(now + REDIAL_MIN * 2), vec![Dial::Bootstrap(0, addr(1))]);
        dialer.reached(0, peer);
        assert!(dialer.due(now + REDIAL_MAX * 2).is_empty());
        dialer.disconnected(&peer, true, now + REDIAL_MAX * 2);
        assert_eq!(dialer.due(now + REDIAL_MAX * 3), vec![Dial::Bootstrap(0, addr(1))]);
    }
}
