//! The daemon: opens what is on disk, joins the mesh, starts the core, and keeps them talking until it is told to end.

mod error;
mod leave;
mod setup;
mod shared;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use sinew_blobs::BlobStore;
use sinew_crdt_state::certificate::{Credential, Roles, Ticket};
use sinew_crdt_state::ids::NodeId;
use sinew_mesh::{
    Boot, DropReason, GossipId, JoinRefusal, JoinReply, Mesh, MeshEvent, MeshEvents, Topic, Transport, Verdict,
};
use sinew_scheduler::Setup;
use sinew_scheduler::config::CoreConfig;
use sinew_scheduler::io::Input;
use sinew_scheduler::wire;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{Notify, oneshot};

use crate::api::server;
use crate::clock::unix_ms;
use crate::config::Settings;
use crate::datadir::{CERTIFICATE_MS, DataDir, DataDirError};
use crate::effects::Effects;
use crate::engine::{Engine, EngineThread};
use crate::exec::guardian::{Guardian, NodeTag, become_subreaper, reconcile_leftovers};
use crate::exec::runner::Runner;
use crate::exec::slot::WorkRoot;
use crate::exec::sweep::Sweeper;
use crate::exec::switch::Switch;
use crate::exec::{open_files, own_program};
use crate::frames::{self, Frame};
use crate::job_blobs::JobBlobs;
use crate::logs::LogHub;
use crate::mesh_link::MeshLink;
use crate::runners::{self, Shares};
use crate::secrets::holder::Keeper;
use crate::secrets::store::SecretStore;
use crate::sightings::Sightings;
use crate::storage::{Storage, StorageError, StorageEvent};
use crate::tasks::{Means, TaskHost, TaskPool};

pub use error::DaemonError;
pub(crate) use error::io;
use leave::Departure;
pub use leave::Down;
use setup::{core_config, cpu_milli, disk_bytes, memory_bytes, mesh_config, store_options};
pub use shared::{Pending, Shared, Watchers};

/// Processes that outlived their task are looked for this often.
const SWEEP_EVERY: std::time::Duration = std::time::Duration::from_secs(2);
/// Outputs that nobody asks for any more are let go of this often.
const RETENTION_EVERY: std::time::Duration = std::time::Duration::from_secs(600);
/// Round-trip times and the mesh's size are handed to the core this often.
const MEASURES_EVERY: std::time::Duration = std::time::Duration::from_secs(5);
/// News of where members are wait for more this long before they are written down.
const KEEP_ADDRS_AFTER: std::time::Duration = std::time::Duration::from_secs(1);
/// With this variable set a daemon ends when its stdin does.
pub const STDIN_VAR: &str = "SINEW_STOP_AT_STDIN_EOF";
/// Blob streams served at once: bounds memory and descriptors that peers can take.
const SERVES_MAX: usize = 64;

/// Runs a daemon until it is told to end.
///
/// # Errors
/// [`DaemonError`] when it cannot start.
pub async fn run(data_dir: DataDir, settings: Settings) -> Result<(), DaemonError> {
    let daemon = Daemon::start(data_dir, settings).await?;
    daemon.serve().await
}

struct Daemon {
    shared: Arc<Shared>,
    events: MeshEvents,
    pool: TaskPool,
    thread: EngineThread,
    storage: Arc<Storage>,
    guardian: Option<Guardian>,
    switch: Arc<Switch>,
    engine_socket: Option<PathBuf>,
    tag: NodeTag,
    down: UnboundedReceiver<Down>,
    _lock: crate::datadir::Lock,
}

