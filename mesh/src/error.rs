//! Why the mesh refused, failed or could not start: one enum per operation.

use std::fmt;
use std::io;

use libp2p::Multiaddr;
use serde::{Deserialize, Serialize};
use sinew_crdt_state::certificate::{CredentialError, TicketError};
use sinew_crdt_state::pack::UnpackError;

use crate::join::JoinRefusal;
use crate::wire::WireError;

/// Why the mesh could not start. None of these passes by waiting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Someone else listens there.
    #[error("cannot listen on {addr}: the port is in use; stop what uses it or choose another port")]
    AddressInUse {
        /// The address that was asked for.
        addr: Multiaddr,
    },
    /// The address is not one of this host, or not allowed, or of an unknown kind.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address that was asked for.
        addr: Multiaddr,
        /// What the system said.
        source: io::Error,
    },
    /// No listener came up in time.
    #[error("the listeners did not report an address within {0} s")]
    ListenTimeout(u64),
    /// The resolver's configuration could not be read.
    #[error("cannot read the DNS resolver's configuration: {0}")]
    Dns(io::Error),
    /// The noise handshake's keys could not be made.
    #[error("cannot set up connection encryption: {0}")]
    Noise(libp2p::noise::Error),
    /// Our own credential is not good for this mesh and key.
    #[error("this node's own certificate is not valid: {0}")]
    Credential(#[from] CredentialError),
    /// The gossip or relay parameters contradict each other.
    #[error("the gossip parameters are invalid: {0}")]
    Gossip(&'static str),
}

/// Why a frame was not taken. The first two can pass by waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The peer's queue is full: it is slower than we are.
    #[error("the queue to the peer is full")]
    Full,
    /// The peer is not connected and no address of it is known.
    #[error("no address of the peer is known")]
    NoRoute,
    /// Longer than the limit of the configuration.
    #[error("the frame has {len} bytes, the limit is {max}")]
    TooLong {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The mesh has shut down.
    #[error("the mesh has shut down")]
    Closed,
}

/// Why no stream could be opened. All but the last two can pass by waiting.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The peer is not connected as a member; a dial was started if an address is known.
    #[error("the peer is not connected")]
    NotConnected,
    /// The connection broke meanwhile.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The peer does not speak the protocol.
    #[error("the peer does not speak {0}")]
    Unsupported(&'static str),
    /// The mesh has shut down.
    #[error("the mesh has shut down")]
    Closed,
}

/// The reasons of refusals, as counted and as told to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RefusalKind {
    /// It showed nothing in time.
    NoHello,
    /// It does not speak our protocols: some other libp2p program.
    Stranger,
    /// Its membership message or a packed frame was not readable.
    Malformed,
    /// It speaks another version.
    Version,
    /// Its certificate is for another mesh.
    OtherMesh,
    /// Its certificate is another node's.
    OtherNode,
    /// Its certificate, or one in the chain, has expired.
    Expired,
    /// Its certificate is from the future.
    NotYet,
    /// A certificate in its chain was issued by a node that is no admin.
    IssuerNotAdmin,
    /// A signature in its chain is wrong.
    Forged,
    /// The chain is empty or too long.
    ChainLength,
    /// Its membership was revoked.
    Revoked,
    /// It used a members' protocol before it had shown membership.
    NotMember,
    /// It sent a frame longer than the limit.
    FrameTooLong,
    /// It opened more streams than anyone needs.
    TooManyStreams,
    /// Too many joins at once.
    JoinRate,
    /// Its join message was not readable, or its ticket was refused.
    Join,
    /// Gossip by an author whose membership we have not seen.
    GossipAuthor,
    /// It came back while it was still being refused.
    Banned,
    /// The node above reported misbehaviour.
    Misbehaved,
    /// It has our own key.
    OwnKey,
    /// Another daemon with its key was here before, and lives.
    Twin,
    /// It refused us.
    RefusedUs,
}

impl fmt::Display for RefusalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoHello => "no-hello",
            Self::Stranger => "stranger",
            Self::Malformed => "malformed",
            Self::Version => "version",
            Self::OtherMesh => "other-mesh",
            Self::OtherNode => "other-node",
            Self::Expired => "expired",
            Self::NotYet => "not-yet-valid",
            Self::IssuerNotAdmin => "issuer-not-admin",
            Self::Forged => "forged",
            Self::ChainLength => "chain-length",
            Self::Revoked => "revoked",
            Self::NotMember => "not-a-member",
            Self::FrameTooLong => "frame-too-long",
            Self::TooManyStreams => "too-many-streams",
            Self::JoinRate => "join-rate",
            Self::Join => "join",
            Self::GossipAuthor => "gossip-author",
            Self::Banned => "banned",
            Self::Misbehaved => "misbehaved",
            Self::OwnKey => "own-key",
            Self::Twin => "twin",
            Self::RefusedUs => "refused-us",
        })
    }
}

