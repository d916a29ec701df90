//! Serves the local API: accepts connections on the unix socket and answers one request on each.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sinew_crdt_state::certificate::Roles;
use sinew_crdt_state::error_code::ErrorCode;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use zeroize::Zeroizing;

use super::{ApiError, REQUEST_LEN_MAX, Reply, Request, blobs, jobs, secrets, views};
use crate::daemon::{Down, Shared};

/// A request must have arrived by then.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The listening socket.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
}

/// Where replies of one connection go.
#[derive(Debug)]
pub(super) struct Replies {
    writer: OwnedWriteHalf,
}

impl Replies {
    /// Sends one line. An error means that the client has gone.
    pub(super) async fn send(&mut self, reply: &Reply) -> Result<(), ApiError> {
        let mut line = serde_json::to_vec(reply).map_err(|e| ApiError::failed(ErrorCode::Invalid, e.to_string()))?;
        line.push(b'\n');
        self.writer.write_all(&line).await.map_err(|_| gone())
    }
}

fn gone() -> ApiError {
    ApiError::failed(ErrorCode::Cancelled, "the client has gone")
}

impl Server {
    /// Binds the socket; the data dir's lock is held, so a socket that is there already is a dead daemon's.
    ///
    /// # Errors
    /// What the system says.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener })
    }

    /// Serves until it is dropped.
    pub async fn run(self, shared: Arc<Shared>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let shared = Arc::clone(&shared);
                    tokio::spawn(async move { serve(stream, &shared).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection on the local API");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn serve(stream: UnixStream, shared: &Arc<Shared>) {
    let (reader, writer) = stream.into_split();
    let mut replies = Replies { writer };
    let mut reader = BufReader::new(reader);
    let outcome = match read_request(&mut reader).await {
        Ok(request) => {
            tokio::select! {
                outcome = answer(request, shared, &mut replies) => outcome,
                () = hung_up(&mut reader) => return,
            }
        }
        Err(error) => Err(error),
    };
    let last = match outcome {
        Ok(()) => Reply::Done,
        Err(error) => Reply::Error(error),
    };
    // A client that has gone needs no last line.
    let _ = replies.send(&last).await;
}

/// Waits until the client closes its side: whatever it asked for, it no longer waits for it.
async fn hung_up(reader: &mut BufReader<OwnedReadHalf>) {
    let mut byte = [0; 64];
    while matches!(reader.read(&mut byte).await, Ok(n) if n > 0) {}
}

async fn read_request(reader: &mut BufReader<OwnedReadHalf>) -> Result<Request, ApiError> {
    // There may be a secret in it.
    let mut line = Zeroizing::new(Vec::new());
    let mut limited = reader.take(REQUEST_LEN_MAX as u64);
    let read = tokio::time::timeout(REQUEST_TIMEOUT, limited.read_until(b'\n', &mut line)).await;
    read.map_err(|_| ApiError::invalid("no request came within 10 s"))?.map_err(|_| gone())?;
    if line.last() != Some(&b'\n') {
        return Err(ApiError::invalid(format!("the request is not one line of at most {REQUEST_LEN_MAX} bytes")));
    }
    serde_json::from_slice(&line).map_err(|e| ApiError::invalid(format!("the request is malformed: {e}")))
}

async fn answer(request: Request, shared: &Arc<Shared>, replies: &mut Replies) -> Result<(), ApiError> {
    match request {
        Request::Status => {
            let status = views::status(shared).await?;
            replies.send(&Reply::Status(Box::new(status))).await
        }
        Request::Peers => {
            let peers = views::peers(shared).await?;
            replies.send(&Reply::Peers { peers }).await
        }
        Request::Jobs { limit } => {
            let jobs = views::jobs(shared, limit).await?;
            replies.send(&Reply::Jobs { jobs }).await
        }
        Request::Job { job } => {
            let id = views::find_job(shared, &job).await?;
            let (mut view, timeline) = views::job(shared, id).await?;
            super::holders::tell(shared, &mut view).await?;
            replies.send(&Reply::Job { view: Box::new(view), timeline }).await
        }
        Request::Watch { job } => jobs::watch(shared, &job, replies).await,
        Request::Submit { draft } => jobs::submit(shared, *draft, replies).await,
        Request::Cancel { job, reason } => jobs::cancel(shared, &job, reason).await,
        Request::Logs { job, task, attempt, follow } => {
            super::logs::stream(shared, &job, super::logs::Wanted { task, attempt, follow }, replies).await
        }
        Request::Get { job, out } => super::outputs::get(shared, &job, &out, replies).await,
        Request::BlobAdd { path } => blobs::add(shared, &path, replies).await,
        Request::BlobGet { hash, out } => blobs::get(shared, hash, &out, replies).await,
        Request::BlobWarm { hash } => blobs::warm(shared, hash, replies).await,
        Request::BlobList => blobs::list(shared, replies).await,
        Request::BlobTag { name, hash } => blobs::tag(shared, &name, hash).await,
        Request::BlobUntag { name } => blobs::untag(shared, &name).await,
        Request::BlobRemove { hash } => blobs::remove(shared, hash, replies).await,
        Request::Invite { roles, expires_ms } => {
            let roles: Roles = roles.parse().map_err(|e| ApiError::invalid(format!("{e}")))?;
            if !shared.roles.contains(Roles::ADMIN) {
                return Err(ApiError::denied(
                    "only a node with the role `admin` may invite; run this on one that has it",
                ));
            }
            let ticket = shared.ticket(roles, expires_ms).await.to_string();
            replies.send(&Reply::Ticket { ticket }).await
        }
        Request::Sightings => replies.send(&Reply::Sightings { seen: shared.sightings.seen() }).await,
        Request::Prune { dry_run, all } => {
            let host =
                shared.host.get().ok_or_else(|| ApiError::failed(ErrorCode::Lost, "the daemon is still starting"))?;
            let kept_ms = if all { 0 } else { shared.outputs_kept_ms };
            let items = crate::prune::prune(shared, host.host(), kept_ms, dry_run).await;
            let items = items.map_err(|e| ApiError::failed(ErrorCode::Storage, e.to_string()))?;
            replies.send(&Reply::Pruned { items }).await
        }
        Request::SecretSet { name, value } => secrets::set(shared, name, value, replies).await,
        Request::SecretList => secrets::list(shared, replies).await,
        Request::SecretRemove { name } => secrets::remove(shared, name).await,
        Request::Shutdown { wait, deadline_ms } => {
            // A daemon that hears nothing more of it is about to end anyway.
            let _ = shared.shutdown.send(Down { wait, deadline: deadline_ms.map(Duration::from_millis) });
            Ok(())
        }
    }
}
