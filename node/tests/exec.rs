//! The execution data plane with real programs: bad inputs, limits, orphans, and results byte-identical to a shell pipeline.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::network::NO_NETWORK;
use sinew_crdt_state::program::Runners;
use sinew_crdt_state::spec::{Builtin, Limits, Program, Resources};
use sinew_node::exec::cell::CELL_COMMAND;
use sinew_node::exec::cell::pool::{Sandbox, SandboxMode, SandboxOptions};
use sinew_node::exec::files::JobFiles;
use sinew_node::exec::guardian::{Guardian, NodeTag, TAG_VAR, become_subreaper, guardian_main, reconcile_leftovers};
use sinew_node::exec::logs::{LiveLog, LogStream};
use sinew_node::exec::merge::Input;
use sinew_node::exec::outcome::{Failure, TaskOutcome};
use sinew_node::exec::process::ProcessRunner;
use sinew_node::exec::runner::{Control, Health, Runner, Status};
use sinew_node::exec::set::NO_CONTENT;
use sinew_node::exec::shuffle::{SORT_BUDGET_DEFAULT, key_of, partition_of};
use sinew_node::exec::slot::{Slot, WorkRoot};
use sinew_node::exec::stop::{StopHandle, StopReason};
use sinew_node::exec::sweep::Sweeper;
use sinew_node::exec::switch::Switch;
use sinew_node::exec::task::{BatchDone, MapDone, MapWork, ReduceDone, TaskContext, run_batch, run_map, run_reduce};

/// Longest wait for something that happens within milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// One slot of one node.
struct World {
    _dir: tempfile::TempDir,
    slot: Slot,
    runner: ProcessRunner,
    files: JobFiles,
    env: BTreeMap<String, String>,
    limits: Limits,
    grace: Duration,
    task: u32,
}

impl World {
    /// With sandboxed programs.
    fn new() -> Self {
        Self::of(|tag| {
            let options = SandboxOptions {
                mode: SandboxMode::Required,
                exe: PathBuf::from(env!("CARGO_BIN_EXE_sinew")),
                readable: Vec::new(),
                writable: Vec::new(),
                tmp_bytes: 64 << 20,
                memory_bytes: 1 << 30,
                slots: 1,
            };
            let (sandbox, missing) = Sandbox::probe(options, &tag).expect("a machine that isolates");
            assert_eq!(missing, []);
            ProcessRunner::sandboxed(tag, sandbox.expect("a sandbox"))
        })
    }

    /// With programs that nothing isolates.
    fn bare() -> Self {
        Self::of(ProcessRunner::new)
    }