impl Daemon {
    async fn start(data_dir: DataDir, settings: Settings) -> Result<Self, DaemonError> {
        settings.check()?;
        let membership = data_dir.membership()?;
        let identity = data_dir.identity()?;
        let roles =
            membership.credential.verify(membership.mesh, identity.id(), unix_ms()).map_err(DataDirError::from)?;
        let lock = data_dir.lock()?;
        let tag = NodeTag::new(&data_dir.path().to_string_lossy());
        let files = open_files::raise();
        let switch = Switch::new().map_err(io("make the memory that is shared with the guardian"))?;
        let engine_socket = settings.docker.socket().ok();
        let guardian = start_guardian(&tag, &switch, engine_socket.as_ref());
        let work = WorkRoot::open(&data_dir.work()).map_err(io("prepare the work directory"))?;
        let shares = Shares { memory_bytes: memory_bytes(&settings), cpu_milli: cpu_milli(&settings) };
        let (runners, sandbox) = runners::open(&settings, shares, &tag, data_dir.path())?;
        let gather = runners::gather(&settings, &tag)?;
        let volumes = runners::volumes(&settings, &sandbox, data_dir.path())?;
        let volume_rules = volumes.rules().clone();
        let (engine, queue) = Engine::queue();
        let (storage, (stored, incarnation, disk)) = open_storage(&data_dir, &engine)?.load()?;
        let storage = Arc::new(storage);
        let store = BlobStore::open(&data_dir.blobs(), store_options(&data_dir)).await?;
        let blobs = Arc::new(JobBlobs::open(store.clone()).await.map_err(DaemonError::Tags)?);
        let mut config = mesh_config(&settings, &membership, &data_dir.known_addrs())?;
        let nonce = random_nonce();
        config.boot = Some(Boot { number: incarnation, nonce });
        let (mesh, events) =
            Mesh::start(config, &identity, membership.credential.clone(), membership.mesh, unix_ms).await?;
        let link = MeshLink::new(mesh);
        let logs = LogHub::new(store.clone());
        logs.connect(link.clone());
        let (shutdown, down) = unbounded_channel();
        let secrets = Arc::new(Keeper::new(SecretStore::open(data_dir.path(), &identity), identity.clone()));
        let shared = Arc::new(Shared {
            secrets: Arc::clone(&secrets),
            data_dir,
            engine: engine.clone(),
            link: link.clone(),
            store: store.clone(),
            blobs: Arc::clone(&blobs),
            ledger: storage.reader(),
            logs: logs.clone(),
            identity: identity.clone(),
            roles,
            started: Instant::now(),
            watchers: Watchers::default(),
            sightings: Sightings::default(),
            shutdown,
            left: Notify::new(),
            sandbox,
            runners: Arc::clone(&runners),
            host: OnceLock::new(),
            ledger_grace_ms: settings.ledger_grace_s.saturating_mul(1_000),
            outputs_kept_ms: settings.outputs_kept_s.saturating_mul(1_000),
            pending: Mutex::default(),
            membership,
        });
        let runtime = tokio::runtime::Handle::current();
        let host = TaskHost::new(
            store,
            blobs,
            link,
            Means {
                runner: Arc::clone(&runners),
                gather,
                work,
                secrets,
                volumes,
                tag: tag.clone(),
                switch: Arc::clone(&switch),
            },
            logs,
            engine.clone(),
            runtime.clone(),
        );
        let pool = TaskPool::new(host);
        let _ = shared.host.set(pool.clone());
        let setup = Setup {
            identity,
            mesh: shared.membership.mesh,
            roles,
            incarnation,
            disk,
            nonce,
            seed: random_seed(),
            config: CoreConfig {
                volumes: volume_rules,
                tasks_max: open_files::tasks_max(files),
                disk_bytes: disk_bytes(&settings, &shared.data_dir.work()),
                ..core_config(&settings, roles, runners.ready())
            },
        };
        let driver = Effects::new(Arc::clone(&shared), pool.clone(), Arc::clone(&storage), runtime);
        let thread = queue.start(&engine, setup, stored, driver).map_err(io("start the core's thread"))?;
        Ok(Self { shared, events, pool, thread, storage, guardian, switch, engine_socket, tag, down, _lock: lock })
    }

