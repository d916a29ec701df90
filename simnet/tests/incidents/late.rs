//! Messages that come late, across a cut that has ended: an award, a word of consent, a brain's own return.

use sinew_simnet::{NodeSetup, World, completed, done, job, micros, millis, round, running, seconds, taken_over};

use crate::{all_ends_well, brain_and_workers, cores};

/// Awards are held up on their way to a worker for longer than leases last: their brain has given them up when they arrive,
/// and the tasks run elsewhere. The worker takes none of them.
#[test]
fn awards_that_arrive_after_they_were_given_up() {
    let mut held_up = 0;
    for seed in 2_000..2_010 {
        let workers = ["w1", "w2", "w3"];
        let mut world = World::seed(seed).with(cores(0)).nodes(["brain"]).with(cores(16)).nodes(workers);
        let submits: Vec<_> = (0..20)
            .map(|_| {
                world.run_for(micros(300));
                world.submit_later("brain", &job().lasting(seconds(5)))
            })
            .collect();
        world.cut_one_way("brain", "w1");
        world.run_for(millis(3_500));
        held_up += world.counters().lost_leases;
        world.mend_one_way("brain", "w1");
        world.run_for(millis(500));
        world.check_safety();
        all_ends_well(&mut world);
        assert_eq!(world.acknowledged(), submits.len());
    }
    assert!(held_up > 0, "no award was given up");
}

/// The brain is alone with two workers, each steward is alone. Then one steward is back, whose requests for votes were held
/// up: the brain, out of touch until then, consents to them, and in the same moment is in charge again, as that steward
/// answers it. The steward has heard the brain now, and does not stand against it, though the other steward would vote for it.
#[test]
fn consent_that_comes_with_the_brain_itself() {
    for seed in 2_010..2_030 {
        let mut world = World::seed(seed).with(cores(0)).nodes(["a"]).with(cores(2)).nodes(["b", "c", "d", "e"]);
        let job = world.submit("a", &job().tasks(12).lasting(millis(2_500)).spread());
        world.run_until(running(job, "e"));
        let (stewards, others) = (world.stewards(&job), world.bystanders(&job));
        let [b, c] = [0, 1].map(|n| stewards[n].as_str());
        let [d, e] = [0, 1].map(|n| others[n].as_str());
        world.partition(["a", d, e], [b, c]);
        world.partition([b], [c]);
        world.run_for(millis(4_000));
        assert!(world.running_on(d, &job).is_empty(), "nobody may decide");
        for (ways, wait) in [([("a", b), (b, "a")], 150), ([(b, c), (c, b)], 3_000)] {
            for (from, to) in ways {
                world.mend_one_way(from, to);
            }
            world.run_for(millis(wait));
        }
        world.check_safety();
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert!(world.counters().stalled_frames > 0);
    }
}

/// A steward promised another term on the strength of consent that was held up, while the brain was in charge with the other
/// steward. Told so, the brain steps down, but does not vote for the steward before the leases that it renewed have run out:
/// their holder is out of the steward's reach.
#[test]
fn a_brain_that_steps_down_outlasts_its_leases() {
    let mut stepped_down = 0;
    for seed in 2_030..2_050 {
        let mut world = brain_and_workers(seed, ["w1", "w2", "w3"]);
        let job = world.submit("brain", &job().tasks(2).lasting(seconds(6)).spread());
        world.run_for(millis(500));
        let (stewards, others) = (world.stewards(&job), world.bystanders(&job));
        let ([b, c], d) = ([0, 1].map(|n| stewards[n].as_str()), others[0].as_str());
        world.partition([b], [d]);
        // Both are deaf to the brain; the consent of one does not reach the other.
        world.cut_one_way("brain", b);
        world.cut_one_way("brain", c);
        world.cut_one_way(c, b);
        world.run_for(millis(3_000));
        // The brain is heard by one of them again, and goes on.
        world.mend_one_way("brain", c);
        world.run_for(millis(3_000));
        // Now the other one gets the consent, and a little later hears the brain.
        world.mend_one_way(c, b);
        world.run_for(millis(350));
        let busy = !world.running_on(d, &job).is_empty() && world.leaders(&job) == [("brain".to_owned(), 1)];
        world.mend_one_way("brain", b);
        world.run_for(millis(400));
        stepped_down += u32::from(busy && !world.leaders(&job).contains(&("brain".to_owned(), 1)));
        world.run_for(seconds(3));
        world.check_safety();
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
    assert!(stepped_down > 0, "no brain stepped down with a task running");
}

/// The brain is away while its stewards bring its job to the end, seal it, and perhaps are started anew: none of them watches
/// the job any more. Back among them, the brain learns that it is over before it decides anything.
#[test]
fn a_brain_that_is_back_after_the_end() {
    for seed in 2_070..2_086 {
        let mut world = World::seed(seed).latency_us(10_000, 40_000).nodes(["a", "b", "c"]);
        let job = world.submit("a", &round(60, 6).lasting(millis(200)));
        world.run_until(done(job, 0, 20));
        world.partition(["a"], ["b", "c"]);
        world.run_until_within(taken_over(job), seconds(3));
        world.run_for(seconds(15));
        if seed % 2 == 0 {
            for steward in ["b", "c"] {
                world.kill(steward);
                world.restart(steward);
            }
        }
        world.run_for(seconds(3));
        let before = world.executions_of(&job).count();
        world.heal();
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert_eq!(world.executions_of(&job).count(), before, "nothing was started any more");
    }
}

/// The same, so late that the others have forgotten the job but for its receipt.
#[test]
fn a_brain_that_is_back_after_all_is_forgotten() {
    for seed in 2_060..2_066 {
        let setup = NodeSetup { ledger_grace_ms: 10_000, ..cores(2) };
        let mut world = World::seed(seed).with(setup).nodes(["a", "b", "c"]);
        let job = world.submit("a", &round(60, 6).lasting(millis(200)));
        world.run_until(done(job, 0, 20));
        world.partition(["a"], ["b", "c"]);
        world.run_until_within(taken_over(job), seconds(3));
        world.run_for(seconds(100));
        assert_eq!(world.entries()[1..], [0, 0], "they have forgotten it");
        let before = world.executions_of(&job).count();
        world.heal();
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert_eq!(world.executions_of(&job).count(), before, "nothing was started any more");
    }
}
