//! `sinew secret` as it is typed.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::rig::{PASSWORD, World};

fn sinew(data_dir: &Path, args: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sinew"));
    command.arg("--data-dir").arg(data_dir).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("sinew");
    // It may refuse before it has read all of it.
    let _ = child.stdin.take().expect("stdin").write_all(input);
    child.wait_with_output().expect("output")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_set_listed_and_removed() {
    let mut world = World::new(1).await;
    let dir = world.node(0).data_dir.clone();
    let done = |args: &[&str], input: &[u8]| {
        let output = sinew(&dir, args, input);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let fails = |args: &[&str], input: &[u8], word: &str| {
        let output = sinew(&dir, args, input);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let said = text(&output.stderr);
        assert!(said.contains(word), "{args:?}: {said}");
        assert!(!said.contains(PASSWORD), "{said}");
    };
    assert!(done(&["secret", "ls"], b"").contains("sinew secret set"));
    assert_eq!(done(&["secret", "set", "db"], PASSWORD.as_bytes()), "set db\n");
    assert_eq!(done(&["secret", "set", "db"], PASSWORD.as_bytes()), "replaced db\n");
    let file = world.scratch.path().join("key");
    std::fs::write(&file, "a key\n").expect("write");
    done(&["secret", "set", "key", "--file", file.to_str().expect("text")], b"not this");
    let listed: Value = serde_json::from_str(&done(&["secret", "ls", "--json"], b"")).expect("json");
    let of = |i: usize| (listed["secrets"][i]["name"].as_str(), listed["secrets"][i]["size"].as_u64());
    assert_eq!([of(0), of(1)], [(Some("db"), Some(18)), (Some("key"), Some(6))]);
    let shown = done(&["secret", "ls"], b"");
    assert!(shown.contains("db") && shown.contains("18B") && shown.contains("ago"), "{shown}");
    assert!(!shown.contains(PASSWORD) && !listed.to_string().contains(PASSWORD));
    fails(&["secret", "set", "a/b"], PASSWORD.as_bytes(), "letters");
    fails(&["secret", "set", "empty"], b"", "1 to 65536");
    fails(&["secret", "set", "long"], &vec![b'x'; 70_000], "1 to 65536");
    // Nothing is taken from an argument.
    assert_eq!(sinew(&dir, &["secret", "set", "db", "value"], b"").status.code(), Some(2));
    fails(&["secret", "rm", "none"], b"", "no secret `none`");
    assert_eq!(done(&["secret", "rm", "db", "--yes"], b""), "removed db\n");
    // It outlives the daemon.
    world.mesh.nodes[0].kill();
    world.mesh.nodes[0].start().await.expect("start");
    let names: Vec<String> = world.node(0).client().secrets().await.expect("ls").into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["key"]);
}
