//! Programs that make too much of the network that they have, or outlive what it was for.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::network::Server;
use crate::rig::{Rig, eventually, policy, runtime};

#[test]
fn a_flood_of_connections_is_bounded_and_hurts_nobody_else() {
    let (runtime, server) = (runtime(), Server::shouting());
    let (mut flooding, mut other) = (Rig::sandboxed(), Rig::sandboxed());
    let there = policy(&[&format!("there.test:{}", server.port())]);
    let most = flooding.let_out(&runtime, &["there.test=127.0.0.1"]);
    other.let_out(&runtime, &["there.test=127.0.0.1"]);
    (flooding.network, other.network) = (there.clone(), there);
    // What a task holds while it runs, a connection each second is left waiting; a forked child outlives it, if it may.
    let flood = format!(
        "
held, at = [], ('there.test', {port})
for i in range(3000):
    s = socket.socket(); s.setblocking(False); s.connect_ex(at); held.append(s)
if os.fork() == 0:
    os.setsid(); time.sleep(1000)
open('/job/output/up', 'w').close()
time.sleep(1000)
",
        port = server.port()
    );
    flooding.limits.timeout_ms = Some(8_000);
    let flooded = std::thread::spawn(move || {
        let ran = flooding.python(&flood);
        (flooding, ran)
    });
    eventually("the flood is at its bound", || server.open() >= most);
    let talk = format!(
        "
s = socket.create_connection(('there.test', {}), 20)
s.sendall(b'hello'); s.shutdown(socket.SHUT_WR)
print(s.makefile().read())
",
        server.port()
    );
    assert_eq!(other.python(&talk).text(), "HELLO.");
    let (mut flooding, ran) = flooded.join().expect("flood");
    ran.fails_with(sinew_crdt_state::error_code::ErrorCode::Timeout);
    // With the task went its connections; the next one has as many as it had.
    eventually("no connection is left", || server.open() == 0);
    assert!(server.most() <= most + 1, "{} at a time", server.most());
    assert_eq!(flooding.python(&talk).text(), "HELLO.");
}

#[test]
fn a_connection_that_is_open_at_the_end_is_closed() {
    let (runtime, server) = (runtime(), Server::shouting());
    let mut rig = Rig::sandboxed();
    rig.let_out(&runtime, &["there.test=127.0.0.1"]);
    rig.network = policy(&[&format!("there.test:{}", server.port())]);
    let script = format!(
        "
s = socket.create_connection(('there.test', {}), 20)
s.sendall(b'x')
print(s.recv(1))
sys.stdout.flush()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(1000)
os._exit(0)
",
        server.port()
    );
    for _ in 0..3 {
        assert_eq!(rig.python(&script).text(), "b'X'");
        eventually("the connection is closed", || server.open() == 0);
    }
    assert_eq!(server.most(), 1);
}

/// Sockets of this machine that are connected to a port and that a process has.
fn held_to(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("table");
    let is_one = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[2].ends_with(&format!(":{port:04X}")) && fields[9] != "0"
    };
    table.lines().skip(1).filter(is_one).count()
}

/// A host that does not answer the end of a connection with its own cannot have it kept.
#[test]
fn a_host_that_never_ends_does_not_hold_what_a_task_has_left() {
    let (runtime, ended) = (runtime(), Arc::<AtomicBool>::default());
    let end = Arc::clone(&ended);
    let server = Server::start(move |stream| {
        let mut byte = [0];
        while stream.read(&mut byte).is_ok_and(|len| len == 1) && stream.write_all(b"y").is_ok() {}
        while !end.load(Ordering::SeqCst) {
            std::thread::park_timeout(std::time::Duration::from_millis(20));
        }
    });
    let mut rig = Rig::sandboxed();
    rig.let_out(&runtime, &["there.test=127.0.0.1"]);
    rig.network = policy(&[&format!("there.test:{}", server.port())]);
    let script = "s = socket.create_connection(('there.test', PORT), 20); s.sendall(b'x'); print(s.recv(1))";
    assert_eq!(rig.python(&script.replace("PORT", &server.port().to_string())).text(), "b'y'");
    assert_eq!(server.open(), 1, "the host has not ended it");
    eventually("this side has", || held_to(server.port()) == 0);
    ended.store(true, Ordering::SeqCst);
}

#[test]
fn nothing_of_a_network_survives_a_daemon_that_is_killed() {
    let (dir, server) = (tempfile::tempdir().expect("dir"), Server::shouting());
    let mut daemon = Command::new(std::env::current_exe().expect("exe"));
    daemon.args(["--exact", "network_hostile::stand_in::for_a_daemon"]).env("TALK_TO", server.port().to_string());
    let daemon = daemon.env("TMPDIR", dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut daemon = daemon.spawn().expect("daemon");
    eventually("the task to have its connection", || server.open() == 1);
    let mark = format!("1000.{}5", server.port());
    eventually("what it left to run", || !crate::rig::processes_with(&mark).is_empty());
    daemon.kill().expect("kill -9");
    daemon.wait().expect("wait");
    eventually("the connection is closed", || server.open() == 0);
    eventually("its processes are gone", || crate::rig::processes_with(&mark).is_empty());
    crate::rig::remove_groups(dir.path());
}

mod stand_in {
    use super::{Rig, policy, runtime};

    /// Not a test of its own: a daemon to be killed, with a task that holds a connection.
    #[test]
    fn for_a_daemon() {
        let Ok(port) = std::env::var("TALK_TO") else { return };
        let (runtime, mut rig) = (runtime(), Rig::sandboxed());
        rig.note_tag();
        rig.let_out(&runtime, &["there.test=127.0.0.1"]);
        rig.network = policy(&[&format!("there.test:{port}")]);
        let script = format!(
            "
s = socket.create_connection(('there.test', {port}), 20); s.sendall(b'x'); s.recv(1)
os.set_inheritable(s.fileno(), True)
os.execvp('sleep', ['sleep', '1000.{port}5'])
"
        );
        rig.python(&script);
    }
}
