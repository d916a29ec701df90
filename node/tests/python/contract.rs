//! What every runner promises, for functions: how a call succeeds, fails, is limited and is ended.

use ciborium::Value;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::program::{Params, PythonCall};
use sinew_crdt_state::spec::Program;
use sinew_node::exec::allowlist::Allowlist;
use sinew_node::exec::guardian::NodeTag;
use sinew_node::exec::process::ProcessRunner;
use sinew_node::exec::python::{PythonOptions, PythonRunner};
use sinew_node::exec::runner::{Health, Runner};

use crate::rig::Rig;

const MODULE: &str = r#"
import os, sys, json

def add(a, b=1): return {"sum": a + b}
def nothing(): pass
def files():
    text = open(os.environ["SINEW_INPUT"] + "/data.txt").read()
    assert text == open("data.txt").read()
    open(os.environ["SINEW_OUTPUT"] + "/upper.txt", "w").write(text.upper())
    return len(text)
def prints():
    print("out")
    print("err", file=sys.stderr)
    os.write(1, b"raw ")
    os.system("echo child")
def who(): return {k: v for k, v in os.environ.items() if k.startswith("SINEW_") or k == "COLOUR"}
def fails(): raise ValueError("no such\nluck")
def leave(code): sys.exit(code)
def odd(): return {1, 2}
def nan(): return float("nan")
def inner(): return add(1, 2, 3)
def large(n): return "x" * n
NUMBER = 3
"#;

fn rig(sandboxed: bool) -> Rig {
    let mut rig = if sandboxed { Rig::sandboxed() } else { Rig::bare() };
    rig.place(&[("m.py", MODULE), ("data.txt", "some text"), ("pkg/__init__.py", ""), ("pkg/sub.py", "import nix\n")]);
    rig
}

fn each() -> [Rig; 2] {
    [rig(true), rig(false)]
}

