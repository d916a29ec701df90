//! The address book on a clock of the tests' own.

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

/// Runs the book for `time`, with every dial failing and `each` called every 100 ms. Returns how many dials were made.
fn fail_for(
    dialer: &mut Dialer,
    peer: &PeerId,
    from: Instant,
    time: Duration,
    each: impl Fn(&mut Dialer, Instant),
) -> usize {
    let (mut now, mut dials) = (from, 0);
    while now < from + time {
        each(dialer, now);
        for _ in dialer.due(now) {
            dials += 1;
            dialer.failed(peer, now);
        }
        now += Duration::from_millis(100);
    }
    dials
}

#[test]
fn who_is_wanted_is_dialled_every_other_second_and_no_more_often() {
    let ((me, peer), now) = (two(), Instant::now());
    for (source, wanted) in [(Source::Member, true), (Source::Rumour, false)] {
        let mut dialer = Dialer::new(me, &[], now);
        dialer.learn(peer, vec![addr(1)], source, now);
        dialer.connected(&peer);
        dialer.disconnected(&peer, source == Source::Member, now);
        let idle = fail_for(&mut dialer, &peer, now, Duration::from_secs(50), |_, _| {});
        let later = now + Duration::from_secs(50);
        let nudge = |dialer: &mut Dialer, now| {
            (0..50).for_each(|_| {
                dialer.nudge(&peer, now);
            })
        };
        let dials = fail_for(&mut dialer, &peer, later, Duration::from_secs(40), nudge);
        assert!(idle < 10, "{idle}");
        assert_eq!((15..=21).contains(&dials), wanted, "{dials} dials of a {source:?}");
    }
}

#[test]
fn a_crowd_of_addresses_does_not_push_out_those_that_work() {
    let ((me, peer), now) = (two(), Instant::now());
    let mut dialer = Dialer::new(me, &[], now);
    dialer.learn(peer, vec![addr(1), addr(2)], Source::Member, now);
    dialer.worked(&peer, &addr(1), now);
    for port in 100..200 {
        dialer.learn(peer, vec![addr(port)], Source::Member, now);
        dialer.missed(&peer, &addr(port));
    }
    assert_eq!(dialer.known()[0].1.first(), Some(&addr(1)), "what worked comes first");
    assert_eq!(dialer.known()[0].1.len(), KNOWN_ADDRS);
    assert_eq!(dialer.routes[&peer].addrs.len(), ADDRS_PER_PEER_MAX);
    let long = format!("/dns4/{}/tcp/1", "x".repeat(ADDR_LEN_MAX)).parse().expect("addr");
    dialer.learn(peer, vec![long], Source::Member, now);
    assert!(dialer.routes[&peer].addrs.iter().all(|known| known.addr.len() <= ADDR_LEN_MAX));
}

#[test]
fn a_few_members_are_worth_remembering_the_last_seen_first() {
    let (me, mut now) = (PeerId::random(), Instant::now());
    let mut dialer = Dialer::new(me, &[], now);
    dialer.learn(PeerId::random(), vec![addr(1)], Source::Rumour, now);
    assert!(dialer.known().is_empty() && !dialer.take_changed());
    let peers: Vec<PeerId> = (0..KNOWN_PEERS + 10).map(|_| PeerId::random()).collect();
    for peer in &peers {
        now += Duration::from_secs(1);
        dialer.learn(*peer, vec![addr(2)], Source::Member, now);
        dialer.connected(peer);
        dialer.ready(peer, now);
        dialer.disconnected(peer, true, now);
    }
    let known: Vec<PeerId> = dialer.known().into_iter().map(|(peer, _)| peer).collect();
    let last: Vec<PeerId> = peers.iter().rev().take(KNOWN_PEERS).copied().collect();
    assert_eq!(known, last);
    assert!(dialer.take_changed() && !dialer.take_changed());
}

#[test]
fn dials_beside_a_connection_become_rare() {
    let ((me, peer), now) = (two(), Instant::now());
    let mut dialer = Dialer::new(me, &[], now);
    dialer.learn(peer, vec![addr(1)], Source::Member, now);
    assert_eq!(dialer.beside(&peer, now), None, "it is not connected");
    dialer.connected(&peer);
    let dials = |dialer: &mut Dialer, from: u64, to: u64| {
        let at = |s| now + Duration::from_secs(s);
        (from..to).filter(|s| dialer.beside(&peer, at(*s)).is_some()).count()
    };
    let (first, later) = (dials(&mut dialer, 0, 60), dials(&mut dialer, 60, 600));
    assert!((3..=6).contains(&first) && later <= 10, "{first} dials in a minute, {later} in nine more");
    dialer.not_in_doubt(&peer);
    assert_eq!(dials(&mut dialer, 600, 602), 1, "a new doubt is acted on at once");
}

#[test]
fn another_network_brings_members_back_soon_and_not_all_at_once() {
    let (me, now) = (PeerId::random(), Instant::now());
    let mut dialer = Dialer::new(me, &[], now);
    let peers: Vec<PeerId> = (0..50).map(|_| PeerId::random()).collect();
    for peer in &peers {
        dialer.learn(*peer, vec![addr(1)], Source::Member, now);
        (0..10).for_each(|_| dialer.failed(peer, now));
    }
    let later = now + Duration::from_secs(30);
    assert!(dialer.due(later).is_empty());
    dialer.network_changed(later);
    assert!(dialer.due(later).len() < 25, "spread over some time");
    let most: usize = (1..=20).map(|n| dialer.due(later + REDIAL_WANTED.mul_f64(f64::from(n) / 20.0)).len()).sum();
    assert!(most >= 40, "{most}");
}
