//! `/sinew/join/1`, the one protocol open to strangers: a newcomer shows a ticket, the node that signed it answers with
//! a certificate. Whether to issue is the node's decision; this module checks the ticket and carries the words.

use std::time::{Duration, SystemTime};

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{ConnectionId, DialError, NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Stream, Swarm, TransportError, relay};
use serde::{Deserialize, Serialize};
use sinew_crdt_state::certificate::{Credential, TICKET_ADDRS_MAX, Ticket, TicketError};
use sinew_crdt_state::identity::Identity;
use sinew_crdt_state::ids::{MeshId, NodeId};
use tokio::sync::{mpsc, oneshot};

use crate::address::{peer_id, peer_of, without_peer};
use crate::behaviour::{keypair, swarm};
use crate::driver::Internal;
use crate::error::{JoinAttempt, JoinError, Refusal};
use crate::handle::Clock;
use crate::streams::{self, StreamError};
use crate::wire::{JOIN, JOIN_LEN_MAX, JoinMessage, WireError, decode_join, read_message, write_message};

/// Where the node answers a [`crate::MeshEvent::JoinRequest`].
pub type JoinReply = oneshot::Sender<Result<Credential, JoinRefusal>>;

/// Why a join was refused, as told to the newcomer. Only [`Self::Busy`] passes by waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum JoinRefusal {
    /// Too many joins at once.
    #[error("it is busy with other joins; try again in a few seconds")]
    Busy,
    /// The ticket's signature is wrong.
    #[error("the ticket is forged")]
    Forged,
    /// The ticket is too old by the issuer's clock.
    #[error("the ticket has expired; ask for a new one (`sinew invite`)")]
    Expired,
    /// The ticket is for another mesh.
    #[error("the ticket is for another mesh")]
    OtherMesh,
    /// The ticket was made by another node.
    #[error("the ticket was made by another node")]
    OtherIssuer,
    /// The issuer may not or will not issue: it is no admin any more, or the ticket or the newcomer was revoked.
    #[error("it will not issue a certificate for this ticket any more")]
    Declined,
}

/// What serving a join needs to know.
pub(crate) struct Serve {
    pub(crate) mesh: MeshId,
    pub(crate) me: NodeId,
    pub(crate) newcomer: NodeId,
    pub(crate) peer: PeerId,
    pub(crate) connection: ConnectionId,
    pub(crate) clock: Clock,
    pub(crate) driver: mpsc::Sender<Internal>,
}

impl Serve {
    /// Serves one join; the caller sets the deadline.
    pub(crate) async fn run(self, mut stream: Stream) {
        let outcome = self.answer(&mut stream).await;
        let (message, refusal) = match outcome {
            Ok(credential) => (Some(JoinMessage::Issued(Box::new(credential))), None),
            Err(Refusal::Join(why)) => (Some(JoinMessage::Refused(why)), Some(Refusal::Join(why))),
            Err(other) => (None, Some(other)),
        };
        let ended = Internal::JoinEnded { peer: self.peer, connection: self.connection, refusal };
        // A driver that is gone has closed the connection anyway.
        let _ = self.driver.send(ended).await;
        if let Some(message) = message
            && write_message(&mut stream, &message).await.is_ok()
        {
            let _ = stream.close().await;
            // The newcomer closes when it has read the answer. Until then the stream holds the connection.
            let _ = stream.read(&mut [0; 1]).await;
        }
    }

    async fn answer(&self, stream: &mut Stream) -> Result<Credential, Refusal> {
        let bytes = read_message(stream, JOIN_LEN_MAX).await.map_err(Refusal::JoinMalformed)?;
        let JoinMessage::Ask(ticket) = decode_join(&bytes).map_err(Refusal::JoinMalformed)? else {
            return Err(Refusal::JoinMalformed(WireError::Unexpected));
        };
        self.check(&ticket).map_err(Refusal::Join)?;
        let (reply, decided) = oneshot::channel();
        let ask = Internal::JoinAsked { node: self.newcomer, ticket: *ticket, reply };
        self.driver.send(ask).await.map_err(|_| Refusal::Join(JoinRefusal::Declined))?;
        decided.await.unwrap_or(Err(JoinRefusal::Declined)).map_err(Refusal::Join)
    }

    fn check(&self, ticket: &Ticket) -> Result<(), JoinRefusal> {
        if ticket.body.mesh != self.mesh {
            return Err(JoinRefusal::OtherMesh);
        }
        if ticket.body.issuer != self.me {
            return Err(JoinRefusal::OtherIssuer);
        }
        ticket.verify((self.clock)()).map_err(|error| match error {
            TicketError::Expired(_) => JoinRefusal::Expired,
            _ => JoinRefusal::Forged,
        })
    }
}

/// Tells a newcomer to come back later.
pub(crate) async fn busy(mut stream: Stream) {
    if write_message(&mut stream, &JoinMessage::Refused(JoinRefusal::Busy)).await.is_ok() {
        let _ = stream.close().await;
        let _ = stream.read(&mut [0; 1]).await;
    }
}

/// The little a newcomer speaks.
#[derive(NetworkBehaviour)]
struct Newcomer {
    streams: streams::Behaviour,
    relay: relay::client::Behaviour,
}

