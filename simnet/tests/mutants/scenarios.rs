//! Runs in which certain mistakes show quickly, each from a seed. They pass on the core as it is.

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::Outcome;
use sinew_crdt_state::ids::JobId;
use sinew_scheduler::io::SubmitError;
use sinew_simnet::{
    DiskSetup, Distribution, Latency, Network, NodeSetup, Plan, World, completed, done, ended, failed, finished, job,
    millis, round, running, seconds, started, taken_over,
};

/// A node that leads and stores but runs nothing.
fn idle() -> NodeSetup {
    NodeSetup { cpu_milli: 0, ..NodeSetup::default() }
}

/// Four tasks on five nodes: whoever loses one, somebody has room for it at once.
fn with_room() -> Plan {
    job().tasks(4).lasting(seconds(4)).spread()
}

const SET: [&str; 3] = ["a", "b", "c"];

/// A worker is cut off just before its task ends, and its report arrives after the task was awarded to another.
pub(crate) fn late_result(seed: u64) {
    let mut world = World::seed(seed);
    world.join_as("brain", idle());
    let mut world = world.nodes(["w1", "w2"]);
    let task = world.submit("brain", &job().cpus(1.0).lasting_exactly(millis(1_500)));
    world.run_until(started(task));
    let (first, second) = if world.holds(&running(task, "w1")) { ("w1", "w2") } else { ("w2", "w1") };
    let until = 700 + world.pick(700) as u64;
    world.run_for(millis(until));
    world.partition([first], ["brain", second]);
    world.run_for(millis(1_900));
    world.check_safety();
    world.heal();
    world.run_until_idle();
    world.check_invariants();
    assert!(world.counters().stalled_frames > 0);
}

/// A member forges a cancel and reports a task that others run.
pub(crate) fn liar(seed: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
    let job = world.submit("a", &job().tasks(12).lasting(seconds(1)).spread());
    world.run_until(running(job, "b"));
    let wait = world.pick(900) as u64;
    world.run_for(millis(wait));
    world.forge_cancel("d", "a", job);
    world.forge_report("d", "a", job);
    world.run_until(ended(job));
    world.run_until_idle();
    world.check_invariants();
    world.expect(completed(job));
    assert!(world.counters().lies == 2 && world.counters().lies_refused > 0);
    assert!(world.counters().bans > 0 && !world.is_banned("a", "b"));
}

/// The power goes everywhere at the moment of an acknowledgement, and the brain's disk with it.
pub(crate) fn power_cut(seed: u64) {
    let mut world = World::seed(seed).nodes(SET);
    let job = world.submit("a", &job().tasks(3));
    for name in SET {
        world.kill(name);
    }
    world.wipe("a");
    world.run_for(millis(300));
    for name in SET {
        world.restart(name);
    }
    world.run_until_idle();
    world.check_invariants();
    world.expect(completed(job));
}

/// A steward that knows the results loses its disk, the brain dies, and the other steward was cut off all along.
pub(crate) fn wiped_member(seed: u64) {
    let mut world = World::seed(seed).nodes(SET);
    let job = world.submit("a", &job().tasks(40).lasting(millis(300)));
    world.run_until(done(job, 0, 4));
    world.partition(["c"], ["a", "b"]);
    world.run_until(done(job, 0, 16));
    world.run_for(millis(500));
    world.kill("a");
    world.kill("b");
    world.wipe("b");
    world.heal();
    world.run_for(millis(200));
    world.restart("b");
    world.run_for(seconds(6));
    assert!(!world.holds(&taken_over(job)), "elected by two that know too little");
    world.restart("a");
    world.run_until(completed(job));
    world.run_until_idle();
    world.check_invariants();
}

/// Jobs end and are forgotten while a node that works for them is away.
pub(crate) fn forgotten(seed: u64) {
    let setup = NodeSetup { ledger_grace_ms: 4_000, ..NodeSetup::default() };
    let mut world = World::seed(seed).with(setup).nodes(["a", "b", "c", "d"]);
    let job = world.submit("a", &job().tasks(40).lasting(millis(400)).spread());
    world.run_for(seconds(2));
    world.kill("d");
    world.run_until(completed(job));
    world.run_for(seconds(20));
    world.restart("d");
    world.run_for(seconds(90));
    world.run_until_idle();
    world.check_invariants();
    assert_eq!(world.entries(), [0, 0, 0, 0], "everything is forgotten");
}

