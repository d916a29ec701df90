//! Two daemons with one key: a data directory was copied, and both copies run. Nobody can tell them apart by their key, so
//! every start of a daemon has a [`Boot`], which it shows in its hello.
//!
//! A member to which a peer is connected, and to which the same key shows another boot, asks the one that it has whether it
//! still lives. If it does not answer, the node was restarted, and the new connection takes its place. If it does, its answer
//! is a signature over the newcomer's boot. The newcomer is refused, and is given that answer: it can check that a daemon
//! with its own key, which it is not itself, signed a number that it drew a moment ago. No member can make this up, so none can
//! end a node by a lie. What a newcomer does about it is the daemon's business.

use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId, Stream};
use serde::{Deserialize, Serialize};
use sinew_crdt_state::cbor;
use sinew_crdt_state::identity::{self, Domain, Identity, Signature};
use sinew_crdt_state::ids::{MeshId, NodeId};
use tokio::sync::{mpsc, oneshot};

use crate::driver::Internal;
use crate::error::Refusal;
use crate::hello::Verified;
use crate::streams::StreamError;
use crate::wire::{WireError, read_message, write_message};

/// How long a living daemon may take to answer: a round trip on the slowest link worth having, and a signature. Shorter than
/// the hello of the newcomer, which waits meanwhile.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);
/// How long the newcomer may take to read what it is told.
const TELL_DEADLINE: Duration = Duration::from_secs(1);
/// A message is a boot, a signature and an address.
pub(crate) const TWIN_LEN_MAX: usize = 2 * 1024;

/// One start of a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// How often a daemon was started on its data directory. Counted on disk before anything is said.
    pub number: u64,
    /// Drawn at random at the start: copies of one directory count to the same number.
    pub nonce: u64,
}

/// What a living daemon says when it is asked: who it is, signed over the boot of the one that came after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Here {
    boot: Boot,
    signature: Signature,
}

/// The messages of `/sinew/twin/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TwinMessage {
    /// To the daemon that is connected: another one with your key shows a boot with this nonce. Do you live?
    Who {
        /// The nonce.
        nonce: u64,
    },
    /// Its answer.
    Here(Here),
    /// To the newcomer: this one was here before.
    Twin {
        /// What it said.
        here: Here,
        /// Where it is, as a binary multiaddr.
        addr: serde_bytes::ByteBuf,
    },
}

/// Reads a message.
///
/// # Errors
/// [`WireError`] when the bytes are too many or not such a message.
pub fn decode_twin(bytes: &[u8]) -> Result<TwinMessage, WireError> {
    if bytes.len() > TWIN_LEN_MAX {
        return Err(WireError::TooLong { len: bytes.len(), max: TWIN_LEN_MAX });
    }
    Ok(cbor::from_slice(bytes)?)
}

impl Here {
    fn sign(identity: &Identity, mesh: MeshId, boot: Boot, nonce: u64) -> Self {
        Self { boot, signature: identity.sign(Domain::Boot, &statement(mesh, boot, nonce)) }
    }

    /// Whether `node` said so to a newcomer with this nonce, and is not that newcomer.
    fn holds(&self, mesh: MeshId, node: NodeId, nonce: u64) -> bool {
        let statement = statement(mesh, self.boot, nonce);
        self.boot.nonce != nonce && identity::verify(node.as_bytes(), Domain::Boot, &statement, &self.signature).is_ok()
    }
}

fn statement(mesh: MeshId, boot: Boot, nonce: u64) -> Vec<u8> {
    [&mesh.0[..], &nonce.to_le_bytes(), &boot.number.to_le_bytes(), &boot.nonce.to_le_bytes()].concat()
}

/// A stream that was asked for.
pub(crate) type Opened = oneshot::Receiver<Result<Stream, StreamError>>;

async fn stream_of(opened: Opened) -> Option<Stream> {
    opened.await.ok()?.ok()
}

/// A newcomer whose key is connected already, under another boot.
pub(crate) struct Newcomer {
    pub(crate) peer: PeerId,
    pub(crate) connection: ConnectionId,
    pub(crate) verified: Verified,
    /// Its nonce.
    pub(crate) nonce: u64,
    /// Where its hello waits for the verdict.
    pub(crate) reply: oneshot::Sender<Result<(), Refusal>>,
}

