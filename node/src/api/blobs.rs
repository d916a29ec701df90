//! The blob store over the local API.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sinew_blobs::{AddError, BlobState, FetchError, FetchOptions, Format, ImportMode, ProviderFault, Whole};
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::ids::{Hash, NodeId};
use sinew_scheduler::io::Input;

use super::server::Replies;
use super::{ApiError, Reply};
use crate::daemon::Shared;
use crate::job_blobs::is_note;

/// Tags that users set begin with this; others are the daemon's own.
const USER_TAG: &str = "user/";

fn storage(e: impl std::fmt::Display) -> ApiError {
    ApiError::failed(ErrorCode::Storage, e.to_string())
}

/// The user's fault where the path is no good, the disk's otherwise.
pub(super) fn not_added(error: &AddError, message: String) -> ApiError {
    match error {
        AddError::Unreadable { .. } | AddError::WrongKind { .. } | AddError::Name { .. } | AddError::TooMany { .. } => {
            ApiError::invalid(message)
        }
        _ => ApiError::failed(ErrorCode::Storage, message),
    }
}

/// A blob that nobody has is not found; others may come with another try.
fn not_fetched(error: &FetchError) -> ApiError {
    let nobody = match error {
        FetchError::NoProviders { .. } => true,
        FetchError::AllFailed { faults, .. } => faults.iter().all(|(_, f)| matches!(f, ProviderFault::Missing)),
        _ => false,
    };
    let code = match error {
        FetchError::NoSpace { .. } | FetchError::Local { .. } => ErrorCode::Storage,
        _ => ErrorCode::Fetch,
    };
    let failed = ApiError::failed(code, error.to_string());
    if nobody { ApiError { exit: 2, ..failed } } else { failed }
}

/// Takes in a file, or a directory as a collection, and pins it under its own name.
pub(super) async fn add(shared: &Shared, path: &Path, replies: &mut Replies) -> Result<(), ApiError> {
    let meta = tokio::fs::metadata(path).await;
    let meta = meta.map_err(|e| ApiError::invalid(format!("cannot read {}: {e}", path.display())))?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let refused = |e: AddError| not_added(&e, format!("cannot take in {}: {e}", path.display()));
    let (hash, size, format, _guard) = if meta.is_dir() {
        let added = shared.store.add_dir(path, ImportMode::Copy).await.map_err(refused)?;
        for (name, what) in added.left_out {
            replies.send(&Reply::LeftOut { task: None, name, what }).await?;
        }
        (added.collection.hash, added.collection.size().unwrap_or(0), Format::HashSeq, added.tag)
    } else {
        let added = shared.store.add_file(path, ImportMode::Copy, None).await.map_err(refused)?;
        (added.hash, added.size, Format::Raw, added.tag)
    };
    let tag = format!("{USER_TAG}{name}-{}", hash.short());
    shared.store.tag_durably(&tag, hash, format).await.map_err(storage)?;
    shared.engine.input(Input::BlobsCame(vec![hash]));
    replies.send(&Reply::Blob { hash, size, tags: vec![tag[USER_TAG.len()..].to_owned()] }).await
}

pub(super) async fn get(shared: &Shared, hash: Hash, out: &Path, replies: &mut Replies) -> Result<(), ApiError> {
    if out.exists() {
        return Err(ApiError::invalid(format!("{} exists already: give another --out", out.display())));
    }
    let whole = fetch(shared, hash).await?;
    let written = match whole.format {
        Format::HashSeq => shared.store.export_collection(hash, out).await.map(|_| ()),
        Format::Raw => shared.store.export(hash, out).await.map(|_| ()),
    };
    written.map_err(storage)?;
    replies.send(&Reply::File { path: out.to_owned(), size: whole.size }).await
}

/// Brings a blob here, of a directory with all that is in it. It stays until the next collection unless a tag pins it.
pub(super) async fn warm(shared: &Shared, hash: Hash, replies: &mut Replies) -> Result<(), ApiError> {
    let whole = fetch(shared, hash).await?;
    replies.send(&Reply::Blob { hash, size: whole.size, tags: Vec::new() }).await
}

