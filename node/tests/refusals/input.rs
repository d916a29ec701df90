//! Jobs that cannot work and data that nobody expects: paths, programs, outputs, lines, keys, manifests.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use crate::support::{Daemon, processes_with};

#[test]
fn paths_that_cannot_be_read_are_named() {
    let node = Daemon::start();
    std::os::unix::fs::symlink("/nowhere/at/all", node.scratch.path().join("dangling")).expect("link");
    std::os::unix::fs::symlink("loop", node.scratch.path().join("loop")).expect("link");
    for args in [
        &["run", "--input", "nothing", "--", "true"][..],
        &["run", "--input", "dangling", "--", "true"],
        &["blob", "add", "dangling"],
        &["map-reduce", "--input", "dangling", "--map", "cat", "--reduce", "cat", "-o", "out"],
        &["submit", "nothing.toml"],
    ] {
        node.run(args).fails(2, &["cannot read", "No such file"]);
    }
    node.run(&["run", "--input", "loop", "--", "true"]).fails(1, &["cannot read loop"]);
    node.run(&["submit", "/"]).fails(2, &["cannot read /", "directory"]);
    // Root may open anything, so a permission would not stop it: this file opens and then refuses to be read.
    let mem = "/proc/self/mem";
    node.run(&["run", "--input", mem, "--", "true"]).fails(1, &["E_STORAGE", mem, "Input/output error"]);
    node.run(&["blob", "add", mem]).fails(1, &["E_STORAGE", mem, "Input/output error"]);
    let round = ["map-reduce", "--input", mem, "--map", "cat", "--reduce", "cat", "-o", "out"];
    node.run(&round).fails(1, &["E_STORAGE", mem]);
    // The manifest's own paths are the daemon's to read.
    node.file("m.toml", "type = \"batch\"\n[batch]\ncommand = \"true\"\ninputs = [\"gone.txt\"]\n");
    node.run(&["submit", "m.toml"]).fails(2, &["gone.txt"]);
    node.is_alive();
}

#[test]
fn missing_programs_are_named_with_where_they_were_looked_for() {
    let node = Daemon::start();
    node.run(&["run", "--", "/no/such/program"]).fails(1, &["E_INVALID", "`/no/such/program` is missing"]);
    node.run(&["run", "--", "no-such-program"]).fails(1, &["E_INVALID", "`no-such-program`", "PATH"]);
    node.file("in.txt", "x\n");
    let round = ["map-reduce", "--input", "in.txt", "--map", "./gone.py", "--reduce", "cat", "-o", "out"];
    node.run(&round).fails(1, &["E_INVALID", "map chunk 0", "gone.py"]);
    node.run(&["run"]).fails(2, &["CMD"]);
    node.run(&["run", "--", ""]).fails(2, &["error"]);
    node.is_alive();
}

/// The mapper fails on one chunk, every time: it is tried again, then the round fails with its number and its stderr.
#[test]
fn a_mapper_that_exits_3_on_one_chunk_fails_the_round() {
    let node = Daemon::start();
    let lines: String = (0..100).map(|n| if n == 57 { "poison\n".to_owned() } else { format!("{n}\n") }).collect();
    node.file("in.txt", lines);
    let tries = node.shared().join("tries");
    // Each slot's programs are another user.
    std::fs::write(&tries, "").expect("write");
    std::fs::set_permissions(&tries, std::fs::Permissions::from_mode(0o666)).expect("chmod");
    let log = format!("echo x >> {}; echo 'ValueError: bad line' >&2; exit 3", tries.display());
    node.script("map.sh", &format!("if grep -q poison; then {log}; fi"));
    let ran = node.run(&[
        "map-reduce",
        "--input",
        "in.txt",
        "--split",
        "lines:10",
        "--map",
        "./map.sh",
        "--file",
        "map.sh",
        "--reduce",
        "cat",
        "-o",
        "out",
    ]);
    ran.fails(1, &["E_EXIT", "map chunk 5 failed", "status 3", "ValueError: bad line"]);
    let tried = std::fs::read_to_string(&tries).expect("it ran").lines().count();
    assert_eq!(tried, 4, "one try and three more");
    assert!(!node.scratch.path().join("out/part-00000").exists());
    node.is_alive();
}