/// A node is lost for good as soon as a round is complete.
pub(crate) fn disk_lost(seed: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
    let job = world.submit("a", &round(12, 6).lasting(millis(200)));
    world.run_until(completed(job));
    let name = ["b", "c", "d"][world.pick(3)];
    world.kill(name);
    world.wipe(name);
    world.run_for(seconds(1));
    world.restart(name);
    world.run_until_idle();
    world.check_invariants();
}

/// A job is cancelled while it runs.
pub(crate) fn cancelled(seed: u64) {
    let mut world = World::seed(seed).nodes(SET);
    let job = world.submit("a", &job().tasks(20).lasting(seconds(5)));
    world.run_until(started(job));
    let wait = world.pick(2_000) as u64;
    world.run_for(millis(wait));
    world.cancel_later("b", job);
    world.run_until_within(finished(job, Outcome::Cancelled), seconds(3));
    world.check_safety();
    world.run_until_idle();
    world.check_invariants();
}

/// A job that fills every node is cancelled, and another waits for its room. Programs take their time to end.
pub(crate) fn cancelled_in_order(seed: u64) {
    let mut world = World::seed(seed).nodes(SET);
    let work = || job().tasks(40).cpus(1.0).lasting(seconds(20)).spread();
    let first = world.submit("a", &work());
    world.run_until(started(first));
    world.run_for(seconds(1));
    let next = world.submit("b", &work());
    world.run_for(seconds(1));
    assert_eq!(world.cancel("a", first), Ok(()));
    let left = world.executions_of(&first).filter(|e| e.end.is_none()).count();
    assert_eq!(left, 0, "programs of a job that is said to be cancelled run on");
    world.run_until(started(next));
    world.run_until_idle();
    world.check_invariants();
}

/// A node that everybody hears and that hears nobody is asked to take a job.
pub(crate) fn deaf_submitter(seed: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c", "d", "e"]);
    let wait = world.pick(500) as u64;
    world.run_for(millis(wait));
    for from in ["a", "b", "c", "d"] {
        world.cut_one_way(from, "e");
    }
    world.submit_later("e", &job().tasks(4).lasting(seconds(2)));
    world.run_for(seconds(20));
    world.heal();
    world.run_until_idle();
    world.check_invariants();
}

/// A submit is given up by a node that is cut off, and the node is restarted.
pub(crate) fn withdrawn(seed: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c", "d", "e"]);
    world.partition(["a"], ["b", "c", "d", "e"]);
    let answer = world.try_submit("a", &job());
    assert!(matches!(answer, Err(SubmitError::Unknown { withdrawing: true, .. })), "{answer:?}");
    let wait = world.pick(2_000) as u64;
    world.run_for(millis(500 + wait));
    world.kill("a");
    world.restart("a");
    world.heal();
    world.run_until_idle();
    world.check_invariants();
    assert_eq!(world.executions_of_all(), 0, "a withdrawn job ran");
}

/// A cancel is asked for where the brain cannot hear it, and the job ends meanwhile.
pub(crate) fn far_cancel(seed: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c", "d", "e"]);
    let job = world.submit("a", &job().tasks(20).lasting(millis(400)));
    world.run_until(started(job));
    let far = world.bystanders(&job)[0].clone();
    let near: Vec<&str> = ["a", "b", "c", "d", "e"].into_iter().filter(|n| *n != far).collect();
    world.partition([far.as_str()], near.iter().copied());
    world.cancel_later(&far, job);
    world.run_until(completed(job));
    world.heal();
    world.run_until_idle();
    world.check_invariants();
}

/// A request is asked again after its node was restarted.
pub(crate) fn tried_again(seed: u64) {
    let mut world = World::seed(seed).nodes(SET);
    let plan = job().tasks(2).lasting(seconds(3));
    world.submit_keyed("a", &plan, "k");
    let wait = world.pick(1_000) as u64;
    world.run_for(millis(300 + wait));
    world.kill("a");
    world.restart("a");
    world.submit_keyed("a", &plan, "k");
    world.run_for(seconds(1));
    world.run_until_idle();
    world.check_invariants();
}

