//! What bare processes and modules find, without daemons around them; cells, containers and Python have it in tests of their own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sinew_crdt_state::ids::Hash;
use sinew_crdt_state::program::WasmOf;
use sinew_crdt_state::secret::{SecretPlace, SecretUse};
use sinew_crdt_state::spec::{BlobRef, Limits, Program, Resources};
use sinew_node::exec::files::JobFiles;
use sinew_node::exec::guardian::NodeTag;
use sinew_node::exec::process::ProcessRunner;
use sinew_node::exec::runner::Runner;
use sinew_node::exec::set::Content;
use sinew_node::exec::slot::WorkRoot;
use sinew_node::exec::stop::StopHandle;
use sinew_node::exec::task::{BatchDone, TaskContext, run_batch};
use sinew_node::exec::wasm::{WasmOptions, WasmRunner};
use sinew_node::secrets::SecretBytes;
use sinew_node::secrets::job::JobSecrets;

use crate::rig::{KEY, PASSWORD};

fn uses() -> [SecretUse; 2] {
    [("db", SecretPlace::Env("DB".to_owned())), ("key", SecretPlace::File("id".to_owned()))]
        .map(|(name, place)| SecretUse { name: name.to_owned(), place })
}

fn secrets(tag: &NodeTag) -> JobSecrets {
    let value = |text: &str| SecretBytes::new(text.as_bytes().to_vec());
    let values = [("db".to_owned(), value(&format!("{PASSWORD}\n"))), ("key".to_owned(), value(KEY))];
    let env = [("PLAIN".to_owned(), "p".to_owned())].into();
    JobSecrets::new("job", tag, &env, &uses(), values).expect("secrets")
}

struct Ran {
    done: BatchDone,
    stdout: String,
    _dir: tempfile::TempDir,
}

fn run(runner: &dyn Runner, program: &Program, content: &Content, secrets: &JobSecrets) -> Ran {
    let dir = tempfile::tempdir().expect("dir");
    let root = WorkRoot::open(&dir.path().join("work")).expect("root");
    let mut slot = root.slot(0).expect("slot");
    let (files, stop) = (JobFiles::none(), StopHandle::new().expect("stop"));
    let ctx = TaskContext {
        runner,
        job: "job",
        phase: 0,
        task: 0,
        attempt: 0,
        number: 1,
        fence: (1, 1),
        files: &files,
        content,
        env: secrets.env(),
        network: &sinew_crdt_state::network::NO_NETWORK,
        volumes: &[],
        secrets: Some(secrets),
        limits: Limits::default(),
        resources: Resources::default(),
        grace: Duration::from_secs(1),
        stop: &stop,
        live: None,
        started: None,
    };
    let done = run_batch(&ctx, &mut slot, program, &[]);
    let stdout = done.stdout.as_ref().map(|path| std::fs::read_to_string(path).expect("stdout"));
    Ran { done, stdout: stdout.unwrap_or_default(), _dir: dir }
}

#[test]
fn a_bare_process_finds_them_in_memory_and_they_go_with_the_job() {
    let tag = NodeTag::new("bare secrets");
    let secrets = secrets(&tag);
    let script = "stat -f -c %T $SINEW_SECRETS; stat -c %a $SINEW_SECRETS/id; cat $SINEW_SECRETS/id; echo $DB $PLAIN; \
                  echo $SINEW_SECRETS > $SINEW_OUTPUT/where; sha256sum < $SINEW_SECRETS/id | cut -c1-64; \
                  echo bad $DB >&2; exit 3";
    let program = Program::Exec(["sh", "-c", script].map(str::to_owned).to_vec());
    let ran = run(&ProcessRunner::new(tag), &program, &Content::new(), &secrets);
    let failure = ran.done.outcome.result.expect_err("exit 3");
    assert_eq!((failure.exit, failure.stderr_tail.as_str()), (Some(3), "bad ***\n"));
    let lines: Vec<&str> = ran.stdout.lines().collect();
    let sum = lines.last().copied().unwrap_or_default();
    assert_eq!(lines[..lines.len() - 1], ["tmpfs", "400", "***", "*** p"], "{}", ran.stdout);
    assert_eq!(sum.len(), 64);
    let dir: PathBuf = secrets.dir(0, None).expect("dir").expect("there are files");
    assert_eq!(std::fs::read_to_string(dir.join("id")).expect("read"), KEY);
    drop(secrets);
    assert!(!dir.exists(), "gone with the job");
}

/// Copies `/run/secrets/id`, or whatever directory 5 has as `id`, to stdout, and then tries to write to it.
const MODULE: &str = r#"(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "id")
  (data (i32.const 8) "\40\00\00\00\00\04\00\00")
  (func (export "_start")
    ;; The preopened directories: 3 is ., 4 /job/work, 5 /job/output, 6 /run/secrets.
    (if (call $open (i32.const 6) (i32.const 0) (i32.const 0) (i32.const 2) (i32.const 0) (i64.const 2) (i64.const 0)
          (i32.const 0) (i32.const 24))
      (then (call $exit (i32.const 10))))
    (if (call $read (i32.load (i32.const 24)) (i32.const 8) (i32.const 1) (i32.const 28))
      (then (call $exit (i32.const 11))))
    (i32.store (i32.const 12) (i32.load (i32.const 28)))
    (if (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 28))
      (then (call $exit (i32.const 12))))
    ;; To create a file there, or open this one for writing, must fail.
    (if (i32.eqz (call $open (i32.const 6) (i32.const 0) (i32.const 0) (i32.const 2) (i32.const 0) (i64.const 64)
          (i64.const 0) (i32.const 0) (i32.const 24)))
      (then (call $exit (i32.const 13)))))
)"#;

#[test]
fn a_module_finds_them_in_a_directory_that_it_cannot_write() {
    let tag = NodeTag::new("wasm secrets");
    let secrets = secrets(&tag);
    let bytes = wat::parse_str(MODULE).expect("a module");
    let dir = tempfile::tempdir().expect("dir");
    let module = BlobRef { hash: Hash::of(&bytes), size: bytes.len() as u64 };
    let path = dir.path().join("module");
    std::fs::write(&path, &bytes).expect("write");
    let content: Content = BTreeMap::from([(module.hash, path)]);
    let options = WasmOptions { memory_bytes: 1 << 30, slots: 1, module_bytes_max: 1 << 20 };
    let runner: Arc<dyn Runner> = Arc::new(WasmRunner::new(options));
    let program = Program::Wasm(WasmOf { module, argv: Vec::new(), fuel: None, deterministic: false });
    let ran = run(&*runner, &program, &content, &secrets);
    assert!(ran.done.outcome.result.is_ok(), "{:?}", ran.done.outcome);
    assert_eq!(ran.stdout, "***\n", "what it read was the key");
}

#[test]
fn a_variable_holds_text() {
    let tag = NodeTag::new("binary secrets");
    let with = |bytes: &[u8]| {
        let key = ("key".to_owned(), SecretBytes::new(b"x".to_vec()));
        JobSecrets::new(
            "job",
            &tag,
            &BTreeMap::new(),
            &uses(),
            [("db".to_owned(), SecretBytes::new(bytes.to_vec())), key],
        )
    };
    for bytes in [&b"\xff\xfe"[..], b"a\0b"] {
        let refused = with(bytes).expect_err("no variable");
        assert!(
            refused.message.contains("`db`") && refused.message.contains("`file`") && !refused.retryable,
            "{refused}"
        );
    }
    assert_eq!(with(b"text\r\n").expect("text").env()["DB"], "text");
    assert_eq!(with(b"text\n\n").expect("text").env()["DB"], "text\n", "one line end");
}