    fn of(runner: impl FnOnce(NodeTag) -> ProcessRunner) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let root = WorkRoot::open(&dir.path().join("work")).expect("root");
        Self {
            slot: root.slot(0).expect("slot"),
            runner: runner(NodeTag::new(dir.path().to_str().expect("utf-8"))),
            files: JobFiles::none(),
            env: BTreeMap::new(),
            limits: Limits::default(),
            grace: Duration::from_millis(200),
            task: 0,
            _dir: dir,
        }
    }

    fn with_files(mut self, files: &[(&str, &str)]) -> Self {
        let mut placing = JobFiles::place_in(&self.slot.root().input("job")).expect("place");
        for (path, text) in files {
            placing.add(path, text.starts_with("#!"), &mut text.as_bytes()).expect("add");
        }
        self.files = placing.finish();
        self
    }

    fn timeout(mut self, ms: u64) -> Self {
        self.limits.timeout_ms = Some(ms);
        self
    }

    fn output_max(mut self, bytes: u64) -> Self {
        self.limits.output_bytes_max = bytes;
        self
    }

    fn with<T>(&mut self, stop: &StopHandle, f: impl FnOnce(&TaskContext<'_>, &mut Slot) -> T) -> T {
        self.watched(stop, None, None, f)
    }

    fn watched<T>(
        &mut self,
        stop: &StopHandle,
        live: Option<&dyn LiveLog>,
        started: Option<&(dyn Fn(std::sync::Arc<dyn Control>) + Sync)>,
        f: impl FnOnce(&TaskContext<'_>, &mut Slot) -> T,
    ) -> T {
        self.task += 1;
        let ctx = TaskContext {
            runner: &self.runner,
            job: "job",
            phase: 0,
            task: self.task,
            attempt: 1,
            number: 1,
            fence: (1, 1),
            files: &self.files,
            content: &NO_CONTENT,
            volumes: &[],
            env: &self.env,
            secrets: None,
            limits: self.limits,
            resources: Resources::default(),
            network: &NO_NETWORK,
            grace: self.grace,
            stop,
            live,
            started,
        };
        f(&ctx, &mut self.slot)
    }

    fn batch(&mut self, argv: &[&str]) -> BatchDone {
        let stop = StopHandle::new().expect("handle");
        self.with(&stop, |ctx, slot| run_batch(ctx, slot, &exec(argv), &[]))
    }

    fn map(&mut self, map: &Program, combine: Option<&Program>, partitions: u32, input: &[u8]) -> MapDone {
        self.map_within(map, combine, partitions, input, SORT_BUDGET_DEFAULT)
    }

    fn map_within(
        &mut self,
        map: &Program,
        combine: Option<&Program>,
        partitions: u32,
        mut input: &[u8],
        budget: usize,
    ) -> MapDone {
        let stop = StopHandle::new().expect("handle");
        let work = MapWork { map, combine, partitions, sort_budget: budget };
        self.with(&stop, |ctx, slot| run_map(ctx, slot, &work, &mut input))
    }

    fn reduce(&mut self, reduce: &Program, inputs: Vec<Input>) -> ReduceDone {
        let stop = StopHandle::new().expect("handle");
        self.with(&stop, |ctx, slot| run_reduce(ctx, slot, reduce, inputs))
    }

    /// A whole round: each chunk mapped, each partition reduced.
    fn round(
        &mut self,
        map: &Program,
        combine: Option<&Program>,
        reduce: &Program,
        partitions: u32,
        chunks: &[&[u8]],
    ) -> Vec<Vec<u8>> {
        let maps: Vec<_> = chunks.iter().map(|chunk| self.map_within(map, combine, partitions, chunk, 2_000)).collect();
        let mut results = Vec::new();
        for partition in 0..partitions {
            let input = |(i, map): (usize, &MapDone)| Input {
                name: format!("map output {i}"),
                reader: Box::new(std::io::Cursor::new(partition_bytes(map, partition))),
            };
            let done = self.reduce(reduce, maps.iter().enumerate().map(input).collect());
            done.outcome.result.expect("reduce");
            results.push(std::fs::read(done.output.expect("output").path).expect("read"));
        }
        results
    }
}

fn exec(argv: &[&str]) -> Program {
    Program::Exec(argv.iter().map(|a| (*a).to_owned()).collect())
}

fn partition_bytes(map: &MapDone, partition: u32) -> Vec<u8> {
    map.outcome.result.as_ref().expect("map");
    let (path, index) = map.output.as_ref().expect("output");
    let range = index.range_of(partition).expect("partition");
    let mut bytes = vec![0; usize::try_from(range.end - range.start).expect("small")];
    File::open(path).expect("open").read_exact_at(&mut bytes, range.start).expect("read");
    bytes
}

fn failure(outcome: TaskOutcome) -> Failure {
    outcome.result.expect_err("it should have failed")
}

fn shell(script: &str, dir: &Path, input: &[u8]) -> Vec<u8> {
    let mut command = Command::new("bash");
    command.args(["-c", script]).current_dir(dir).env("LC_ALL", "C").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("shell");
    let mut stdin = child.stdin.take().expect("stdin");
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let out = child.wait_with_output().expect("shell");
    feeder.join().expect("feeder").expect("feed");
    assert!(out.status.success(), "{script}");
    out.stdout
}

/// Processes that carry `tag`, but for the first ones of cells, which wait for the next task.
fn tagged(tag: &str) -> Vec<u32> {
    let marker = format!("{TAG_VAR}={tag}").into_bytes();
    let pids = std::fs::read_dir("/proc").expect("proc").flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str().and_then(|n| n.parse().ok()));
    let has = |pid: &u32| {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let is_cell = cmdline.split(|b| *b == 0).nth(1).is_some_and(|arg| arg == CELL_COMMAND.as_bytes());
        !is_cell && environ.split(|b| *b == 0).any(|v| v == marker)
    };
    pids.filter(has).collect()
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_program_that_does_not_exist_is_invalid_and_named() {
    let mut world = World::new();
    let failure = failure(world.batch(&["no-such-program-here", "x"]).outcome);
    assert_eq!((failure.code, failure.retryable), (ErrorCode::Invalid, false));
    assert!(failure.message.contains("no-such-program-here") && failure.message.contains("PATH"), "{failure}");
    let mut world = World::new().with_files(&[("bad.sh", "#!/no/such/interpreter\n"), ("plain", "text")]);
    let no_interpreter = self::failure(world.batch(&["./bad.sh"]).outcome);
    assert!(
        no_interpreter.code == ErrorCode::Invalid && no_interpreter.message.contains("interpreter"),
        "{no_interpreter}"
    );
    let not_executable = self::failure(world.batch(&["./plain"]).outcome);
    assert!(not_executable.message.contains("not executable"), "{not_executable}");
}

#[test]
fn a_mapper_that_exits_3_reports_its_status_and_the_end_of_its_stderr() {
    let mut world = World::new();
    let script = "import sys; sys.stderr.write('x' * 100000 + 'the reason\\n'); sys.exit(3)";
    let done = world.map(&exec(&["python3", "-c", script]), None, 2, b"a\nb\n");
    let failure = failure(done.outcome);
    assert_eq!((failure.code, failure.exit, failure.signal), (ErrorCode::Exit, Some(3), None));
    assert!(failure.retryable && failure.stderr_tail.ends_with("the reason\n") && failure.stderr_tail.len() <= 4_096);
    assert!(done.output.is_none());
    assert_eq!(std::fs::metadata(done.stderr.expect("log")).expect("log").len(), 100_011);
    let killed = self::failure(world.batch(&["sh", "-c", "kill -9 $$"]).outcome);
    assert_eq!((killed.code, killed.exit, killed.signal), (ErrorCode::Exit, None, Some(9)));
}

#[test]
fn one_that_hangs_is_ended_even_if_it_ignores_sigterm() {
    for script in ["sleep 1000", "trap '' TERM; sleep 1000 & while :; do wait; done", "kill -STOP $$"] {
        let mut world = World::new().timeout(150);
        let began = Instant::now();
        let done = world.map(&exec(&["sh", "-c", script]), None, 1, &[b'x'; 1 << 20]);
        let failure = failure(done.outcome);
        assert_eq!(failure.code, ErrorCode::Timeout, "{script}: {failure}");
        assert!(failure.message.contains("150 ms") && failure.retryable, "{failure}");
        assert!(began.elapsed() < PATIENCE / 2, "{script} took {:?}", began.elapsed());
        eventually("the group to be gone", || tagged(world.runner.tag().value()).is_empty());
    }
}

#[test]
fn output_without_end_stops_at_the_cap() {
    for argv in [&["head", "-c", "10G", "/dev/zero"][..], &["yes"], &["sh", "-c", "yes >&2"]] {
        let mut world = World::new().output_max(1 << 20);
        let done = world.batch(argv);
        assert!(done.outcome.usage.output_bytes < 4 << 20, "{argv:?} went on to {}", done.outcome.usage.output_bytes);
        let failure = failure(done.outcome);
        assert_eq!((failure.code, failure.retryable), (ErrorCode::Storage, false), "{argv:?}");
        assert!(failure.message.contains("1048576") && failure.message.contains("--output-max"), "{failure}");
    }
    let mut world = World::new().output_max(1 << 20);
    let done = world.map(&exec(&["yes"]), None, 3, b"");
    assert_eq!(failure(done.outcome).code, ErrorCode::Storage);
}

#[test]
fn output_files_count_too_while_it_runs_and_at_the_end() {
    let mut world = World::new().output_max(1 << 20);
    let endless =
        world.batch(&["sh", "-c", "while :; do head -c 100000 /dev/zero; done > $SINEW_OUTPUT/f; sleep 1000"]);
    assert_eq!(failure(endless.outcome).code, ErrorCode::Storage);
    let quick = world.batch(&["sh", "-c", "head -c 2000000 /dev/zero > $SINEW_OUTPUT/f"]);
    assert!(quick.outputs.is_empty() && failure(quick.outcome).code == ErrorCode::Storage);
    let good = world.batch(&["sh", "-c", "test -z \"$(ls $SINEW_OUTPUT)\" && echo fine"]);
    assert!(good.outcome.result.is_ok(), "the next task finds the directory empty: {:?}", good.outcome);
}

#[test]
fn binary_garbage_and_a_100_mb_line_pass_through() {
    let mut world = World::new();
    let mut garbage: Vec<u8> =
        (0..300_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
    garbage.push(b'\n');
    let cat = exec(&["cat"]);
    let sorted = shell("sort", Path::new("/"), &garbage);
    assert_eq!(partition_bytes(&world.map(&cat, None, 1, &garbage), 0), sorted);
    let mut long = vec![b'k'; 100_000_000];
    long.extend_from_slice(b"\na\tb\n");
    let map = world.map(&cat, None, 1, &long);
    let bytes = partition_bytes(&map, 0);
    assert!(bytes.len() == long.len() && bytes.starts_with(b"a\tb\nkkk"));
    let reader = Box::new(std::io::Cursor::new(bytes.clone()));
    let done = world.reduce(&cat, vec![Input { name: "m".into(), reader }]);
    let result = std::fs::read(done.output.expect("output").path).expect("read");
    assert!(result == bytes, "the long line came through the reducer");
}

#[test]
fn odd_keys_and_empty_inputs() {
    let mut world = World::new();
    let text = "a b\t1\n\t2\n\n\u{fc}ber\t3\n a\t4\na b\t5\n日本\t6\n\t7\nno tab\n";
    let map = world.map(&exec(&["cat"]), None, 5, text.as_bytes());
    let mut all = Vec::new();
    for partition in 0..5 {
        let bytes = partition_bytes(&map, partition);
        let lines = bytes.split_inclusive(|b| *b == b'\n').map(|l| &l[..l.len() - 1]);
        assert!(lines.clone().is_sorted());
        assert!(lines.clone().all(|line| partition_of(key_of(line), 5) == partition));
        all.extend(lines.map(<[u8]>::to_vec));
    }
    all.sort();
    let mut expected: Vec<Vec<u8>> = text.lines().map(|l| l.as_bytes().to_vec()).collect();
    expected.sort();
    assert_eq!(all, expected);
    for program in [exec(&["cat"]), Program::Builtin(Builtin::Wordcount)] {
        let empty = world.map(&program, None, 2, b"");
        assert!(partition_bytes(&empty, 0).is_empty() && partition_bytes(&empty, 1).is_empty());
    }
    for reduce in [exec(&["cat"]), Program::Builtin(Builtin::Sum)] {
        let done = world.reduce(&reduce, vec![]);
        assert_eq!(done.output.expect("output").size, 0);
    }
}

const MAPPER: &str =
    "import sys\nfor line in sys.stdin:\n    for word in line.split():\n        print(word.lower() + '\\t1')\n";
const REDUCER: &str = "import sys\nfrom itertools import groupby\npairs = (l.rstrip('\\n').split('\\t') for l in sys.stdin)\n\
    for key, group in groupby(pairs, key=lambda p: p[0]):\n    print(key + '\\t' + str(sum(int(v) for _, v in group)))\n";

#[test]
fn python_rounds_equal_the_shell_pipeline_with_and_without_a_combiner() {
    let mut world = World::new().with_files(&[("mapper.py", MAPPER), ("lib/reducer.py", REDUCER)]);
    let input = world.files.dir().expect("dir").to_owned();
    let chunks: Vec<String> = (0..2_u32)
        .map(|c| (0..400).map(|i| format!("The w{} x{} ünï\n", (i * 7 + c) % 50, i % 11)).collect())
        .collect();
    let chunks: Vec<&[u8]> = chunks.iter().map(|c| c.as_bytes()).collect();
    let (map, reduce) = (exec(&["python3", "mapper.py"]), exec(&["python3", "lib/reducer.py"]));
    let mapped = shell("cat | PYTHONUTF8=1 python3 mapper.py", &input, &chunks.concat());
    world.env.insert("PYTHONUTF8".into(), "1".into());
    let expected: Vec<Vec<u8>> = (0..2)
        .map(|p| {
            let lines = mapped.split_inclusive(|b| *b == b'\n');
            let mine: Vec<u8> = lines.filter(|l| partition_of(key_of(l), 2) == p).flatten().copied().collect();
            shell("cat | sort | PYTHONUTF8=1 python3 lib/reducer.py", &input, &mine)
        })
        .collect();
    assert!(expected.iter().all(|part| part.len() > 20), "each partition has something to compare");
    let sum = Program::Builtin(Builtin::Sum);
    for (combine, reduce) in [(None, &reduce), (Some(&reduce), &reduce), (Some(&sum), &reduce), (None, &sum)] {
        assert_eq!(world.round(&map, combine, reduce, 2, &chunks), expected, "{combine:?}");
    }
    let whole = shell(
        "cat | PYTHONUTF8=1 python3 mapper.py | sort | PYTHONUTF8=1 python3 lib/reducer.py",
        &input,
        &chunks.concat(),
    );
    assert_eq!(world.round(&map, None, &reduce, 1, &chunks), [whole]);
}

#[test]
fn builtin_wordcount_equals_a_python_oracle() {
    let mut world = World::new();
    let text = "It's the end, the END of_line 42 naïve\r\nthe\tend\0x";
    let (map, sum) = (Program::Builtin(Builtin::Wordcount), Program::Builtin(Builtin::Sum));
    let script = "import sys, re, collections\nwords = re.findall(rb'[0-9A-Za-z\\x80-\\xff]+', sys.stdin.buffer.read())\n\
        counts = collections.Counter(w.lower() if w.isascii() else bytes(c + 32 if 65 <= c <= 90 else c for c in w) for w in words)\n\
        sys.stdout.buffer.write(b''.join(w + b'\\t%d\\n' % n for w, n in sorted(counts.items())))";
    let dir = tempfile::tempdir().expect("dir");
    std::fs::write(dir.path().join("oracle.py"), script).expect("write");
    let oracle = shell("python3 oracle.py", dir.path(), text.as_bytes());
    for combine in [None, Some(&sum)] {
        assert_eq!(world.round(&map, combine, &sum, 1, &[text.as_bytes()]).concat(), oracle);
    }
}

#[test]
fn a_combiner_that_changes_keys_moves_its_lines() {
    let mut world = World::new();
    let lines: String = (0..40).map(|i| format!("k{i}\t1\n")).collect();
    let renamer = exec(&["sed", "s/^k/new/"]);
    let map = world.map(&exec(&["cat"]), Some(&renamer), 4, lines.as_bytes());
    let mut count = 0;
    for partition in 0..4 {
        let bytes = partition_bytes(&map, partition);
        let lines = bytes.split_inclusive(|b| *b == b'\n').map(|l| &l[..l.len() - 1]);
        assert!(lines.clone().is_sorted());
        for line in lines {
            assert!(line.starts_with(b"new") && partition_of(key_of(line), 4) == partition);
            count += 1;
        }
    }
    assert_eq!(count, 40);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn a_map_output_is_what_sort_makes_of_it(
        lines in prop::collection::vec(prop::collection::vec(prop_oneof![Just(b'\t'), Just(b' '), any::<u8>(), 97_u8..100], 0..20), 0..80),
        partitions in 1_u32..4, budget in 1_usize..2_000,
    ) {
        let mut input: Vec<u8> = lines.iter().flat_map(|l| l.iter().copied().chain([b'\n'])).collect();
        // A last line without its newline, as long as there is something in it.
        if input.len() >= 2 && input[input.len() - 2] != b'\n' {
            input.pop();
        }
        let mut world = World::new();
        let map = world.map_within(&exec(&["cat"]), None, partitions, &input, budget);
        let sorted = shell("sort", Path::new("/"), &input);
        for partition in 0..partitions {
            let mine = |l: &&[u8]| partition_of(key_of(&l[..l.len() - 1]), partitions) == partition;
            let expected: Vec<u8> = sorted.split_inclusive(|b| *b == b'\n').filter(mine).flatten().copied().collect();
            prop_assert_eq!(partition_bytes(&map, partition), expected);
        }
    }
}

#[test]
fn an_unsorted_map_output_is_named_and_its_reducer_ended() {
    let mut world = World::new();
    let input = |name: &str, text: &'static str| Input { name: name.into(), reader: Box::new(text.as_bytes()) };
    let done = world.reduce(&exec(&["cat"]), vec![input("map output 4", "a\nb\n"), input("map output 9", "b\na\n")]);
    let failure = failure(done.outcome);
    assert!(failure.code == ErrorCode::Fetch && failure.message.contains("map output 9"), "{failure}");
    assert!(done.output.is_none());
}

#[test]
fn a_program_need_not_read_its_input() {
    let mut world = World::new();
    let big = vec![b'\n'; 20 << 20];
    let map = world.map(&exec(&["head", "-n", "1"]), None, 1, &big);
    assert_eq!(partition_bytes(&map, 0), b"\n");
    assert!(world.map(&exec(&["true"]), None, 1, &big).outcome.result.is_ok());
}

#[test]
fn arguments_reach_no_shell_and_little_environment_gets_through() {
    let mut world = World::new();
    world.env.insert("OWN".into(), "1 2".into());
    world.env.insert("SINEW_TASK".into(), "forged".into());
    let done = world.batch(&["echo", "$HOME;`id`", "*"]);
    assert_eq!(std::fs::read_to_string(done.stdout.expect("stdout")).expect("read"), "$HOME;`id` *\n");
    let done = world.batch(&["env"]);
    let text = std::fs::read_to_string(done.stdout.expect("stdout")).expect("read");
    let vars: BTreeMap<&str, &str> = text.lines().filter_map(|l| l.split_once('=')).collect();
    assert_eq!((vars["OWN"], vars["SINEW_TASK"], vars["SINEW_PHASE"], vars["SINEW_JOB"]), ("1 2", "2", "batch", "job"));
    assert!(Path::new(vars["SINEW_OUTPUT"]).is_absolute() && vars["SINEW_ATTEMPT"] == "1");
    assert_eq!(vars["SINEW_FENCE"], "1.1");
    let known = |name: &str| ["PATH", "HOME", "LANG", "TMPDIR", "OWN"].contains(&name) || name.starts_with("SINEW_");
    assert!(vars.keys().all(|name| known(name)), "{text}");
    world.env.insert("A=B".into(), String::new());
    assert_eq!(failure(world.batch(&["env"]).outcome).code, ErrorCode::Invalid);
}

#[test]
fn a_batch_task_leaves_its_outputs_and_logs_and_nothing_else() {
    let mut world = World::new().with_files(&[("data/in.txt", "hello"), ("run.sh", "#!/bin/sh\ncat data/in.txt\ncat $SINEW_INPUT/data/in.txt >&2\nmkdir $SINEW_OUTPUT/d; echo 1 > $SINEW_OUTPUT/d/x; touch litter\nln -s /etc/passwd $SINEW_OUTPUT/link\n")]);
    for argv in [["./run.sh"], ["run.sh"]] {
        let done = world.batch(&argv);
        assert!(done.outcome.result.is_ok(), "{:?}", done.outcome);
        let outputs: Vec<_> = done.outputs.iter().map(|o| (o.name.as_str(), o.size)).collect();
        assert_eq!(outputs, [("d/x", 2)]);
        let mut text = String::new();
        done.outputs[0].open().expect("open").read_to_string(&mut text).expect("read");
        assert_eq!((text.as_str(), done.outcome.usage.output_bytes), ("1\n", 12));
        for log in [done.stdout, done.stderr] {
            assert_eq!(std::fs::read_to_string(log.expect("log")).expect("read"), "hello");
        }
        assert!(!world.slot.work().join("litter").exists());
    }
    let before: Vec<PathBuf> = list(&world.slot.root().job("job"));
    let silent = world.batch(&["true"]);
    assert!(silent.stdout.is_none() && silent.stderr.is_none() && silent.outputs.is_empty());
    assert_eq!(list(&world.slot.root().job("job")), before, "a silent task makes no directory");
    let stop = StopHandle::new().expect("handle");
    let wants = world.with(&stop, |ctx, slot| run_batch(ctx, slot, &exec(&["true"]), &["result.bin".to_owned()]));
    assert!(failure(wants.outcome).message.contains("output/result.bin"));
}

fn list(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = std::fs::read_dir(dir).expect("read").map(|e| e.expect("entry").path()).collect();
    all.sort();
    all
}

struct Watcher<'a> {
    stop: &'a StopHandle,
    seen: Mutex<Vec<u8>>,
}

impl LiveLog for Watcher<'_> {
    fn see(&self, stream: LogStream, bytes: &[u8]) {
        assert_eq!(stream, LogStream::Stdout);
        self.seen.lock().expect("lock").extend_from_slice(bytes);
        self.stop.stop(StopReason::Cancelled);
    }
}

