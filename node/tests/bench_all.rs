//! `sinew bench all` against real daemons, one bench of it: what it writes is read back, compared, and put into a page.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// One bench, one job at a time: counts of it are losses when they grow.
const BENCH: &str = "submit, 3 nodes, 1 at once";

fn bench_all(dir: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sinew"));
    command.current_dir(dir).args(["bench", "all", "--quick", "--only", BENCH, "--commit", "c0ffee"]).args(words);
    command.output().expect("run")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Stands for an earlier build: it knows this bench, and says that it did better.
fn write_earlier_program(at: &Path) {
    let script = "#!/bin/sh\n\
        test \"$*\" = '--json bench submit --nodes 3 --jobs 20 --at-once 1' || exit 2\n\
        echo '{\"messages_per_job\": 1, \"jobs_per_s\": 1}'\n";
    std::fs::write(at, script).expect("write");
    std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o755)).expect("chmod");
}

#[test]
fn figures_are_written_compared_and_put_into_a_page() {
    let dir = tempfile::tempdir().expect("dir");
    let file = |name: &str| dir.path().join(name);
    write_earlier_program(&file("earlier"));
    let page = "By hand.\n<!-- bench all: begin -->\nold\n<!-- bench all: end -->\nMore by hand.\n";
    std::fs::write(file("page.md"), page).expect("write");
    let run = bench_all(dir.path(), &["--out", "one.json", "--page", "page.md", "--beside", "./earlier"]);
    assert!(run.status.success(), "{}", text(&run.stderr));
    let report: Value = serde_json::from_slice(&std::fs::read(file("one.json")).expect("read")).expect("JSON");
    assert_eq!((&report["conditions"]["commit"], &report["conditions"]["quick"]), (&"c0ffee".into(), &true.into()));
    let figures = report["figures"].as_array().expect("figures");
    let named = |name: &str| figures.iter().find(|f| f["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    // A job is told to two stewards at least, and written on three nodes.
    assert!(named("messages per job")["value"].as_f64().expect("number") > 2.0);
    assert!(named("bytes written per job and node")["value"].as_f64().expect("number") > 0.0);
    assert!(named("submit to result, p50, floor fsync")["floor"].as_f64().expect("a floor") > 0.0);
    // Many more messages than the earlier program, and many more jobs a second.
    let shown = text(&run.stdout);
    let beside = shown.split_once("beside ./earlier").expect("a second table").1;
    let row = |name: &str| beside.lines().find(|line| line.contains(name)).expect("row").trim_end();
    assert!(row(" messages per job").ends_with("LOSS"), "{beside}");
    assert!(!row(" durable jobs").ends_with("worse"), "{beside}");
    let written = std::fs::read_to_string(file("page.md")).expect("read");
    assert!(written.starts_with("By hand.\n<!--") && written.ends_with("-->\nMore by hand.\n"), "{written}");
    assert!(written.contains("from commit c0ffee") && written.contains("| messages per job |"), "{written}");

    let again = bench_all(dir.path(), &["--against", "one.json", "--page", "none.md"]);
    assert!(text(&again.stdout).contains("against one.json: 20"), "{}", text(&again.stdout));
    assert!(text(&again.stderr).contains("none.md stays as it is"), "{}", text(&again.stderr));
    assert_eq!(again.status.code(), Some(1), "the page is not there");
}

#[test]
fn a_wrong_earlier_run_is_refused_before_anything_runs() {
    let dir = tempfile::tempdir().expect("dir");
    std::fs::write(dir.path().join("bad.json"), "{}").expect("write");
    for (file, why) in [("bad.json", "bad.json is not what"), ("none.json", "cannot read none.json")] {
        let run = bench_all(dir.path(), &["--against", file]);
        assert_eq!(run.status.code(), Some(1));
        let said = text(&run.stderr);
        assert!(said.contains(why) && !said.contains("bench submit"), "{said}");
    }
}
