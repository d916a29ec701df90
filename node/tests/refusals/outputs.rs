//! Outputs and directories in the store come back as they were, or what is missing is said.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sinew_crdt_state::ids::Hash;

use crate::support::Daemon;

/// Runs a shell script as a job of its own and gets what it left.
fn left(node: &Daemon, script: &str, out: &str) -> crate::support::Ran {
    let quoted = serde_json::to_string(script).expect("text");
    let manifest = format!("type = \"batch\"\n[batch]\ncommand = [\"sh\", \"-c\", {quoted}]\n");
    let path = node.file("job.toml", manifest);
    let job = node.run(&["submit", &path.to_string_lossy()]).done().stdout().trim().to_owned();
    node.run(&["wait", &job]).done();
    node.run(&["get", &job, "--out", out])
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn outputs_come_back_as_they_were() {
    let node = Daemon::start();
    let script = "cd $SINEW_OUTPUT; echo v1 > model-1; ln -s model-1 latest; echo x > tool; chmod 755 tool; mkdir -p a/empty; \
                  ln -s ../model-1 a/up; ln -s /etc/passwd secret; mkfifo pipe; chmod 644 model-1";
    let got = left(&node, script, "o");
    got.done();
    let at = |name: &str| node.scratch.path().join("o").join(name);
    assert_eq!(std::fs::read_link(at("latest")).expect("link"), Path::new("model-1"));
    assert_eq!((text(&at("latest")), text(&at("a/up"))), ("v1\n".into(), "v1\n".into()));
    assert!(at("a/empty").is_dir());
    let mode = |name: &str| std::fs::metadata(at(name)).expect("meta").permissions().mode() & 0o111;
    assert!(mode("tool") & 0o100 != 0 && mode("model-1") == 0);
    assert!(at("secret").symlink_metadata().is_err() && at("pipe").symlink_metadata().is_err());
    for part in ["output/secret", "a link that leads outside, to /etc/passwd", "output/pipe", "a named pipe"] {
        assert!(got.stderr.contains(part), "{part}: {got}");
    }
}

#[test]
fn an_output_overwrites_no_log_and_may_have_a_long_name() {
    let node = Daemon::start();
    let long = "n".repeat(255);
    left(&node, &format!("echo printed; echo file > $SINEW_OUTPUT/stdout; echo x > $SINEW_OUTPUT/{long}"), "o").done();
    let at = |name: &str| node.scratch.path().join("o").join(name);
    assert_eq!((text(&at("stdout")), text(&at("stdout.log"))), ("file\n".into(), "printed\n".into()));
    assert_eq!(text(&at(&long)), "x\n");
}

#[test]
fn outputs_are_named_as_shells_name_them() {
    let node = Daemon::start();
    node.run(&[
        "run",
        "--output",
        "./r",
        "d/",
        "--",
        "sh",
        "-c",
        "cd $SINEW_OUTPUT; echo 1 > r; mkdir d; ln -s ../r d/l",
    ])
    .done();
    let at = |name: &str| node.scratch.path().join(name);
    assert_eq!((text(&at("r")), text(&at("d/l"))), ("1\n".into(), "1\n".into()));
    node.run(&["run", "--output", "missing", "--", "true"]).fails(1, &["output/missing", "SINEW_OUTPUT"]);
    node.run(&["run", "--output", "/abs", "--", "true"]).fails(2, &["/abs"]);
}

#[test]
fn an_input_whose_name_tasks_could_not_find_is_refused() {
    let node = Daemon::start();
    let dir = node.scratch.path().join("d");
    std::fs::create_dir(&dir).expect("mkdir");
    std::fs::write(dir.join(OsStr::from_bytes(b"caf\xe9.txt")), "1").expect("write");
    node.run(&["run", "--input", "d", "--", "true"]).fails(2, &["caf\\xE9.txt", "UTF-8"]);
    node.run(&["blob", "add", "d"]).fails(2, &["caf", "UTF-8"]);
}

/// A directory in the store, by its hash in either form, until it is removed.
#[test]
fn a_directory_is_whole_in_every_command() {
    let node = Daemon::start();
    let dir = node.scratch.path().join("d");
    std::fs::create_dir_all(dir.join("sub/none")).expect("mkdir");
    std::fs::write(dir.join("a"), "one").expect("write");
    std::os::unix::fs::symlink("a", dir.join("l")).expect("link");
    let hash = node.run(&["blob", "add", "d"]).done().stdout().trim().to_owned();
    let hex: String = hash.parse::<Hash>().expect("hash").0.iter().map(|byte| format!("{byte:02x}")).collect();
    node.run(&["blob", "get", &hex, "-o", "back"]).done();
    let back = node.scratch.path().join("back");
    assert_eq!(text(&back.join("l")), "one");
    assert!(back.join("sub/none").is_dir() && !back.join(".sinew-tree").exists());
    // Another name keeps it, with all in it, when the first is gone.
    node.run(&["blob", "tag", "mine", &hash]).done();
    node.run(&["blob", "untag", &format!("d-{}", &hash[..10]), "--yes"]).done();
    node.run(&["prune"]).done();
    node.run(&["blob", "get", &hash, "-o", "again"]).done();
    assert_eq!(text(&node.scratch.path().join("again/a")), "one");
    node.run(&["blob", "rm", &hex, "--yes"]).done();
    node.run(&["blob", "get", &hash, "-o", "gone"]).fails(2, &["E_FETCH"]);
    node.run(&["blob", "rm", &hash, "--yes"]).fails(2, &["not here"]);
}
