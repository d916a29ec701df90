//! Binding the listeners at start, with errors that name the address.

use std::collections::HashSet;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, Swarm, TransportError};
use tokio::sync::oneshot;

use crate::address::ip;
use crate::behaviour::Behaviour;
use crate::error::StartError;

/// Listeners that have not yet reported an address.
pub(super) struct Starting {
    waiting: HashSet<ListenerId>,
    done: Option<oneshot::Sender<()>>,
}

impl Starting {
    /// `listener` has an address.
    pub(super) fn reported(&mut self, listener: ListenerId) {
        self.waiting.remove(&listener);
        if self.waiting.is_empty()
            && let Some(done) = self.done.take()
        {
            let _ = done.send(());
        }
    }
}

/// Listens on every address of `addrs`.
pub(super) fn listen(
    swarm: &mut Swarm<Behaviour>,
    addrs: &[Multiaddr],
) -> Result<(Starting, oneshot::Receiver<()>), StartError> {
    let (done, listening) = oneshot::channel();
    let mut starting = Starting { waiting: HashSet::new(), done: Some(done) };
    for addr in addrs {
        probe(addr).map_err(|error| failed(addr, error))?;
        let listener = swarm.listen_on(addr.clone()).map_err(|error| match error {
            TransportError::Other(error) => failed(addr, error),
            TransportError::MultiaddrNotSupported(_) => failed(addr, io::ErrorKind::Unsupported.into()),
        })?;
        starting.waiting.insert(listener);
    }
    if addrs.is_empty() {
        starting.reported(ListenerId::next());
    }
    Ok((starting, listening))
}

/// libp2p sets `SO_REUSEPORT` on its TCP listeners, so that a second daemon of the same user would share the port in
/// silence. Binding once without it finds that out. For QUIC it merely gives the system's own error, which libp2p hides.
fn probe(addr: &Multiaddr) -> io::Result<()> {
    let Some(ip) = ip(addr) else { return Ok(()) };
    for part in addr {
        match part {
            Protocol::Tcp(port) if port != 0 => TcpListener::bind(SocketAddr::new(ip, port)).map(drop)?,
            Protocol::Udp(port) if port != 0 => UdpSocket::bind(SocketAddr::new(ip, port)).map(drop)?,
            _ => {}
        }
    }
    Ok(())
}

fn failed(addr: &Multiaddr, source: io::Error) -> StartError {
    if source.kind() == io::ErrorKind::AddrInUse {
        StartError::AddressInUse { addr: addr.clone() }
    } else {
        StartError::Listen { addr: addr.clone(), source }
    }
}
