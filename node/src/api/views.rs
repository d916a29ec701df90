//! What the local API shows: the daemon, the nodes, the jobs.

use std::sync::Arc;

use sinew_crdt_state::cbor;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::{Fact, Outcome, Statement};
use sinew_crdt_state::ids::JobId;
use sinew_crdt_state::state::{Event, JobState, Status, timeline};
use sinew_mesh::{LaneStatus, MeshStatus, Transport};
use sinew_scheduler::view::{Ending, JobRow, JobView, from_state, waiting_text};

use super::{ApiError, FramesView, JobLine, PeerView, StatusView, TrafficView};
use crate::daemon::Shared;
use crate::engine::Gone;
use crate::storage::StorageError;

/// Jobs that a part of an id may name before somebody is asked for more of it: the count is only for people.
const FOUND_MAX: usize = 100;

impl From<Gone> for ApiError {
    fn from(gone: Gone) -> Self {
        Self::failed(ErrorCode::Lost, gone.to_string())
    }
}

impl From<StorageError> for ApiError {
    fn from(error: StorageError) -> Self {
        Self::failed(ErrorCode::Storage, error.to_string())
    }
}

/// The daemon.
pub(super) async fn status(shared: &Shared) -> Result<StatusView, ApiError> {
    let mesh = shared.link.mesh().status().await;
    let blobs = shared.store.stats().await.map_err(|e| ApiError::failed(ErrorCode::Storage, e.to_string()))?;
    let seen = shared
        .engine
        .look(|core| {
            let config = core.config();
            let free = core.peers().get(core.own()).and_then(|p| p.load);
            let root = core.ledger().index().root().fingerprint;
            (
                (config.cpu_milli, free.map_or(0, |l| l.cpu_milli_free)),
                (config.memory_bytes, free.map_or(0, |l| l.memory_bytes_free)),
                core.running(),
                core.led().count(),
                (core.ledger().iter_live().count(), core.ledger().iter_sealed().count()),
                format!("{:032x}-{}", root.sum, root.count),
                core.storage_problem().map(str::to_owned),
                core.has_recovered(),
                (config.disk_bytes, free.map_or(0, |l| config.disk_bytes.saturating_sub(l.disk_bytes_taken))),
                (config.output_bytes_max < u64::MAX).then_some(config.output_bytes_max),
            )
        })
        .await?;
    let waits = if seen.7 { "; all open jobs known here count on this node" } else { "; waiting for peers" };
    let storage_remark = shared.ledger.remark().map(|remark| remark + waits);
    let runners = crate::runners::health(&shared.runners);
    let runners = runners.into_iter().map(|(runner, why)| (runner.to_string(), why)).collect();
    Ok(StatusView {
        node: shared.identity.id(),
        mesh: shared.membership.mesh,
        mesh_name: shared.membership.mesh_name.clone(),
        roles: shared.roles.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_ms: u64::try_from(shared.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        listen: mesh.listen.iter().map(ToString::to_string).collect(),
        peers: mesh.peers.len(),
        cpu_milli: seen.0,
        memory_bytes: seen.1,
        disk_bytes: seen.8,
        output_bytes_max: seen.9,
        tasks_running: seen.2,
        jobs_led: seen.3,
        ledger_entries: seen.4,
        ledger_root: seen.5,
        blobs: (blobs.complete, blobs.complete_bytes),
        storage_problem: seen.6,
        storage_remark,
        sandbox: shared.sandbox.mode.to_string(),
        sandbox_missing: shared.sandbox.missing.clone(),
        sandbox_refusal: shared.sandbox.refusal.clone(),
        runners,
        refused: mesh.refusals.iter().map(|(kind, n)| (format!("{kind:?}"), *n)).collect(),
        nat: format!("{:?}", mesh.nat).to_lowercase(),
        traffic: traffic(&mesh, shared.link.messages()),
    })
}

fn traffic(mesh: &MeshStatus, messages_sent: u64) -> TrafficView {
    let frames = |lane: &LaneStatus| FramesView {
        sent: lane.frames_sent,
        sent_bytes: lane.bytes_sent,
        received: lane.frames_received,
        received_bytes: lane.bytes_received,
    };
    TrafficView {
        control: frames(&mesh.control),
        bulk: frames(&mesh.bulk),
        messages_sent,
        gossip_published: mesh.gossip.published,
        gossip_heard: mesh.gossip.delivered,
        gossip_copies: mesh.gossip.copies,
        gossip_copies_bytes: mesh.gossip.copies_bytes,
        gossip_peers: mesh.gossip.advert_peers,
    }
}

/// Every node known, this one first.
pub(super) async fn peers(shared: &Shared) -> Result<Vec<PeerView>, ApiError> {
    let connections: std::collections::BTreeMap<_, _> =
        shared.link.mesh().status().await.peers.into_iter().map(|p| (p.node, p)).collect();
    let mut peers = shared
        .engine
        .look(|core| {
            let own = core.own();
            core.peers()
                .iter()
                .map(|(node, peer)| PeerView {
                    node: *node,
                    own: *node == own,
                    state: if peer.load.is_some_and(|load| load.disk_failing) {
                        "disk failing".to_owned()
                    } else {
                        core.node_state(*node).map_or_else(|| "joining".to_owned(), |s| s.to_string())
                    },
                    roles: peer.roles.to_string(),
                    connected: peer.connected,
                    address: None,
                    rtt_us: None,
                    cpu_milli: peer.card.as_ref().map(|c| (c.cpu_milli, peer.load.map_or(0, |l| l.cpu_milli_free))),
                    memory_bytes: peer
                        .card
                        .as_ref()
                        .map(|c| (c.memory_bytes, peer.load.map_or(0, |l| l.memory_bytes_free))),
                    labels: peer.card.iter().flat_map(|c| c.labels.iter().map(|(k, v)| format!("{k}={v}"))).collect(),
                    runners: peer.card.as_ref().map(|c| c.runners.to_string()).unwrap_or_default(),
                    about: peer.card.as_ref().map(|c| c.about.clone()).unwrap_or_default(),
                    offences: peer.offences,
                })
                .collect::<Vec<_>>()
        })
        .await?;
    for view in &mut peers {
        let Some(status) = connections.get(&view.node) else { continue };
        let best = status.connections.iter().min_by_key(|c| (c.transport == Transport::Relay, c.rtt));
        view.address = best.map(|c| format!("{} ({})", c.addr, format!("{:?}", c.transport).to_lowercase()));
        view.rtt_us = best.and_then(|c| c.rtt).map(|rtt| u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX));
    }
    peers.sort_by_key(|p| (!p.own, p.node));
    Ok(peers)
}

