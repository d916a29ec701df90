//! What a worker keeps from call to call, what it must not, and when it ends.

use serde_json::json;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_node::exec::guardian::TAG_VAR;
use sinew_node::exec::runner::Runner;

use crate::rig::{Rig, eventually, processes_with};

const MODULE: &str = r#"
import os, signal, sys, tempfile, threading, time
calls = 0
def pid():
    global calls
    calls += 1
    return [os.environ["WHO"], calls, os.stat("/proc/self").st_ino, os.getpid(), open("/proc/self/stat").read().split()[21]]
def mess():
    os.environ["LEFT"] = "over"
    del os.environ["SINEW_TASK"]
    os.makedirs("sub")
    os.chdir("sub"); open("file", "w"); open(os.environ["SINEW_OUTPUT"] + "/file", "w")
    if os.getcwd().startswith("/job/"):
        tempfile.NamedTemporaryFile(delete=False); os.makedirs(tempfile.gettempdir() + "/d/e")
        open("/dev/shm/file", "w")
    sys.path.append("/nowhere")
    os.umask(0o77)
    sys.stdout = open(os.devnull, "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    sys.stderr.write("no newline")
def clean():
    time.sleep(0.3)
    print("printed")
    umask = os.umask(0o22)
    return [os.environ.get("LEFT"), "SINEW_TASK" in os.environ, sorted(os.listdir(".")), os.listdir(os.environ["SINEW_OUTPUT"]),
        os.listdir("/tmp") + os.listdir("/dev/shm") if os.getcwd() == "/job/work" else [], sys.path[-1] == "/nowhere", umask]
def c_prints():
    import ctypes
    ctypes.CDLL(None).printf(b"from C")
def memory():
    import ctypes
    assert ctypes.CDLL(None).shmget(0x1234, 1 << 20, 0o1666) >= 0
def attribute(): os.setxattr("/dev/shm", "user.note", b"left by a call")
def mode(): os.chmod("/tmp", 0o1777)
def closes(): sys.stdout.close(); os.close(1)
def thread(): threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
def child():
    if os.fork() == 0: time.sleep(100)
def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0: time.sleep(100)
        os._exit(0)
    os.wait()
    while os.path.exists("/proc/%s/task" % 0): pass
def returns_twice(): os.fork(); return os.getpid()
def dies(): os.kill(os.getpid(), 11)
def quits(): os._exit(0)
def fails(): raise ValueError
def grows(): x = bytearray(b"x") * (40 << 20)
"#;

fn rig(sandboxed: bool) -> Rig {
    let mut rig = if sandboxed { Rig::sandboxed() } else { Rig::bare() }.module(MODULE);
    rig.env = [("WHO".to_owned(), format!("who-{}-{sandboxed}", std::process::id()))].into();
    rig
}

fn each() -> [Rig; 2] {
    [rig(true), rig(false)]
}

/// How many calls the worker has had, this one included.
fn calls(rig: &mut Rig) -> u64 {
    rig.call("m:pid").value()[1].as_u64().expect("a number")
}

#[test]
fn tasks_of_a_job_share_a_worker_and_those_of_another_do_not() {
    for mut rig in each() {
        let [first, second] = [rig.call("m:pid").value(), rig.call("m:pid").value()];
        assert_eq!((&first[4], &first[1], &second[1]), (&second[4], &json!(1), &json!(2)));
        let mark = rig.env["WHO"].clone();
        assert_eq!(processes_with(&mark).len(), 1);
        rig.job = "another";
        assert_eq!(calls(&mut rig), 1);
        assert_eq!(processes_with(&mark).len(), 1, "the first one has ended");
        rig.job = "job";
        assert_eq!(calls(&mut rig), 1);
        // Neither do tasks with other variables, limits or files.
        rig.env.insert("X".to_owned(), "1".to_owned());
        assert_eq!(calls(&mut rig), 1);
        rig.limits.output_bytes_max -= 1;
        assert_eq!(calls(&mut rig), 1);
        assert_eq!(calls(&mut rig), 2);
        rig.runners.end_job("another");
        assert_eq!(calls(&mut rig), 3);
        rig.runners.end_job("job");
        assert_eq!(processes_with(&mark), [] as [i32; 0]);
    }
}

#[test]
fn another_runners_program_does_not_meet_a_worker() {
    for mut rig in each() {
        let mark = rig.env["WHO"].clone();
        assert_eq!(calls(&mut rig), 1);
        let program = sinew_crdt_state::spec::Program::Exec(vec!["true".to_owned()]);
        rig.run(&program).good();
        assert_eq!(processes_with(&mark), [] as [i32; 0]);
        assert_eq!(calls(&mut rig), 1);
        drop(rig);
        assert_eq!(processes_with(&mark), [] as [i32; 0], "nor does one outlive the runner");
    }
}

#[test]
fn a_call_finds_nothing_of_the_one_before() {
    for mut rig in each() {
        let mess = rig.call("m:mess");
        assert_eq!((mess.good().stdout.as_str(), mess.stderr.as_str()), ("", "no newline"));
        let clean = rig.call("m:clean");
        assert_eq!(clean.value(), json!([null, true, ["m.py"], [], [], false, 0o22]));
        assert_eq!((clean.stdout.as_str(), clean.stderr.as_str()), ("printed\n", ""));
        assert_eq!(calls(&mut rig), 1);
        let c = rig.call("m:c_prints");
        assert_eq!(c.text(), "from C");
        assert_eq!(rig.call("m:clean").text(), "printed");
        assert_eq!(calls(&mut rig), 2, "all that in one worker");
    }
}

#[test]
fn a_worker_ends_with_a_call_that_leaves_something_or_fails() {
    for mut rig in each() {
        let mark = rig.env["WHO"].clone();
        for call in ["m:thread", "m:child", "m:daemon", "m:returns_twice", "m:closes"] {
            if call == "m:daemon" && !rig.sandboxed {
                // Bare, what has left its family is found with the worker's end only.
                continue;
            }
            assert_eq!(calls(&mut rig), 1, "before {call}");
            rig.call(call).good();
            // A killed process is seen until the kernel has taken it apart.
            eventually(&format!("nothing is left of {call}"), || processes_with(&mark).is_empty());
        }
        for call in ["m:memory", "m:attribute", "m:mode"] {
            // Bare, these are the machine's.
            if rig.sandboxed {
                assert_eq!(calls(&mut rig), 1, "before {call}");
                rig.call(call).good();
            }
        }
        for (call, part) in [("m:dies", "signal 11"), ("m:quits", "without returning"), ("m:fails", "ValueError")] {
            assert_eq!(calls(&mut rig), 1, "before {call}");
            rig.call(call).fails(ErrorCode::Exit, part);
            // A killed process is seen until the kernel has taken it apart.
            eventually(&format!("nothing is left of {call}"), || processes_with(&mark).is_empty());
        }
        rig.resources.memory_bytes = 64 << 20;
        assert_eq!(calls(&mut rig), 1);
        rig.call("m:grows").good();
        assert_eq!(calls(&mut rig), 1, "it had used more than half of its memory");
    }
}

#[test]
fn an_idle_worker_is_marked_for_those_who_sweep() {
    for mut rig in each() {
        let pid = rig.call("m:pid");
        let mark = pid.value()[0].as_str().expect("text").to_owned();
        let found = processes_with(&mark);
        let environ = std::fs::read(format!("/proc/{}/environ", found[0])).expect("environ");
        assert!(String::from_utf8_lossy(&environ).contains(TAG_VAR));
        let mut sweeper = sinew_node::exec::sweep::Sweeper::new(rig.tag());
        sweeper.sweep();
        assert_eq!(calls(&mut rig), 2, "and spared while it is of use");
        rig.runners.end_job("job");
        eventually("it ends", || processes_with(&mark).is_empty());
    }
}