/// Why a peer was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It showed nothing in time.
    #[error("it did not show a certificate in time")]
    NoHello,
    /// It does not speak our protocols.
    #[error("it is not a Sinew node")]
    Stranger,
    /// A message was not readable.
    #[error("its membership message is malformed: {0}")]
    Malformed(WireError),
    /// It speaks another version.
    #[error("it speaks version {theirs} of the protocol, this node speaks {ours}")]
    Version {
        /// Its version.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// Its credential does not verify.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// Its membership was revoked.
    #[error("its membership was revoked")]
    Revoked,
    /// It used a members' protocol before it had shown membership.
    #[error("it opened {protocol} before it had shown a certificate")]
    NotMember {
        /// The protocol.
        protocol: &'static str,
    },
    /// It sent a frame longer than the limit.
    #[error("it sent a frame of {len} bytes, the limit is {max}")]
    FrameTooLong {
        /// The length announced.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// It sent a packed frame that does not unpack.
    #[error("it sent a packed frame that is damaged: {0}")]
    FrameDamaged(UnpackError),
    /// It opened more streams than anyone needs.
    #[error("it opened too many streams")]
    TooManyStreams,
    /// Too many joins at once.
    #[error("too many joins at once")]
    JoinRate,
    /// Its join message was not readable.
    #[error("its join message is malformed: {0}")]
    JoinMalformed(WireError),
    /// Its ticket was refused.
    #[error("its join was refused: {0}")]
    Join(JoinRefusal),
    /// Gossip by an author whose membership we have not seen.
    #[error("it gossips for an author whose certificate this node has not seen")]
    GossipAuthor,
    /// It came back while it was still being refused.
    #[error("it is still being refused")]
    Banned,
    /// The node above reported misbehaviour.
    #[error("the node reported misbehaviour")]
    Misbehaved,
    /// It has our own key.
    #[error("it has this node's own key")]
    OwnKey,
    /// Another daemon with its key was here before, and lives.
    #[error("another daemon with its key is connected: its data directory was copied, and both copies run")]
    Twin,
    /// It refused us.
    #[error("it refused this node: {0}")]
    RefusedUs(RefusalKind),
}

impl Refusal {
    /// The reason as it is counted.
    #[must_use]
    pub const fn kind(&self) -> RefusalKind {
        match self {
            Self::NoHello => RefusalKind::NoHello,
            Self::Stranger => RefusalKind::Stranger,
            Self::Malformed(_) | Self::FrameDamaged(_) => RefusalKind::Malformed,
            Self::Version { .. } => RefusalKind::Version,
            Self::Credential(error) => match error {
                CredentialError::Length(_) => RefusalKind::ChainLength,
                CredentialError::OtherMesh { .. } => RefusalKind::OtherMesh,
                CredentialError::OtherNode { .. } => RefusalKind::OtherNode,
                CredentialError::Expired { .. } => RefusalKind::Expired,
                CredentialError::NotYet { .. } => RefusalKind::NotYet,
                CredentialError::IssuerNotAdmin { .. } => RefusalKind::IssuerNotAdmin,
                CredentialError::Forged { .. } => RefusalKind::Forged,
            },
            Self::Revoked => RefusalKind::Revoked,
            Self::NotMember { .. } => RefusalKind::NotMember,
            Self::FrameTooLong { .. } => RefusalKind::FrameTooLong,
            Self::TooManyStreams => RefusalKind::TooManyStreams,
            Self::JoinRate => RefusalKind::JoinRate,
            Self::JoinMalformed(_) | Self::Join(_) => RefusalKind::Join,
            Self::GossipAuthor => RefusalKind::GossipAuthor,
            Self::Banned => RefusalKind::Banned,
            Self::Misbehaved => RefusalKind::Misbehaved,
            Self::OwnKey => RefusalKind::OwnKey,
            Self::Twin => RefusalKind::Twin,
            Self::RefusedUs(_) => RefusalKind::RefusedUs,
        }
    }
}

/// One address of a ticket and why it did not lead to the issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinAttempt {
    /// The address.
    pub addr: String,
    /// What went wrong there.
    pub why: String,
}

impl fmt::Display for JoinAttempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.addr, self.why)
    }
}

fn list(attempts: &[JoinAttempt]) -> String {
    attempts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Why a join failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The ticket itself is no good. Retrying cannot help.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// The ticket has no usable address. Retrying cannot help.
    #[error("the ticket names no address of its issuer; make one on a node that others can reach")]
    NoAddress,
    /// No address led to the issuer. Retrying helps once it is reachable.
    #[error("the issuer could not be reached: {}", list(.0))]
    Unreachable(Vec<JoinAttempt>),
    /// The issuer was reached but did not answer in time. Retrying may help.
    #[error("the issuer at {addr} did not answer within {seconds} s")]
    Timeout {
        /// Where it was reached, or the first address tried.
        addr: String,
        /// How long we waited.
        seconds: u64,
    },
    /// The connection broke before the answer. Retrying may help.
    #[error("the issuer at {addr} broke off: {source}")]
    Broken {
        /// Where it was reached.
        addr: String,
        /// How.
        source: io::Error,
    },
    /// The answer was not readable. Retrying cannot help.
    #[error("the issuer's answer is malformed: {0}")]
    Malformed(#[from] WireError),
    /// The issuer said no. Only [`JoinRefusal::Busy`] passes by waiting.
    #[error("the issuer refused: {0}")]
    Refused(JoinRefusal),
    /// The issuer gave a certificate that is no good.
    #[error("the issuer gave an invalid certificate: {0}")]
    Credential(#[from] CredentialError),
    /// The throw-away swarm could not be set up.
    #[error(transparent)]
    Start(#[from] StartError),
}