/// Fetches what is not here of a blob, and of all that is in it, from any connected node that has it.
async fn fetch(shared: &Shared, hash: Hash) -> Result<Whole, ApiError> {
    let own = shared.identity.id();
    let peers: Vec<NodeId> = shared
        .engine
        .look(move |core| core.peers().iter().filter(|(n, p)| p.connected && **n != own).map(|(n, _)| *n).collect())
        .await?;
    let fetched = shared.store.fetch_whole(hash, &peers, &shared.link, &FetchOptions::default()).await;
    let (whole, stats) = fetched.map_err(|e| not_fetched(&e))?;
    if stats.payload_bytes > 0 {
        let faults = stats.per_provider.iter().filter(|p| p.fault.is_some()).count();
        let (bytes, resumed) = (stats.payload_bytes, stats.resumed_bytes);
        shared.engine.input(Input::BlobsCame(vec![hash]));
        tracing::info!(%hash, bytes, resumed, providers = stats.per_provider.len(), faults, "fetched a blob");
    }
    Ok(whole)
}

pub(super) async fn list(shared: &Shared, replies: &mut Replies) -> Result<(), ApiError> {
    let mut tags: BTreeMap<Hash, Vec<String>> = BTreeMap::new();
    let mut directories = BTreeSet::new();
    // Notes of who else keeps a blob pin nothing that its job does not.
    let tagged = shared.store.tags("").await.map_err(storage)?;
    for tag in tagged.into_iter().filter(|tag| !is_note(&tag.name)) {
        let name = tag.name.strip_prefix(USER_TAG).unwrap_or(&tag.name).to_owned();
        tags.entry(tag.hash).or_default().push(name);
        if tag.format == Format::HashSeq {
            directories.insert(tag.hash);
        }
    }
    for hash in shared.store.list().await.map_err(storage)? {
        let BlobState::Complete { mut size } = shared.store.has(hash).await.map_err(storage)? else { continue };
        if directories.contains(&hash)
            && let Some(whole) = shared.store.whole(hash).await.map_err(storage)?
        {
            size = whole.size;
        }
        let tags = tags.remove(&hash).unwrap_or_default();
        replies.send(&Reply::Blob { hash, size, tags }).await?;
    }
    Ok(())
}

/// Pins a blob, and of a directory all that is in it.
pub(super) async fn tag(shared: &Shared, name: &str, hash: Hash) -> Result<(), ApiError> {
    check_name(name)?;
    let Some(whole) = shared.store.whole(hash).await.map_err(storage)? else {
        return Err(ApiError::invalid(format!(
            "blob {hash} is not here, or not all of it: fetch it with `sinew blob warm` first"
        )));
    };
    shared.store.tag_durably(&format!("{USER_TAG}{name}"), hash, whole.format).await.map_err(storage)
}

pub(super) async fn untag(shared: &Shared, name: &str) -> Result<(), ApiError> {
    check_name(name)?;
    if shared.store.untag(&format!("{USER_TAG}{name}")).await.map_err(storage)? {
        Ok(())
    } else {
        Err(ApiError::invalid(format!("there is no tag `{name}`: see `sinew blob ls`")))
    }
}

/// Removes a user's names of a blob, and what nothing else keeps.
pub(super) async fn remove(shared: &Shared, hash: Hash, replies: &mut Replies) -> Result<(), ApiError> {
    let tags: Vec<String> = shared
        .store
        .tags(USER_TAG)
        .await
        .map_err(storage)?
        .into_iter()
        .filter(|t| t.hash == hash)
        .map(|t| t.name)
        .collect();
    if tags.is_empty() && matches!(shared.store.has(hash).await.map_err(storage)?, BlobState::Missing) {
        return Err(ApiError::invalid(format!("blob {hash} is not here: see `sinew blob ls`")));
    }
    for tag in &tags {
        shared.store.untag(tag).await.map_err(storage)?;
    }
    shared.store.run_gc_once().await.map_err(storage)?;
    let gone = matches!(shared.store.has(hash).await.map_err(storage)?, BlobState::Missing);
    let tags = tags.into_iter().map(|tag| tag[USER_TAG.len()..].to_owned()).collect();
    replies.send(&Reply::Removed { tags, gone }).await
}

fn check_name(name: &str) -> Result<(), ApiError> {
    if name.is_empty() || name.len() > 255 || name.chars().any(char::is_control) {
        return Err(ApiError::invalid("a tag is 1 to 255 bytes without control characters"));
    }
    Ok(())
}
