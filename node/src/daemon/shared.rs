//! What the parts of a running daemon share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use sinew_blobs::BlobStore;
use sinew_crdt_state::certificate::{Roles, TICKET_ADDRS_MAX, Ticket, TicketBody};
use sinew_crdt_state::identity::Identity;
use sinew_crdt_state::ids::{JobId, NodeId};
use sinew_mesh::{Multiaddr, peer_id};
use sinew_scheduler::io::{Input, RequestId, Response};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Notify, oneshot, watch};

use super::leave::Down;
use crate::clock::unix_ms;
use crate::datadir::{DataDir, Membership};
use crate::engine::Engine;
use crate::exec::set::RunnerSet;
use crate::job_blobs::JobBlobs;
use crate::logs::LogHub;
use crate::mesh_link::MeshLink;
use crate::runners::SandboxState;
use crate::secrets::holder::Keeper;
use crate::sightings::Sightings;
use crate::storage::StorageReader;
use crate::tasks::TaskPool;

/// Other members that a ticket names, one address each ...
const TICKET_MEMBERS: usize = 3;
/// ... no longer than this: a ticket is copied by hand.
const TICKET_ADDR_LEN_MAX: usize = 128;

/// Requests that wait for the core's answer.
#[derive(Debug, Default)]
pub struct Pending {
    last: u64,
    waiting: BTreeMap<RequestId, oneshot::Sender<Response>>,
}

/// News of jobs, for those who wait for it.
#[derive(Debug, Default)]
pub struct Watchers {
    jobs: Mutex<BTreeMap<JobId, watch::Sender<u64>>>,
}

impl Watchers {
    /// A receiver that sees a change whenever the job changed.
    #[must_use]
    pub fn subscribe(&self, job: JobId) -> watch::Receiver<u64> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.retain(|_, sender| !sender.is_closed());
        jobs.entry(job).or_insert_with(|| watch::channel(0).0).subscribe()
    }

    /// The job changed.
    pub fn changed(&self, job: JobId) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = jobs.get(&job) {
            sender.send_modify(|n| *n += 1);
        }
    }
}

/// What the parts of a running daemon share.
#[derive(Debug)]
pub struct Shared {
    /// The data dir.
    pub data_dir: DataDir,
    /// The core.
    pub engine: Engine,
    /// The mesh.
    pub link: MeshLink,
    /// Blobs.
    pub store: BlobStore,
    /// Those that jobs keep.
    pub blobs: Arc<JobBlobs>,
    /// The ledger's file.
    pub ledger: StorageReader,
    /// Live output.
    pub logs: LogHub,
    /// The key pair.
    pub identity: Identity,
    /// The membership.
    pub membership: Membership,
    /// This node's roles.
    pub roles: Roles,
    /// When the daemon started.
    pub started: Instant,
    /// Who waits for news of which job.
    pub watchers: Watchers,
    /// What was seen lately.
    pub sightings: Sightings,
    /// Ends the daemon.
    pub shutdown: UnboundedSender<Down>,
    /// The core has left.
    pub left: Notify,
    /// How programs are isolated.
    pub sandbox: SandboxState,
    /// What executes programs.
    pub runners: Arc<RunnerSet>,
    /// Where tasks run, from the moment that they can.
    pub host: OnceLock<TaskPool>,
    /// What this node keeps for its user.
    pub secrets: Arc<Keeper>,
    /// How long the ledger knows what an ended job left, ms.
    pub ledger_grace_ms: u64,
    /// How long outputs of forgotten jobs stay, ms.
    pub outputs_kept_ms: u64,
    pub(super) pending: Mutex<Pending>,
}

impl Shared {
    /// Asks the core and waits for its answer.
    ///
    /// # Errors
    /// [`crate::engine::Gone`] when the daemon ends first.
    pub async fn ask(&self, request: sinew_scheduler::io::Request) -> Result<Response, crate::engine::Gone> {
        self.begin(request).1.await
    }

    /// Asks the core. Gives the request's number and what waits for the answer.
    pub fn begin(
        &self,
        request: sinew_scheduler::io::Request,
    ) -> (RequestId, impl Future<Output = Result<Response, crate::engine::Gone>> + use<>) {
        let (tx, rx) = oneshot::channel();
        let id = {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            pending.last += 1;
            let id = RequestId(pending.last);
            pending.waiting.insert(id, tx);
            id
        };
        self.engine.input(Input::Request { id, request });
        (id, async move { rx.await.map_err(|_| crate::engine::Gone) })
    }

    /// The core answered.
    pub(crate) fn answer(&self, id: RequestId, response: Response) {
        let waiting = self.pending.lock().unwrap_or_else(PoisonError::into_inner).waiting.remove(&id);
        if let Some(waiting) = waiting {
            // Whoever asked may have hung up; the answer's effect stands all the same.
            let _ = waiting.send(response);
        }
    }

    /// Where members are, as text.
    pub async fn known_addrs(&self) -> Vec<(NodeId, Vec<String>)> {
        let known = self.link.mesh().known_addrs().await;
        let text = |addrs: Vec<Multiaddr>| addrs.iter().map(ToString::to_string).collect();
        known.into_iter().map(|(node, addrs)| (node, text(addrs))).collect()
    }

    /// A ticket for the mesh, issued by this node. It names some other members too: the issuer may be away when its holder comes
    /// back.
    pub async fn ticket(&self, roles: Roles, expires_ms: u64) -> Ticket {
        let mut addrs = self.dialable_addrs();
        addrs.truncate(TICKET_ADDRS_MAX - TICKET_MEMBERS);
        let known = self.known_addrs().await.into_iter();
        let others = known.filter_map(|(node, addrs)| Some(format!("{}/p2p/{}", addrs.first()?, peer_id(node))));
        addrs.extend(others.filter(|addr| addr.len() <= TICKET_ADDR_LEN_MAX).take(TICKET_MEMBERS));
        let body = TicketBody {
            mesh: self.membership.mesh,
            name: self.membership.mesh_name.clone(),
            issuer: self.identity.id(),
            addrs,
            roles,
            expires_ms: unix_ms().saturating_add(expires_ms),
        };
        Ticket::sign(&self.identity, body)
    }

    fn dialable_addrs(&self) -> Vec<String> {
        let mesh = self.link.mesh();
        let mut addrs: Vec<String> = mesh.external_addrs().iter().map(ToString::to_string).collect();
        let listen: Vec<String> = mesh.listen_addrs().iter().map(ToString::to_string).collect();
        let (local, wide): (Vec<String>, Vec<String>) =
            listen.into_iter().partition(|a| a.starts_with("/ip4/127.") || a.starts_with("/ip6/::1/"));
        // Loopback only helps where there is nothing else: a mesh on one machine.
        addrs.extend(if wide.is_empty() { local } else { wide });
        addrs.dedup();
        addrs.truncate(TICKET_ADDRS_MAX);
        addrs
    }
}
