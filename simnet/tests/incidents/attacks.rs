//! Attacks on the gossip overlay by members with valid certificates (Vyzovitis et al., 2020): censorship, eclipse, cold boot.
//! Gossip carries adverts only; whatever counts goes from node to node, so an attack makes work slower to spread
//! and never wrong.

use sinew_crdt_state::ids::JobId;
use sinew_simnet::{Counters, GossipSetup, NodeSetup, World, completed, job, millis, running, seconds};

use crate::{all_ends_well, cores};

fn names(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|i| format!("n{i}")).collect()
}

fn refs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

/// One job takes all the room there is, so that the brains of the others have to advertise them.
fn too_much(world: &mut World, at: &[&str]) -> Vec<JobId> {
    let tasks = u32::try_from(world.known_nodes()).expect("small") * 2;
    let first = world.submit(at[0], &job().tasks(tasks).lasting(seconds(5)).spread());
    world.run_for(seconds(1));
    let rest = at.iter().map(|name| world.submit(name, &job().tasks(8).lasting(millis(400)).spread()));
    let all = std::iter::once(first).chain(rest.collect::<Vec<_>>()).collect();
    advertise(world, at);
    all
}

/// Of 1,000 nodes that should have had an advert, how many did.
fn adverts_delivered(counters: &Counters) -> u64 {
    assert!(counters.adverts_due > 0, "something was advertised");
    1_000 - 1_000 * counters.adverts_missed / counters.adverts_due
}

/// Jobs that no node is large enough for are advertised all the while, each by itself as no two need the same, from the last of `at`.
fn advertise(world: &mut World, at: &[&str]) {
    let at = at.last().expect("somebody advertises");
    let jobs: Vec<_> = (0..20).map(|n| world.submit(at, &job().cpus(64.0 + f64::from(n)))).collect();
    world.run_for(seconds(8));
    for job in jobs {
        world.cancel(at, job).expect("it waits still");
    }
}

fn complete(world: &mut World, jobs: &[JobId]) {
    for job in jobs {
        world.run_until(completed(*job));
    }
}

/// Where everybody is connected to everybody, authors tell everybody themselves: censors keep nothing from anyone.
#[test]
fn censors_where_everybody_is_connected() {
    for seed in 2_000..2_003 {
        let names = names(0, 10);
        let mut world = World::seed(seed).nodes(refs(&names));
        world.censor(["n6", "n7", "n8", "n9"]);
        let jobs = too_much(&mut world, &["n0", "n1", "n2", "n3"]);
        complete(&mut world, &jobs);
        world.run_for(seconds(5));
        let counters = *world.counters();
        assert!(counters.gossip_withheld > 100, "{counters:?}");
        assert_eq!(adverts_delivered(&counters), 1_000);
        all_ends_well(&mut world);
    }
}

/// A mesh of sixty in which each node has a dozen connections, under censors of so many in ten.
fn bounded_under_censors(seed: u64, tenths: usize, setup: GossipSetup) -> Counters {
    let names = names(0, 60);
    let mut world = World::seed(seed).gossip(setup).connections(20, 6).nodes(refs(&names));
    world.run_for(seconds(5));
    let censors: Vec<String> = (0..60).filter(|n| n % 10 + tenths > 9).map(|n| format!("n{n}")).collect();
    if tenths > 0 {
        world.censor(refs(&censors));
    }
    let jobs = too_much(&mut world, &["n0", "n11", "n22", "n33"]);
    complete(&mut world, &jobs);
    world.run_for(seconds(5));
    let counters = *world.counters();
    assert_eq!(counters.gossip_withheld > 0, tenths > 0);
    all_ends_well(&mut world);
    counters
}

/// Censors in a mesh where most news take several hops: mesh links that lead past them, and heartbeats, make up for it.
#[test]
fn censors_where_news_take_several_hops() {
    for (tenths, adverts) in [(4, 950), (8, 500)] {
        let counters = bounded_under_censors(2_010, tenths, GossipSetup::default());
        let told = adverts_delivered(&counters);
        println!("{tenths} of ten nodes censor: adverts {told} of 1000");
        assert!(told >= adverts, "{tenths} of ten: {told}");
    }
}

/// Every slot of a brain's meshes belongs to attackers. It still tells and hears its neighbours directly.
#[test]
fn an_eclipsed_brain_where_everybody_is_connected() {
    for seed in 2_020..2_023 {
        let names = names(0, 12);
        let mut world = World::seed(seed).nodes(refs(&names));
        let attackers = ["n8", "n9", "n10", "n11"];
        world.eclipse("n0", attackers);
        assert_eq!(world.mesh_slots_held("n0", &attackers), 4);
        assert_eq!(world.gossip_degree("n0"), 4, "nobody else is left");
        let jobs = too_much(&mut world, &["n0", "n1", "n2"]);
        complete(&mut world, &jobs);
        world.run_for(seconds(5));
        let counters = *world.counters();
        assert!(counters.gossip_withheld > 10, "{counters:?}");
        assert_eq!(adverts_delivered(&counters), 1_000);
        world.relent();
        all_ends_well(&mut world);
    }
}

