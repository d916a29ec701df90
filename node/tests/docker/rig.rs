//! What the tests share: a slot whose programs are containers, and what came of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bollard::models::ContainerSummary;
use bollard::query_parameters::ListContainersOptionsBuilder;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::ids::Hash;
use sinew_crdt_state::network::Network;
use sinew_crdt_state::program::{Container, ImageOf};
use sinew_crdt_state::spec::{BlobRef, Limits, Program, Resources};
use sinew_node::exec::docker::{DockerOptions, DockerRunner, EngineSetting};
use sinew_node::exec::files::JobFiles;
use sinew_node::exec::guardian::NodeTag;
use sinew_node::exec::outcome::{Failure, Usage};
use sinew_node::exec::runner::{Control, Health, Runner};
use sinew_node::exec::set::Content;
use sinew_node::exec::slot::{Slot, WorkRoot};
use sinew_node::exec::stop::StopHandle;
use sinew_node::exec::task::{TaskContext, run_batch};
use sinew_node::exec::volumes::Mounted;
use sinew_node::gather::Hosts;
use sinew_node::secrets::job::JobSecrets;

pub(crate) use crate::behaviours::subject::{PATIENCE, eventually};
use crate::engine::TestEngine;
use crate::image::{Made, Recipe, make};

/// What fits into a task's `/tmp`.
pub(crate) const TMP_BYTES: u64 = 16 << 20;

/// One slot of one node.
pub(crate) struct Rig {
    pub(crate) runner: DockerRunner,
    pub(crate) slot: Slot,
    pub(crate) files: JobFiles,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) secrets: Option<JobSecrets>,
    pub(crate) volumes: Vec<Mounted>,
    pub(crate) limits: Limits,
    pub(crate) resources: Resources,
    pub(crate) network: Network,
    pub(crate) grace: Duration,
    pub(crate) content: Content,
    /// What programs run in, unless they say otherwise.
    pub(crate) container: Container,
    pub(crate) node: String,
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) client: bollard::Docker,
    pub(crate) dir: tempfile::TempDir,
    task: u32,
}

/// How a program ended and what it printed.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) result: Result<(), Failure>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) outputs: BTreeMap<String, String>,
    pub(crate) usage: Usage,
}

impl Ran {
    /// What it printed; it must have ended well.
    pub(crate) fn text(&self) -> &str {
        assert!(self.result.is_ok(), "{self:?}");
        self.stdout.trim()
    }

    pub(crate) fn failure(&self) -> &Failure {
        self.result.as_ref().expect_err("it should have failed")
    }

    pub(crate) fn fails_with(&self, code: ErrorCode) -> &str {
        assert_eq!(self.failure().code, code, "{self:?}");
        &self.failure().message
    }
}

pub(crate) fn options(engine: &TestEngine, node: &str, dir: &std::path::Path) -> DockerOptions {
    DockerOptions {
        engine: EngineSetting::At(engine.socket()),
        hosts: Hosts::parse(&["127.0.0.1".to_owned()]).expect("hosts"),
        node: node.to_owned(),
        images: dir.join("images.json"),
        image_keep: Duration::ZERO,
        tmp_bytes: TMP_BYTES,
        memory_bytes: 256 << 20,
        slots: 2,
    }
}

impl Rig {
    /// With a busybox.
    pub(crate) fn new(engine: &TestEngine) -> Self {
        let mut rig = Self::of(engine, |_| {});
        rig.image(&Recipe::default());
        rig
    }

