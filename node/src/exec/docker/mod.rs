//! The `docker` runner: each program is one container of the machine's Docker engine, made for one task and removed after it.
//!
//! Entry points: [`DockerRunner`] (the runner), `engine` (which engine, and whether it will do), `images` and `archive` (what a
//! container is made from), `spec` (how closed it is), `run` (driving one to its end), `network` (what it
//! reaches if its job names hosts). It builds no images but the one that holds a network.

mod archive;
mod engine;
mod gpus;
mod health;
mod images;
mod network;
mod oom;
mod pause;
mod registry;
mod run;
mod shared;
mod spec;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bollard::container::AttachContainerResults;
use bollard::errors::Error;
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder, StartContainerOptions,
};
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::program::{Container, Program, Runners};
use sinew_crdt_state::spec::Resources;
use tokio::runtime::Handle;

pub use engine::{EngineSetting, NoEngine};

use engine::Engine;
use gpus::GpuPool;
use images::Images;
use run::{Claim, Run};
use shared::Shared;
use spec::{DAEMON_LABEL, JOB_LABEL, NODE_LABEL, Order, RUN_LABEL, Share};

use crate::egress::Egress;
use crate::gather::Hosts;

use super::allowlist::Caps;
use super::cell::host as cell_host;
use super::guardian::{NodeTag, container_name};
use super::outcome::Failure;
use super::process::check_env;
use super::runner::{Execution, Health, Launch, Prepared, Runner, View};
use super::sweep;
use super::switch::Kind;

/// How long an image stays that no job uses: the next job of the same kind is often not far.
pub const IMAGE_KEEP: Duration = Duration::from_secs(600);
/// Containers without a task are looked for this often, besides whenever there is cause.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// More GPUs than this no machine has.
const GPUS_MAX: u32 = 64;

/// What a [`DockerRunner`] is told at its making.
#[derive(Debug, Clone)]
pub struct DockerOptions {
    /// Which engine.
    pub engine: EngineSetting,
    /// Where images may be pulled from.
    pub hosts: Hosts,
    /// Names this node for good, on every object that is made for its tasks.
    pub node: String,
    /// A file of this node that says which images it brought to the engine.
    pub images: PathBuf,
    /// How long such an image stays without a job that uses it.
    pub image_keep: Duration,
    /// Bytes that fit into a task's `/tmp`, and again into its `/dev/shm`.
    pub tmp_bytes: u64,
    /// Bytes of memory for all tasks together.
    pub memory_bytes: u64,
    /// How many tasks share that: one that reserves none gets this part of it.
    pub slots: u32,
}

/// Runs containers.
#[derive(Debug)]
pub struct DockerRunner {
    inner: Arc<Inner>,
}

/// What the runner shares with the containers that run.
#[derive(Debug)]
struct Inner {
    options: DockerOptions,
    tag: NodeTag,
    runtime: Handle,
    state: Mutex<State>,
    images: Images,
    gpus: GpuPool,
    /// Attempts whose container may exist.
    live: Mutex<BTreeSet<u64>>,
    /// A container could not be removed.
    litter: AtomicBool,
    /// The way out for containers whose jobs name hosts.
    egress: OnceLock<Egress>,
}

/// What is known of the engine.
#[derive(Debug)]
struct State {
    engine: Result<Engine, String>,
    swept: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DockerRunner {
    /// A runner that has not looked for its engine yet: [`Runner::end_idle`] does, and removes what an earlier daemon left
    /// there before anything is run. `runtime` is where it talks to the engine; callers must not be on one of its threads.
    #[must_use]
    pub fn new(options: DockerOptions, tag: NodeTag, runtime: Handle) -> Self {
        let engine = Err(match options.engine.socket() {
            Ok(socket) => format!("the Docker engine at {} was not asked yet", socket.display()),
            Err(why) => why,
        });
        let images = Images::open(options.images.clone(), options.image_keep);
        let state = Mutex::new(State { engine, swept: Instant::now() });
        let (gpus, live, litter) = (GpuPool::default(), Mutex::default(), AtomicBool::new(false));
        let egress = OnceLock::new();
        Self { inner: Arc::new(Inner { options, tag, runtime, state, images, gpus, live, litter, egress }) }
    }

    /// Gives containers whose jobs name hosts this way out. Without it there is none.
    pub fn let_out(&self, egress: Egress) {
        // Whoever comes second finds what the first has set.
        let _ = self.inner.egress.set(egress);
    }
}

impl Inner {
    fn engine(&self) -> Result<Engine, Failure> {
        let lost = |why: String| Failure::new(ErrorCode::Lost, format!("this node runs no containers now: {why}"));
        lock(&self.state).engine.clone().map_err(lost)
    }