#[test]
fn output_is_seen_live_and_a_stop_ends_the_group() {
    let mut world = World::new();
    let stop = StopHandle::new().expect("handle");
    let watcher = Watcher { stop: &stop, seen: Mutex::default() };
    let program = exec(&["sh", "-c", "echo now; sleep 1000 & sleep 1000"]);
    let done = world.watched(&stop, Some(&watcher), None, |ctx, slot| run_batch(ctx, slot, &program, &[]));
    let failure = failure(done.outcome);
    assert_eq!((failure.code, failure.retryable), (ErrorCode::Cancelled, false));
    assert_eq!(*watcher.seen.lock().expect("lock"), b"now\n");
    eventually("the group to be gone", || tagged(world.runner.tag().value()).is_empty());
    let again = world.with(&stop, |ctx, slot| run_batch(ctx, slot, &program, &[]));
    assert_eq!(again.outcome.result.expect_err("stopped before it began").code, ErrorCode::Cancelled);
}

#[test]
fn what_a_program_prints_between_sigterm_and_its_end_is_kept() {
    let mut world = World::new().timeout(400);
    let script = "trap 'echo last words; echo and here >&2; exit 0' TERM; echo started; while :; do :; done";
    let done = world.batch(&["sh", "-c", script]);
    assert_eq!(failure(done.outcome).code, ErrorCode::Timeout);
    let text = |log: Option<PathBuf>| std::fs::read_to_string(log.expect("a log")).expect("read");
    assert_eq!((text(done.stdout), text(done.stderr)), ("started\nlast words\n".to_owned(), "and here\n".to_owned()));
}

