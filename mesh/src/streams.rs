//! Raw streams per protocol, the one piece of libp2p plumbing that is ours.
//!
//! `libp2p-stream` would do nearly the same, but it is an alpha release, drops inbound streams when two arrive in the
//! same instant (a mesh that starts is exactly that), and picks a connection at random where we must choose one. This
//! behaviour opens a stream on a given connection, hands inbound ones to the driver in order, and denies connections
//! to peers that are being refused. It does not dial.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::swarm::handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    NotifyHandler, StreamUpgradeError, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{PeerId, Stream, StreamProtocol};
use tokio::sync::oneshot;

/// Inbound streams of one connection that the driver has not yet taken. Beyond this they are reset: no honest peer
/// opens so many at once.
const INBOUND_WAITING_MAX: usize = 64;

/// Why a stream could not be opened.
#[derive(Debug)]
pub(crate) enum StreamError {
    /// The peer does not speak the protocol.
    Unsupported,
    /// The connection broke or was too slow.
    Io(io::Error),
}

pub(crate) type StreamReply = oneshot::Sender<Result<Stream, StreamError>>;

/// Asks a connection for a stream.
#[derive(Debug)]
pub(crate) struct Open {
    protocol: StreamProtocol,
    reply: StreamReply,
}

/// A stream the peer opened.
#[derive(Debug)]
pub(crate) struct Inbound {
    pub(crate) peer: PeerId,
    pub(crate) connection: ConnectionId,
    pub(crate) protocol: StreamProtocol,
    pub(crate) stream: Stream,
}

/// The peer is being refused.
#[derive(Debug, thiserror::Error)]
#[error("the peer is being refused")]
pub(crate) struct Refused;

/// The behaviour.
pub(crate) struct Behaviour {
    accepted: Vec<StreamProtocol>,
    refused: HashMap<PeerId, Instant>,
    queue: VecDeque<ToSwarm<Inbound, Open>>,
    waker: Option<Waker>,
}

impl Behaviour {
    /// Accepts inbound streams of the protocols `accepted`.
    pub(crate) fn new(accepted: Vec<StreamProtocol>) -> Self {
        Self { accepted, refused: HashMap::new(), queue: VecDeque::new(), waker: None }
    }

    /// Opens a stream on `connection`; `reply` is dropped unanswered when the connection is gone.
    pub(crate) fn open(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        protocol: StreamProtocol,
        reply: StreamReply,
    ) {
        let event = Open { protocol, reply };
        self.queue.push_back(ToSwarm::NotifyHandler { peer_id: peer, handler: NotifyHandler::One(connection), event });
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Denies connections with `peer` until `until`.
    pub(crate) fn refuse(&mut self, peer: PeerId, until: Instant) {
        let now = Instant::now();
        self.refused.retain(|_, until| *until > now);
        self.refused.insert(peer, until);
    }

    /// Allows connections with `peer` again.
    pub(crate) fn allow(&mut self, peer: &PeerId) {
        self.refused.remove(peer);
    }

    fn handler(&self, peer: &PeerId) -> Result<Handler, ConnectionDenied> {
        match self.refused.get(peer) {
            Some(until) if *until > Instant::now() => Err(ConnectionDenied::new(Refused)),
            _ => Ok(Handler { accepted: self.accepted.clone(), open: VecDeque::new(), inbound: VecDeque::new() }),
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Inbound;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handler(&peer)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handler(&peer)
    }

    fn on_swarm_event(&mut self, _: FromSwarm) {}

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        (protocol, stream): THandlerOutEvent<Self>,
    ) {
        self.queue.push_back(ToSwarm::GenerateEvent(Inbound { peer, connection, protocol, stream }));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some(event) = self.queue.pop_front() {
            return Poll::Ready(event);
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// One connection's side of the behaviour. It does not keep the connection alive by itself; open streams do.
pub(crate) struct Handler {
    accepted: Vec<StreamProtocol>,
    open: VecDeque<Open>,
    inbound: VecDeque<(StreamProtocol, Stream)>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = (StreamProtocol, Stream);
    type InboundProtocol = AnyOf;
    type OutboundProtocol = AnyOf;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = StreamReply;

    fn listen_protocol(&self) -> SubstreamProtocol<AnyOf> {
        SubstreamProtocol::new(AnyOf(self.accepted.clone()), ())
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<AnyOf, StreamReply, Self::ToBehaviour>> {
        if let Some(event) = self.inbound.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(event));
        }
        if let Some(Open { protocol, reply }) = self.open.pop_front() {
            let protocol = SubstreamProtocol::new(AnyOf(vec![protocol]), reply);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        // No waker is kept: libp2p polls a handler after every event it gives it, and both queues fill only there.
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: Open) {
        self.open.push_back(event);
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<AnyOf, AnyOf, (), StreamReply>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. })
                if self.inbound.len() < INBOUND_WAITING_MAX =>
            {
                self.inbound.push_back(protocol);
            }
            // A requester that gave up dropped its end; the stream is then dropped, that is, reset.
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: (_, stream), info }) => {
                let _ = info.send(Ok(stream));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                let _ = info.send(Err(match error {
                    StreamUpgradeError::NegotiationFailed => StreamError::Unsupported,
                    StreamUpgradeError::Timeout => StreamError::Io(io::ErrorKind::TimedOut.into()),
                    StreamUpgradeError::Io(error) => StreamError::Io(error),
                    StreamUpgradeError::Apply(never) => match never {},
                }));
            }
            _ => {}
        }
    }
}

/// Negotiates any one of some protocols and hands over the bare stream.
pub(crate) struct AnyOf(Vec<StreamProtocol>);

impl UpgradeInfo for AnyOf {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl InboundUpgrade<Stream> for AnyOf {
    type Output = (StreamProtocol, Stream);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((protocol, stream)))
    }
}

impl OutboundUpgrade<Stream> for AnyOf {
    type Output = (StreamProtocol, Stream);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((protocol, stream)))
    }
}