/// The job that `text` names: an id, or the beginning of exactly one.
pub(super) async fn find_job(shared: &Shared, text: &str) -> Result<JobId, ApiError> {
    if let Ok(id) = text.parse::<JobId>() {
        return Ok(id);
    }
    if text.is_empty() {
        return Err(ApiError::invalid("no job was named: give an id from `sinew jobs`"));
    }
    let begins = text.to_owned();
    let live = move |core: &sinew_scheduler::core::Core| {
        let ids = core.ledger().iter_live().map(|(id, _)| *id);
        ids.filter(|id| id.to_string().starts_with(&begins)).collect::<std::collections::BTreeSet<JobId>>()
    };
    let mut ids = shared.engine.look(live).await?;
    let (ledger, text) = (shared.ledger.clone(), text.to_owned());
    let (ended, text) =
        tokio::task::spawn_blocking(move || (ledger.find(&text, FOUND_MAX), text)).await.map_err(|_| Gone)?;
    ids.extend(ended?);
    match ids.len() {
        0 => Err(ApiError::invalid(format!("no job `{text}` is known here: see `sinew jobs`"))),
        1 => Ok(ids.into_iter().next().expect("there is one")),
        count => {
            let several = if count >= FOUND_MAX { "many".to_owned() } else { count.to_string() };
            Err(ApiError::invalid(format!("`{text}` is the beginning of {several} jobs: give more of the id")))
        }
    }
}

