//! A full disk: nothing that was acknowledged is lost, nothing new is acknowledged, and freeing space is all it takes.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::support::{Daemon, Ran, until};

/// A small file system in memory, gone with the value.
struct Tmpfs(TempDir);

impl Tmpfs {
    /// `None` where this user may not mount, which is an error in CI.
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("dir");
        let options = format!("size={size},mode=0700");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "sinew-test"]).arg(dir.path()).status();
        if mounted.is_ok_and(|s| s.success()) {
            return Some(Self(dir));
        }
        assert!(std::env::var_os("CI").is_none(), "CI must be able to mount a tmpfs");
        println!("skipped: this user cannot mount a tmpfs at {}", dir.path().display());
        None
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: whatever still looks into it must not keep it.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Writes until the disk takes no more.
fn fill(path: &Path) {
    let mut file = File::create(path).expect("create");
    for piece in [1 << 16, 1 << 10, 1] {
        while file.write_all(&vec![7; piece]).is_ok() {}
    }
}

fn job_id(ran: &Ran) -> String {
    ran.done().stdout().trim().to_owned()
}

fn statuses(node: &Daemon) -> Vec<(String, String)> {
    let ran = node.run(&["--json", "jobs"]);
    let jobs: serde_json::Value = serde_json::from_slice(&ran.done().stdout).expect("json");
    let text = |j: &serde_json::Value, key: &str| j[key].as_str().expect("text").to_owned();
    jobs["jobs"].as_array().expect("jobs").iter().map(|j| (text(j, "id"), text(j, "status"))).collect()
}

fn storage_problem(node: &Daemon) -> Option<String> {
    let status: serde_json::Value =
        serde_json::from_slice(&node.run(&["--json", "status"]).done().stdout).expect("json");
    status["storage_problem"].as_str().map(str::to_owned)
}

#[test]
fn a_full_disk_refuses_and_forgets_nothing() {
    let scratch = tempfile::tempdir().expect("scratch");
    let Some(disk) = Tmpfs::mount("20m") else { return };
    let data_dir = disk.0.path().join("node");
    let mut node = Daemon::start_at(scratch, data_dir);
    let submit = |node: &Daemon, n: u32| {
        node.file("job.toml", format!("type = \"batch\"\nname = \"job {n}\"\n[batch]\ncommand = \"echo {n}\"\n"));
        node.run(&["submit", "job.toml"])
    };
    let kept: Vec<String> = (0..3).map(|n| job_id(&submit(&node, n))).collect();
    node.run(&["wait", &kept[0], &kept[1], &kept[2]]).done();

    // Blobs are refused before the last byte is gone.
    node.file("big", vec![1; 30 << 20]);
    node.run(&["blob", "add", "big"]).fails(1, &["E_STORAGE", "not enough room"]);
    node.run(&["run", "--input", "big", "--", "true"]).fails(1, &["E_STORAGE", "big", "not enough room"]);
    node.is_alive();

    // A task that is running meanwhile comes to its end, which is written down once there is room.
    node.file("job.toml", "type = \"batch\"\nname = \"meanwhile\"\n[batch]\ncommand = \"sleep 2\"\n");
    let meanwhile = job_id(&node.run(&["submit", "job.toml"]));

    // Then the disk is full to the last byte, and jobs are refused too.
    let filler = disk.0.path().join("filler");
    fill(&filler);
    let mut taken = Vec::new();
    let refused = until("a submit is refused", || {
        let ran = submit(&node, 100 + u32::try_from(taken.len()).expect("few"));
        if ran.code != 0 {
            return Some(ran);
        }
        taken.push(job_id(&ran));
        None
    });
    // The first one may be on the disk already when that turns out to be full: its outcome is unknown, and it is withdrawn.
    let unknown = (refused.code == 75).then(|| {
        refused.fails(75, &["E_UNKNOWN", "no space left", "it is being withdrawn"]);
        let id = refused.stderr.split("job ").nth(1).and_then(|rest| rest.split_whitespace().next());
        id.expect("the job's id").to_owned()
    });
    if unknown.is_none() {
        refused.fails(1, &["E_STORAGE"]);
    }
    // The daemon answers, says what is wrong, and still knows every job that it took.
    let problem = until("the problem shows", || storage_problem(&node));
    assert!(!problem.is_empty());
    let shown = node.run(&["status"]);
    assert!(shown.done().stdout().contains("STORAGE   no space left on the disk"), "{shown}");
    submit(&node, 200).fails(1, &["E_STORAGE"]);
    let known = statuses(&node);
    assert!(kept.iter().chain(&taken).all(|id| known.iter().any(|(k, _)| k == id)), "{known:?}");

    // Room again: it goes on by itself.
    std::fs::remove_file(&filler).expect("remove");
    until("the disk takes records again", || storage_problem(&node).is_none().then_some(()));
    let after = job_id(&submit(&node, 300));
    node.run(&["wait", &after, &meanwhile]).done();
    node.is_alive();

    node.down();
    node.up();
    let known = statuses(&node);
    for id in kept.iter().chain(&taken).chain([&after, &meanwhile]) {
        let status = known.iter().find(|(k, _)| k == id).map(|(_, status)| status.as_str());
        assert!(status.is_some_and(|s| s.starts_with("completed")) || taken.contains(id), "{id}: {known:?}");
    }
    // What was withdrawn never ran, also after the restart.
    if let Some(id) = unknown {
        let status = known.iter().find(|(k, _)| *k == id).map(|(_, status)| status.as_str());
        assert!(status.is_none_or(|s| s.starts_with("cancelled")), "{id}: {known:?}");
    }
    // Those that were taken while the disk filled are there and come to an end.
    for id in &taken {
        node.run(&["wait", id]).done();
    }
    node.down();
    drop(node);
    drop(disk);
}
