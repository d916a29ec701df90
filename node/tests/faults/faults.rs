//! `kill -9` of workers, brains and submitters while a round runs, and nodes that are taken down in good order.

use std::collections::BTreeSet;

use sinew_node::api::Request;
use sinew_node::local_mesh::LocalNode;

use crate::support::{REAWARD_MAX_MS, Round, World, events};

/// Long enough that faults hit in the middle, short enough for a test.
const ROUND: Round = Round { chunks: 24, map_s: 0.4, reduce_s: 0.1, partitions: 4 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_with_running_chunks_loses_no_time_and_no_result() {
    let mut world = World::new(3).await;
    let job = world.submit(0, &ROUND).await;
    let pid = world.pid(2);
    crate::support::until("node 2 maps", async || (!world.running("map", pid).is_empty()).then_some(())).await;
    let killed = world.kill(2);
    let running = world.running("map", pid);
    assert!(!running.is_empty(), "the worker was killed with chunks running");
    let revoked = world
        .sees(0, &job, "its award is revoked", |_, timeline| {
            events(timeline, "revoke").find(|e| e.detail.contains("lost")).map(|e| e.at_ms)
        })
        .await;
    world.check(0, &job, &ROUND).await;
    let again = |task: &u32| world.journal().iter().any(|l| l.task == *task && l.started && l.at_ms > killed);
    // A chunk that was finished and reported at that very moment need not run again, the others did.
    assert!(running.iter().any(again), "what ran on the lost worker ran elsewhere");
    let restarted = world.journal().into_iter().filter(|l| l.started && l.phase == "map" && running.contains(&l.task));
    let restarted = restarted.filter(|l| l.pid != pid && l.at_ms > killed).map(|l| l.at_ms - killed).min();
    let restarted = restarted.expect("a chunk ran again");
    eprintln!(
        "worker killed: award revoked after {} ms, its chunk running again after {restarted} ms",
        revoked - killed
    );
    assert!(restarted < REAWARD_MAX_MS, "{restarted} ms");
    world.converged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_brain_killed_after_a_third_is_succeeded_and_finished_chunks_stay_finished() {
    let mut world = World::new(3).await;
    let job = world.submit(0, &ROUND).await;
    let brain = world
        .sees(0, &job, "a third is accepted", |view, _| {
            (view.placements.iter().map(|p| u64::from(p.len)).sum::<u64>() >= u64::from(ROUND.chunks) / 3)
                .then_some(view.brain)
        })
        .await;
    assert_eq!(world.number(brain.expect("brain")), 0);
    let mut before: BTreeSet<u32> = world.accepted(1, &job).await.into_iter().collect();
    before.extend(world.accepted(2, &job).await);
    let pid = world.pid(0);
    let killed = world.kill(0);
    // What had ended on the others was finished too, accepted or not.
    let ended = world.journal().into_iter().filter(|l| !l.started && l.phase == "map" && l.pid != pid);
    let ended: BTreeSet<u32> = ended.filter(|l| l.at_ms <= killed).map(|l| l.task).collect();
    assert!(before.len() < ROUND.chunks as usize, "the brain was killed in the middle of the map phase");
    takeover(&world, &job, killed).await;
    world.check(1, &job, &ROUND).await;
    let starts = world.starts("map");
    for task in before.union(&ended) {
        assert_eq!(starts[task], 1, "chunk {task} was finished and ran again: {:?}", world.journal());
    }
    let again: Vec<&u32> = starts.iter().filter(|(_, n)| **n > 1).map(|(t, _)| t).collect();
    eprintln!("finished before: {before:?} and {ended:?}; run twice: {again:?}");
    // The old brain comes back, and learns how it ended.
    world.mesh.nodes[0].start().await.expect("restart");
    world.check(0, &job, &ROUND).await;
    world.converged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_brain_killed_during_the_reduce_is_succeeded() {
    let mut world = World::new(3).await;
    let round = Round { reduce_s: 1.0, map_s: 0.1, partitions: 8, ..ROUND };
    let job = world.submit(0, &round).await;
    crate::support::until("a reducer runs", async || (!world.starts("reduce").is_empty()).then_some(())).await;
    let killed = world.kill(0);
    assert!(
        world.journal().iter().filter(|l| l.phase == "reduce" && !l.started).count() < 8,
        "killed during the reduce"
    );
    takeover(&world, &job, killed).await;
    world.check(1, &job, &round).await;
    assert!(world.starts("map").values().all(|n| *n == 1), "no chunk was mapped again: {:?}", world.starts("map"));
    world.converged().await;
}

/// A steward leads now; says how long that took.
async fn takeover(world: &World, job: &str, killed: u64) {
    let (term, led, awarded) = world
        .sees(1, job, "a steward takes over", |view, timeline| {
            let led = events(timeline, "lead").map(|e| e.at_ms).find(|at| *at >= killed)?;
            let awarded = events(timeline, "award").map(|e| e.at_ms).find(|at| *at >= led)?;
            Some((view.term, led, awarded))
        })
        .await;
    assert!(term > 1, "term {term}");
    eprintln!("brain killed: successor after {} ms, its first award after {} ms", led - killed, awarded - killed);
    assert!(awarded - killed < REAWARD_MAX_MS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_goes_on_after_all_three_were_killed_and_restarted() {
    let mut world = World::new(3).await;
    let job = world.submit(0, &ROUND).await;
    let some = |view: &sinew_scheduler::view::JobView| view.placements.iter().map(|p| p.len).sum::<u32>() >= 4;
    for node in 1..3 {
        world.sees(node, &job, "a few chunks are accepted", |view, _| some(view).then_some(())).await;
    }
    let mut before: BTreeSet<u32> = world.accepted(1, &job).await.into_iter().collect();
    let also: BTreeSet<u32> = world.accepted(2, &job).await.into_iter().collect();
    before.retain(|t| also.contains(t));
    let pids: Vec<u32> = (0..3).map(|n| world.pid(n)).collect();
    for node in 0..3 {
        world.kill(node);
    }
    assert!(pids.iter().any(|pid| !world.running("map", *pid).is_empty()), "killed with chunks running");
    assert!(before.len() < ROUND.chunks as usize, "killed in mid-round");
    futures::future::join_all(world.mesh.nodes.iter_mut().map(LocalNode::start))
        .await
        .into_iter()
        .for_each(|started| started.expect("restart"));
    assert!((0..3).all(|n| !pids.contains(&world.pid(n))), "new processes");
    let term = world.sees(0, &job, "someone leads again", |view, _| (view.term > 1).then_some(view.term)).await;
    eprintln!("all three killed: {} of {} chunks were accepted, going on in term {term}", before.len(), ROUND.chunks);
    world.check(0, &job, &ROUND).await;
    let starts = world.starts("map");
    for task in &before {
        assert_eq!(starts[task], 1, "chunk {task} was accepted on two disks and ran again");
    }
    world.converged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledged_job_outlives_its_submitter() {
    let mut world = World::new(3).await;
    let round = Round { chunks: 6, map_s: 0.2, ..ROUND };
    let client = world.mesh.nodes[0].client();
    let job = client.submit(world.draft(&round), |_, _, _| {}).await.expect("submit").to_string();
    let killed = world.kill(0);
    // Its inputs cannot be read from the submitter's disk any more either.
    std::fs::remove_dir_all(&world.mesh.nodes[0].data_dir).expect("remove");
    takeover(&world, &job, killed).await;
    world.check(1, &job, &round).await;
    world.check(2, &job, &round).await;
    world.converged().await;
}

/// A worker is taken down in good order, then the brain: neither costs the round an attempt, nobody calls them lost, and the round
/// ends as if nothing were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_taken_down_hand_their_work_on() {
    let mut world = World::new(4).await;
    let job = world.submit(1, &ROUND).await;
    let pid = world.pid(2);
    crate::support::until("node 2 maps", async || (!world.running("map", pid).is_empty()).then_some(())).await;
    for node in [2, 1] {
        let id = world.mesh.nodes[node].id;
        world.mesh.nodes[node].client().act(&Request::Shutdown { wait: false, deadline_ms: None }).await.expect("told");
        let client = world.mesh.nodes[0].client();
        let state_but = async |passing: &str| {
            let other = async || {
                let peers = client.peers().await.expect("peers");
                peers.into_iter().find(|peer| peer.node == id).map(|peer| peer.state).filter(|state| state != passing)
            };
            crate::support::until("node 0 sees it differently", other).await
        };
        assert_eq!(state_but("healthy").await, "left");
        // What is left of its process may take a moment.
        world.kill(node);
        if node == 2 {
            // Of three that decide, one at a time.
            world.mesh.nodes[node].start().await.expect("restart");
            assert_eq!(state_but("left").await, "healthy", "one that comes back is simply there");
        }
    }
    let failed = world
        .sees(0, &job, "it ends under another brain", |view, timeline| {
            let reports: Vec<_> = events(timeline, "report").map(|report| report.detail.clone()).collect();
            (view.is_ended() && !reports.is_empty()).then_some(reports)
        })
        .await;
    assert!(failed.iter().all(|report| report.contains(" 0 failed")), "ending a node failed tasks: {failed:?}");
    world.check(0, &job, &ROUND).await;
}

/// `sinew down --wait`: what runs there ends there, nothing new begins, and then the daemon ends by itself. With a deadline the rest is
/// handed on when that is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_waits_ends_what_it_began() {
    let mut world = World::new(4).await;
    let round = Round { chunks: 40, map_s: 0.8, ..ROUND };
    let job = world.submit(1, &round).await;
    for (node, deadline_ms) in [(2, None), (3, Some(100))] {
        let (pid, client) = (world.pid(node), world.mesh.nodes[node].client());
        crate::support::until("it maps", async || (!world.running("map", pid).is_empty()).then_some(())).await;
        client.act(&Request::Shutdown { wait: true, deadline_ms }).await.expect("told");
        crate::support::until("its daemon ended", async || client.peers().await.err()).await;
        world.kill(node);
        // What began there and did not end.
        let cut = world.running("map", pid);
        assert_eq!(cut.is_empty(), deadline_ms.is_none(), "deadline {deadline_ms:?} ms: {cut:?} were cut short");
        // Of three that decide and two that hold an output, one at a time.
        world.mesh.nodes[node].start().await.expect("restart");
        let (first, id) = (world.mesh.nodes[0].client(), world.mesh.nodes[node].id);
        let healthy = async || {
            let peers = first.peers().await.expect("peers");
            peers.into_iter().find(|peer| peer.node == id && peer.state == "healthy")
        };
        crate::support::until("it is back", healthy).await;
    }
    assert!(world.starts("map").len() < round.chunks as usize, "the round was over before");
    world.check(0, &job, &round).await;
}