#[test]
fn another_thread_sees_and_stops_a_running_task() {
    let mut world = World::new();
    assert_eq!((world.runner.kind(), world.runner.health()), (Runners::PROCESS, Health::Ready));
    let stop = StopHandle::new().expect("handle");
    let (to_watcher, controls) = std::sync::mpsc::channel::<std::sync::Arc<dyn Control>>();
    let to_watcher = Mutex::new(to_watcher);
    let started = |control| to_watcher.lock().expect("lock").send(control).expect("watcher");
    let watcher = std::thread::spawn(move || {
        let control = controls.recv().expect("started");
        assert!(matches!(control.status(), Status::Running(Some(_))));
        eventually("its stderr", || control.logs() == b"up\n");
        assert!(control.stats().rss_bytes > 0);
        control.stop(StopReason::Fenced);
        control
    });
    let program = exec(&["sh", "-c", "echo up >&2; sleep 1000"]);
    let done = world.watched(&stop, None, Some(&started), |ctx, slot| run_batch(ctx, slot, &program, &[]));
    assert_eq!(failure(done.outcome).code, ErrorCode::Lost);
    let control = watcher.join().expect("watcher");
    assert_eq!(control.status(), Status::Ended);
}

#[test]
fn usage_counts_cpu_and_memory_of_a_long_enough_run() {
    let mut world = World::new();
    let script =
        "import time\nblock = b'x' * (64 << 20)\nend = time.monotonic() + 0.6\nwhile time.monotonic() < end: pass";
    let usage = world.batch(&["python3", "-c", script]).outcome.usage;
    assert!(usage.cpu_ms >= 100 && usage.wall_ms >= 600, "{usage:?}");
    assert!((64 << 20..512 << 20).contains(&usage.max_rss_bytes), "{usage:?}");
}