    /// Looks whether there is an engine, and for what is left over there.
    fn refresh(&self) {
        let socket = match self.options.engine.socket() {
            Ok(socket) => socket,
            Err(why) => return lock(&self.state).engine = Err(why),
        };
        let (known, swept) = {
            let state = lock(&self.state);
            (state.engine.clone().ok(), state.swept)
        };
        let looked = self.runtime.block_on(async {
            let engine = match &known {
                Some(engine) if engine.answers().await => engine.clone(),
                _ => engine::connect(&socket).await?,
            };
            let due = known.is_none() || swept.elapsed() >= SWEEP_EVERY || self.litter.load(Ordering::Relaxed);
            if due {
                let removed = self.sweep(&engine, None).await;
                let removed =
                    removed.map_err(|e| format!("{} has containers of ours that stay: {e}", socket.display()))?;
                if removed > 0 {
                    tracing::warn!(containers = removed, "removed containers that had no task any more");
                }
            }
            self.images.sweep(&engine).await;
            Ok((engine, due))
        });
        let mut state = lock(&self.state);
        match (&state.engine, &looked) {
            (Err(_), Ok((engine, _))) => {
                tracing::info!(socket = %engine.socket.display(), "containers can be run");
                // It removes its containers by their labels.
                sweep::look_elsewhere(false);
            }
            (Ok(_), Err(why)) => {
                tracing::warn!(%why, "containers cannot be run any more");
                self.mind_orphans();
            }
            _ => {}
        }
        if let Ok((_, true)) = looked {
            state.swept = Instant::now();
        }
        state.engine = looked.map(|(engine, _)| engine);
    }

    /// Takes note if an engine that was lost does not answer any more.
    async fn doubt(&self, engine: &Engine) {
        if !engine.answers().await {
            let why = format!("no Docker engine answers at {} any more", engine.socket.display());
            lock(&self.state).engine = Err(why);
            self.mind_orphans();
        }
    }

    /// The engine is gone. What ran in it may run on, and is no descendant of this process.
    fn mind_orphans(&self) {
        if !lock(&self.live).is_empty() || self.litter.load(Ordering::Relaxed) {
            sweep::look_elsewhere(true);
        }
    }

    /// Removes this node's containers that belong to no attempt under way, all or those of one job, and says how many.
    async fn sweep(&self, engine: &Engine, job: Option<&str>) -> Result<usize, Error> {
        self.litter.store(false, Ordering::Relaxed);
        let mut labels = vec![format!("{NODE_LABEL}={}", self.options.node)];
        labels.extend(job.map(|job| format!("{JOB_LABEL}={job}")));
        let filters: HashMap<String, Vec<String>> = [("label".to_owned(), labels)].into();
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let mut removed = 0;
        for found in engine.docker.list_containers(Some(options)).await? {
            let labels = found.labels.unwrap_or_default();
            // The engine has filtered already; but nothing is removed on its word alone.
            if labels.get(NODE_LABEL) != Some(&self.options.node) || self.is_live(&labels) {
                continue;
            }
            if let Some(id) = found.id {
                removed += usize::from(self.remove(engine, &id).await);
            }
        }
        Ok(removed)
    }

    fn is_live(&self, labels: &HashMap<String, String>) -> bool {
        let run = labels.get(RUN_LABEL).and_then(|run| run.parse().ok());
        labels.get(DAEMON_LABEL).map(String::as_str) == Some(self.tag.value())
            && run.is_some_and(|run| lock(&self.live).contains(&run))
    }

    /// Removes a container, whatever it does, with its volumes. What does not go is tried again later.
    async fn remove(&self, engine: &Engine, name: &str) -> bool {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match engine.docker.remove_container(name, Some(options)).await {
            // 404: gone already; 409: being removed already.
            Ok(()) | Err(Error::DockerResponseServerError { status_code: 404 | 409, .. }) => true,
            Err(error) => {
                tracing::debug!(container = name, %error, "a container stays for now");
                self.litter.store(true, Ordering::Relaxed);
                false
            }
        }
    }

    fn release(&self, run: u64) {
        lock(&self.live).remove(&run);
    }

    fn share(&self, resources: Resources, user: (u32, u32)) -> Share {
        let options = &self.options;
        let most = options.memory_bytes;
        // As in cells: an equal share of what the node offers for a task that reserves nothing.
        let memory_bytes = match resources.memory_bytes {
            0 => most / u64::from(options.slots.max(1)),
            wanted => wanted.min(most),
        };
        Share { memory_bytes, cpu_milli: resources.cpu_milli, tmp_bytes: options.tmp_bytes, user }
    }

    fn labels(&self, launch: &Launch<'_>) -> HashMap<String, String> {
        let labels = [
            (NODE_LABEL, self.options.node.clone()),
            (DAEMON_LABEL, self.tag.value().to_owned()),
            (JOB_LABEL, launch.place.job.to_owned()),
            (RUN_LABEL, launch.run.to_string()),
        ];
        labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// What it is called.
    fn name(&self, run: u64) -> String {
        container_name(&self.tag, run)
    }
}

/// The container that a program is.
fn container<'a>(launch: &Launch<'a>) -> Result<&'a Container, Failure> {
    match launch.program {
        Program::Container(container) => Ok(container),
        _ => Err(Failure::new(ErrorCode::Invalid, "the docker runner was given a program that is no container")),
    }
}

