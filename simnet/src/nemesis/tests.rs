//! Each class of faults strikes a mesh at work, is felt, and is taken back.

use std::collections::BTreeSet;

use sinew_scheduler::time::Span;

use super::{Class, Nemesis, schedule};
use crate::network::Network;
use crate::plan::{Plan, job, round};
use crate::world::World;

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const STEPS: u64 = 60;
const STEP: Span = Span::ms(500);
const FULL_EVERY: u64 = 15;
const SEED: u64 = 11;

/// A mesh with work to do for half a minute in which `class` strikes, and the nemesis that did so.
fn struck(seed: u64, class: Class) -> (World, Nemesis) {
    let mut world = World::seed(seed).nodes(NAMES);
    let classes: BTreeSet<Class> = [class].into();
    let strikes = schedule(seed, &classes, Span(STEP.0 * STEPS), 0.3);
    let mut nemesis = Nemesis::new(&mut world, strikes, vec![5]);
    for step in 0..STEPS {
        let end = world.now + STEP;
        let name = NAMES[usize::try_from(step % 5).unwrap()];
        if world.nodes[world.index(name)].is_awake() {
            let plan = if step % 4 == 0 { round(8, 3) } else { job().tasks(4) };
            let bounded = |plan: Plan| if class == Class::Hog { plan.limit(Span::ms(5_000)) } else { plan };
            world.submit_later(name, &bounded(plan.lasting(Span::ms(300)).spread()));
            if step % FULL_EVERY == 0 {
                // Takes all the room, so that the others have to advertise.
                let plan = job().tasks(24).lasting(Span::ms(2_500)).spread();
                world.submit_later(name, &bounded(plan));
            }
        }
        while world.now < end {
            let next = nemesis.next_at().map_or(end, |at| at.min(end));
            world.run_for(next - world.now);
            nemesis.act(&mut world);
        }
    }
    (world, nemesis)
}

/// Nothing of any strike is left.
fn is_as_before(world: &World) {
    assert_eq!(*world.network_now(), Network::default());
    assert_eq!((world.links.loss, world.all_cuts().len()), (0, 0));
    assert!(!world.overlay.attack.is_on() && world.fell.is_empty());
    for node in &world.nodes {
        assert!(
            node.is_awake() && node.crash_at.is_none() && !node.hogs && !node.setup.dials_out_only,
            "{}",
            node.name
        );
        assert!(!node.disk.failing && node.disk.setup == node.setup.disk, "{}", node.name);
        let off = node.clock.at(world.now).0.abs_diff(world.now.0);
        assert!(off < 1_000_000, "{}: the date is right again, the timers went their own way", node.name);
    }
}

#[test]
fn every_class_is_felt_and_taken_back() {
    for class in Class::ALL {
        let felt = (SEED..SEED + 4).any(|seed| {
            let (mut world, mut nemesis) = struck(seed, class);
            nemesis.heal(&mut world);
            let fired = nemesis.fired()[&class];
            assert!(fired.felt <= fired.struck, "{class}: {fired:?}");
            is_as_before(&world);
            world.run_until_idle();
            let found = world.violations_at_rest();
            assert!(found.iter().all(|v| world.is_excused(v)), "{class}: {found:?}");
            fired.felt > 0
        });
        assert!(felt, "{class} is never felt");
    }
}

/// A date that a strike set wrong is set right by as much, whatever else happened.
#[test]
fn dates_are_right_again() {
    let (mut world, mut nemesis) = struck(SEED, Class::Clock);
    let wrong = |world: &World| {
        let dates = NAMES.map(|name| world.shown(name).unix_ms);
        dates.iter().max().unwrap() - dates.iter().min().unwrap()
    };
    let jumps = world.counters.clock_jumps;
    nemesis.heal(&mut world);
    assert!(jumps > 4 && world.counters.clock_jumps % 2 == 0);
    assert!(wrong(&world) < 1_000, "only the drift is left: {} ms", wrong(&world));
}