/// Asks the daemon that was connected before whether it lives, and reports to the driver.
pub(crate) async fn ask(opened: Opened, mesh: MeshId, newcomer: Newcomer, driver: mpsc::Sender<Internal>) {
    let node = newcomer.verified.node;
    let answer = tokio::time::timeout(ANSWER_DEADLINE, async {
        let mut stream = stream_of(opened).await?;
        write_message(&mut stream, &TwinMessage::Who { nonce: newcomer.nonce }).await.ok()?;
        match decode_twin(&read_message(&mut stream, TWIN_LEN_MAX).await.ok()?).ok()? {
            TwinMessage::Here(here) => Some(here).filter(|here| here.holds(mesh, node, newcomer.nonce)),
            _ => None,
        }
    });
    let here = answer.await.unwrap_or_default();
    // A driver that is gone has closed the connection anyway.
    let _ = driver.send(Internal::Asked { newcomer: Box::new(newcomer), here }).await;
}

/// Tells the newcomer who was here before, and then that it is refused.
pub(crate) async fn tell(opened: Opened, here: Here, addr: Multiaddr, reply: oneshot::Sender<Result<(), Refusal>>) {
    let told = tokio::time::timeout(TELL_DEADLINE, async {
        let mut stream = stream_of(opened).await?;
        let addr = serde_bytes::ByteBuf::from(addr.to_vec());
        write_message(&mut stream, &TwinMessage::Twin { here, addr }).await.ok()?;
        stream.close().await.ok()?;
        // It closes when it has read it; only then may the connection go.
        stream.read(&mut [0; 1]).await.ok()
    });
    let _ = told.await;
    let _ = reply.send(Err(Refusal::Twin));
}

/// Answers one question, or hears of a daemon that was here before.
pub(crate) struct Serve {
    pub(crate) identity: Identity,
    pub(crate) mesh: MeshId,
    pub(crate) boot: Boot,
    /// Whether the other side is a member: others are not answered.
    pub(crate) is_member: bool,
    pub(crate) driver: mpsc::Sender<Internal>,
}

impl Serve {
    pub(crate) async fn run(self, mut stream: Stream) {
        let served = tokio::time::timeout(ANSWER_DEADLINE, async {
            match decode_twin(&read_message(&mut stream, TWIN_LEN_MAX).await.ok()?).ok()? {
                TwinMessage::Who { nonce } if self.is_member => {
                    let here = Here::sign(&self.identity, self.mesh, self.boot, nonce);
                    write_message(&mut stream, &TwinMessage::Here(here)).await.ok()?;
                }
                TwinMessage::Twin { here, addr } if here.holds(self.mesh, self.identity.id(), self.boot.nonce) => {
                    let addr = Multiaddr::try_from(addr.into_vec()).ok();
                    self.driver.send(Internal::Twin { boot: here.boot, addr }).await.ok()?;
                }
                _ => {}
            }
            stream.close().await.ok()
        });
        let _ = served.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESH: MeshId = MeshId([7; 32]);

    #[test]
    fn an_answer_holds_for_the_nonce_that_was_asked_and_not_for_ones_own() {
        let (node, other) = (Identity::from_seed([1; 32]), Identity::from_seed([2; 32]));
        let boot = Boot { number: 4, nonce: 11 };
        let here = Here::sign(&node, MESH, boot, 12);
        assert!(here.holds(MESH, node.id(), 12));
        assert!(!here.holds(MESH, node.id(), 13), "an answer to somebody else");
        assert!(!here.holds(MESH, other.id(), 12), "another node's");
        assert!(!here.holds(MeshId([8; 32]), node.id(), 12), "another mesh's");
        assert!(!Here::sign(&other, MESH, boot, 12).holds(MESH, node.id(), 12), "forged");
        // A member asks a daemon about its own nonce, to show it its own words.
        assert!(!Here::sign(&node, MESH, boot, 11).holds(MESH, node.id(), 11));
    }

    #[test]
    fn messages_read_back_and_garbage_does_not() {
        let message = TwinMessage::Who { nonce: u64::MAX };
        assert_eq!(decode_twin(&cbor::to_vec(&message)), Ok(message));
        assert!(decode_twin(&[0xff; 64]).is_err());
        assert!(decode_twin(&vec![0; TWIN_LEN_MAX + 1]).is_err());
    }
}
