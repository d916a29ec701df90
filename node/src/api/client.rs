//! The asking side of the local API: connects to the daemon's socket, sends one request, hands out its replies. What it
//! reads is the daemon's word, but its length is bounded all the same.

use std::io;
use std::path::{Path, PathBuf};

use futures::StreamExt;
use serde::Serialize;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::ids::JobId;
use sinew_crdt_state::manifest::JobDraft;
use sinew_crdt_state::spec::Alone;
use sinew_crdt_state::state::Event;
use sinew_scheduler::view::JobView;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};

use super::{ApiError, JobLine, PeerView, REQUEST_LEN_MAX, Reply, Request, StatusView};
use crate::prune::Leftover;
use crate::secrets::SecretBytes;
use crate::secrets::store::SecretView;
use crate::sightings::Seen;

/// Longest reply line: a job with the outputs of thousands of tasks fits, a runaway daemon does not fill our memory.
pub const REPLY_LEN_MAX: usize = 16 << 20;

/// Why a request got no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no daemon is running on {}: start one with `sinew up`", .data_dir.display())]
    NoDaemon {
        /// The data dir.
        data_dir: PathBuf,
    },
    /// The socket belongs to somebody else.
    #[error("{} is not yours to open: run this as the user who runs the daemon", .socket.display())]
    Denied {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket cannot be used for another reason.
    #[error("cannot connect to {}: {source}", .socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The request does not fit.
    #[error("the request has {len} bytes, more than {REQUEST_LEN_MAX}: put bulk into files and name them as inputs")]
    TooLong {
        /// Its bytes.
        len: usize,
    },
    /// The connection broke.
    #[error("the connection to the daemon broke: {0}; see the daemon's log, then `sinew status`")]
    Broken(#[source] io::Error),
    /// The daemon ended in the middle of its answer.
    #[error("the daemon went away before it had answered; see its log, then `sinew status`")]
    Gone,
    /// A reply line is longer than [`REPLY_LEN_MAX`].
    #[error("the daemon's answer is longer than {REPLY_LEN_MAX} bytes")]
    ReplyTooLong,
    /// A reply is not one that this version knows.
    #[error("the daemon answered something this version does not know; is it the same version? ({0})")]
    Unknown(#[source] serde_json::Error),
    /// A reply that does not belong to the request.
    #[error("the daemon answered something else than was asked for; is it the same version?")]
    OtherReply,
    /// The daemon said no.
    #[error(transparent)]
    Api(#[from] ApiError),
}

impl ClientError {
    /// For the command line: 1 failed, 2 usage or not found, 13 denied, 75 not known.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Api(error) => error.exit,
            Self::TooLong { .. } => 2,
            Self::Denied { .. } => 13,
            _ => 1,
        }
    }

    /// The class of error, where there is one.
    #[must_use]
    pub const fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Api(error) => Some(error.code),
            Self::Denied { .. } => Some(ErrorCode::Deny),
            Self::TooLong { .. } => Some(ErrorCode::Invalid),
            _ => None,
        }
    }
}

impl From<LinesCodecError> for ClientError {
    fn from(error: LinesCodecError) -> Self {
        match error {
            LinesCodecError::MaxLineLengthExceeded => Self::ReplyTooLong,
            LinesCodecError::Io(error) => Self::Broken(error),
        }
    }
}

/// Where the daemon of a data dir is asked. Each request has its own connection.
#[derive(Debug, Clone)]
pub struct Client {
    data_dir: PathBuf,
    socket: PathBuf,
}

/// A job that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Its id.
    pub job: JobId,
    /// How few members were in reach, where the job rests on the asked node alone although the mesh is larger.
    pub alone: Option<Alone>,
}

/// A request's answers, one after the other. Dropping it before its end hangs up.
#[derive(Debug)]
pub struct Replies {
    lines: FramedRead<OwnedReadHalf, LinesCodec>,
    // Held open to the end: the daemon may take a closed connection for a client that lost interest.
    _write: OwnedWriteHalf,
}

impl Client {
    /// A client of the daemon that listens on `socket`; the data dir is for messages.
    #[must_use]
    pub fn new(data_dir: &Path, socket: PathBuf) -> Self {
        Self { data_dir: data_dir.to_owned(), socket }
    }