#[test]
fn what_a_program_leaves_in_its_group_dies_with_it() {
    let mut world = World::new();
    let done = world.batch(&["sh", "-c", "sleep 1000 & sleep 1000 > /dev/null 2>&1 & echo started"]);
    assert!(done.outcome.result.is_ok());
    eventually("leftovers to be gone", || tagged(world.runner.tag().value()).is_empty());
}

#[test]
fn a_daemonised_grandchild_delays_nothing_and_does_not_survive() {
    become_subreaper().expect("subreaper");
    let mut world = World::bare();
    let tag = world.runner.tag().clone();
    let began = Instant::now();
    let ready = world.slot.scratch().join("ready");
    let wait = format!("while ! test -s {}; do sleep 0.01; done", ready.display());
    let script = format!("setsid sh -c 'echo $$ > {}; sleep 1000; :' & {wait}", ready.display());
    let holding = world.batch(&["sh", "-c", &script]);
    assert!(holding.outcome.result.is_ok(), "{:?}", holding.outcome);
    assert!(began.elapsed() < PATIENCE / 2, "it was not waited for, though it held the pipes");
    assert!(!tagged(tag.value()).is_empty(), "it survived its task");
    let mut sweeper = Sweeper::new(tag.clone());
    // The daemon looks every second: one that is just becoming another program has no environment to be known by.
    let mut gone = |what| {
        eventually(what, || {
            sweeper.sweep();
            tagged(tag.value()).is_empty()
        });
    };
    gone("the one that held the pipes to be gone");

    std::fs::remove_file(&ready).expect("remove");
    let script =
        format!("setsid sh -c 'echo $$ > {}; sleep 1000; :' </dev/null >/dev/null 2>&1 & {wait}", ready.display());
    let quiet = world.batch(&["sh", "-c", &script]);
    assert!(quiet.outcome.result.is_ok(), "{:?}", quiet.outcome);
    let grandchild: u32 = std::fs::read_to_string(&ready).expect("read").trim().parse().expect("pid");
    assert!(tagged(tag.value()).contains(&grandchild), "it survived its task");
    gone("strays to be gone");
    eventually("the dead grandchild to be reaped", || {
        sweeper.sweep();
        !Path::new(&format!("/proc/{grandchild}")).exists()
    });
}

