//! Functions that try to get out, or to fool the daemon.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sinew_crdt_state::error_code::ErrorCode;
use sinew_node::egress::{Egress, Rules};
use sinew_node::exec::runner::Runner;
use sinew_node::exec::volumes::Mounted;

use crate::rig::{Rig, eventually};

#[test]
fn a_worker_is_as_confined_as_any_program() {
    let module = r#"
import os, socket, ctypes
def attempts(paths, port):
    seen = {}
    def attempt(what, f):
        try: f(); seen[what] = True
        except OSError: seen[what] = False
    for path in paths: attempt(path, lambda: open(path, "rb").read())
    attempt("connect", lambda: socket.create_connection(("127.0.0.1", port), 1))
    attempt("write", lambda: open(paths[0] + ".new", "w"))
    attempt("signal", lambda: os.kill(os.getppid(), 0) if os.getppid() != 1 else os.kill(12345678, 0))
    return seen
"#;
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("address").port();
    for mut rig in Rig::each().map(|rig| rig.module(module)) {
        let key = rig.dir.path().join("identity.key");
        std::fs::write(&key, "secret").expect("write");
        let exe = std::env::current_exe().expect("exe");
        let params = serde_json::json!({ "paths": [key, exe, "/etc/shadow"], "port": port });
        let seen = rig.call_with("m:attempts", &params.to_string()).value();
        let works = !rig.sandboxed;
        assert!(seen.as_object().expect("object").len() == 6, "{seen}");
        for (what, worked) in seen.as_object().expect("object") {
            assert_eq!(worked.as_bool(), Some(works), "{what} in {seen}");
        }
    }
}

#[test]
fn a_worker_reaches_the_hosts_of_its_job_alone() {
    let module = r#"
import socket
held = []
def reach(name, port):
    try:
        if not held: held.append(socket.create_connection((name, port), 20))
        held[0].sendall(b"x")
        return held[0].recv(1).decode()
    except OSError: return "refused"
"#;
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = listener.local_addr().expect("address").port();
    let (accepted, ended) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (began, over) = (Arc::clone(&accepted), Arc::clone(&ended));
    // It ends with the process of this test, which is one of many.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().filter_map(Result::ok) {
            began.fetch_add(1, Ordering::SeqCst);
            let mut byte = [0];
            while stream.read(&mut byte).is_ok_and(|len| len == 1) && stream.write_all(b"y").is_ok() {}
            over.fetch_add(1, Ordering::SeqCst);
        }
    });
    let call = |name: &str| serde_json::json!({ "name": name, "port": port }).to_string();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let [mut rig, mut bare] = Rig::each().map(|rig| rig.module(module));
    let rules = Rules::parse(&["there.test=127.0.0.1".to_owned()]).expect("rules");
    rig.runners.process().sandbox().expect("a sandbox").let_out(Egress::new(rules, runtime.handle().clone(), 1));
    rig.network.allow(&format!("there.test:{port}")).expect("host");
    bare.network = rig.network.clone();
    assert_eq!(rig.call_with("m:reach", &call("127.0.0.1")).value(), "refused");
    // A connection is the worker's, like what it has imported, and is there in its next call.
    for _ in 0..2 {
        assert_eq!(rig.call_with("m:reach", &call("there.test")).value(), "y");
    }
    assert_eq!((accepted.load(Ordering::SeqCst), ended.load(Ordering::SeqCst)), (1, 0));
    rig.runners.end_job("job");
    eventually("its connection ends with it", || ended.load(Ordering::SeqCst) == 1);
    // A worker of a job without a network, and one that nothing isolates.
    rig.network = sinew_crdt_state::network::Network::default();
    assert_eq!(rig.call_with("m:reach", &call("there.test")).value(), "refused");
    bare.call_with("m:reach", &call("there.test")).fails(ErrorCode::Deny, "sandbox is off");
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
}

