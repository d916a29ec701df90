//! The outputs of a job that the ledger has forgotten: from the record that the nodes keep which hold them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sinew_blobs::{FetchOptions, Format};
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::Outcome;
use sinew_crdt_state::ids::NodeId;
use sinew_crdt_state::spec::BlobRef;
use sinew_crdt_state::state::Event;
use sinew_scheduler::view::{JobView, utc};
use tokio::time::Instant;

use super::ApiError;
use crate::clock::unix_ms;
use crate::daemon::Shared;
use crate::logs::LogNews;
use crate::records::{self, RECORD_LEN_MAX, Record};

/// So long nodes have to say whether they have a record.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// Whether the ledger has forgotten what an ended job did: its spec, seal and receipts alone are there.
pub(super) fn is_forgotten(view: &JobView, history: &[Event]) -> bool {
    view.is_ended() && view.outputs.is_empty() && history.iter().all(|event| event.what != "finish")
}

/// Whether it left outputs, or may have.
pub(super) fn has_outputs(view: &JobView) -> bool {
    view.outcome == Some(Outcome::Completed)
}

/// Puts the outputs back into the page of a job that is forgotten.
///
/// # Errors
/// That they are kept no longer, or that no node in reach has a record of them.
pub(super) async fn restore(shared: &Arc<Shared>, view: &mut JobView, history: &[Event]) -> Result<(), ApiError> {
    let found = records::find(&shared.store, view.id).await;
    let own = found.map_err(|e| ApiError::failed(ErrorCode::Storage, e.to_string()))?;
    if let Some(blob) = own
        && let Ok(bytes) = shared.store.read(blob.hash, RECORD_LEN_MAX).await
        && let Some(record) = Record::parse(view.id, &bytes)
    {
        record.restore(view);
        return Ok(());
    }
    for (blob, nodes) in ask(shared, view).await? {
        if let Some(record) = fetch(shared, view, blob, &nodes).await {
            record.restore(view);
            return Ok(());
        }
    }
    Err(not_kept(shared, view, history))
}

/// Why there are no outputs, with until when they were kept.
pub(super) fn not_kept(shared: &Shared, view: &JobView, history: &[Event]) -> ApiError {
    let sealed = history.iter().filter(|event| event.what == "seal").map(|event| event.at_ms).max();
    let ended = sealed.unwrap_or(view.submitted_ms);
    let until = ended.saturating_add(shared.ledger_grace_ms).saturating_add(shared.outputs_kept_ms);
    let job = view.id.short();
    let text = if until <= unix_ms() {
        format!(
            "what job {job} left and printed is not kept any more: it was until {} UTC (--outputs-kept of `sinew up`); \
             a tag (`sinew blob tag`) keeps what is wanted for longer",
            utc(until)
        )
    } else {
        format!(
            "no node in reach has a record of what job {job} left and printed, which is kept until {} UTC: the nodes that have it \
             are away, or it left nothing",
            utc(until)
        )
    };
    ApiError::failed(ErrorCode::Fetch, text).of_job(view.id)
}

/// Records that nodes say they have, the most credible one first: those that the job's own nodes name, then what most say.
async fn ask(shared: &Arc<Shared>, view: &JobView) -> Result<Vec<(BlobRef, Vec<NodeId>)>, ApiError> {
    let own = shared.identity.id();
    let look = move |core: &sinew_scheduler::core::Core| {
        let able = |peer: &sinew_scheduler::peers::Peer| peer.connected && peer.card.as_ref().is_some_and(|c| c.logs);
        let nodes = core.peers().iter().filter(|(node, peer)| **node != own && able(peer));
        nodes.map(|(node, _)| *node).collect::<Vec<NodeId>>()
    };
    let nodes = shared.engine.look(look).await?;
    let mut news = shared.logs.watch(view.id, &[]);
    nodes.iter().for_each(|node| shared.logs.ask_list(view.id, *node));
    let mut said: BTreeMap<NodeId, Option<BlobRef>> = BTreeMap::new();
    let deadline = Instant::now() + ANSWERS_WITHIN;
    while said.len() < nodes.len() {
        let Ok(Some(heard)) = tokio::time::timeout_at(deadline, news.recv()).await else { break };
        if let LogNews::Listed(Some(node), list) = heard
            && list.last
        {
            said.insert(node, list.record);
        }
    }
    shared.logs.unwatch(view.id, news);
    let mut found: Vec<(BlobRef, Vec<NodeId>)> = Vec::new();
    for (node, blob) in said {
        let Some(blob) = blob else { continue };
        match found.iter_mut().find(|(known, _)| *known == blob) {
            Some((_, nodes)) => nodes.push(node),
            None => found.push((blob, vec![node])),
        }
    }
    // Who decided for it, or submitted it, could have said anything of it while it ran.
    let concerned = |nodes: &[NodeId]| nodes.iter().any(|n| view.brain_set.contains(n) || *n == view.submitter);
    found.sort_by_key(|(_, nodes)| (!concerned(nodes), std::cmp::Reverse(nodes.len())));
    Ok(found)
}

async fn fetch(shared: &Arc<Shared>, view: &JobView, blob: BlobRef, nodes: &[NodeId]) -> Option<Record> {
    if blob.size > RECORD_LEN_MAX {
        return None;
    }
    let _guard = shared.store.temp_tag(blob.hash, Format::Raw).await;
    let options = FetchOptions { max_size: blob.size, ..FetchOptions::default() };
    shared.store.fetch(blob.hash, nodes, &shared.link, &options).await.ok()?;
    let bytes = shared.store.read(blob.hash, RECORD_LEN_MAX).await.ok()?;
    Record::parse(view.id, &bytes)
}