    async fn serve(mut self) -> Result<(), DaemonError> {
        let api = server::Server::bind(&self.shared.data_dir.socket()).map_err(io("open the local API's socket"))?;
        let serving = tokio::spawn(api.run(Arc::clone(&self.shared)));
        tracing::info!(
            node = %self.shared.identity.id(),
            mesh = %self.shared.membership.mesh_name,
            roles = %self.shared.roles,
            data_dir = %self.shared.data_dir.path().display(),
            "up"
        );
        let permits = Arc::new(tokio::sync::Semaphore::new(SERVES_MAX));
        let sweeper = Arc::new(Mutex::new(Sweeper::new(self.tag.clone())));
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        let mut retention = tokio::time::interval(RETENTION_EVERY);
        let mut measures = tokio::time::interval(MEASURES_EVERY);
        let mut collections = self.shared.store.collections();
        tell_blobs(&self.shared);
        let mut twin = None;
        let parent_gone = parent_gone();
        tokio::pin!(parent_gone);
        let mut term = signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut int = signal(tokio::signal::unix::SignalKind::interrupt())?;
        // Addresses come in bursts: one file for each.
        let mut keep_addrs: Option<tokio::time::Instant> = None;
        let mut departure = Departure::new(self.shared.engine.clone());
        let mut orphaned = false;
        loop {
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(MeshEvent::Twin { boot, addr }) => {
                        // From here on this node says nothing more to anybody.
                        self.shared.engine.input(Input::Twin);
                        twin = Some((boot, addr));
                        break;
                    }
                    Some(MeshEvent::AddrsChanged) => {
                        keep_addrs.get_or_insert_with(|| tokio::time::Instant::now() + KEEP_ADDRS_AFTER);
                    }
                    Some(event) => self.on_event(event, &permits),
                    None => break,
                },
                () = at(keep_addrs) => {
                    keep_addrs = None;
                    self.keep_addrs().await;
                }
                _ = sweep.tick() => {
                    let (sweeper, shared) = (Arc::clone(&sweeper), Arc::clone(&self.shared));
                    // A look at all of a task's processes, or a cell's end, may take a moment.
                    tokio::task::spawn_blocking(move || sweep_up(&sweeper, &shared));
                    if let Some(guardian) = &mut self.guardian
                        && !guardian.is_alive()
                    {
                        tracing::warn!("the guardian ended; starting another");
                        self.guardian = start_guardian(&self.tag, &self.switch, self.engine_socket.as_ref());
                    }
                }
                _ = retention.tick() => {
                    let shared = Arc::clone(&self.shared);
                    tokio::spawn(async move {
                        if let Err(error) = crate::prune::outputs(&shared.store, shared.outputs_kept_ms, false).await {
                            tracing::warn!(%error, "cannot let go of old outputs");
                        }
                        if let Err(error) = crate::prune::old_logs(&shared, shared.outputs_kept_ms, false).await {
                            tracing::warn!(%error, "cannot let go of old logs");
                        }
                        if let Err(error) = crate::prune::partials(&shared.store, crate::clock::unix_ms()).await {
                            tracing::warn!(%error, "cannot let go of what came in part");
                        }
                    });
                }
                Ok(()) = collections.changed() => tell_blobs(&self.shared),
                _ = measures.tick() => self.hand_on_measures().await,
                _ = term.recv() => if departure.signalled() { break },
                _ = int.recv() => if departure.signalled() { break },
                Some(down) = self.down.recv() => departure.asked(down),
                () = &mut parent_gone, if !orphaned => {
                    orphaned = true;
                    departure.at_once();
                }
                () = departure.due() => if departure.hurry() { break },
                () = self.shared.left.notified() => break,
            }
        }
        tracing::info!("going down");
        if keep_addrs.is_some() {
            self.keep_addrs().await;
        }
        serving.abort();
        let _ = std::fs::remove_file(self.shared.data_dir.socket());
        let path = self.shared.data_dir.path().to_owned();
        self.end().await;
        match twin {
            Some((boot, addr)) => Err(DaemonError::twin(path, boot, addr)),
            None => Ok(()),
        }
    }

    /// Writes down where members are, for the next start.
    async fn keep_addrs(&self) {
        let known = self.shared.known_addrs().await;
        if let Err(error) = self.shared.data_dir.keep_known_addrs(&known) {
            tracing::warn!(%error, "the next start knows only members that were met earlier");
        }
    }

    async fn end(self) {
        let pool = self.pool.clone();
        // Threads of running tasks wait for their programs' end, a few seconds at most.
        let _ = tokio::task::spawn_blocking(move || pool.close()).await;
        let (thread, storage) = (self.thread, self.storage);
        let _ = tokio::task::spawn_blocking(move || {
            thread.stop();
            drop(storage);
        })
        .await;
        self.shared.link.mesh().clone().shutdown().await;
        self.shared.store.clone().shutdown().await;
    }

    fn on_event(&self, event: MeshEvent, permits: &Arc<tokio::sync::Semaphore>) {
        let engine = &self.shared.engine;
        match event {
            MeshEvent::PeerUp { node, roles, addrs, credential } => {
                engine.input(Input::Member(credential));
                let addr = addrs.first().map(ToString::to_string).unwrap_or_default();
                tracing::info!(node = %node.short(), %roles, addr, "peer up");
                engine.input(Input::PeerUp { node, roles });
            }
            MeshEvent::PeerDown { node } => {
                tracing::info!(node = %node.short(), "peer down");
                engine.input(Input::PeerDown { node });
            }
            MeshEvent::Frame { from, bytes, .. } => self.on_frame(from, &bytes),
            MeshEvent::Gossip { id, from, relayed_by, topic, bytes } => {
                let Some((_, payload)) = bytes.split_first_chunk::<8>() else {
                    return self.refuse_gossip(id, relayed_by);
                };
                let (topic, fine) = check_gossip(topic, payload);
                if fine {
                    self.shared.link.mesh().report_gossip(id, Verdict::Accept);
                    self.shared.sightings.advert(payload);
                    engine.input(Input::Gossip { from, topic, payload: payload.to_vec() });
                } else {
                    self.refuse_gossip(id, relayed_by);
                }
            }
            MeshEvent::BlobStream { from, stream } => {
                let (store, permits) = (self.shared.store.clone(), Arc::clone(permits));
                let mesh = self.shared.link.mesh().clone();
                tokio::spawn(async move {
                    let Ok(_permit) = permits.acquire_owned().await else { return };
                    let (reader, writer) = tokio::io::split(stream);
                    if let Err(error) = store.serve(reader, writer).await {
                        tracing::debug!(node = %from.short(), %error, "a blob request failed");
                        if error.is_offence() {
                            mesh.drop_peer(from, DropReason::Misbehaved);
                        }
                    }
                });
            }
            MeshEvent::SecretStream { from, stream } => crate::secrets::holder::serve(&self.shared, from, stream),
            MeshEvent::Listening { addr } => tracing::info!(%addr, "listening"),
            MeshEvent::Refused { node, reason } => {
                let node = node.map(|n| n.short()).unwrap_or_default();
                tracing::debug!(node, ?reason, "refused a peer");
            }
            MeshEvent::JoinRequest { node, ticket, reply } => self.on_join(node, &ticket, reply),
            _ => {}
        }
    }

    fn on_frame(&self, from: NodeId, bytes: &[u8]) {
        match frames::decode(bytes) {
            Ok(Frame::Core(messages)) => {
                for message in messages {
                    self.shared.engine.input(Input::Message { from, message });
                }
            }
            Ok(Frame::Log(message)) => self.shared.logs.on_message(from, message),
            Err(error) => {
                // The mesh warns, once for each peer; a flood of these must not fill the log.
                tracing::debug!(node = %from.short(), %error, "a bad frame");
                self.shared.link.mesh().drop_peer(from, DropReason::Misbehaved);
            }
        }
    }

    /// Whoever passes on what does not decode has not looked at it, or made it.
    fn refuse_gossip(&self, id: GossipId, relayed_by: NodeId) {
        self.shared.link.mesh().report_gossip(id, Verdict::Reject);
        self.shared.link.mesh().drop_peer(relayed_by, DropReason::Misbehaved);
    }

    /// A newcomer shows a ticket. The mesh has checked its signature, expiry and mesh; here it is checked that this node
    /// made it and may issue certificates.
    fn on_join(&self, node: NodeId, ticket: &Ticket, reply: JoinReply) {
        let shared = &self.shared;
        let answer = if ticket.body.issuer != shared.identity.id() {
            Err(JoinRefusal::OtherIssuer)
        } else if !shared.roles.contains(Roles::ADMIN) {
            Err(JoinRefusal::Declined)
        } else {
            let now = unix_ms();
            let roles = ticket.body.roles;
            let issued = shared.membership.credential.issue(&shared.identity, node, roles, now, now + CERTIFICATE_MS);
            tracing::info!(node = %node.short(), %roles, "issued a certificate");
            Ok(issued)
        };
        let answer: Result<Credential, JoinRefusal> = answer;
        // The newcomer may have hung up.
        let _ = reply.send(answer);
    }

    /// What only the transport knows: how far peers are, and how many members there are.
    async fn hand_on_measures(&self) {
        let status = self.shared.link.mesh().status().await;
        self.shared.engine.input(Input::MeshSize(status.members_known + 1));
        for peer in status.peers {
            // Each is measured now and then: of two direct ones the longer is the newer, where they differ much.
            let is_direct = peer.connections.iter().any(|c| c.transport != Transport::Relay);
            let used = peer.connections.iter().filter(|c| !is_direct || c.transport != Transport::Relay);
            if let Some(rtt) = used.filter_map(|c| c.rtt).max() {
                let rtt_us = u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX);
                self.shared.engine.input(Input::Rtt { node: peer.node, rtt_us });
            }
        }
    }
}

