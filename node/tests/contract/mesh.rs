//! The examples, run by three daemons.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use sinew_crdt_state::fact::Outcome;
use sinew_crdt_state::manifest::{Format, JobDraft, parse};
use sinew_crdt_state::state::Status;
use sinew_node::api::Request;
use sinew_node::local_mesh::{LocalMesh, LocalMeshOptions};

use crate::behaviours::subject::PATIENCE;
use crate::wasm::Modules;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

fn draft(name: &str) -> JobDraft {
    let path = examples().join(name);
    let bytes = std::fs::read(&path).expect("an example");
    let mut draft = parse(&bytes, Format::of_path(&path)).expect("a manifest");
    let base = examples().canonicalize().expect("examples");
    draft.anchor_paths(base.to_str().expect("utf-8"));
    draft
}

/// Runs a job to its good end; gives its id, and its outputs by path.
async fn completed(mesh: &LocalMesh, draft: JobDraft) -> (String, BTreeMap<String, Vec<u8>>) {
    let client = mesh.nodes[0].client();
    let job = client.submit(draft, |_, _, _| {}).await.expect("submit").to_string();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (view, timeline) = client.job(&job).await.expect("job");
        if view.status == Status::Sealed {
            assert_eq!(view.outcome, Some(Outcome::Completed), "{view:?} {timeline:#?}");
            break;
        }
        assert!(Instant::now() < deadline, "{view:?}");
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("out");
    client.act(&Request::Get { job: job.clone(), out: out.clone() }).await.expect("get");
    let mut found = BTreeMap::new();
    collect(&out, &out, &mut found);
    (job, found)
}

fn collect(root: &Path, dir: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).expect("dir") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            collect(root, &path, found);
        } else {
            let name = path.strip_prefix(root).expect("below").to_string_lossy().into_owned();
            found.insert(name, std::fs::read(&path).expect("read"));
        }
    }
}

async fn three() -> LocalMesh {
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_sinew"));
    LocalMesh::start(&LocalMeshOptions { exe, nodes: 3, cpus: 1.0, args: Vec::new() }).await.expect("mesh")
}

/// With `SINEW_MAKE_EXAMPLES` set it makes them instead.
#[test]
fn the_modules_of_the_examples_are_made_of_their_sources() {
    for name in ["map", "reduce", "roll"] {
        let [source, module] = ["wat", "wasm"].map(|kind| examples().join("wasm").join(name).with_extension(kind));
        let made = wat::parse_file(source).expect("a source");
        if std::env::var_os("SINEW_MAKE_EXAMPLES").is_some() {
            std::fs::write(&module, &made).expect("write");
        }
        assert!(std::fs::read(&module).expect("a module") == made, "{} is not of its source", module.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_daemons_run_the_examples() {
    let mesh = three().await;
    let (job, outputs) = completed(&mesh, draft("wasm.toml")).await;
    let rolls: BTreeSet<String> = outputs.values().map(|roll| String::from_utf8_lossy(roll).into_owned()).collect();
    assert_eq!((outputs.len(), rolls.len()), (8, 8), "{outputs:?}");
    // Whoever ran them: here they are the same.
    for task in 0..8 {
        let mut rig = Modules::new();
        let mut roll = rig.add(&std::fs::read(examples().join("wasm/roll.wasm")).expect("a module"));
        (roll.deterministic, roll.fuel) = (true, Some(1_000_000));
        rig.bench.job.clone_from(&job);
        // It is counted up before each run.
        rig.bench.task = u32::wrapping_sub(task, 1);
        let ran = rig.run(&roll);
        let [(_, roll)] = &ran.outputs[..] else { panic!("{ran:?}") };
        assert!(rolls.contains(&*String::from_utf8_lossy(roll)), "task {task}: {roll:?} is none of {rolls:?}");
    }

    let (_, outputs) = completed(&mesh, draft("wasm-wordcount.toml")).await;
    let mut expected: BTreeMap<String, u32> = BTreeMap::new();
    for name in ["one.txt", "two.txt"] {
        let text = std::fs::read_to_string(examples().join("texts").join(name)).expect("a text");
        for word in text.split_whitespace() {
            *expected.entry(word.to_owned()).or_default() += 1;
        }
    }
    let text = String::from_utf8(outputs.into_values().flatten().collect()).expect("text");
    let pairs = text.lines().map(|line| line.split_once('\t').expect("a tab"));
    let counted: BTreeMap<String, u32> = pairs.map(|(w, n)| (w.to_owned(), n.parse().expect("a number"))).collect();
    assert_eq!(counted, expected);
    assert_eq!(counted.len(), text.lines().count(), "no word came twice");
}