/// A node that is cut off takes a job; later its disk is lost.
pub(crate) fn alone(seed: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c", "d", "e"]);
    world.partition(["e"], ["a", "b", "c", "d"]);
    let wait = world.pick(3_000) as u64;
    world.run_for(millis(11_000 + wait));
    let job = world.submit("e", &round(6, 3).lasting(millis(200)));
    world.run_until(completed(job));
    world.heal();
    world.run_for(seconds(30));
    world.kill("e");
    world.wipe("e");
    world.restart("e");
    world.run_until_idle();
    world.check_invariants();
}

/// A task fails once more often than its job tolerates.
pub(crate) fn failing(seed: u64) {
    let mut world = World::seed(seed).nodes(SET);
    let job = world.submit("a", &job().tasks(4).failing(0, 2, 4));
    world.run_until(failed(job, ErrorCode::Exit, 2));
    world.run_until_idle();
    world.check_invariants();
}

/// Nothing goes wrong.
pub(crate) fn calm(seed: u64) {
    let mut world = World::seed(seed).nodes(SET);
    for plan in [round(12, 3), job().tasks(9), job()] {
        let job = world.submit("b", &plan);
        world.run_until(completed(job));
    }
    world.run_until_idle();
    world.check_invariants();
}

/// A node other than `a` that works for the job, if any does, and the rest.
fn worker_of(world: &mut World, job: JobId) -> (&'static str, Vec<&'static str>) {
    let mut others = vec!["b", "c", "d", "e"];
    let busy: Vec<usize> = (0..4).filter(|i| world.holds(&running(job, others[*i]))).collect();
    let chosen = if busy.is_empty() { 0 } else { busy[world.pick(busy.len())] };
    (others.remove(chosen), others)
}

/// A worker is cut off while others have room for its tasks.
pub(crate) fn cut_off_worker(seed: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c", "d", "e"]);
    let job = world.submit("a", &with_room());
    let wait = 500 + world.pick(1_000) as u64;
    world.run_for(millis(wait));
    let (off, mut others) = worker_of(&mut world, job);
    others.push("a");
    world.partition([off], others);
    world.run_for(seconds(3));
    world.check_safety();
    world.heal();
    world.run_until(completed(job));
    world.run_until_idle();
    world.check_invariants();
}

/// A worker's daemon stands still for longer than its lease, and its tasks run on.
pub(crate) fn stalled_worker(seed: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c", "d", "e"]);
    let job = world.submit("a", &with_room());
    let wait = 500 + world.pick(1_000) as u64;
    world.run_for(millis(wait));
    let (off, _) = worker_of(&mut world, job);
    world.stall(off);
    world.run_for(seconds(2));
    world.check_safety();
    world.resume(off);
    world.run_until(completed(job));
    world.run_until_idle();
    world.check_invariants();
    assert!(world.counters().switched > 0 && world.counters().lost_leases > 0);
}

/// The brain and a worker are cut off from everybody else, where there is room.
pub(crate) fn split(seed: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c", "d", "e"]);
    let job = world.submit("a", &with_room());
    let wait = 500 + world.pick(1_000) as u64;
    world.run_for(millis(wait));
    let (with, others) = worker_of(&mut world, job);
    world.partition(["a", with], others);
    world.run_for(seconds(4));
    world.check_safety();
    world.heal();
    world.run_until(completed(job));
    // Looked at long before the world loses patience: a brain that goes on all the same fills every moment until then.
    world.run_for(seconds(10));
    let leaders = world.leaders(&job);
    assert!(leaders.is_empty(), "not at rest: {leaders:?} lead what is over");
    world.run_until_idle();
    world.check_invariants();
}

/// Answers to a worker's beats arrive late, after the way of the beats was cut.
pub(crate) fn late_answers(seed: u64) {
    let mut world = World::seed(seed);
    world.join_as("brain", idle());
    let mut world = world.nodes(["w1", "w2"]);
    let task = world.submit("brain", &job().lasting(seconds(6)));
    world.run_until(started(task));
    let worker = if world.holds(&running(task, "w1")) { "w1" } else { "w2" };
    world.run_for(seconds(1));
    world.cut_one_way("brain", worker);
    let wait = 50 + world.pick(100) as u64;
    world.run_for(millis(wait));
    world.cut_one_way(worker, "brain");
    world.run_for(millis(650));
    world.mend_one_way("brain", worker);
    world.run_for(seconds(2));
    world.check_safety();
    world.heal();
    world.run_until(completed(task));
    world.run_until_idle();
    world.check_invariants();
}

