//! The network is cut in two while a round runs: only the side with a majority of the brain set goes on, there is one
//! result, and all ledgers are equal once the network is whole again.

use std::collections::BTreeMap;

use sinew_node::clock::unix_ms;
use sinew_scheduler::config::{FENCE_AFTER, IN_CHARGE_FOR};

use crate::net::{Net, is_available};
use crate::support::{Round, World, events, until};

const ROUND: Round = Round { chunks: 24, map_s: 0.4, reduce_s: 0.1, partitions: 4 };
/// Fencing may be late by a beat and a slow machine.
const LATE_MS: u64 = 1_000;

async fn mapping(world: &World, node: usize, job: &str) {
    let pid = world.pid(node);
    until("some chunks are accepted while the node maps", async || {
        let accepted = world.accepted(0, job).await.len();
        (accepted >= 3 && !world.running("map", pid).is_empty()).then_some(())
    })
    .await;
}

/// What a node believes to be finished.
async fn done(world: &World, node: usize, job: &str) -> u64 {
    world.job(node, job).await.0.phases.iter().map(|p| p.done).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_brain_cut_off_from_the_majority_decides_nothing_more() {
    if !is_available() {
        return;
    }
    let net = Net::new(3);
    let world = World::at(3, net.places()).await;
    let job = world.submit(0, &ROUND).await;
    mapping(&world, 0, &job).await;
    let cut = net.pull(0);
    let fenced = cut + FENCE_AFTER.as_ms() + IN_CHARGE_FOR.as_ms() + LATE_MS;
    until("the fencing time is over", async || (unix_ms() >= fenced).then_some(())).await;
    let stuck = done(&world, 0, &job).await;
    assert!(stuck < u64::from(ROUND.chunks), "the brain was cut off in the middle of the map phase");
    let led = world
        .sees(1, &job, "a steward leads", |view, timeline| {
            (view.term > 1).then(|| events(timeline, "lead").last().map(|e| e.at_ms))?
        })
        .await;
    eprintln!("brain cut off: successor after {} ms", led - cut);
    let (view, timeline) = world.sealed(1, &job).await;
    eprintln!("the majority sealed the job {} ms after the cut", unix_ms() - cut);
    assert_eq!(events(&timeline, "finish").count(), 1);
    // The other side is still cut off, and where it was.
    assert_eq!(done(&world, 0, &job).await, stuck, "the minority made no progress");
    let minority = world.job(0, &job).await.0;
    assert!(minority.term == 1 && minority.outcome.is_none(), "{minority:?}");
    let pid = world.pid(0);
    let late: Vec<_> = world.journal().into_iter().filter(|l| l.pid == pid && l.started && l.at_ms > fenced).collect();
    assert!(late.is_empty(), "the minority ran nothing: {late:?}");
    net.plug(0);
    let healed = unix_ms();
    world.converged().await;
    eprintln!("ledgers equal {} ms after healing", unix_ms() - healed);
    world.check(0, &job, &ROUND).await;
    assert_eq!(world.job(0, &job).await.0.placements, view.placements, "one result");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_cut_off_from_the_majority_is_replaced_and_its_late_results_refused() {
    if !is_available() {
        return;
    }
    let net = Net::new(3);
    let world = World::at(3, net.places()).await;
    let job = world.submit(0, &ROUND).await;
    mapping(&world, 2, &job).await;
    let pid = world.pid(2);
    let running = world.running("map", pid);
    let cut = net.pull(2);
    assert!(!running.is_empty(), "cut off with chunks running");
    let (view, timeline) = world.sealed(0, &job).await;
    eprintln!("the majority sealed the job {} ms after the cut", unix_ms() - cut);
    let revoked = events(&timeline, "revoke").find(|e| e.at_ms >= cut).expect("its award was revoked");
    let starts = |tasks: &[u32]| -> BTreeMap<u32, u64> {
        let again = world.journal().into_iter().filter(|l| l.phase == "map" && l.started && l.pid != pid);
        again.filter(|l| l.at_ms > cut && tasks.contains(&l.task)).map(|l| (l.task, l.at_ms - cut)).collect()
    };
    let again = starts(&running);
    assert!(!again.is_empty(), "its chunks ran elsewhere");
    eprintln!(
        "worker cut off: award revoked after {} ms, chunks running again after {again:?} ms",
        revoked.at_ms - cut
    );
    assert_eq!(view.term, 1, "the brain stayed");
    // The worker went on until its lease was over, and stopped then.
    let fenced = cut + FENCE_AFTER.as_ms() + LATE_MS;
    let late = world.journal().into_iter().filter(|l| l.pid == pid && l.at_ms > cut);
    let late: Vec<_> = late.collect();
    assert!(late.iter().all(|l| l.at_ms < fenced), "it stopped: {late:?}");
    let ended: Vec<u32> = late.iter().filter(|l| !l.started && l.phase == "map").map(|l| l.task).collect();
    assert!(!ended.is_empty(), "it finished something too late");
    let isolated = world.mesh.nodes[2].id;
    for task in &ended {
        let by = view.placements.iter().find(|p| p.phase == 0 && (p.start..p.start + p.len).contains(task));
        assert_ne!(by.expect("finished").node, isolated, "chunk {task} of the lost worker counts");
    }
    assert!(world.job(2, &job).await.0.outcome.is_none(), "the minority knows of no end");
    net.plug(2);
    let healed = unix_ms();
    world.converged().await;
    eprintln!("ledgers equal {} ms after healing", unix_ms() - healed);
    until("the late results arrive", async || {
        world.mesh.nodes[0].log().contains("refused a late result").then_some(())
    })
    .await;
    for node in 0..3 {
        world.check(node, &job, &ROUND).await;
    }
    assert_eq!(world.job(2, &job).await.0.placements, view.placements, "one result");
}