    /// Asks. The answers come from [`Replies::next`].
    ///
    /// # Errors
    /// [`ClientError`] when the daemon cannot be asked.
    pub async fn ask(&self, request: &Request) -> Result<Replies, ClientError> {
        let line = line(request)?;
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.connect_error(e))?;
        let (read, mut write) = stream.into_split();
        match write.write_all(&line).await {
            Ok(()) => {}
            // A daemon that refuses early has its reason in the pipe already: read that instead.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
            Err(e) => return Err(ClientError::Broken(e)),
        }
        let lines = FramedRead::new(read, LinesCodec::new_with_max_length(REPLY_LEN_MAX));
        Ok(Replies { lines, _write: write })
    }

    fn connect_error(&self, source: io::Error) -> ClientError {
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NoDaemon { data_dir: self.data_dir.clone() }
            }
            io::ErrorKind::PermissionDenied => ClientError::Denied { socket: self.socket.clone() },
            _ => ClientError::Connect { socket: self.socket.clone(), source },
        }
    }

    /// Asks for something that has one answer, and picks it out.
    async fn one<T>(&self, request: &Request, pick: impl Fn(Reply) -> Option<T>) -> Result<T, ClientError> {
        let mut replies = self.ask(request).await?;
        let mut found = None;
        while let Some(reply) = replies.next().await? {
            found = Some(pick(reply).ok_or(ClientError::OtherReply)?);
        }
        found.ok_or(ClientError::OtherReply)
    }

    /// Asks for something that is done without an answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn act(&self, request: &Request) -> Result<(), ClientError> {
        let mut replies = self.ask(request).await?;
        while replies.next().await?.is_some() {}
        Ok(())
    }

    /// How the daemon is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn status(&self) -> Result<StatusView, ClientError> {
        let pick = |reply| if let Reply::Status(view) = reply { Some(*view) } else { None };
        self.one(&Request::Status, pick).await
    }

    /// Keeps a secret on the daemon's node; whether it replaced another.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn secret_set(&self, name: &str, value: SecretBytes) -> Result<bool, ClientError> {
        let pick = |reply| if let Reply::SecretSet { replaced } = reply { Some(replaced) } else { None };
        self.one(&Request::SecretSet { name: name.to_owned(), value }, pick).await
    }

    /// The secrets of the daemon's node, without their values.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn secrets(&self) -> Result<Vec<SecretView>, ClientError> {
        let pick = |reply| if let Reply::Secrets { secrets } = reply { Some(secrets) } else { None };
        self.one(&Request::SecretList, pick).await
    }

    /// The nodes, this one first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn peers(&self) -> Result<Vec<PeerView>, ClientError> {
        let pick = |reply| if let Reply::Peers { peers } = reply { Some(peers) } else { None };
        self.one(&Request::Peers, pick).await
    }

    /// Jobs, newest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn jobs(&self, limit: usize) -> Result<Vec<JobLine>, ClientError> {
        let pick = |reply| if let Reply::Jobs { jobs } = reply { Some(jobs) } else { None };
        self.one(&Request::Jobs { limit }, pick).await
    }

    /// What was seen at the daemon lately.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn sightings(&self) -> Result<Seen, ClientError> {
        let pick = |reply| if let Reply::Sightings { seen } = reply { Some(seen) } else { None };
        self.one(&Request::Sightings, pick).await
    }

    /// One job, and its history.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn job(&self, job: &str) -> Result<(JobView, Vec<Event>), ClientError> {
        let pick = |reply| if let Reply::Job { view, timeline } = reply { Some((*view, timeline)) } else { None };
        self.one(&Request::Job { job: job.to_owned() }, pick).await
    }

    /// Submits a job; `on_progress` hears what is being done, bytes done and bytes in all.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn submit(&self, draft: JobDraft, on_progress: impl FnMut(&str, u64, u64)) -> Result<JobId, ClientError> {
        Ok(self.submit_told(draft, on_progress).await?.job)
    }

    /// The same, with what else the daemon says of the job.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn submit_told(
        &self,
        draft: JobDraft,
        mut on_progress: impl FnMut(&str, u64, u64),
    ) -> Result<Taken, ClientError> {
        let mut replies = self.ask(&Request::Submit { draft: Box::new(draft) }).await?;
        let mut id = None;
        while let Some(reply) = replies.next().await? {
            match reply {
                Reply::Progress { what, done, total } => on_progress(&what, done, total),
                Reply::Submitted { job, alone } => id = Some(Taken { job, alone }),
                _ => return Err(ClientError::OtherReply),
            }
        }
        id.ok_or(ClientError::OtherReply)
    }

    /// Removes what the node no longer needs, or says what it would.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn prune(&self, dry_run: bool, all: bool) -> Result<Vec<Leftover>, ClientError> {
        let pick = |reply| if let Reply::Pruned { items } = reply { Some(items) } else { None };
        self.one(&Request::Prune { dry_run, all }, pick).await
    }

    /// An invitation.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn invite(&self, roles: String, expires_ms: u64) -> Result<String, ClientError> {
        let pick = |reply| if let Reply::Ticket { ticket } = reply { Some(ticket) } else { None };
        self.one(&Request::Invite { roles, expires_ms }, pick).await
    }
}

impl Replies {
    /// The next answer; `None` after the last. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// [`ClientError::Api`] when the request failed, others when the connection did.
    pub async fn next(&mut self) -> Result<Option<Reply>, ClientError> {
        let line = self.lines.next().await.ok_or(ClientError::Gone)??;
        match serde_json::from_str(&line).map_err(ClientError::Unknown)? {
            Reply::Done => Ok(None),
            Reply::Error(error) => Err(error.into()),
            reply => Ok(Some(reply)),
        }
    }
}

