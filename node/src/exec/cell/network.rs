//! The network of a cell whose job names hosts. Each host has a loopback address of its own in the cell, which a hosts file gives
//! to its name, and on each of its ports a listening socket, which the cell's first process opens and the daemon accepts on.
//! There is nothing else in the cell's network namespace, and no way out of it. Containers get the same.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketType};
use serde::{Deserialize, Serialize};
use sinew_crdt_state::network::Network;

use super::sys;
use crate::egress::Door;

/// The first of these addresses; one for each host follows. All of 127/8 is the machine itself, and programs use no other of it
/// than 127.0.0.1.
const FIRST: u32 = u32::from_be_bytes([127, 77, 0, 1]);
/// Names of the cell itself.
const OWN: &str = "127.0.0.1 localhost cell\n::1 localhost cell\n";

/// A host and how a cell's programs find it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::exec) struct Route {
    /// Its name.
    pub(in crate::exec) host: String,
    /// What stands for it.
    pub(in crate::exec) address: Ipv4Addr,
    /// Its ports.
    pub(in crate::exec) ports: Vec<u16>,
}

impl Route {
    /// As engines want it for the hosts file of a container.
    pub(in crate::exec) fn as_extra_host(&self) -> String {
        format!("{}:{}", self.host, self.address)
    }

    fn sockets(&self) -> impl Iterator<Item = SocketAddrV4> {
        self.ports.iter().map(|port| SocketAddrV4::new(self.address, *port))
    }
}

/// The routes of a policy.
pub(in crate::exec) fn routes(network: &Network) -> Vec<Route> {
    let hosts = (FIRST..).zip(network.hosts());
    let route = |(address, (host, ports)): (u32, (&str, &std::collections::BTreeSet<u16>))| Route {
        host: host.to_owned(),
        address: Ipv4Addr::from(address),
        ports: ports.iter().copied().collect(),
    };
    hosts.map(route).collect()
}

/// The hosts file.
pub(super) fn hosts_file(routes: &[Route]) -> String {
    let lines = routes.iter().map(|route| format!("{} {}\n", route.address, route.host));
    std::iter::once(OWN.to_owned()).chain(lines).collect()
}

/// Listens at each route's ports, in order, in the network namespace that this thread is in. It must be one with nothing else.
pub(in crate::exec) fn open(routes: &[Route]) -> io::Result<Vec<TcpListener>> {
    let Some(first) = routes.first() else { return Ok(Vec::new()) };
    let any = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    // Resolvers that ask which families a machine has do not count 127.0.0.1.
    sys::loopback_up(any.as_fd(), first.address)?;
    routes.iter().flat_map(Route::sockets).map(TcpListener::bind).collect()
}

/// The routes' sockets as they came from the cell, each looked at.
pub(in crate::exec) fn doors(routes: &[Route], fds: Vec<OwnedFd>) -> io::Result<Vec<Door>> {
    let wanted: Vec<_> = routes.iter().flat_map(|route| route.sockets().map(move |at| (route, at))).collect();
    if wanted.len() != fds.len() {
        return Err(io::Error::other(format!("{} sockets came instead of {}", fds.len(), wanted.len())));
    }
    let door = |((route, at), fd): ((&Route, SocketAddrV4), OwnedFd)| {
        let socket = TcpListener::from(fd);
        if socket.local_addr()? != at.into() || !rustix::net::sockopt::socket_acceptconn(&socket)? {
            return Err(io::Error::other("a socket came that is another"));
        }
        Ok(Door { socket, host: route.host.clone(), port: at.port() })
    };
    wanted.into_iter().zip(fds).map(door).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_has_an_address_and_a_line() {
        let mut network = Network::default();
        for host in ["b.example:5432", "a.example"] {
            network.allow(host).expect("host");
        }
        let routes = routes(&network);
        let at = |route: &Route| route.sockets().map(|at| at.to_string()).collect::<Vec<_>>();
        assert_eq!(at(&routes[0]), ["127.77.0.1:80", "127.77.0.1:443"]);
        assert_eq!(at(&routes[1]), ["127.77.0.2:5432"]);
        let file = hosts_file(&routes);
        assert!(file.starts_with(OWN) && file.ends_with("127.77.0.1 a.example\n127.77.0.2 b.example\n"), "{file}");
        assert_eq!(hosts_file(&[]), OWN);
    }

    #[test]
    fn only_the_sockets_that_were_asked_for_are_taken() {
        let listen = || TcpListener::bind("127.0.0.1:0").expect("listen");
        let route = |socket: &TcpListener| {
            let port = socket.local_addr().expect("address").port();
            vec![Route { host: "a.example".to_owned(), address: Ipv4Addr::LOCALHOST, ports: vec![port] }]
        };
        let (right, other) = (listen(), listen());
        let routes = route(&right);
        assert!(doors(&routes, vec![other.into()]).is_err() && doors(&routes, Vec::new()).is_err());
        let connected = std::net::TcpStream::connect(right.local_addr().expect("address")).expect("connect");
        let accepted = right.accept().expect("accept").0;
        assert!(doors(&routes, vec![accepted.into()]).is_err());
        drop(connected);
        assert_eq!(doors(&routes, vec![right.into()]).expect("doors").len(), 1);
    }
}