/// A function finds its volumes where programs do; where nothing keeps it from writing it is told the directory itself.
#[test]
fn a_function_finds_its_volumes() {
    let module = r#"
import os
def look(new):
    at, seen = os.environ["SINEW_VOLUME_SETS"], []
    for path in [at + "/file", at + "/up", at + "/../secret"]:
        try: seen.append(open(path).read())
        except OSError: seen.append(None)
    try: open(at + "/" + new, "w"); seen.append("wrote")
    except OSError: seen.append(None)
    return [at] + seen
"#;
    for mut rig in Rig::each().map(|rig| rig.module(module)) {
        let dir = tempfile::tempdir().expect("dir");
        let host = dir.path().join("sets");
        std::fs::create_dir(&host).expect("dir");
        std::fs::write(host.join("file"), "text").expect("file");
        std::fs::write(dir.path().join("secret"), "secret").expect("file");
        std::os::unix::fs::symlink("../secret", host.join("up")).expect("link");
        for path in [dir.path(), &host] {
            std::fs::set_permissions(path, Permissions::from_mode(0o777)).expect("mode");
        }
        let volume = |read_only| {
            let (name, path) = ("sets".to_owned(), "/data".into());
            vec![Mounted { name, host: host.clone(), path, read_only }]
        };
        let (at, way_out) = if rig.sandboxed {
            ("/data".to_owned(), serde_json::Value::Null)
        } else {
            (host.display().to_string(), "secret".into())
        };
        rig.volumes = volume(false);
        let seen = rig.call_with("m:look", r#"{"new": "one"}"#).value();
        assert_eq!(seen, serde_json::json!([at, "text", way_out, way_out, "wrote"]));
        if rig.sandboxed {
            // Another cell, and so another worker: the first may write.
            rig.volumes = volume(true);
            let seen = rig.call_with("m:look", r#"{"new": "two"}"#).value();
            assert_eq!(seen, serde_json::json!([at, "text", null, null, null]));
        }
        assert!(host.join("one").exists() && !host.join("two").exists());
    }
}

/// What each of these does to the worker's side of the connection, found as a task would find it.
const LIES: &str = r#"
import os, socket, stat, struct, time, json
def connection():
    for fd in range(3, 256):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode): return fd
        except OSError: pass
def frame(value): return struct.pack("<I", len(value)) + value
def garbage(): os.write(connection(), b"\xff" * 100); time.sleep(1000)
def huge(): os.write(connection(), struct.pack("<I", 1 << 31)); time.sleep(1000)
def nested(): os.write(connection(), frame(b"[" * 16000)); time.sleep(1000)
def flood():
    while True: os.write(connection(), b"\x00\x01\x00\x00" * 10000)
def twice(): os.write(connection(), frame(b'{"end":"done","usable":true}') * 2); time.sleep(1000)
def half(): os.write(connection(), b"\x10"); time.sleep(1000)
def closes(): os.close(connection()); time.sleep(0.1)
def forges():
    os.write(connection(), frame(b'{"end":"done","usable":true,"peak_rss_kib":1}'))
    print("late", flush=True)
    time.sleep(0.2)
def forges_numbers():
    os.write(connection(), frame(b'{"end":"done","usable":true,"peak_rss_kib":18446744073709551615}')); time.sleep(1000)
def message(): raise ValueError("\x1b[2J\udc80" + "x" * 100000)
def fine(): return "fine"
"#;

#[test]
fn what_is_no_reply_ends_the_call_and_the_worker() {
    for mut rig in Rig::each().map(|rig| rig.module(LIES)) {
        for call in ["m:garbage", "m:huge", "m:nested", "m:flood", "m:twice"] {
            rig.call(call).fails(ErrorCode::Exit, "no reply");
            assert_eq!(rig.call("m:fine").value(), "fine", "after {call}");
        }
        rig.limits.timeout_ms = Some(500);
        rig.call("m:half").fails(ErrorCode::Timeout, "500 ms");
        rig.limits.timeout_ms = Some(60_000);
        let closed = rig.call("m:closes");
        assert!(closed.fails(ErrorCode::Exit, "status 1").stderr_tail.contains("closed the worker's connection"));
        assert_eq!(rig.call("m:fine").value(), "fine");
        let long = rig.call("m:message");
        let message = &long.fails(ErrorCode::Exit, "ValueError").message;
        assert!(message.len() < 5_000 && !message.contains('\u{1b}'), "{message}");
    }
}

#[test]
fn a_forged_reply_gains_nothing() {
    for mut rig in Rig::each().map(|rig| rig.module(LIES)) {
        // It has said that it is done: so it is, with what it had written by then.
        rig.call("m:forges").good();
        // Its worker is still at it and speaks out of turn later, which is its own job's loss, and no other's.
        rig.job = "another";
        let other = rig.call("m:fine");
        assert_eq!((other.value(), other.stdout.as_str()), ("fine".into(), ""));
        let numbers = rig.call("m:forges_numbers");
        let most = if rig.sandboxed { 1 << 30 } else { u64::MAX };
        assert!(numbers.result.is_ok() && numbers.usage.max_rss_bytes <= most, "{numbers:?}");
    }
}