fn line(request: &impl Serialize) -> Result<Vec<u8>, ClientError> {
    let mut line = serde_json::to_vec(request).map_err(ClientError::Unknown)?;
    if line.len() >= REQUEST_LEN_MAX {
        return Err(ClientError::TooLong { len: line.len() });
    }
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::UnixListener;

    use super::*;

    /// A daemon that reads one line and answers with `text`, whatever was asked.
    async fn answered<T, F: Future<Output = T>>(text: String, ask: impl FnOnce(Client) -> F) -> (T, String) {
        let dir = tempfile::tempdir().expect("dir");
        let socket = dir.path().join("sinew.sock");
        let listener = UnixListener::bind(&socket).expect("bind");
        let serve = async {
            let (stream, _) = listener.accept().await.expect("accept");
            let (read, mut write) = stream.into_split();
            let mut line = String::new();
            BufReader::new(read).read_line(&mut line).await.expect("read");
            // The client may hang up before it has read all of it; that is what some of these tests are about.
            let _ = write.write_all(text.as_bytes()).await;
            line
        };
        tokio::join!(ask(Client::new(dir.path(), socket.clone())), serve)
    }

    fn lines(replies: &[Reply]) -> String {
        replies.iter().map(|r| serde_json::to_string(r).expect("json") + "\n").collect()
    }

    #[tokio::test]
    async fn a_missing_daemon_is_named_with_the_mend() {
        let dir = tempfile::tempdir().expect("dir");
        let client = Client::new(dir.path(), dir.path().join("sinew.sock"));
        let error = client.status().await.expect_err("no daemon");
        assert_eq!(error.exit_code(), 1);
        assert_eq!(
            error.to_string(),
            format!("no daemon is running on {}: start one with `sinew up`", dir.path().display())
        );
        // A socket that a killed daemon left behind is no daemon either.
        drop(UnixListener::bind(dir.path().join("sinew.sock")).expect("bind"));
        assert!(matches!(client.status().await, Err(ClientError::NoDaemon { .. })));
    }

    #[tokio::test]
    async fn one_answer_and_a_stream_of_them() {
        let ticket = lines(&[Reply::Ticket { ticket: "sinew1x".into() }, Reply::Done]);
        let (got, asked) = answered(ticket, |c| async move { c.invite("run".into(), 5).await }).await;
        assert_eq!(got.expect("ticket"), "sinew1x");
        assert_eq!(asked, "{\"request\":\"invite\",\"roles\":\"run\",\"expires_ms\":5}\n");

        let id = JobId([3; 32]);
        let progress = Reply::Progress { what: "a.txt".into(), done: 1, total: 2 };
        let stream = lines(&[progress.clone(), progress, Reply::Submitted { job: id, alone: None }, Reply::Done]);
        let program = sinew_crdt_state::manifest::program_from_text("true").expect("program");
        let mut heard = 0;
        let submit = async |c: Client| c.submit(JobDraft::batch(program), |_, _, total| heard += total).await;
        let (got, _) = answered(stream, submit).await;
        assert_eq!((got.expect("id"), heard), (id, 4));
    }

    #[tokio::test]
    async fn refusals_cuts_and_nonsense_are_told_apart() {
        let refusal = lines(&[Reply::Error(ApiError::denied("not a submitter"))]);
        let (got, _) = answered(refusal, |c| async move { c.status().await }).await;
        let error = got.expect_err("denied");
        assert_eq!((error.exit_code(), error.code()), (13, Some(ErrorCode::Deny)));

        let (got, _) = answered(String::new(), |c| async move { c.status().await }).await;
        assert!(matches!(got, Err(ClientError::Gone)), "{got:?}");
        let (got, _) = answered("hello\n".into(), |c| async move { c.status().await }).await;
        assert!(matches!(got, Err(ClientError::Unknown(_))), "{got:?}");
        let other = lines(&[Reply::Ticket { ticket: String::new() }, Reply::Done]);
        let (got, _) = answered(other, |c| async move { c.status().await }).await;
        assert!(matches!(got, Err(ClientError::OtherReply)), "{got:?}");
        let endless = "x".repeat(REPLY_LEN_MAX + 2);
        let (got, _) = answered(endless, |c| async move { c.status().await }).await;
        assert!(matches!(got, Err(ClientError::ReplyTooLong)), "{got:?}");
    }

    #[test]
    fn an_oversized_request_is_not_sent() {
        let request = Request::Cancel { job: "x".into(), reason: "y".repeat(REQUEST_LEN_MAX) };
        let error = line(&request).expect_err("too long");
        assert_eq!(error.exit_code(), 2);
    }
}