#[test]
fn a_sweep_leaves_running_tasks_alone() {
    let mut world = World::bare();
    let mut sweeper = Sweeper::new(world.runner.tag().clone());
    let stop = StopHandle::new().expect("handle");
    let ready = world.slot.scratch().join("ready");
    let script = format!("setsid sh -c 'touch {}; sleep 1000' & sleep 1000", ready.display());
    let (program, handle) = (exec(&["sh", "-c", &script]), stop.clone());
    let watcher = std::thread::spawn(move || {
        eventually("both to run", || ready.exists());
        let swept = sweeper.sweep();
        handle.stop(StopReason::Cancelled);
        swept
    });
    let done = world.with(&stop, |ctx, slot| run_batch(ctx, slot, &program, &[]));
    assert_eq!(watcher.join().expect("watcher").killed, 0);
    assert_eq!(failure(done.outcome).code, ErrorCode::Cancelled);
    eventually("all to be gone, the one in its own session too,", || tagged(world.runner.tag().value()).is_empty());
}

#[test]
fn leftovers_of_an_earlier_run_are_killed_at_the_next_start() {
    let name = format!("reconcile-{}", std::process::id());
    let (earlier, now) = (NodeTag::new(&name), NodeTag::new(&name));
    let start = |tag: &NodeTag| Command::new("sleep").arg("1000").env(TAG_VAR, tag.value()).spawn().expect("sleep");
    let (mut old, mut new) = (start(&earlier), start(&now));
    eventually("both to run", || tagged(earlier.value()).len() == 1 && tagged(now.value()).len() == 1);
    assert_eq!(reconcile_leftovers(&now), 1);
    assert!(!old.wait().expect("wait").success());
    assert!(new.try_wait().expect("wait").is_none(), "this run's process lives on");
    new.kill().expect("kill");
    new.wait().expect("wait");
}