#[test]
fn a_function_gets_parameters_and_files_and_gives_json_and_files() {
    for mut rig in each() {
        assert_eq!(rig.call_with("m:add", r#"{"a": 2, "b": 40}"#).value(), serde_json::json!({"sum": 42}));
        assert_eq!(rig.call_with("m:add", r#"{"a": 2}"#).value(), serde_json::json!({"sum": 3}));
        let nothing = rig.call("m:nothing");
        assert!(nothing.good().outputs.is_empty() && nothing.stdout.is_empty(), "{nothing:?}");
        let files = rig.call("m:files");
        assert_eq!(files.value(), serde_json::json!(9));
        assert_eq!(files.outputs["upper.txt"], "SOME TEXT");
        // Longer than a socket holds, both ways.
        let long = "y".repeat(1 << 20);
        let length = rig.call_with("m:large", r#"{"n": 3000000}"#).value();
        assert_eq!(length.as_str().expect("text").len(), 3_000_000);
        let failed = rig.call_with("m:large", &format!(r#"{{"n": "{long}"}}"#));
        failed.fails(ErrorCode::Exit, "TypeError");
    }
}

#[test]
fn what_it_prints_and_its_children_print_is_captured() {
    for mut rig in each() {
        let ran = rig.call("m:prints");
        let mut words: Vec<&str> = ran.text().split_whitespace().collect();
        words.sort_unstable();
        assert_eq!((words, ran.stderr.as_str()), (vec!["child", "out", "raw"], "err\n"));
    }
}

#[test]
fn it_has_the_jobs_variables_and_its_own() {
    for mut rig in each() {
        rig.env = [("COLOUR".to_owned(), "blue".to_owned())].into();
        let first = rig.call("m:who").value();
        let second = rig.call("m:who").value();
        assert_eq!(
            (&first["COLOUR"], &first["SINEW_JOB"], &first["SINEW_PHASE"]),
            (&"blue".into(), &"job".into(), &"batch".into())
        );
        assert_ne!(first["SINEW_TASK"], second["SINEW_TASK"]);
        let input = if rig.sandboxed { "/input" } else { rig.files.dir().and_then(|d| d.to_str()).expect("utf-8") };
        assert_eq!(second["SINEW_INPUT"], input);
    }
}

#[test]
fn exceptions_and_exits_fail_as_programs_do() {
    for mut rig in each() {
        let ran = rig.call("m:fails");
        let failure = ran.fails(ErrorCode::Exit, "`m:fails` failed: ValueError: no such luck");
        assert!(failure.exit == Some(1) && failure.retryable, "{failure:?}");
        let tail = &failure.stderr_tail;
        assert!(tail.contains("Traceback") && tail.contains("in fails") && !tail.contains("in run"), "{tail}");
        assert_eq!(rig.call_with("m:leave", r#"{"code": 7}"#).fails(ErrorCode::Exit, "7").exit, Some(7));
        let said = rig.call_with("m:leave", r#"{"code": "goodbye"}"#);
        assert!(said.fails(ErrorCode::Exit, "1").stderr_tail.contains("goodbye"), "{said:?}");
        for fine in ["0", "null"] {
            rig.call_with("m:leave", &format!(r#"{{"code": {fine}}}"#)).good();
        }
    }
}

#[test]
fn a_wrong_call_is_refused_for_good_and_says_what_is_wrong() {
    for mut rig in each() {
        for (call, params, part) in [
            ("gone:run", "{}", "no module `gone`"),
            ("pkg.gone:run", "{}", "no module `pkg.gone`"),
            ("pkg.sub:run", "{}", "module `pkg.sub` needs the module `nix`"),
            ("m:gone", "{}", "has no function `gone`"),
            ("m:NUMBER", "{}", "no function"),
            ("m:add", "{}", "'a'"),
            ("m:add", r#"{"a": 1, "c": 2}"#, "'c'"),
            ("m:odd", "{}", "no JSON: Object of type set"),
            ("m:nan", "{}", "no JSON"),
            ("m:add", "[]", "no JSON object"),
            ("m:add", "{}, \"env\": {}", "no JSON object"),
        ] {
            let ran = rig.call_with(call, params);
            let failure = ran.fails(ErrorCode::Invalid, part);
            assert!(!failure.retryable, "{failure:?}");
        }
        // A mistake of its own is no wrong call.
        rig.call("m:inner").fails(ErrorCode::Exit, "TypeError");
    }
}

#[test]
fn parameters_in_cbor_hold_what_json_cannot() {
    let module = "
def run(data, numbers, table, nothing):
    assert data == bytes(range(256)) * 300, data
    assert numbers[:4] == [0, -1, 2**64 - 1, -(2**64)] and numbers[4] == 2**70 and numbers[5] == -(2**70), numbers
    assert numbers[6] == 1.5 and numbers[7] == 0.1 and numbers[8] != numbers[8] and numbers[9] == float('-inf'), numbers
    assert table == {1: 'a', b'x': [True, False], 'ü': {}}, table
    assert nothing is None
    return 'fine'
";
    let number = |n: i128| Value::from(n);
    let (large, small) = (1_i128 << 70, -(1_i128 << 70));
    let whole = [0, -1, (1 << 64) - 1, -(1 << 64), large, small].map(number);
    let floats = [1.5, 0.1, f64::NAN, f64::NEG_INFINITY].map(Value::from);
    let table = vec![
        (Value::from(1), Value::from("a")),
        (Value::Bytes(b"x".to_vec()), Value::Array(vec![true.into(), false.into()])),
        (Value::from("ü"), Value::Map(Vec::new())),
    ];
    let params = Value::Map(vec![
        ("data".into(), Value::Bytes((0..=255).cycle().take(256 * 300).collect())),
        ("numbers".into(), Value::Array(whole.into_iter().chain(floats).collect())),
        ("table".into(), Value::Map(table)),
        ("nothing".into(), Value::Null),
    ]);
    let call = |params: &Value| {
        let params = Params::Cbor(sinew_crdt_state::cbor::to_vec(params));
        Program::Python(PythonCall { call: "m:run".to_owned(), params })
    };
    for mut rig in Rig::each().map(|rig| rig.module(module)) {
        assert_eq!(rig.run(&call(&params)).value(), "fine");
        let tagged = Value::Tag(0, Box::new("2026-01-01".into()));
        let date = rig.run(&call(&Value::Map(vec![("data".into(), tagged)])));
        assert!(!date.fails(ErrorCode::Invalid, "cannot be read: tag 0").retryable);
        rig.run(&call(&Value::Array(Vec::new()))).fails(ErrorCode::Invalid, "no CBOR map");
    }
}

#[test]
fn limits_hold() {
    let module = r#"
import os, sys, time
def sleep(): time.sleep(1000)
def deaf():
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)
def pour(fd):
    while True: os.write(fd, b"x" * 65536)
def fill():
    f = open(os.environ["SINEW_OUTPUT"] + "/big", "wb")
    while True: f.write(bytes(1 << 20))
def eat():
    x = [bytearray(os.urandom(1 << 20)) for _ in range(640)]
def child_eats():
    if os.fork() == 0: x = bytearray(os.urandom(640 << 20))
    os.wait()
def spin():
    end = time.process_time() + 0.3
    while time.process_time() < end: pass
def fine(): return "fine"
"#;
    for mut rig in Rig::each().map(|rig| rig.module(module)) {
        rig.limits.timeout_ms = Some(400);
        for call in ["m:sleep", "m:deaf"] {
            rig.call(call).fails(ErrorCode::Timeout, "400 ms");
        }
        rig.limits.timeout_ms = Some(60_000);
        rig.limits.output_bytes_max = 4 << 20;
        for call in ["m:pour", "m:fill"] {
            let params = if call == "m:pour" { r#"{"fd": 1}"# } else { "{}" };
            rig.call_with(call, params).fails(ErrorCode::Storage, "4194304 bytes");
        }
        rig.call_with("m:pour", r#"{"fd": 2}"#).fails(ErrorCode::Storage, "4194304 bytes");
        assert_eq!(rig.call("m:fine").value(), "fine");
        let used = rig.call("m:spin").usage;
        assert!((250..2_000).contains(&used.cpu_ms) && used.max_rss_bytes > 1 << 20, "{used:?}");
        assert!(rig.call("m:fine").usage.cpu_ms < 200, "what another call used is not its own");
        if rig.sandboxed {
            rig.resources.memory_bytes = 64 << 20;
            for call in ["m:eat", "m:child_eats"] {
                rig.call(call).fails(ErrorCode::Oom, "67108864 bytes");
            }
            assert_eq!(rig.call("m:fine").value(), "fine");
        }
    }
}

#[test]
fn the_stop_handle_ends_it_at_once_and_politely() {
    let module = r#"
import signal, sys, time
def run():
    def end(*_):
        print("asked to end", file=sys.stderr)
        sys.exit(3)
    signal.signal(signal.SIGTERM, end)
    print("under way", file=sys.stderr)
    time.sleep(1000)
"#;
    for mut rig in Rig::each().map(|rig| rig.module(module)) {
        rig.stop_at = Some("under way");
        let ran = rig.call("m:run");
        let failure = ran.fails(ErrorCode::Cancelled, "cancelled");
        assert!(failure.stderr_tail.contains("asked to end"), "{ran:?}");
    }
}

#[test]
fn mappers_read_lines_and_print_or_yield_them() {
    let module = r#"
import sys
def prints():
    for line in sys.stdin:
        for word in line.split(): print(word, 1, sep="\t")
def yields():
    for line in sys.stdin:
        for word in line.split(): yield word, 1
def lines():
    return (line.rstrip("\n").upper() for line in sys.stdin)
def one(): next(sys.stdin)
def wrong(): return 3
"#;
    for mut rig in Rig::each().map(|rig| rig.module(module)) {
        let input = "b a\na ü\n".repeat(20_000);
        let words = ["a\t1\n".repeat(40_000), "b\t1\n".repeat(20_000), "ü\t1\n".repeat(20_000)].concat();
        for call in ["m:prints", "m:yields"] {
            assert!(rig.map(call, &input).expect("mapped") == words, "{call}");
        }
        assert_eq!(rig.map("m:lines", "x\n").expect("mapped"), "X\n");
        // One that does not want all of it leaves nothing to the next.
        assert_eq!(rig.map("m:one", &input).expect("mapped"), "");
        assert_eq!(rig.map("m:lines", "y\n").expect("mapped"), "Y\n");
        let wrong = rig.map("m:wrong", "x\n").expect_err("no lines");
        assert!(wrong.code == ErrorCode::Invalid && wrong.message.contains("print or yield"), "{wrong}");
        assert_eq!(rig.call("sys:getrefcount").fails(ErrorCode::Invalid, "do not fit").exit, None);
    }
}

#[test]
fn a_virtual_environment_brings_its_packages() {
    let dir = tempfile::tempdir().expect("dir");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).expect("chmod");
    let venv = dir.path().join("venv");
    let made = std::process::Command::new("/usr/bin/python3").args(["-m", "venv", "--without-pip"]).arg(&venv).status();
    assert!(made.expect("python3").success());
    let lib = std::fs::read_dir(venv.join("lib")).expect("lib").next().expect("a version").expect("entry").path();
    std::fs::write(lib.join("site-packages/ours.py"), "import sys\ndef run(): return sys.prefix\n").expect("write");
    let python = PythonOptions { interpreter: Some(venv.clone()), paths: Vec::new() };
    assert_eq!(Rig::with(&python, None).call("ours:run").value(), venv.to_str().expect("utf-8"));
}

#[test]
fn what_is_no_interpreter_is_said_and_nothing_is_called() {
    let process = ProcessRunner::new(NodeTag::new("no python"));
    let dir = tempfile::tempdir().expect("dir");
    for (interpreter, path, part) in [
        ("/no/such/python3", None, "is missing"),
        ("no-such-python", None, "is missing"),
        ("/bin/false", None, "ended at once"),
        ("/bin/echo", None, "ended at once"),
        ("/usr/bin/python3", Some(dir.path().join("gone")), "no directory"),
    ] {
        let options = PythonOptions { interpreter: Some(interpreter.into()), paths: path.into_iter().collect() };
        let runner = PythonRunner::new(options, &process);
        runner.try_out();
        let Health::Unavailable(why) = runner.health() else { panic!("{interpreter} is no interpreter") };
        assert!(why.contains(part), "{interpreter}: {why}");
    }
    let refused = ProcessRunner::refusing(NodeTag::new("no sandbox"), "nothing is isolated here".to_owned());
    let runner = PythonRunner::new(PythonOptions::default(), &refused);
    runner.try_out();
    assert_eq!(runner.health(), Health::Unavailable("nothing is isolated here".to_owned()));
}

#[test]
fn modules_come_from_configured_paths_first_and_a_list_keeps_others_out() {
    let dir = tempfile::tempdir().expect("dir");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).expect("chmod");
    std::fs::create_dir(dir.path().join("tasks")).expect("mkdir");
    std::fs::write(dir.path().join("tasks/known.py"), "def run(n=0): return ['configured', n]\n").expect("write");
    let python = PythonOptions { interpreter: None, paths: vec![dir.path().to_owned()] };
    let shadow = [("tasks/known.py", "def run(n=0): return 'shadow'\n"), ("own.py", "def run(): return 'own'\n")];
    let mut rig = Rig::with(&python, None);
    rig.place(&shadow);
    assert_eq!(rig.call_with("tasks.known:run", r#"{"n": 2}"#).value(), serde_json::json!(["configured", 2]));
    assert_eq!(rig.call("own:run").value(), "own");
    let list = dir.path().join("allow.toml");
    let entry = "[[program]]\npath = '/usr/bin/python3'\nargs = ['(tasks\\.[a-z]+|own):run']\n";
    std::fs::write(&list, entry).expect("write");
    let mut rig = Rig::with(&python, Some(Allowlist::load(&list).expect("list")));
    rig.place(&shadow);
    assert_eq!(rig.call("tasks.known:run").value(), serde_json::json!(["configured", 0]));
    rig.call("os:system").fails(ErrorCode::Deny, "argument 1");
    rig.call("own:run").fails(ErrorCode::Invalid, "no module `own`");
    rig.env = [("LD_PRELOAD".to_owned(), "/job/work/x.so".to_owned())].into();
    rig.call("tasks.known:run").fails(ErrorCode::Deny, "variable `LD_PRELOAD`");
}
