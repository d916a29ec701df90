//! The membership exchange on a fresh connection. The dialler says hello, the listener verifies and answers with its
//! own, the dialler verifies and says done: three messages on one stream.
//!
//! The order matters. Whoever verified the other tells the driver, and waits until the driver lets the peer's streams
//! in, before it says so to the peer. Hence nothing an honest peer sends is ever refused for being early.

use std::sync::Arc;

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId, Stream};
use sinew_crdt_state::certificate::{Credential, Roles};
use sinew_crdt_state::ids::{MeshId, NodeId};
use tokio::sync::{mpsc, oneshot};

use crate::config::HELLO_DEADLINE;
use crate::driver::Internal;
use crate::error::{Refusal, RefusalKind};
use crate::handle::Clock;
use crate::streams::StreamError;
use crate::twin::Boot;
use crate::wire::{HELLO_LEN_MAX, Hello, HelloMessage, VERSION, WireError, decode_hello, read_message, write_message};

/// How long the refusing side waits for the refused one to read why.
const LINGER: std::time::Duration = std::time::Duration::from_millis(500);

/// A peer that has shown membership.
#[derive(Debug, Clone)]
pub(crate) struct Verified {
    pub(crate) node: NodeId,
    pub(crate) credential: Credential,
    pub(crate) roles: Roles,
    pub(crate) addrs: Vec<Multiaddr>,
    pub(crate) boot: Option<Boot>,
}

/// Why the exchange failed.
#[derive(Debug)]
pub(crate) enum HelloFailure {
    /// We refuse the peer.
    Refuse(Refusal),
    /// The peer refuses us.
    RefusedUs(RefusalKind),
    /// The connection broke: nobody's fault.
    Broken,
}

impl From<WireError> for HelloFailure {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Io(_) => Self::Broken,
            other => Self::Refuse(Refusal::Malformed(other)),
        }
    }
}

impl From<std::io::Error> for HelloFailure {
    fn from(_: std::io::Error) -> Self {
        Self::Broken
    }
}

impl From<Refusal> for HelloFailure {
    fn from(refusal: Refusal) -> Self {
        Self::Refuse(refusal)
    }
}

/// One exchange.
pub(crate) struct Exchange {
    pub(crate) mesh: MeshId,
    pub(crate) me: Hello,
    pub(crate) peer: PeerId,
    pub(crate) node: Option<NodeId>,
    pub(crate) connection: ConnectionId,
    pub(crate) clock: Clock,
    pub(crate) driver: mpsc::Sender<Internal>,
}

impl Exchange {
    /// Runs the dialler's side on the stream that `opened` will give.
    pub(crate) async fn initiate(self, opened: oneshot::Receiver<Result<Stream, StreamError>>) {
        let outcome = tokio::time::timeout(HELLO_DEADLINE, async {
            let mut stream = match opened.await {
                Ok(Ok(stream)) => stream,
                Ok(Err(StreamError::Unsupported)) => return Err(Refusal::Stranger.into()),
                Ok(Err(StreamError::Io(_))) | Err(_) => return Err(HelloFailure::Broken),
            };
            write_message(&mut stream, &HelloMessage::Hello(Box::new(self.me.clone()))).await?;
            self.verify(&mut stream).await?;
            write_message(&mut stream, &HelloMessage::Done).await?;
            let _ = stream.close().await;
            Ok(())
        });
        self.report(outcome.await.unwrap_or(Err(HelloFailure::Refuse(Refusal::NoHello)))).await;
    }

    /// Runs the listener's side.
    pub(crate) async fn respond(self, mut stream: Stream) {
        let outcome = tokio::time::timeout(HELLO_DEADLINE, async {
            self.verify(&mut stream).await?;
            write_message(&mut stream, &HelloMessage::Hello(Box::new(self.me.clone()))).await?;
            match decode_hello(&read_message(&mut stream, HELLO_LEN_MAX).await?)? {
                HelloMessage::Done => Ok(()),
                HelloMessage::Refused(kind) => Err(HelloFailure::RefusedUs(kind)),
                HelloMessage::Hello(_) => Err(WireError::Unexpected.into()),
            }
        });
        self.report(outcome.await.unwrap_or(Err(HelloFailure::Refuse(Refusal::NoHello)))).await;
    }

    /// Reads the peer's hello, checks it, and has the driver admit the peer; or tells it why not.
    async fn verify(&self, stream: &mut Stream) -> Result<(), HelloFailure> {
        let outcome = async {
            let hello = match decode_hello(&read_message(stream, HELLO_LEN_MAX).await?)? {
                HelloMessage::Hello(hello) => hello,
                HelloMessage::Refused(kind) => return Err(HelloFailure::RefusedUs(kind)),
                HelloMessage::Done => return Err(WireError::Unexpected.into()),
            };
            let verified = self.check(*hello)?;
            let (reply, admitted) = oneshot::channel();
            let ask = Internal::Verified { peer: self.peer, connection: self.connection, verified, reply };
            self.driver.send(ask).await.map_err(|_| HelloFailure::Broken)?;
            admitted.await.map_err(|_| HelloFailure::Broken)??;
            Ok(())
        };
        let outcome = outcome.await;
        if let Err(HelloFailure::Refuse(refusal)) = &outcome
            && write_message(stream, &HelloMessage::Refused(refusal.kind())).await.is_ok()
        {
            let _ = stream.close().await;
            // The peer closes when it has read the reason; only then may the connection go.
            let _ = tokio::time::timeout(LINGER, stream.read(&mut [0; 1])).await;
        }
        outcome
    }

    fn check(&self, hello: Hello) -> Result<Verified, Refusal> {
        if hello.version != VERSION {
            return Err(Refusal::Version { theirs: hello.version, ours: VERSION });
        }
        let node = self.node.ok_or(Refusal::Stranger)?;
        let roles = hello.credential.verify(self.mesh, node, (self.clock)())?;
        Ok(Verified { node, addrs: hello.addrs(), roles, boot: hello.boot, credential: hello.credential })
    }

    async fn report(&self, outcome: Result<(), HelloFailure>) {
        let (peer, connection) = (self.peer, self.connection);
        let message = match outcome {
            Ok(()) => Internal::Ready { peer, connection },
            Err(failure) => Internal::HelloFailed { peer, connection, failure },
        };
        // A driver that is gone has closed the connection anyway.
        let _ = self.driver.send(message).await;
    }
}

/// When the first certificate of the chain that expires does so.
pub(crate) fn expires_ms(credential: &Credential) -> u64 {
    credential.chain.iter().map(|link| link.body.expires_ms).min().unwrap_or(0)
}

/// A clock that can be shared.
pub(crate) fn shared(clock: impl Fn() -> u64 + Send + Sync + 'static) -> Clock {
    Arc::new(clock)
}