/// Tells the core which blobs are here: at the start, and after something was taken away.
fn tell_blobs(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        match shared.store.complete().await {
            Ok(all) => shared.engine.input(Input::BlobsLeft(Arc::new(all))),
            Err(error) => tracing::warn!(%error, "cannot list the blobs that are here"),
        }
    });
}

/// Ends at `when`, if there is such a time.
async fn at(when: Option<tokio::time::Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// Ends when stdin does, where whoever started this daemon asked for that; otherwise never. Demos, benches and tests hold
/// the other end of the pipe, so that no daemon outlives them, however they end.
async fn parent_gone() {
    if std::env::var_os(STDIN_VAR).is_none() {
        return std::future::pending().await;
    }
    let (tx, rx) = oneshot::channel();
    let wait = move || {
        // Whatever ends the read, the parent is no longer there.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = tx.send(());
    };
    if std::thread::Builder::new().name("sinew-parent".to_owned()).spawn(wait).is_err() {
        return std::future::pending().await;
    }
    let _ = rx.await;
}

fn signal(kind: tokio::signal::unix::SignalKind) -> Result<tokio::signal::unix::Signal, DaemonError> {
    tokio::signal::unix::signal(kind).map_err(io("listen for signals"))
}

/// Ends what has outlived its task or its use, unless that is being done already.
fn sweep_up(sweeper: &Mutex<Sweeper>, shared: &Shared) {
    let Ok(mut sweeper) = sweeper.try_lock() else { return };
    let swept = sweeper.sweep();
    if swept.killed > 0 {
        tracing::warn!(processes = swept.killed, "ended processes that had outlived their task");
    }
    shared.runners.end_idle();
    // An engine may have come or gone.
    shared.engine.input(Input::Runners(shared.runners.ready()));
}

/// Ends what an earlier daemon left behind and starts the process that ends ours, should we be killed.
fn start_guardian(tag: &NodeTag, switch: &Arc<Switch>, engine: Option<&PathBuf>) -> Option<Guardian> {
    if let Err(error) = become_subreaper() {
        tracing::warn!(%error, "cannot become a subreaper: daemonised grandchildren of tasks are found later");
    }
    let ended = reconcile_leftovers(tag);
    if ended > 0 {
        tracing::warn!(processes = ended, "ended processes that an earlier daemon had left");
    }
    let spawned = own_program::path().and_then(|exe| Guardian::spawn(&exe, tag, switch, engine));
    match spawned {
        Ok(guardian) => Some(guardian),
        Err(error) => {
            tracing::warn!(%error, "no guardian: if this daemon is killed, its tasks' processes end at its next start");
            None
        }
    }
}

fn open_storage(data_dir: &DataDir, engine: &Engine) -> Result<Storage, StorageError> {
    let engine = engine.clone();
    Storage::open(&data_dir.ledger(), move |event| match event {
        StorageEvent::Persisted(tickets, mark) => {
            engine.input(Input::Mark(mark));
            for ticket in tickets {
                engine.input(Input::Persisted(ticket));
            }
        }
        StorageEvent::Failing(reason) => {
            tracing::error!(reason, "the disk refuses the ledger's records; they are kept and tried again");
            engine.input(Input::StorageFailing(reason));
        }
        StorageEvent::Hung(reason) => {
            tracing::error!(reason, "this node steps down where it leads, and gives up what it runs");
            engine.input(Input::StorageHung(reason));
        }
        StorageEvent::Recovered => {
            tracing::info!("the disk takes the ledger's records again");
            engine.input(Input::StorageRecovered);
        }
    })
}

/// A number that no other start of a daemon has.
fn random_nonce() -> u64 {
    use rand::TryRng;
    // Without a generator the time does: two copies never start in the same microsecond.
    rand::rngs::SysRng.try_next_u64().unwrap_or_else(|_| crate::clock::unix_us())
}

fn random_seed() -> [u8; 32] {
    use rand::TryRng;
    let mut seed = [0; 32];
    // Only fairness of random choices depends on it: zeros would do.
    let _ = rand::rngs::SysRng.try_fill_bytes(&mut seed);
    seed
}

fn check_gossip(topic: Topic, payload: &[u8]) -> (wire::Topic, bool) {
    match topic {
        Topic::Advert => (wire::Topic::Advert, sinew_crdt_state::cbor::from_slice::<wire::Advert>(payload).is_ok()),
    }
}

/// A gossip payload as published: a counter first, because equal bytes from one author are published only once.
#[must_use]
pub fn gossip_frame(counter: u64, payload: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(8 + payload.len());
    frame.extend_from_slice(&counter.to_be_bytes());
    frame.extend_from_slice(payload);
    frame.into()
}
