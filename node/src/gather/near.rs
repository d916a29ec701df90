//! What is near: this machine's own addresses, and those that it reaches without a router. Both may be public and yet meant for this
//! network only: a firewall keeps others from what listens there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use super::hosts::inside;

/// Whether `address` is this machine's or of a network that it is in.
pub(super) fn is_near(address: IpAddr) -> bool {
    let inside = match address {
        IpAddr::V6(address) => inside(address),
        IpAddr::V4(_) => None,
    };
    is_own(address) || is_on_link(address) || inside.is_some_and(|inside| is_near(inside.into()))
}

/// Whether `address` is this machine's: only those can be sent from. Where the system lets anybody send from any
/// (`ip_nonlocal_bind`), all count as its own, and hosts have to be named.
fn is_own(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// Whether a route without a gateway leads to `address`. Where the system lists no routes there is none.
fn is_on_link(address: IpAddr) -> bool {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/net/{file}")).unwrap_or_default();
    match address {
        IpAddr::V4(address) => read("route").lines().filter_map(direct_v4).any(|route| route.contains(address)),
        IpAddr::V6(address) => read("ipv6_route").lines().filter_map(direct_v6).any(|route| route.contains(address)),
    }
}

/// Flags of a route: one that is used, one through a gateway, and one that refuses.
const UP: u32 = 0x1;
const GATEWAY: u32 = 0x2;
const REJECT: u32 = 0x200;

const fn is_direct(flags: u32) -> bool {
    flags & UP != 0 && flags & (GATEWAY | REJECT) == 0
}

/// A route to the machines of one network, by the bits of their addresses. The route to all others is none, though tunnels have
/// it without a gateway.
#[derive(Debug, PartialEq, Eq)]
struct Route<A> {
    network: A,
    mask: A,
}

impl Route<u32> {
    fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask == self.network & self.mask
    }
}

impl Route<u128> {
    fn contains(&self, address: Ipv6Addr) -> bool {
        u128::from(address) & self.mask == self.network & self.mask
    }
}

/// A line of `/proc/net/route`: interface, destination, gateway, flags, three counts, mask. Addresses are as in memory.
fn direct_v4(line: &str) -> Option<Route<u32>> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let number = |i: usize| u32::from_str_radix(fields.get(i)?, 16).ok();
    let address = |i: usize| Some(u32::from_be_bytes(number(i)?.to_ne_bytes()));
    let route = Route { network: address(1)?, mask: address(7)? };
    (is_direct(number(3)?) && route.mask != 0).then_some(route)
}

/// A line of `/proc/net/ipv6_route`: destination, its length, source, its length, next hop, metric, two counts, flags, interface.
fn direct_v6(line: &str) -> Option<Route<u128>> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let len = u32::from_str_radix(fields.get(1)?, 16).ok()?;
    let network = u128::from_str_radix(fields.first()?, 16).ok()?;
    let next_hop = u128::from_str_radix(fields.get(4)?, 16).ok()?;
    let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
    let mask = u128::MAX.checked_shl(128_u32.checked_sub(len)?)?;
    (is_direct(flags) && next_hop == 0).then_some(Route { network, mask })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[test]
    fn this_machine_knows_its_own_addresses() {
        assert!(
            is_near(ip("127.0.0.1"))
                && is_near(ip("127.7.7.7"))
                && is_near(ip("2002:7f00:1::"))
                && !is_near(ip("203.0.113.7"))
        );
    }

    #[test]
    fn networks_without_a_gateway_are_near() {
        // As on a machine whose byte order is that of the lines.
        let as_here = |address: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(address));
        let line = |to: [u8; 4], gateway: [u8; 4], flags: &str, mask: [u8; 4]| {
            let [to, gateway, mask] = [to, gateway, mask].map(as_here);
            format!("eth0\t{to}\t{gateway}\t{flags}\t0\t0\t0\t{mask}\t0\t0\t0")
        };
        let [none, all] = [[0; 4], [255; 4]];
        let direct = direct_v4(&line([93, 184, 216, 0], none, "0001", [255, 255, 255, 0])).expect("direct");
        assert!(direct.contains("93.184.216.34".parse().expect("address")));
        assert!(!direct.contains("93.184.217.34".parse().expect("address")));
        for other in [
            line(none, [10, 0, 0, 1], "0003", none),
            line(none, none, "0001", none),
            line([8, 8, 8, 8], [10, 0, 0, 1], "0007", all),
            line([8, 8, 8, 8], none, "0205", all),
            "Iface\tDestination\tGateway \tFlags".to_owned(),
        ] {
            assert_eq!(direct_v4(&other), None, "{other}");
        }
    }

    #[test]
    fn networks_of_version_6_without_a_gateway_are_near() {
        let line = |to: &str, len: &str, hop: &str, flags: &str| {
            format!("{to} {len} {} 00 {hop} 00000100 00000001 00000000 {flags}     eth0", "0".repeat(32))
        };
        let (to, none) = ("2a001450000100000000000000000000", "0".repeat(32));
        let direct = direct_v6(&line(to, "40", &none, "00000001")).expect("direct");
        assert!(direct.contains("2a00:1450:1::2".parse().expect("address")));
        assert!(!direct.contains("2a00:1450:2::2".parse().expect("address")));
        let hop = "fe800000000000000000000000000001";
        for other in [
            line(to, "40", hop, "00000003"),
            line(&none, "00", hop, "00000003"),
            line(&none, "00", &none, "00200200"),
            line(&none, "00", &none, "00000001"),
        ] {
            assert_eq!(direct_v6(&other), None, "{other}");
        }
    }
}
