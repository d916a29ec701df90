//! The secrets of this node, and whether a job that is submitted here can have those that it names.

use std::sync::Arc;

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::manifest::JobDraft;
use sinew_crdt_state::secret::VALUES_LEN_MAX;

use super::server::Replies;
use super::{ApiError, Reply};
use crate::clock::unix_ms;
use crate::daemon::Shared;
use crate::secrets::SecretBytes;
use crate::secrets::store::{SecretStore, StoreError};

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Name { .. } | StoreError::Len(_) | StoreError::Unknown(_) => Self::invalid(error.to_string()),
            StoreError::Full | StoreError::Damaged { .. } | StoreError::Io { .. } => {
                Self::failed(ErrorCode::Storage, error.to_string())
            }
        }
    }
}

/// Does something with the file of secrets where it may take its time.
async fn with_store<T: Send + 'static>(
    shared: &Arc<Shared>,
    what: impl FnOnce(&SecretStore) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    let keeper = Arc::clone(&shared.secrets);
    let done = tokio::task::spawn_blocking(move || what(keeper.store())).await;
    done.map_err(|_| ApiError::failed(ErrorCode::Lost, "the daemon is going down"))?.map_err(ApiError::from)
}

pub(super) async fn set(
    shared: &Arc<Shared>,
    name: String,
    value: SecretBytes,
    replies: &mut Replies,
) -> Result<(), ApiError> {
    let replaced = with_store(shared, move |store| store.set(&name, value, unix_ms())).await?;
    replies.send(&Reply::SecretSet { replaced }).await
}

pub(super) async fn list(shared: &Arc<Shared>, replies: &mut Replies) -> Result<(), ApiError> {
    let secrets = with_store(shared, SecretStore::list).await?;
    replies.send(&Reply::Secrets { secrets }).await
}

pub(super) async fn remove(shared: &Arc<Shared>, name: String) -> Result<(), ApiError> {
    with_store(shared, move |store| store.remove(&name)).await
}

/// Whether this node has all secrets that the job names: no other node could give them.
pub(super) async fn check(shared: &Arc<Shared>, draft: &JobDraft) -> Result<(), ApiError> {
    let wanted = draft.secret_names();
    if wanted.is_empty() {
        return Ok(());
    }
    let here = with_store(shared, SecretStore::list).await?;
    let missing: Vec<&str> =
        wanted.iter().filter(|name| !here.iter().any(|secret| secret.name == **name)).copied().collect();
    if let Some(first) = missing.first() {
        let names = missing.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let mend = format!("set it here first with `sinew secret set {first}`");
        return Err(ApiError::invalid(format!("the job names secrets that this node does not have: {names}; {mend}")));
    }
    let bytes: u64 = here.iter().filter(|secret| wanted.contains(secret.name.as_str())).map(|secret| secret.size).sum();
    if bytes > VALUES_LEN_MAX as u64 {
        let mend = "encrypt large ones as input files, and make their keys secrets";
        let message = format!("the job's secrets have {bytes} bytes together, more than {VALUES_LEN_MAX}; {mend}");
        return Err(ApiError::invalid(message));
    }
    Ok(())
}