/// Calls the issuer of `ticket` as `identity` and returns the certificate it issues, verified. The swarm it uses lives
/// only for the call; at most `timeout` is spent.
///
/// # Errors
/// [`JoinError`], naming each address that was tried and why it failed.
pub async fn join(ticket: &Ticket, identity: &Identity, timeout: Duration) -> Result<Credential, JoinError> {
    ticket.verify(now_ms())?;
    let issuer = peer_id(ticket.body.issuer);
    let addrs = addrs(ticket, issuer)?;
    let mut at = addrs[0].to_string();
    let call = call(ticket, identity, issuer, addrs, &mut at);
    let Ok(outcome) = tokio::time::timeout(timeout, call).await else {
        return Err(JoinError::Timeout { addr: at, seconds: timeout.as_secs() });
    };
    let credential = outcome?;
    credential.verify(ticket.body.mesh, identity.id(), now_ms())?;
    Ok(credential)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn addrs(ticket: &Ticket, issuer: PeerId) -> Result<Vec<Multiaddr>, JoinError> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for text in ticket.body.addrs.iter().take(TICKET_ADDRS_MAX) {
        match text.parse::<Multiaddr>() {
            // Another member's: for later, as only the issuer can issue.
            Ok(addr) if peer_of(&addr).is_some_and(|peer| peer != issuer) => {}
            Ok(addr) => good.push(without_peer(addr).with(Protocol::P2p(issuer))),
            Err(error) => bad.push(JoinAttempt { addr: text.clone(), why: error.to_string() }),
        }
    }
    match (good.is_empty(), bad.is_empty()) {
        (false, _) => Ok(good),
        (true, false) => Err(JoinError::Unreachable(bad)),
        (true, true) => Err(JoinError::NoAddress),
    }
}

async fn call(
    ticket: &Ticket,
    identity: &Identity,
    issuer: PeerId,
    addrs: Vec<Multiaddr>,
    at: &mut String,
) -> Result<Credential, JoinError> {
    let mut swarm =
        swarm(keypair(identity), |_, relay| Newcomer { streams: streams::Behaviour::new(Vec::new()), relay })?;
    let dial = DialOpts::peer_id(issuer).addresses(addrs.clone()).allocate_new_port().build();
    swarm.dial(dial).map_err(|error| unreachable(&addrs, &error))?;
    let connection = loop {
        match swarm.select_next_some().await {
            SwarmEvent::ConnectionEstablished { connection_id, endpoint, .. } => {
                *at = endpoint.get_remote_address().to_string();
                break connection_id;
            }
            SwarmEvent::OutgoingConnectionError { error, .. } => return Err(unreachable(&addrs, &error)),
            _ => {}
        }
    };
    let (reply, opened) = oneshot::channel();
    swarm.behaviour_mut().streams.open(issuer, connection, JOIN, reply);
    let ask = ask(opened, ticket, at);
    tokio::pin!(ask);
    drive(&mut swarm, ask).await
}

async fn drive<F: Future>(swarm: &mut Swarm<Newcomer>, mut work: std::pin::Pin<&mut F>) -> F::Output {
    loop {
        tokio::select! {
            outcome = &mut work => return outcome,
            _ = swarm.select_next_some() => {}
        }
    }
}

async fn ask(
    opened: oneshot::Receiver<Result<Stream, StreamError>>,
    ticket: &Ticket,
    at: &str,
) -> Result<Credential, JoinError> {
    let broken = |source: std::io::Error| JoinError::Broken { addr: at.to_owned(), source };
    let mut stream = match opened.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(StreamError::Unsupported)) => return Err(broken(std::io::ErrorKind::Unsupported.into())),
        Ok(Err(StreamError::Io(error))) => return Err(broken(error)),
        Err(_) => return Err(broken(std::io::ErrorKind::ConnectionReset.into())),
    };
    write_message(&mut stream, &JoinMessage::Ask(Box::new(ticket.clone()))).await.map_err(broken)?;
    let bytes = match read_message(&mut stream, JOIN_LEN_MAX).await {
        Ok(bytes) => bytes,
        Err(WireError::Io(kind)) => return Err(broken(kind.into())),
        Err(other) => return Err(other.into()),
    };
    let _ = stream.close().await;
    match decode_join(&bytes)? {
        JoinMessage::Issued(credential) => Ok(*credential),
        JoinMessage::Refused(why) => Err(JoinError::Refused(why)),
        JoinMessage::Ask(_) => Err(WireError::Unexpected.into()),
    }
}

fn unreachable(addrs: &[Multiaddr], error: &DialError) -> JoinError {
    let attempt = |addr: &Multiaddr, why: String| JoinAttempt { addr: without_peer(addr.clone()).to_string(), why };
    JoinError::Unreachable(match error {
        DialError::Transport(errors) => errors.iter().map(|(addr, error)| attempt(addr, chain(error))).collect(),
        DialError::WrongPeerId { address, obtained } => {
            let who = crate::guard::name(obtained);
            vec![attempt(address, format!("another node answers there ({who})"))]
        }
        DialError::LocalPeerId { address } => vec![attempt(address, "this node itself answers there".to_owned())],
        other => addrs.iter().map(|addr| attempt(addr, other.to_string())).collect(),
    })
}

/// The innermost cause: libp2p wraps "connection refused" in several layers that say nothing.
fn chain(error: &TransportError<std::io::Error>) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
