//! The command line's own refusals: tickets, data dirs, ports, names that do not exist; each with its exit code.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;

use sinew_crdt_state::certificate::{Roles, Ticket};

use crate::support::{Daemon, client, sinew};

#[test]
fn programs_keep_their_exit_codes() {
    let node = Daemon::start();
    for code in [0, 1, 7, 42, 255] {
        let ran = node.run(&["run", "--", "sh", "-c", &format!("echo out; echo err >&2; exit {code}")]);
        assert_eq!((ran.code, ran.stdout().as_str()), (code, "out\n"), "{ran}");
        assert!(ran.stderr.contains("err"), "{ran}");
    }
    let ran = node.run(&["run", "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(ran.code, 137, "{ran}");
}

#[test]
fn what_a_failed_task_printed_can_be_read_after_its_end() {
    let node = Daemon::start();
    let ran = node.run(&["run", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!(ran.code, 3, "{ran}");
    let jobs: serde_json::Value = serde_json::from_slice(&node.run(&["jobs", "--json"]).stdout).expect("JSON");
    let job = jobs["jobs"][0]["id"].as_str().unwrap_or_else(|| panic!("not listed at once: {jobs}")).to_owned();
    for follow in [&["logs", &job, "-f"][..], &["logs", &job]] {
        let logs = node.run(follow);
        assert_eq!((logs.code, logs.stdout().as_str()), (0, "out\n"), "{logs}");
        assert!(logs.stderr.contains("err"), "{logs}");
    }
}

#[test]
fn what_is_not_there_exits_with_2() {
    let node = Daemon::start();
    let nobody = "a".repeat(52);
    node.run(&["job", "zzzz"]).fails(2, &["no job `zzzz`", "sinew jobs"]);
    node.run(&["wait", &nobody]).fails(2, &["no job"]);
    node.run(&["cancel", "zzzz", "--yes"]).fails(2, &["no job"]);
    node.run(&["get", "zzzz"]).fails(2, &["no job"]);
    node.run(&["logs", "zzzz"]).fails(2, &["no job"]);
    node.run(&["blob", "get", "nonsense", "-o", "x"]).fails(2, &["identifier"]);
    node.run(&["blob", "get", &nobody, "-o", "x"]).fails(2, &["E_FETCH", &nobody, "not here"]);
    node.run(&["blob", "tag", "name", &nobody]).fails(2, &["not here"]);
    node.run(&["blob", "untag", "name"]).fails(2, &["no tag `name`"]);
    node.run(&["no-such-command"]).fails(2, &["no-such-command"]);
    node.run(&["run", "--cpus", "many", "--", "true"]).fails(2, &["many"]);
    assert!(!node.scratch.path().join("x").exists());
    node.is_alive();
}

#[test]
fn tickets_that_are_no_good_say_why() {
    let (node, other) = (Daemon::start(), Daemon::start());
    let good = node.run(&["invite", "--role", "run"]).done().stdout().trim().to_owned();
    let newcomer = node.scratch.path().join("newcomer");
    let join = |ticket: &str| sinew(&newcomer, node.scratch.path(), &["join", ticket]);

    let brief = node.run(&["invite", "--expires", "1ms"]).done().stdout();
    std::thread::sleep(std::time::Duration::from_millis(5));
    join(brief.trim()).fails(13, &["expired", "sinew invite"]);
    join(&good[..good.len() - 9]).fails(2, &["ticket"]);
    join("hello").fails(2, &["ticket"]);
    join("").fails(2, &["ticket"]);
    let mut forged: Ticket = good.parse().expect("a ticket");
    forged.body.roles = Roles::ALL;
    join(&forged.to_string()).fails(13, &["forged"]);
    assert!(!newcomer.join("membership.cbor").exists(), "nothing was joined");

    // A ticket of another mesh, on a data dir that has one.
    let theirs = other.run(&["invite"]).done().stdout();
    node.run(&["join", theirs.trim()]).fails(2, &["ticket is for mesh", "--data-dir"]);
    node.run(&["init"]).fails(2, &["belongs to mesh", "already"]);
    // A good ticket whose issuer is gone names the address that was tried.
    drop(other);
    let elsewhere = node.scratch.path().join("elsewhere");
    sinew(&elsewhere, node.scratch.path(), &["join", theirs.trim()]).fails(1, &["could not be reached", "127.0.0.1"]);
    join(&good).done();
    join(&good).fails(2, &["belongs to mesh", "already"]);
    node.is_alive();
}

#[test]
fn a_member_may_do_what_its_roles_say() {
    let node = Daemon::start();
    let ticket = node.run(&["invite", "--role", "run"]).done().stdout();
    let scratch = tempfile::tempdir().expect("scratch");
    let data_dir = scratch.path().join("node");
    sinew(&data_dir, scratch.path(), &["join", ticket.trim()]).done();
    let mut runner = NodeUp::start(&data_dir, scratch.path());
    let run = |args: &[&str]| sinew(&data_dir, scratch.path(), args);
    run(&["run", "--", "true"]).fails(13, &["E_DENY", "submit"]);
    run(&["invite"]).fails(13, &["E_DENY", "admin"]);
    runner.stop();
    node.run(&["invite", "--role", "king"]).fails(2, &["king"]);
}

/// A second daemon of a test, on a data dir that has joined.
struct NodeUp(std::process::Child);

impl NodeUp {
    fn start(data_dir: &std::path::Path, cwd: &std::path::Path) -> Self {
        let args = ["up", "--listen", "/ip4/127.0.0.1/tcp/0", "--no-mdns"];
        let mut command = crate::support::command(data_dir, cwd, &args);
        command.env(sinew_node::daemon::STDIN_VAR, "1").stdin(std::process::Stdio::piped());
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let child = command.spawn().expect("it starts");
        crate::support::until("it answers", || (sinew(data_dir, cwd, &["status"]).code == 0).then_some(()));
        Self(child)
    }

    fn stop(&mut self) {
        drop(self.0.stdin.take());
        crate::support::until("it ends", || self.0.try_wait().expect("our child"));
    }
}

impl Drop for NodeUp {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_second_daemon_and_a_port_in_use_are_refused() {
    let node = Daemon::start();
    let listen = ["up", "--no-mdns", "--listen"];
    let up = |data_dir, addr: &str| sinew(data_dir, node.scratch.path(), &[&listen[..], &[addr]].concat());
    up(&node.data_dir, "/ip4/127.0.0.1/tcp/0").fails(1, &["another daemon (process", "--data-dir"]);
    node.is_alive();

    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = taken.local_addr().expect("addr").port();
    let fresh = node.scratch.path().join("fresh");
    up(&fresh, "/ip4/127.0.0.1/tcp/0").fails(2, &["belongs to no mesh", "sinew init", "sinew join"]);
    sinew(&fresh, node.scratch.path(), &["init"]).done();
    let addr = format!("/ip4/127.0.0.1/tcp/{port}");
    up(&fresh, &addr).fails(1, &[&addr, "in use"]);
    up(&fresh, "127.0.0.1:9000").fails(2, &["multiaddr", "127.0.0.1:9000"]);
    up(&fresh, "/ip4/203.0.113.7/tcp/0").fails(1, &["cannot listen on /ip4/203.0.113.7/tcp/0"]);
    std::fs::write(fresh.join("sinew.toml"), "cups = 3\n").expect("write");
    up(&fresh, "/ip4/127.0.0.1/tcp/0").fails(2, &["sinew.toml", "cups"]);
    std::fs::write(fresh.join("sinew.toml"), "cpus = -3.0\n").expect("write");
    up(&fresh, "/ip4/127.0.0.1/tcp/0").fails(2, &["cpus", "-3"]);
    std::fs::remove_file(fresh.join("sinew.toml")).expect("remove");

    // Damaged files are named, and nothing is overwritten.
    std::fs::write(fresh.join("membership.cbor"), b"\xff\xff").expect("write");
    up(&fresh, "/ip4/127.0.0.1/tcp/0").fails(1, &["membership.cbor is damaged"]);
    sinew(&fresh, node.scratch.path(), &["init"]).fails(1, &["membership.cbor is damaged"]);
    let nowhere = node.scratch.path().join("nowhere");
    sinew(&nowhere, node.scratch.path(), &["status"]).fails(1, &["no daemon is running on", "sinew up"]);
}

/// Whoever may open the socket may still not crash the daemon through it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_local_socket_is_answered_with_an_error() {
    let node = Daemon::start();
    let socket = node.data_dir.join("sinew.sock");
    let ask = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(&socket).expect("connect");
        // A daemon that has seen enough may close before all of it is written.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    for bytes in [&b"hello\n"[..], b"{}\n", b"{\"request\":\"no_such\"}\n", &[0xff; 100], b"[[[[[[[[[[[[[[[[[[[[\n"] {
        let answer = ask(bytes);
        assert!(answer.contains("E_INVALID"), "{answer}");
    }
    let deep = [&b"{\"request\":"[..], &vec![b'['; 200_000], b"\n"].concat();
    assert!(ask(&deep).contains("E_INVALID"));
    let mut held = UnixStream::connect(&socket).expect("connect");
    held.write_all(&vec![b'x'; 5 << 20]).ok();
    drop(held);
    assert!(client(&node.data_dir).status().await.is_ok());
    node.is_alive();
}