    pub(crate) fn of(engine: &TestEngine, adapt: impl FnOnce(&mut DockerOptions)) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("runtime");
        let dir = tempfile::tempdir().expect("dir");
        let node = format!("node of {}", dir.path().display());
        let mut options = options(engine, &node, dir.path());
        adapt(&mut options);
        let runner = DockerRunner::new(options, NodeTag::new(&node), runtime.handle().clone());
        assert!(matches!(runner.health(), Health::Unavailable(why) if why.contains("not asked yet")));
        runner.end_idle();
        assert_eq!(runner.health(), Health::Ready);
        let root = WorkRoot::open(&dir.path().join("work")).expect("root");
        let client = runtime.block_on(engine.client().negotiate_version()).expect("engine");
        Self {
            runner,
            slot: root.slot(0).expect("slot"),
            files: JobFiles::none(),
            env: BTreeMap::new(),
            secrets: None,
            volumes: Vec::new(),
            limits: Limits { timeout_ms: Some(60_000), ..Limits::default() },
            resources: Resources { cpu_milli: 1_000, memory_bytes: 64 << 20, disk_bytes: 0 },
            network: Network::default(),
            grace: Duration::from_secs(10),
            content: Content::new(),
            container: of_blob(BlobRef { hash: Hash::of(b""), size: 0 }),
            node,
            runtime,
            client,
            dir,
            task: 0,
        }
    }

    /// Programs run in this image from now on.
    pub(crate) fn image(&mut self, recipe: &Recipe) -> Made {
        let made = make(recipe);
        self.archive(&made.archive);
        made
    }

    /// The same, of an archive.
    pub(crate) fn archive(&mut self, archive: &[u8]) {
        let blob = BlobRef { hash: Hash::of(archive), size: archive.len() as u64 };
        let path = self.dir.path().join(blob.hash.to_string());
        std::fs::write(&path, archive).expect("write");
        self.content.insert(blob.hash, path);
        self.container = of_blob(blob);
    }

    /// Gives the job files.
    pub(crate) fn place(&mut self, files: &[(&str, &str)]) {
        let mut placing = JobFiles::place_in(&self.slot.root().input("job")).expect("place");
        for (path, text) in files {
            placing.add(path, text.starts_with("#!"), &mut text.as_bytes()).expect("add");
        }
        self.files = placing.finish();
    }

    pub(crate) fn sh(&mut self, script: &str) -> Ran {
        self.run(&["sh", "-c", script])
    }

    pub(crate) fn run(&mut self, argv: &[&str]) -> Ran {
        self.watched(argv, &|_| {})
    }

    /// Calls `started` once it runs.
    pub(crate) fn watched(&mut self, argv: &[&str], started: &(dyn Fn(Arc<dyn Control>) + Sync)) -> Ran {
        let program = Container { argv: argv.iter().map(|a| (*a).to_owned()).collect(), ..self.container.clone() };
        let program = Program::Container(program);
        self.with(started, |ctx, slot| {
            let done = run_batch(ctx, slot, &program, &[]);
            let read =
                |path: &std::path::Path| String::from_utf8_lossy(&std::fs::read(path).expect("read")).into_owned();
            Ran {
                result: done.outcome.result.map(|_| ()),
                stdout: done.stdout.as_deref().map(read).unwrap_or_default(),
                stderr: done.stderr.as_deref().map(read).unwrap_or_default(),
                outputs: done.outputs.iter().map(|o| (o.name.clone(), read(&o.path))).collect(),
                usage: done.outcome.usage,
            }
        })
    }

    pub(crate) fn with<T>(
        &mut self,
        started: &(dyn Fn(Arc<dyn Control>) + Sync),
        f: impl FnOnce(&TaskContext<'_>, &mut Slot) -> T,
    ) -> T {
        self.task += 1;
        let stop = StopHandle::new().expect("handle");
        let ctx = TaskContext {
            runner: &self.runner,
            job: "job",
            phase: 0,
            task: self.task,
            attempt: 1,
            number: 1,
            fence: (1, 1),
            files: &self.files,
            content: &self.content,
            volumes: &self.volumes,
            env: self.secrets.as_ref().map_or(&self.env, JobSecrets::env),
            secrets: self.secrets.as_ref(),
            limits: self.limits,
            resources: self.resources,
            network: &self.network,
            grace: self.grace,
            stop: &stop,
            live: None,
            started: Some(started),
        };
        f(&ctx, &mut self.slot)
    }

    /// This node's containers, running or not.
    pub(crate) fn containers(&self) -> Vec<ContainerSummary> {
        self.labelled(&format!("sinew.node={}", self.node))
    }

    pub(crate) fn labelled(&self, label: &str) -> Vec<ContainerSummary> {
        let filters: HashMap<&str, Vec<&str>> = [("label", vec![label])].into();
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        self.runtime.block_on(self.client.list_containers(Some(options))).expect("list")
    }

    /// Whether the engine has an image, and under which tags.
    pub(crate) fn tags_of(&self, image: &str) -> Option<Vec<String>> {
        let found = self.runtime.block_on(self.client.inspect_image(image)).ok()?;
        Some(found.repo_tags.unwrap_or_default())
    }
}

pub(crate) fn of_blob(blob: BlobRef) -> Container {
    Container { image: ImageOf::Archive(blob), entrypoint: None, argv: Vec::new(), gpus: 0, health: None }
}
