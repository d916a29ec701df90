//! What a node lets go of, and what it does not.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use sinew_node::local_mesh::{LocalMesh, LocalMeshOptions};

use crate::daemons::draft;

fn sinew(mesh: &LocalMesh, args: &[&str]) -> serde_json::Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sinew"));
    let output =
        command.args(args).args(["--json", "--data-dir"]).arg(&mesh.nodes[0].data_dir).output().expect("sinew");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("json")
}

fn names(pruned: &serde_json::Value) -> Vec<(String, String)> {
    let text = |item: &serde_json::Value, key: &str| item[key].as_str().expect(key).to_owned();
    pruned["items"].as_array().expect("items").iter().map(|item| (text(item, "kind"), text(item, "name"))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_needs_goes_and_the_rest_stays() {
    let args = ["--ledger-grace", "1s"].map(str::to_owned).to_vec();
    let options = LocalMeshOptions { exe: PathBuf::from(env!("CARGO_BIN_EXE_sinew")), nodes: 1, cpus: 1.0, args };
    let mut mesh = LocalMesh::start(&options).await.expect("mesh");
    let client = mesh.nodes[0].client();
    let text = "type = \"batch\"\n[batch]\ncommand = [\"sh\", \"-c\", \"echo kept > $SINEW_OUTPUT/o\"]\n";
    let job = client.submit(draft(text), |_, _, _| {}).await.expect("submit").to_string();
    let deadline = Instant::now() + Duration::from_secs(60);
    let (work_dir, outputs) = (("work".to_owned(), "leftover".to_owned()), ("outputs".to_owned(), job.clone()));
    // First it is over, then the ledger forgets it.
    while names(&sinew(&mesh, &["prune", "--all", "--dry-run"])) != std::slice::from_ref(&outputs) {
        assert!(Instant::now() < deadline, "the job is not forgotten");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let work = mesh.nodes[0].data_dir.join("work");
    std::fs::create_dir_all(work.join("leftover/input")).expect("mkdir");
    std::fs::write(work.join("leftover/input/x"), "x").expect("write");
    let beside = mesh.nodes[0].data_dir.join("mine");
    std::fs::write(&beside, "not Sinew's").expect("write");

    assert_eq!(
        names(&sinew(&mesh, &["prune", "--dry-run"])),
        std::slice::from_ref(&work_dir),
        "outputs stay for a week"
    );
    let told = names(&sinew(&mesh, &["prune", "--all", "--dry-run"]));
    assert_eq!(told, [outputs, work_dir]);
    assert!(work.join("leftover/input/x").exists(), "only told");
    let done = sinew(&mesh, &["prune", "--all"]);
    assert_eq!(names(&done)[..2], told);
    // The output, and the record that says what the job's outputs are called.
    assert_eq!(names(&done)[2], ("blobs".to_owned(), "2 that nothing refers to".to_owned()));
    assert_eq!(done["items"][0]["bytes"], "kept\n".len());
    assert!(!work.join("leftover").exists() && beside.exists() && work.join("slots").exists());
    assert_eq!(names(&sinew(&mesh, &["prune", "--all"])), []);
    // And it still runs what it is given.
    let again = client.submit(draft(text), |_, _, _| {}).await.expect("submit").to_string();
    let run = Command::new(env!("CARGO_BIN_EXE_sinew"))
        .args(["wait", &again, "--data-dir"])
        .arg(&mesh.nodes[0].data_dir)
        .output();
    assert!(run.expect("sinew").status.success());
    mesh.stop();
}