/// The user of the slot's tasks, once the slot's directories are its own.
fn task_user(launch: &Launch<'_>) -> Result<(u32, u32), Failure> {
    let place = &launch.place;
    let user = cell_host::hand_over_to_task(place.slot, place.dir);
    let user = user.map_err(|e| Failure::storage("hand the task's directories over to its user", &e))?;
    if user.0 == 0 {
        let message =
            "this node's daemon is root of a user namespace without users for tasks: containers would run as root";
        return Err(Failure::new(ErrorCode::Deny, message));
    }
    Ok(user)
}

impl Runner for DockerRunner {
    fn kind(&self) -> Runners {
        Runners::DOCKER
    }

    fn health(&self) -> Health {
        match &lock(&self.inner.state).engine {
            Ok(_) => Health::Ready,
            Err(why) => Health::Unavailable(why.clone()),
        }
    }

    fn view(&self, _program: &Program) -> View {
        View::Cell
    }

    fn prepare(&self, launch: &Launch<'_>) -> Result<Prepared, Failure> {
        let container = container(launch)?;
        check_env(launch.env)?;
        let inner = &self.inner;
        let engine = inner.engine()?;
        let image = inner.images.ensure(inner, &engine, container, launch)?;
        Ok(Prepared { program: PathBuf::from(image.id), caps: Caps::default() })
    }

    fn start(&self, launch: &Launch<'_>, prepared: Prepared) -> Result<Box<dyn Execution>, Failure> {
        let container = container(launch)?;
        let inner = &self.inner;
        let engine = inner.engine()?;
        let user = task_user(launch)?;
        if container.gpus > GPUS_MAX {
            let message = format!("the task wants {} GPUs; no machine has more than {GPUS_MAX}", container.gpus);
            return Err(Failure::new(ErrorCode::NoGpu, message).for_good());
        }
        let claim = Claim {
            inner: Arc::clone(inner),
            run: launch.run,
            gpus: inner.gpus.take(container.gpus),
            _live: sweep::enter(launch.run),
        };
        // Entered before the container exists, so that a sweep cannot take it for a leftover.
        lock(&inner.live).insert(launch.run);
        let share = inner.share(launch.place.resources, user).within(engine.cpu_milli);
        let image = prepared.program.to_string_lossy();
        let image = inner.runtime.block_on(images::known(&engine, &image))?;
        let (labels, marks) = (inner.labels(launch), inner.marks(launch.run));
        let net = inner.network(&engine, launch, user)?;
        let joins = net.as_ref().map(|net| net.name.clone());
        let bound = launch.stop.bind(Kind::Container, 0, launch.run)?;
        let mut run = Run {
            inner: Arc::clone(inner),
            name: inner.name(launch.run),
            bound: Some(bound),
            attached: None,
            shared: Arc::new(Shared::new(launch)),
            memory_bytes: share.memory_bytes,
            feeds_stdin: launch.feeds_stdin,
            health: container.health.clone(),
            removed: false,
            net,
            engine,
            claim,
        };
        let gpus = &run.claim.gpus.numbers[..];
        let body = spec::body(Order { launch, container, image: &image, share, gpus, labels, marks, joins })?;
        match inner.runtime.block_on(begin(&run, body)) {
            Ok(attached) => {
                run.attached = Some(attached);
                Ok(Box::new(run))
            }
            Err((doing, error)) => {
                let failure = run.engine.failure(doing, &error);
                run.remove();
                Err(failure)
            }
        }
    }

    fn end_job(&self, job: &str) {
        self.inner.images.end_job(job);
        let engine = lock(&self.inner.state).engine.clone();
        if let Ok(engine) = engine
            && let Err(error) = self.inner.runtime.block_on(self.inner.sweep(&engine, Some(job)))
        {
            tracing::debug!(%error, "a job's containers are looked for later");
            self.inner.litter.store(true, Ordering::Relaxed);
        }
    }

    fn end_idle(&self) {
        self.inner.refresh();
    }
}

/// Makes the container, attaches to it and starts it, in this order: nothing that it prints is missed.
async fn begin(
    run: &Run,
    body: bollard::models::ContainerCreateBody,
) -> Result<AttachContainerResults, (&'static str, Error)> {
    let docker = &run.engine.docker;
    let options = CreateContainerOptionsBuilder::default().name(&run.name).build();
    docker.create_container(Some(options), body).await.map_err(|e| ("make a container", e))?;
    let attach = AttachContainerOptionsBuilder::default().stream(true).stdin(run.feeds_stdin).stdout(true).stderr(true);
    let attached = docker.attach_container(&run.name, Some(attach.build())).await.map_err(|e| ("attach to it", e))?;
    docker.start_container(&run.name, None::<StartContainerOptions>).await.map_err(|e| ("start a container", e))?;
    Ok(attached)
}