/// The same where a node has a dozen connections: honest neighbours outside its mesh tell it at heartbeats what they have.
#[test]
fn an_eclipsed_brain_where_news_take_several_hops() {
    let names = names(0, 60);
    let mut world = World::seed(2_030).connections(20, 6).nodes(refs(&names));
    world.run_for(seconds(5));
    let attackers = ["n50", "n51", "n52", "n53", "n54", "n55", "n56", "n57"];
    world.eclipse("n7", attackers);
    assert_eq!(world.mesh_slots_held("n7", &attackers), 8);
    let before = *world.counters();
    let jobs = too_much(&mut world, &["n7", "n20", "n30"]);
    complete(&mut world, &jobs);
    let counters = *world.counters();
    assert!(counters.gossip_withheld > before.gossip_withheld && counters.iwant > before.iwant, "{counters:?}");
    let told = adverts_delivered(&counters);
    println!("eclipsed brain of sixty: adverts {told} of 1000");
    assert!(told >= 950, "{told}");
    // Opportunistic grafts and the better scores of who delivers first win slots back. Who delivers first shows while there
    // are adverts.
    for _ in 0..8 {
        advertise(&mut world, &["n20"]);
    }
    let held = world.mesh_slots_held("n7", &attackers);
    assert!(held < 8 && world.counters().improved > 0, "{held}");
    world.relent();
    all_ends_well(&mut world);
}

/// A newcomer meets attackers only, who pass no gossip on, and nobody tells it of anybody else. Its jobs and all others end;
/// it is of no use to honest nodes until it meets one of them, which is all it takes.
#[test]
fn a_cold_boot_among_attackers() {
    for seed in 2_040..2_043 {
        let attackers = ["e0", "e1", "e2", "e3"];
        let mut world = World::seed(seed).nodes(["a", "b", "c", "d", "e0", "e1", "e2", "e3"]);
        world.censor(attackers);
        world.join_meeting("new", cores(2), attackers);
        world.run_for(seconds(10));
        assert!(["a", "b", "c", "d"].into_iter().all(|n| !world.connected("new", n)));
        let theirs = world.submit("new", &job().tasks(40).lasting(millis(500)).spread());
        let ours = world.submit("a", &job().tasks(40).lasting(millis(500)).spread());
        complete(&mut world, &[theirs, ours]);
        advertise(&mut world, &["e0"]);
        advertise(&mut world, &["a"]);
        assert!(world.counters().gossip_withheld > 0);
        world.meet("new", "a");
        world.run_for(seconds(2));
        let met = world.submit("a", &job().tasks(200).lasting(millis(500)).spread());
        world.run_until(running(met, "new"));
        complete(&mut world, &[met]);
        all_ends_well(&mut world);
    }
}

/// A newcomer has no way to the honest nodes but through attackers, who pass nothing on. What still holds: what it submits runs,
/// on itself and on attackers that were asked directly and do as they say; nobody's job is lost or run twice; the honest
/// nodes work on without it. It is of no use to them, nor they to it, until it meets one of them.
#[test]
fn a_newcomer_that_is_eclipsed_altogether() {
    for seed in 2_050..2_053 {
        let (honest, attackers) = (["a", "b", "c", "d"], ["e0", "e1", "e2"]);
        let mut world = World::seed(seed).nodes(honest.into_iter().chain(attackers));
        world.eclipse_all_of("new", NodeSetup::default(), attackers);
        world.run_for(seconds(3));
        let hers = world.submit("new", &job().tasks(30).lasting(millis(400)).spread());
        let ours = world.submit("a", &job().tasks(60).lasting(millis(400)).spread());
        complete(&mut world, &[hers, ours]);
        world.check_safety();
        let number = world.number("new");
        let of_honest: Vec<usize> = honest.iter().map(|n| world.number(n)).collect();
        assert!(world.executions_of(&hers).all(|e| !of_honest.contains(&e.node)), "no honest node heard of it");
        assert!(world.executions_of(&ours).all(|e| e.node != number), "it heard of no honest node's job");
        assert!(honest.iter().all(|n| !world.connected("new", n)));
        world.relent();
        world.heal();
        world.meet("new", "a");
        world.run_for(seconds(2));
        let met = world.submit("a", &job().tasks(200).lasting(millis(400)).spread());
        world.run_until(running(met, "new"));
        world.run_until(completed(met));
        all_ends_well(&mut world);
    }
}

/// Only a member of the brain set can know that another leads: an outsider's word changes nothing.
#[test]
fn a_stranger_that_deposes_a_brain() {
    let mut world = World::seed(2_060).nodes(["a", "b", "c", "d", "e", "f"]);
    let job = world.submit("a", &job().tasks(12).lasting(seconds(1)).spread());
    world.run_until(running(job, "b"));
    let strangers = world.bystanders(&job);
    world.forge_deposed(&strangers[0], "a", job);
    world.run_for(millis(100));
    assert_eq!(world.leaders(&job), [("a".to_owned(), 1)]);
    assert_eq!(world.counters().lies_refused, 1);
    world.run_until(completed(job));
    all_ends_well(&mut world);
}

/// A member signs another seal of a job that has completed: it changes nothing, and an alarm names it, once.
#[test]
fn a_seal_that_says_otherwise_is_an_alarm() {
    let mut world = World::seed(1_990).nodes(["a", "b", "c", "d"]);
    let job = world.submit("a", &job().tasks(4));
    world.run_until(completed(job));
    world.run_until_idle();
    for _ in 0..3 {
        world.forge_seal("d", "b", job);
        world.run_for(seconds(1));
    }
    assert_eq!(world.counters().two_seals, 1);
    world.run_until_idle();
    world.check_invariants();
    world.expect(completed(job));
}
