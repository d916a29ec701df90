//! Containers pass the suite of all runners.

use std::sync::Arc;

use sinew_crdt_state::program::{Container, ImageOf};
use sinew_crdt_state::spec::{BlobRef, Program};
use sinew_node::exec::docker::DockerRunner;
use sinew_node::exec::guardian::NodeTag;
use sinew_node::exec::runner::Runner;
use sinew_node::exec::set::Content;

use crate::behaviours::subject::{Does, Subject};
use crate::behaviours::suite::contract;
use crate::engine::TestEngine;
use crate::image::{Recipe, make};
use crate::store::Store;

struct Containers {
    runner: Arc<DockerRunner>,
    store: Store,
    image: BlobRef,
    no_image: BlobRef,
    // Ends after what uses it.
    _runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
    _engine: Arc<TestEngine>,
}

/// `None` where there can be no engine.
fn containers() -> Option<Containers> {
    let engine = TestEngine::shared()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let dir = tempfile::tempdir().expect("dir");
    let node = format!("node of {}", dir.path().display());
    let options = crate::rig::options(&engine, &node, dir.path());
    let runner = DockerRunner::new(options, NodeTag::new(&node), runtime.handle().clone());
    // Asks the engine.
    runner.end_idle();
    let mut store = Store::new();
    let image = store.add(&make(&Recipe::default()).archive);
    let no_image = store.add(b"an archive of nothing");
    Some(Containers { runner: Arc::new(runner), store, image, no_image, _runtime: runtime, _dir: dir, _engine: engine })
}

impl Subject for Containers {
    fn runner(&self) -> Arc<dyn Runner> {
        Arc::clone(&self.runner) as Arc<dyn Runner>
    }

    fn program(&self, does: Does) -> Program {
        let script = match does {
            Does::Succeed | Does::NotExist => "true",
            Does::ExitThree => "echo that was wrong >&2; exit 3",
            Does::Print => "echo hello",
            Does::CopyStdin => "cat",
            Does::CopyFile => "cat \"$SINEW_INPUT/in.txt\" > \"$SINEW_OUTPUT/out.txt\"",
            Does::ShowVariables => "env",
            Does::Spin => "while :; do :; done",
            Does::Linger => "echo here >&2; exec sleep 1000",
            Does::Devour => "awk 'BEGIN { s = \"xxxxxxxxxxxxxxxx\"; while (1) s = s s }'",
            Does::FillStdout => "while :; do cat /bin/busybox; done",
            Does::FillFile => "while :; do cat /bin/busybox; done > \"$SINEW_OUTPUT/big\"",
        };
        let image = if does == Does::NotExist { self.no_image } else { self.image };
        let argv = ["sh", "-c", script].map(str::to_owned).into();
        Program::Container(Container { image: ImageOf::Archive(image), entrypoint: None, argv, gpus: 0, health: None })
    }

    fn content(&self) -> Content {
        self.store.content().clone()
    }
}

contract!(container, containers());