/// One steward cannot hear the brain, which the other hears well.
pub(crate) fn bad_link(seed: u64) {
    let mut world = World::seed(seed).nodes(SET);
    let job = world.submit("a", &job().tasks(30).lasting(seconds(1)));
    let wait = world.pick(1_000) as u64;
    world.run_for(millis(wait));
    world.partition(["a"], ["c"]);
    world.run_for(seconds(4));
    assert!(!world.holds(&taken_over(job)), "a brain that a majority hears was deposed");
    world.heal();
    world.run_until(completed(job));
    world.run_until_idle();
    world.check_invariants();
}

/// The brain dies while its workers run and others have room.
pub(crate) fn takeover_with_room(seed: u64) {
    let mut world = World::seed(seed);
    world.join_as("a", idle());
    let mut world = world.nodes(["b", "c", "d", "e", "f"]);
    let job = world.submit("a", &with_room());
    let wait = 500 + world.pick(1_000) as u64;
    world.run_for(millis(wait));
    world.kill("a");
    world.run_until_within(taken_over(job), seconds(3));
    world.run_for(seconds(1));
    world.check_safety();
    world.restart("a");
    world.run_until(completed(job));
    world.run_until_idle();
    world.check_invariants();
}

/// A verdict is held up on its way to the stewards until they have elected another brain; the worker is gone by then, and the
/// new brain's first word is held up as well.
pub(crate) fn late_replication(seed: u64) {
    let mut world = World::seed(seed).with(idle()).nodes(SET);
    let job = world.submit("a", &job().lasting_exactly(seconds(1)));
    world.join_as("d", NodeSetup::default());
    world.join_as("e", NodeSetup::default());
    world.run_until(started(job));
    let (worker, other) = if world.holds(&running(job, "d")) { ("d", "e") } else { ("e", "d") };
    world.run_for(millis(900));
    world.cut_one_way("a", "b");
    world.cut_one_way("a", "c");
    world.run_for(millis(200));
    world.partition(["a"], ["b", "c", other]);
    world.kill(worker);
    let (candidate, voter) = vote(&mut world, job);
    world.cut_one_way(candidate, voter);
    let wait = world.pick(400) as u64;
    world.run_for(millis(wait));
    let loss = 4_000 * world.pick(2) as u64;
    world.lose_frames(loss);
    world.heal();
    world.run_for(seconds(1));
    world.check_safety();
    world.lose_frames(0);
    world.restart(worker);
    world.run_until(completed(job));
    world.run_until_idle();
    world.check_invariants();
}

/// Runs until both stewards have voted; tells who asked, then who followed.
fn vote(world: &mut World, job: JobId) -> (&'static str, &'static str) {
    let voted = |world: &World, name: &str| world.state(name, &job).is_some_and(|s| !s.votes.is_empty());
    while !voted(world, "b") && !voted(world, "c") {
        assert!(world.step());
    }
    let (candidate, voter) = if voted(world, "b") { ("b", "c") } else { ("c", "b") };
    while !voted(world, voter) {
        assert!(world.step());
    }
    (candidate, voter)
}

/// The syncs of a submit fail on both stewards, and at its acknowledgement the power goes everywhere, with the brain's disk.
pub(crate) fn failed_sync(seed: u64) {
    let mut world = World::seed(seed).nodes(SET);
    for name in ["b", "c"] {
        world.fail_next_sync(name);
    }
    let job = world.submit("a", &job().tasks(3));
    for name in SET {
        world.kill(name);
    }
    world.wipe("a");
    world.run_for(millis(300));
    for name in SET {
        world.restart(name);
    }
    world.run_until_idle();
    world.check_invariants();
    world.expect(completed(job));
    assert!(world.counters().failed_syncs >= 1);
}

/// The disk of the node that leads a job, and runs some of it, does not answer any more: the others complete it meanwhile.
pub(crate) fn hung_disk(seed: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
    let job = world.submit("a", &job().tasks(40).lasting(seconds(1)).spread());
    world.run_until(running(job, "a"));
    world.run_until(done(job, 0, 6));
    world.hang_disk("a");
    world.run_until_within(completed(job), seconds(45));
    world.check_safety();
    world.thaw_disk("a");
    world.run_until_idle();
    world.check_invariants();
}

