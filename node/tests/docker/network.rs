//! Containers of jobs that name hosts. The host is a server of the test on loopback, where an operator's rule puts its name.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sinew_crdt_state::error_code::ErrorCode;
use sinew_node::egress::{Egress, Rules};
use sinew_node::exec::docker::DockerRunner;
use sinew_node::exec::guardian::NodeTag;
use sinew_node::exec::runner::Runner;

use crate::engine::TestEngine;
use crate::rig::{Rig, eventually, options};

/// A server that says what it hears in upper case; its port, and how many connections it has. It ends with this process, which
/// is one of many.
fn shouting() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = listener.local_addr().expect("address").port();
    let open = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&open);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().filter_map(Result::ok) {
            let count = Arc::clone(&count);
            std::thread::spawn(move || {
                count.fetch_add(1, Ordering::SeqCst);
                let mut part = [0; 64];
                while let Ok(len @ 1..) = stream.read(&mut part) {
                    if stream.write_all(&part[..len].to_ascii_uppercase()).is_err() {
                        break;
                    }
                }
                count.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (port, open)
}

fn let_out(rig: &Rig, rule: &str) {
    let rules = Rules::parse(&[rule.to_owned()]).expect("rules");
    rig.runner.let_out(Egress::new(rules, rig.runtime.handle().clone(), 2));
}

#[test]
fn it_reaches_the_hosts_of_its_job_and_nothing_else() {
    let Some(engine) = TestEngine::shared() else { return };
    let ((port, _), (closed, unheard)) = (shouting(), shouting());
    let mut rig = Rig::new(&engine);
    let_out(&rig, "there.test=127.0.0.1");
    rig.network.allow(&format!("there.test:{port}")).expect("host");
    assert_eq!(rig.sh(&format!("echo hello | nc -w 20 there.test {port}")).text(), "HELLO");
    let holding = std::sync::Mutex::new(Vec::new());
    let (runtime, client, node) = (rig.runtime.handle().clone(), rig.client.clone(), rig.node.clone());
    let look = |_| {
        let filters = [("label".to_owned(), vec![format!("sinew.node={node}")])].into();
        let list =
            bollard::query_parameters::ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let found = runtime.block_on(client.list_containers(Some(list))).expect("list");
        let names = found.into_iter().flat_map(|found| found.names.unwrap_or_default());
        holding.lock().expect("lock").extend(names);
    };
    let ran = rig.watched(&["sh", "-c", "cat /etc/hosts; cat /proc/net/dev | grep -c :; id -u"], &look);
    assert!(ran.text().contains("127.77.0.1\tthere.test") && ran.text().ends_with("1\n1900000000"), "{ran:?}");
    let holding = holding.into_inner().expect("lock");
    assert!(holding.len() == 2 && holding.iter().filter(|name| name.ends_with("-net")).count() == 1, "{holding:?}");
    for (to, port) in [
        ("127.0.0.1", port),
        ("there.test", closed),
        ("127.77.0.2", port),
        ("other.test", port),
        ("192.0.2.1", 80),
        ("169.254.169.254", 80),
    ] {
        let ran = rig.sh(&format!("echo hello | nc -w 5 {to} {port}"));
        let told = &ran.failure().stderr_tail;
        assert!(["refused", "unreachable", "bad address"].iter().any(|why| told.contains(why)), "{to}: {ran:?}");
    }
    // The next one has what its own job names: nothing.
    rig.network = sinew_crdt_state::network::Network::default();
    rig.sh(&format!("echo hello | nc -w 5 there.test {port}")).fails_with(ErrorCode::Exit);
    assert_eq!((rig.containers().len(), unheard.load(Ordering::SeqCst)), (0, 0));
}

#[test]
fn without_the_operators_word_it_does_not_start() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::new(&engine);
    rig.network.allow("there.test").expect("host");
    assert!(rig.sh("true").fails_with(ErrorCode::Deny).contains("job_hosts"));
    let_out(&rig, "other.test=127.0.0.1");
    let ran = rig.sh("true");
    assert!(ran.fails_with(ErrorCode::Deny).contains("there.test") && ran.failure().retryable, "{ran:?}");
    assert!(rig.containers().is_empty());
}

#[test]
fn what_holds_its_network_goes_with_it_and_is_found_by_the_next_daemon() {
    let Some(engine) = TestEngine::shared() else { return };
    let (port, open) = shouting();
    let mut rig = Rig::new(&engine);
    let_out(&rig, "there.test=127.0.0.1");
    rig.network.allow(&format!("there.test:{port}")).expect("host");
    let talk = format!("(echo hello; sleep 1000) | nc there.test {port}");
    // A task that is ended takes its connection along.
    rig.limits.timeout_ms = Some(8_000);
    rig.sh(&talk).fails_with(ErrorCode::Timeout);
    eventually("its connection is closed", || open.load(Ordering::SeqCst) == 0);
    assert!(rig.containers().is_empty());
    // Another daemon of this node finds both containers, while neither is its own.
    rig.limits.timeout_ms = Some(60_000);
    let (dir, runtime) = (rig.dir.path().to_owned(), rig.runtime.handle().clone());
    let options = options(&engine, &rig.node, &dir);
    let (client, node) = (rig.client.clone(), rig.node.clone());
    let next = |_| {
        let next = DockerRunner::new(options.clone(), NodeTag::new("the next"), runtime.clone());
        next.end_idle();
        let filters = [("label".to_owned(), vec![format!("sinew.node={node}")])].into();
        let list =
            bollard::query_parameters::ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        assert_eq!(runtime.block_on(client.list_containers(Some(list))).expect("list"), []);
    };
    assert!(rig.watched(&["sh", "-c", &talk], &next).result.is_err());
    eventually("its connection is closed", || open.load(Ordering::SeqCst) == 0);
}