#[test]
fn a_program_that_hangs_is_ended_at_its_limit() {
    let node = Daemon::start();
    let mark = format!("1000.{}", std::process::id());
    node.file("in.txt", "fine\nhang\n");
    node.script("map.sh", &format!("if grep -q hang; then sleep {mark}; fi"));
    let ran = node.run(&[
        "map-reduce",
        "--input",
        "in.txt",
        "--split",
        "lines:1",
        "--map",
        "./map.sh",
        "--file",
        "map.sh",
        "--reduce",
        "cat",
        "--timeout",
        "300ms",
        "-o",
        "out",
    ]);
    ran.fails(1, &["E_TIMEOUT", "map chunk 1", "300 ms", "--timeout"]);
    assert_eq!(processes_with(&mark), [] as [u32; 0]);
    let began = Instant::now();
    node.run(&["run", "--timeout", "200ms", "--", "sleep", &mark]).fails(1, &["E_TIMEOUT", "200 ms"]);
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
    assert_eq!(processes_with(&mark), [] as [u32; 0]);
    node.is_alive();
}

#[test]
fn a_program_that_prints_10_gb_is_ended_at_its_cap() {
    let node = Daemon::start();
    let ran = node.run(&["run", "--output-max", "4MiB", "--", "head", "-c", "10G", "/dev/zero"]);
    ran.fails(1, &["E_STORAGE", "4194304 bytes", "--output-max"]);
    assert!(ran.stdout.len() <= 5 << 20, "{} bytes came through", ran.stdout.len());
    node.file("in.txt", "x\n");
    for command in ["head -c 10G /dev/zero", "yes"] {
        let round = ["map-reduce", "--input", "in.txt", "--map", command, "--reduce", "cat", "-o", "out"];
        let ran = node.run(&[&round[..], &["--output-max", "4MiB"]].concat());
        ran.fails(1, &["E_STORAGE", "map chunk 0", "4194304 bytes", "--output-max"]);
    }
    // A file in the output directory counts as well.
    let script = "head -c 10G /dev/zero > $SINEW_OUTPUT/big";
    node.run(&["run", "--output-max", "4MiB", "--", "sh", "-c", script]).fails(1, &["E_STORAGE", "4194304 bytes"]);
    node.is_alive();
}

#[test]
fn binary_garbage_and_enormous_lines_pass_through_whole() {
    let node = Daemon::start();
    // Every byte value, in an order that no text has, the same every time.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let garbage: Vec<u8> = (0..300_000)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect();
    node.file("garbage", &garbage);
    let round = |input: &str, split: &str, out: &str| {
        let args = ["map-reduce", "--input", input, "--split", split, "--map", "cat", "--reduce", "cat", "-o", out];
        node.run(&args).done();
        node.result(out)
    };
    let mut expected: Vec<Vec<u8>> = garbage.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    if let Some(last) = expected.last_mut().filter(|l| l.last() != Some(&b'\n')) {
        last.push(b'\n');
    }
    expected.sort();
    assert!(round("garbage", "bytes:64KiB", "out1") == expected, "bytes were lost or changed");

    let mut long = vec![b'a'; 100_000_000];
    long.push(b'\n');
    long.extend_from_slice(b"short\n");
    node.file("long", &long);
    let lines = round("long", "bytes:16MiB", "out2");
    assert_eq!(lines.iter().map(Vec::len).collect::<Vec<_>>(), [100_000_001, 6]);

    // The built-ins read bytes too.
    node.file("words", [&garbage[..100_000], b"\nword word\n"].concat());
    let args = ["map-reduce", "--input", "words", "--map", "sinew:wordcount", "--reduce", "sinew:sum", "-o", "out3"];
    node.run(&args).done();
    assert!(node.result("out3").contains(&b"word\t2\n".to_vec()));
    // A result that is no number is named, not summed wrongly.
    let args = ["map-reduce", "--input", "garbage", "--map", "cat", "--reduce", "sinew:sum", "-o", "out4"];
    node.run(&args).fails(1, &["E_INVALID", "reduce partition"]);
    node.is_alive();
}