/// As with a wiped member, but its disk is still there, and not what it was.
pub(crate) fn rotten_member(seed: u64) {
    let mut world = World::seed(seed).nodes(SET);
    let job = world.submit("a", &job().tasks(40).lasting(millis(300)));
    world.run_until(done(job, 0, 4));
    world.partition(["c"], ["a", "b"]);
    world.run_until(done(job, 0, 16));
    world.run_for(millis(500));
    world.kill("a");
    world.kill("b");
    world.rot("b");
    world.heal();
    world.run_for(millis(200));
    world.restart("b");
    world.run_for(seconds(6));
    assert!(!world.holds(&taken_over(job)), "elected by two that know too little");
    world.restart("a");
    world.run_until(completed(job));
    world.run_until_idle();
    world.check_invariants();
}

/// Two jobs leave the same output. The first one is forgotten, and what was its is let go of as soon as the second is complete.
pub(crate) fn equal_jobs(seed: u64) {
    let setup = NodeSetup { ledger_grace_ms: 4_000, ..NodeSetup::default() };
    let mut world = World::seed(seed).with(setup).nodes(SET);
    let plan = job().with_equal_outputs("same").lasting(millis(200)).spread();
    let first = world.submit("a", &plan);
    world.run_until(completed(first));
    world.run_for(seconds(15));
    let second = world.submit("b", &plan);
    world.run_until(completed(second));
    for name in SET {
        world.prune_outputs(name);
    }
    world.check_recorded_copies();
}

/// A job completes: what its results record is there at that moment.
pub(crate) fn just_completed(seed: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c", "d", "e"]);
    let job = world.submit("a", &job().with_outputs().lasting(millis(200)).spread());
    world.run_until(completed(job));
    world.check_recorded_copies();
    world.run_until_idle();
    world.check_invariants();
}

/// A holder of a job's outputs is lost for good, and a while later the other one.
pub(crate) fn gone_for_good(seed: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c", "d", "e"]);
    let job = world.submit("a", &job().tasks(2).with_outputs().lasting(millis(200)).spread());
    world.run_until(completed(job));
    world.run_until_idle();
    for _ in 0..2 {
        let lost = world.keepers(&job, 0, 0)[0].clone();
        world.kill(&lost);
        world.wipe(&lost);
        world.run_for(seconds(75));
        world.check_copied_again();
    }
}

/// Two rounds have the same inputs. The first one is forgotten, and what was its is let go of once the second is acknowledged.
pub(crate) fn equal_inputs(seed: u64) {
    let setup = NodeSetup { ledger_grace_ms: 4_000, ..NodeSetup::default() };
    let mut world = World::seed(seed).with(setup).nodes(SET);
    let plan = round(6, 2).with_equal_outputs("same").lasting(millis(200)).spread();
    let first = world.submit("a", &plan);
    world.run_until(completed(first));
    world.run_for(seconds(15));
    let second = world.submit("a", &plan);
    for name in SET {
        world.prune_outputs(name);
    }
    let keepers = world.input_keepers(&second);
    assert!(keepers.len() >= 2, "acknowledged, and its inputs are kept by {keepers:?}");
    world.run_until(completed(second));
    world.run_until_idle();
    world.check_invariants();
}

/// A steward that knows the results comes back on an old copy of its disk, the brain dies, and the other steward was cut off.
pub(crate) fn rolled_back(seed: u64) {
    let mut world = World::seed(seed).nodes(SET);
    let job = world.submit("a", &job().tasks(40).lasting(millis(300)));
    world.run_until(done(job, 0, 4));
    let old = world.snapshot("b");
    world.partition(["c"], ["a", "b"]);
    world.run_until(done(job, 0, 16));
    world.run_for(millis(500));
    world.kill("b");
    world.roll_back("b", old);
    world.restart("b");
    world.run_for(millis(100));
    world.kill("a");
    world.heal();
    world.run_for(seconds(6));
    assert!(!world.holds(&taken_over(job)), "elected by two that know too little");
    world.restart("a");
    world.run_until(completed(job));
    world.run_until_idle();
    world.check_invariants();
}

/// The submitter's power goes between a majority's syncs and its own, and it takes another job as soon as it is up.
pub(crate) fn slow_submitter(seed: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c", "d", "e"]);
    world.submit("a", &job());
    world.run_until_idle();
    world.run_for(seconds(1));
    world.set_disk("a", DiskSetup::syncing_in(Distribution::Uniform { low: 5_000_000, high: 6_000_000 }));
    let first = world.submit("a", &job().tasks(2).lasting(seconds(5)));
    world.cut_power("a");
    world.set_disk("a", DiskSetup::default());
    world.restart("a");
    world.submit_later("a", &job().tasks(2));
    world.run_until(completed(first));
    world.run_until_idle();
    world.check_invariants();
}

