//! Binding the listeners at start, with errors that name the address.

use std::collections::HashSet;
use std::error::Error;
use std::io;
use std::net::{SocketAddr, TcpListener};

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
/// silence. Binding once without it finds that out.
fn probe(addr: &Multiaddr) -> io::Result<()> {
    let port = addr.iter().find_map(|part| match part {
        Protocol::Tcp(port) => Some(port),
        _ => None,
    });
    match (ip(addr), port) {
        (Some(ip), Some(port)) if port != 0 => TcpListener::bind(SocketAddr::new(ip, port)).map(drop),
        _ => Ok(()),
    }
}

fn failed(addr: &Multiaddr, source: io::Error) -> StartError {
    if in_use(&source) {
        StartError::AddressInUse { addr: addr.clone() }
    } else {
        StartError::Listen { addr: addr.clone(), source }
    }
}

/// Looks through the layers that libp2p wraps around the system's error.
fn in_use(error: &io::Error) -> bool {
    let mut layer: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = layer {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            if io.kind() == io::ErrorKind::AddrInUse {
                return true;
            }
            layer = io.get_ref().map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source());
        } else {
            layer = error.source();
        }
    }
    false
}