#[path = "exec/leases.rs"]
mod leases;
#[path = "exec/sweeps.rs"]
mod sweeps;

/// Stands in for the daemon's binary: `THIS __guardian TAG` runs this test alone.
mod __guardian {
    use super::*;

    #[test]
    fn stands_in() {
        let args: Vec<String> = std::env::args().collect();
        if args.get(1).is_some_and(|a| a == "__guardian") {
            assert_eq!(guardian_main(&args[2], None), 0);
        }
    }
}

/// Stands in for a daemon with a guardian and a running task: `THIS __daemon` runs this test alone.
mod __daemon {
    use super::*;

    #[test]
    fn stands_in() {
        if std::env::args().nth(1).is_none_or(|a| a != "__daemon") {
            return;
        }
        let mut world = World::new();
        let exe = std::env::current_exe().expect("exe");
        let switch = Switch::new().expect("switch");
        let mut guardian = Guardian::spawn(&exe, world.runner.tag(), &switch, None).expect("guardian");
        assert!(guardian.is_alive());
        let at = std::env::var_os("TAG_FILE").expect("TAG_FILE");
        std::fs::write(&at, world.runner.tag().value()).expect("write");
        world.batch(&["sh", "-c", "setsid sleep 1000 </dev/null >/dev/null 2>&1 & sleep 1000"]);
    }
}

#[test]
fn nothing_survives_a_daemon_that_is_killed() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("tag");
    let exe = std::env::current_exe().expect("exe");
    let mut daemon = Command::new(exe);
    // Its temporary directory is ours: killed, it cannot delete it.
    daemon.arg("__daemon").env("TAG_FILE", &file).env("TMPDIR", dir.path()).stdout(Stdio::null());
    let mut daemon = daemon.spawn().expect("daemon");
    let tag = || std::fs::read_to_string(&file).unwrap_or_default();
    eventually("the task and its grandchild to run", || !tag().is_empty() && tagged(&tag()).len() >= 3);
    daemon.kill().expect("kill -9");
    daemon.wait().expect("wait");
    eventually("the guardian to have killed them all", || tagged(&tag()).is_empty());
}

#[test]
fn spawn_rates_are_measured() {
    let rate = sinew_node::exec::bench::spawn_rate(60, 2).expect("bench");
    assert!(rate.floor_per_s > 0.0 && rate.runner_per_s > 0.0, "{rate:?}");
}