/// A job runs whose number is that of a forgotten one, and all nodes are started again.
pub(crate) fn one_number_for_two(seed: u64) {
    let setup = NodeSetup { ledger_grace_ms: 4_000, ..NodeSetup::default() };
    let mut world = World::seed(seed).with(setup).nodes(["a", "b", "c", "d", "e"]);
    let first = world.submit("a", &job());
    let twin = world.submit_with_number_of("a", &job().tasks(2).lasting(seconds(40)), &first);
    world.run_until(completed(first));
    world.run_until(started(twin));
    world.run_for(seconds(15));
    for name in ["a", "b", "c", "d", "e"] {
        world.kill(name);
        world.run_for(seconds(1));
        world.restart(name);
        world.run_for(seconds(2));
    }
    assert!(world.entries().iter().all(|entries| *entries == 1), "a job that runs is forgotten");
    world.run_until(completed(twin));
    world.check_safety();
}

/// A leader that runs nothing itself, and four workers with some room to spare, one of which does not reach the stewards.
fn out_of_reach_of_stewards(seed: u64) -> (World, JobId, [String; 2], String) {
    let mut world = World::seed(seed).with(idle()).nodes(["a"]).with(NodeSetup::default()).nodes(["b", "c", "d", "e"]);
    let task = world.submit("a", &job().tasks(6).lasting(seconds(6)).spread());
    world.run_for(millis(500));
    let stewards: [String; 2] = world.stewards(&task).try_into().expect("two");
    let others = world.bystanders(&task);
    let far = others.iter().find(|n| *n != "a" && !world.running_on(n, &task).is_empty()).expect("a worker").clone();
    world.partition([far.as_str()], stewards.iter().map(String::as_str));
    (world, task, stewards, far)
}

/// The leader's process ends and is back within an instant, and takes another job at once: its beats for that one go on, so nobody
/// waits for silence, while leases that it renewed a moment ago live on.
pub(crate) fn quick_return(seed: u64) {
    let (mut world, task, _, far) = out_of_reach_of_stewards(seed);
    // Stewards ask about a job of which they heard nothing for two seconds.
    let wait = 300 + world.pick(2_200) as u64;
    world.run_for(millis(wait));
    world.kill("a");
    let away = 10 + world.pick(60) as u64;
    world.run_for(millis(away));
    world.restart("a");
    world.partition([far.as_str()], ["a"]);
    world.submit_later("a", &job().lasting(millis(100)));
    for _ in 0..60 {
        world.run_for(millis(50));
        world.check_safety();
    }
    world.heal();
    world.run_until(ended(task));
    world.run_until_idle();
    world.check_invariants();
}

/// A steward has not heard the leader for long. The leader, which led on with the other steward's answers, ends and is back
/// within an instant.
pub(crate) fn deaf_heir(seed: u64) {
    let (mut world, task, [b, c], _) = out_of_reach_of_stewards(seed);
    world.cut_one_way("a", &b);
    world.partition([b.as_str()], [c.as_str()]);
    world.run_for(seconds(2));
    world.kill("a");
    let away = 10 + world.pick(60) as u64;
    world.run_for(millis(away));
    world.restart("a");
    world.mend_one_way("a", &b);
    for _ in 0..60 {
        world.run_for(millis(50));
        world.check_safety();
    }
    world.heal();
    world.run_until(ended(task));
    world.run_until_idle();
    world.check_invariants();
}

/// The submitter is far from everybody.
pub(crate) fn far_submitter(seed: u64) {
    let us = |from: usize, to: usize| if (from == 3) == (to == 3) { 500 } else { 300_000 };
    let median_us = (0..4).map(|from| (0..4).map(|to| us(from, to)).collect()).collect();
    let network = Network { latency: Latency::Regions { median_us, sigma: 0.1 }, ..Network::lan() };
    let mut world = World::seed(seed).network(network).nodes(["a", "b", "c", "far"]);
    world.run_for(seconds(10));
    let task = world.submit("far", &job().tasks(6).lasting(seconds(2)).spread());
    world.run_until_within(completed(task), seconds(60));
    world.run_until_idle();
    world.check_invariants();
}