/// A job in full, with its history.
pub(super) async fn job(shared: &Shared, id: JobId) -> Result<(JobView, Vec<Event>), ApiError> {
    let live = shared
        .engine
        .look(move |core| {
            let view = core.view(&id)?;
            let statements: Vec<_> = core.ledger().live(&id)?.statements().collect();
            let events = timeline(statements.iter().map(|(i, a, s)| (*i, *a, s)));
            Some((view, events))
        })
        .await?;
    match live {
        Some(found) => Ok(found),
        None => stored_job(shared, id).await?.ok_or_else(|| ApiError::invalid(format!("no job {id} is known here"))),
    }
}

/// A job that is over, from the disk.
async fn stored_job(shared: &Shared, id: JobId) -> Result<Option<(JobView, Vec<Event>)>, ApiError> {
    let ledger = shared.ledger.clone();
    let envelopes =
        tokio::task::spawn_blocking(move || ledger.entry(&id)).await.map_err(|_| ApiError::from(Gone))??;
    let statements: Vec<_> = envelopes
        .iter()
        .filter_map(|e| Some((e.fact_id(), e.author, cbor::from_slice::<Statement>(&e.payload).ok()?)))
        .collect();
    let spec = statements.iter().find_map(|(_, _, s)| match &s.fact {
        Fact::Submit(signed) => signed.decode().ok(),
        _ => None,
    });
    let Some(spec) = spec else { return Ok(None) };
    let state = JobState::fold(spec, &statements);
    let events = timeline(statements.iter().map(|(i, a, s)| (*i, *a, s)));
    Ok(Some((from_state(id, &state), events)))
}

/// The jobs known here, newest first.
pub(super) async fn jobs(shared: &Arc<Shared>, limit: usize) -> Result<Vec<JobLine>, ApiError> {
    let mut lines: Vec<JobLine> = shared
        .engine
        .look(|core| core.ledger().iter_live().filter_map(|(id, _)| core.view(id)).map(|view| line(&view)).collect())
        .await?;
    let known: std::collections::BTreeSet<JobId> = lines.iter().map(|l| l.id).collect();
    // Jobs that are over between the two looks are in both.
    let (ledger, wanted) = (shared.ledger.clone(), limit.saturating_add(lines.len()));
    let ended = tokio::task::spawn_blocking(move || ledger.ended(wanted)).await.map_err(|_| Gone)?;
    lines.extend(ended?.into_iter().filter(|(id, _)| !known.contains(id)).map(|(id, row)| ended_line(id, row)));
    lines.sort_by_key(|l| std::cmp::Reverse((l.submitted_ms, l.id)));
    lines.truncate(limit);
    Ok(lines)
}

fn ended_line(id: JobId, row: JobRow) -> JobLine {
    let JobRow { name, kind, ending, tasks, submitter, submitted_ms, key: _ } = row;
    let status = ending.map_or("sealed", ended_status).to_owned();
    JobLine { id, name, kind, status, tasks, submitter, submitted_ms }
}

const fn ended_status(ending: Ending) -> &'static str {
    match ending {
        Ending::Completed => "completed, sealed",
        Ending::Failed => "failed, sealed",
        Ending::Cancelled => "cancelled, sealed",
    }
}

fn line(view: &JobView) -> JobLine {
    let status = match (&view.outcome, view.status) {
        (Some(Outcome::Completed), Status::Sealed) => ended_status(Ending::Completed).to_owned(),
        (Some(Outcome::Failed { .. }), Status::Sealed) => ended_status(Ending::Failed).to_owned(),
        (Some(Outcome::Cancelled), Status::Sealed) => ended_status(Ending::Cancelled).to_owned(),
        (_, Status::Waiting) => waiting_text(&view.lost),
        (_, status) => {
            serde_json::to_value(status).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
        }
    };
    JobLine {
        id: view.id,
        name: view.name.clone(),
        kind: view.kind.clone(),
        status,
        tasks: (view.phases.iter().map(|p| p.done).sum(), view.phases.iter().map(|p| p.tasks).sum()),
        submitter: view.submitter,
        submitted_ms: view.submitted_ms,
    }
}
