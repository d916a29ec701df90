//! Engines that are not there, or go away, and containers that are left over.

use std::time::Duration;

use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{CreateContainerOptionsBuilder, StartContainerOptions};
use sinew_crdt_state::error_code::ErrorCode;
use sinew_node::exec::docker::EngineSetting;
use sinew_node::exec::runner::{Health, Runner};

use crate::engine::TestEngine;
use crate::image::Recipe;
use crate::rig::{Rig, eventually, options};

/// Makes a container with these labels, as somebody else would, and gives its id.
fn foreign(rig: &Rig, image: &str, labels: &[(&str, &str)]) -> String {
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let body = ContainerCreateBody {
        image: Some(image.to_owned()),
        cmd: Some(["sleep", "1000"].map(str::to_owned).to_vec()),
        labels: Some(labels),
        host_config: Some(HostConfig { network_mode: Some("none".to_owned()), ..HostConfig::default() }),
        ..ContainerCreateBody::default()
    };
    rig.runtime.block_on(async {
        let options = CreateContainerOptionsBuilder::default().build();
        let made = rig.client.create_container(Some(options), body).await.expect("create");
        rig.client.start_container(&made.id, None::<StartContainerOptions>).await.expect("start");
        made.id
    })
}

fn is_running(rig: &Rig, id: &str) -> bool {
    let found = rig.runtime.block_on(rig.client.inspect_container(id, None));
    found.is_ok_and(|found| found.state.and_then(|state| state.running) == Some(true))
}

#[test]
fn no_engine_is_a_state_that_says_why() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let dir = tempfile::tempdir().expect("dir");
    let health = |engine: EngineSetting| {
        let options = sinew_node::exec::docker::DockerOptions {
            engine,
            hosts: sinew_node::gather::Hosts::parse(&[]).expect("hosts"),
            node: "node".to_owned(),
            images: dir.path().join("images.json"),
            image_keep: Duration::ZERO,
            tmp_bytes: 1 << 20,
            memory_bytes: 1 << 30,
            slots: 1,
        };
        let tag = sinew_node::exec::guardian::NodeTag::new("node");
        let runner = sinew_node::exec::docker::DockerRunner::new(options, tag, runtime.handle().clone());
        runner.end_idle();
        runner.end_job("job");
        match runner.health() {
            Health::Ready => panic!("there is no engine"),
            Health::Unavailable(why) => why,
        }
    };
    assert!(health(EngineSetting::Off).contains("turned off"));
    let missing = dir.path().join("none.sock");
    let why = health(EngineSetting::At(missing.clone()));
    assert!(why.contains(&format!("no Docker engine answers at {}", missing.display())), "{why}");
    let deaf = dir.path().join("deaf.sock");
    let listener = std::os::unix::net::UnixListener::bind(&deaf).expect("listen");
    std::thread::spawn(move || listener.incoming().flatten().for_each(drop));
    let why = health(EngineSetting::At(deaf));
    assert!(why.contains("no Docker engine answers"), "{why}");
}

#[test]
fn what_an_earlier_daemon_left_goes_and_nothing_else() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::of(&engine, |_| {});
    let made = rig.image(&Recipe::default());
    assert!(rig.sh("true").result.is_ok());
    let node = rig.node.clone();
    let left =
        foreign(&rig, &made.id, &[("sinew.node", &node), ("sinew.daemon", "an earlier one"), ("sinew.run", "1")]);
    let others = [
        foreign(&rig, &made.id, &[]),
        foreign(&rig, &made.id, &[("sinew.node", "another node"), ("sinew.run", "1")]),
        foreign(&rig, &made.id, &[("sinew.node", ""), ("sinew.job", "job")]),
    ];
    rig.runner.end_job("job");
    assert!(is_running(&rig, &left), "only the job's go with the job");
    let options = options(&engine, &node, rig.dir.path());
    let next = sinew_node::exec::docker::DockerRunner::new(
        options,
        sinew_node::exec::guardian::NodeTag::new(&node),
        rig.runtime.handle().clone(),
    );
    next.end_idle();
    assert_eq!(next.health(), Health::Ready);
    assert_eq!(rig.containers(), []);
    for other in &others {
        assert!(is_running(&rig, other), "it is somebody else's");
        let options = bollard::query_parameters::RemoveContainerOptionsBuilder::default().force(true).build();
        rig.runtime.block_on(rig.client.remove_container(other, Some(options))).expect("remove");
    }
}

#[test]
fn a_task_whose_engine_dies_fails_for_now_and_the_next_engine_is_used() {
    let Some(mut engine) = TestEngine::own() else { return };
    let mut rig = Rig::new(&engine);
    let ran = std::thread::scope(|scope| {
        let (tx, rx) = std::sync::mpsc::channel::<()>();
        let engine = &mut engine;
        scope.spawn(move || {
            rx.recv().expect("started");
            engine.kill();
        });
        let started = move |control: std::sync::Arc<dyn sinew_node::exec::runner::Control>| {
            let tx = tx.clone();
            std::thread::spawn(move || {
                eventually("it runs", || control.logs() == b"ready\n");
                tx.send(()).expect("told");
            });
        };
        rig.watched(&["sh", "-c", "echo ready >&2; sleep 1000"], &started)
    });
    assert!(ran.fails_with(ErrorCode::Lost).contains("was lost") && ran.failure().retryable, "{ran:?}");
    rig.runner.end_idle();
    assert!(matches!(rig.runner.health(), Health::Unavailable(why) if why.contains("no Docker engine answers")));
    let refused = rig.sh("true");
    assert!(refused.fails_with(ErrorCode::Lost).contains("no containers now"), "{refused:?}");
    engine.start_again();
    rig.runner.end_idle();
    assert_eq!(rig.runner.health(), Health::Ready);
    assert_eq!(rig.containers(), [], "what the dead engine had to leave is gone");
    assert_eq!(rig.sh("echo again").text(), "again");
}