#[test]
fn keys_of_any_kind_are_grouped_and_counted_exactly() {
    let node = Daemon::start();
    let keys = ["two words", "naïve", "日本語", "", " leading", "🦀", "tab-less", "\u{0}nul", "a"];
    let mut text = String::new();
    for round in 0..30 {
        for key in keys {
            writeln!(text, "{key}\t{round}").expect("memory");
        }
    }
    node.file("in.txt", &text);
    let args = |map: &'static str, out: &'static str| {
        ["map-reduce", "--input", "in.txt", "--split", "lines:7", "--map", map, "--reduce", "sinew:sum", "-o", out]
    };
    node.run(&args("cat", "out")).done();
    let sum: u32 = (0..30).sum();
    let mut expected: Vec<Vec<u8>> = keys.iter().map(|k| format!("{k}\t{sum}\n").into_bytes()).collect();
    expected.sort();
    assert_eq!(node.result("out"), expected);
    node.is_alive();
}

/// Chunks with the same content make the same map output: each still counts.
#[test]
fn equal_chunks_count_each_and_equal_outputs_are_all_fetched() {
    let node = Daemon::start();
    node.file("in.txt", "hello\n".repeat(100));
    node.run(&[
        "map-reduce",
        "--input",
        "in.txt",
        "--split",
        "lines:5",
        "--map",
        "sinew:wordcount",
        "--reduce",
        "sinew:sum",
        "--partitions",
        "3",
        "-o",
        "out",
    ])
    .done();
    assert_eq!(node.result("out"), [b"hello\t100\n".to_vec()]);
    let parts = std::fs::read_dir(node.scratch.path().join("out")).expect("out").count();
    assert_eq!(parts, 3, "a part for each partition, also for empty ones");
    node.file("b.toml", "type = \"batch\"\n[batch]\ncommand = \"echo same\"\ntasks = 5\n");
    let job = node.run(&["submit", "b.toml"]).done().stdout();
    node.run(&["wait", job.trim()]).done();
    node.run(&["get", job.trim(), "-o", "got"]).done();
    for task in 0..5 {
        let path = node.scratch.path().join(format!("got/task-{task:05}/stdout"));
        assert_eq!(std::fs::read_to_string(&path).expect("each task's output"), "same\n", "{}", path.display());
    }
}

#[test]
fn empty_inputs_give_empty_results() {
    let node = Daemon::start();
    node.file("empty", "");
    std::fs::create_dir(node.scratch.path().join("dir")).expect("mkdir");
    for (input, out) in [("empty", "out1"), ("dir", "out2")] {
        let args = ["map-reduce", "--input", input, "--map", "sinew:wordcount", "--reduce", "sinew:sum", "-o", out];
        node.run(&args).done();
        assert_eq!(node.result(out), [] as [Vec<u8>; 0]);
    }
    let ran = node.run(&["run", "--input", "empty", "--", "wc", "-c", "empty"]);
    assert_eq!(ran.done().stdout().trim(), "0 empty");
    node.is_alive();
}

#[test]
fn a_manifest_with_five_mistakes_has_all_five_reported() {
    let node = Daemon::start();
    let toml = "type = \"batch\"\ncpus = -1\nmemry = \"1GiB\"\ncopies = 3\n[limits]\ntimeout = \"soon\"\n\
                [batch]\ncommand = \"true\"\ntasks = \"many\"\n";
    node.file("bad.toml", toml);
    let paths = ["cpus", "memry", "copies", "limits.timeout", "batch.tasks"];
    let ran = node.run(&["submit", "bad.toml"]);
    ran.fails(2, &paths).fails(2, &["memory"]);
    let ran = node.run(&["--json", "submit", "bad.toml"]);
    let error: serde_json::Value = serde_json::from_slice(&ran.stdout).expect("one object");
    let problems = error["error"]["problems"].as_array().expect("problems").len();
    assert_eq!((ran.code, problems), (2, 5), "{error}");
    node.file(
        "bad.yaml",
        "type: batch\ncpus: -1\nmemry: 1\ncopies: 3\nlimits: {timeout: soon}\nbatch: {command: x, tasks: many}\n",
    );
    node.run(&["submit", "bad.yaml"]).fails(2, &paths);
    node.file("bad.json", "{\"type\": \"batch\", \"cpus\": }");
    node.run(&["submit", "bad.json"]).fails(2, &["line 1"]);
    node.file("huge.toml", vec![b'#'; 2 << 20]);
    node.run(&["submit", "huge.toml"]).fails(2, &["more than 1048576"]);
    node.file("latin.toml", b"name = \"na\xefve\"\n");
    node.run(&["submit", "latin.toml"]).fails(2, &["UTF-8"]);
    node.is_alive();
}
