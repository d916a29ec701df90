//! Which hosts inputs may come from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sinew_crdt_state::error_code::ErrorCode;
use url::{Host, Url};

use super::near::is_near;
use crate::exec::outcome::Failure;

/// Rules for hosts. A host that is named may have any address; with `*` it must have public ones that are neither this machine's
/// nor of a network that it is in, so that a job cannot reach what only this node and its neighbours should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts {
    any_public: bool,
    /// Host names or addresses.
    exact: Vec<String>,
    /// Everything below these.
    below: Vec<String>,
}

/// A rule that says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no host: write a name such as data.example.org, *.example.org for all below it, an address, or * for all public hosts"
)]
pub struct BadHostRule(pub String);

impl Hosts {
    /// From what an operator wrote.
    ///
    /// # Errors
    /// The first rule that is none.
    pub fn parse(rules: &[String]) -> Result<Self, BadHostRule> {
        let mut hosts = Self { any_public: false, exact: Vec::new(), below: Vec::new() };
        for rule in rules {
            let bad = || BadHostRule(rule.clone());
            let plain = |name: &str| {
                if name.contains('*') {
                    return None;
                }
                let parsed = Host::parse(name).ok().or_else(|| name.parse().ok().map(Host::Ipv6));
                parsed.map(|host| host.to_string().trim_matches(['[', ']']).to_owned())
            };
            match rule.strip_prefix("*.") {
                _ if rule == "*" => hosts.any_public = true,
                Some(name) => hosts.below.push(plain(name).ok_or_else(bad)?),
                None => hosts.exact.push(plain(rule).ok_or_else(bad)?),
            }
        }
        Ok(hosts)
    }

    /// Whether `host` is named, so that it may have any address.
    pub(crate) fn names(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let is_below = |name: &String| host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
        self.exact.contains(&host) || self.below.iter().any(is_below)
    }

    /// Whether `address` of `host` may be talked to.
    #[must_use]
    pub fn allows(&self, host: &str, address: IpAddr) -> bool {
        self.names(host) || (self.any_public && is_public(address) && !is_near(address))
    }

    /// Whether `host` may be talked to if it has an address that may.
    pub(crate) fn may_allow(&self, host: &str) -> bool {
        self.any_public || self.names(host)
    }

    /// Whether anything may be fetched from `url`, as far as it says itself.
    ///
    /// # Errors
    /// `E_DENY`, naming the host.
    pub fn check(&self, url: &Url) -> Result<(), Failure> {
        let (host, address) = match url.host() {
            Some(Host::Domain(name)) => (name.to_owned(), None),
            Some(Host::Ipv4(address)) => (address.to_string(), Some(IpAddr::V4(address))),
            Some(Host::Ipv6(address)) => (address.to_string(), Some(IpAddr::V6(address))),
            None => return Err(Failure::new(ErrorCode::Invalid, format!("`{url}` names no host")).for_good()),
        };
        let allowed = match address {
            Some(address) => self.allows(&host, address),
            None => self.may_allow(&host),
        };
        if allowed { Ok(()) } else { Err(self.denied(&host)) }
    }

    /// The addresses of `host` that may be talked to.
    ///
    /// # Errors
    /// `E_FETCH` when it has none, `E_DENY` when none of them is allowed.
    pub async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
        let mut allowed = self.resolve_all(host, port).await?;
        allowed.retain(|address| self.allows(host, address.ip()));
        if allowed.is_empty() { Err(self.denied(host)) } else { Ok(allowed) }
    }

    /// The addresses of `host`, whatever is allowed.
    ///
    /// # Errors
    /// `E_FETCH` when it has none.
    pub(crate) async fn resolve_all(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
        let found = tokio::net::lookup_host((host, port)).await;
        let found = found.map_err(|e| Failure::new(ErrorCode::Fetch, format!("cannot find host `{host}`: {e}")))?;
        Ok(found.collect())
    }

    pub(crate) fn denied(&self, host: &str) -> Failure {
        let why = if self.any_public && !self.names(host) { " inside its own network" } else { "" };
        let message =
            format!("this node does not fetch from `{host}`{why}: its operator can allow it with gather_hosts");
        Failure::new(ErrorCode::Deny, message)
    }
}

/// Whether anybody on the Internet could talk to `address`: not this machine, not its network, nothing set aside.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let set_aside = a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (18..20).contains(&b));
    !(set_aside
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation())
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    if let Some(inside) = inside(address) {
        return is_public_v4(inside);
    }
    // Global unicast, less what is set aside in it: Teredo and other protocols' own, documentation.
    a & 0xe000 == 0x2000 && !(a == 0x2001 && (b < 0x200 || b == 0xdb8)) && !(a == 0x3fff && b < 0x1000)
}

/// The address that a mapped one, one of NAT64 or one of 6to4 leads to.
pub(super) fn inside(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let segments = address.segments();
    let [a, b, c, .., y, z] = segments;
    let embedded = |high: u16, low: u16| Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    if segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
        return embedded(y, z);
    }
    if a == 0x2002 { embedded(b, c) } else { address.to_ipv4_mapped() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(rules: &[&str]) -> Hosts {
        Hosts::parse(&rules.iter().map(|rule| (*rule).to_owned()).collect::<Vec<_>>()).expect("rules")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[test]
    fn by_default_nothing_inside_the_own_network_is_reached() {
        let any = hosts(&["*"]);
        for public in ["93.184.216.34", "1.1.1.1", "2606:4700::1111", "64:ff9b::101:101", "2002:101:101::1"] {
            assert!(any.allows("x.example", ip(public)), "{public}");
        }
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "192.0.0.8",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
        ] {
            assert!(!any.allows("x.example", ip(private)), "{private}");
        }
    }

    #[test]
    fn named_hosts_may_be_anywhere_and_others_nowhere() {
        let some = hosts(&["data.lab", "*.Example.org", "10.0.0.9", "fd00::7"]);
        assert!(some.allows("data.lab", ip("10.0.0.1")) && some.allows("DATA.lab.", ip("10.0.0.1")));
        assert!(some.allows("a.b.example.org", ip("1.1.1.1")) && !some.allows("example.org", ip("1.1.1.1")));
        assert!(!some.allows("badexample.org", ip("1.1.1.1")) && !some.allows("data.lab.evil", ip("1.1.1.1")));
        let check = |url: &str| some.check(&url.parse().expect("url")).map_err(|f| f.code);
        assert_eq!(check("http://10.0.0.9:80/x"), Ok(()));
        assert_eq!(check("http://[fd00::7]/x"), Ok(()));
        assert_eq!(check("http://10.0.0.8/x"), Err(ErrorCode::Deny));
        // The same address written otherwise is the same address.
        assert_eq!(
            hosts(&["*"]).check(&"http://0x7f.1/".parse().expect("url")).map_err(|f| f.code),
            Err(ErrorCode::Deny)
        );
        assert_eq!(
            hosts(&["*"]).check(&"http://2130706433/".parse().expect("url")).map_err(|f| f.code),
            Err(ErrorCode::Deny)
        );
        assert_eq!(
            hosts(&[]).check(&"http://example.org/".parse().expect("url")).map_err(|f| f.code),
            Err(ErrorCode::Deny)
        );
    }

    #[test]
    fn rules_that_say_nothing_are_named() {
        for wrong in ["", "a b", "http://x", "*.", "x/y", "*x"] {
            assert_eq!(Hosts::parse(&[wrong.to_owned()]), Err(BadHostRule(wrong.to_owned())), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn a_name_of_this_machine_is_found_out() {
        let denied = hosts(&["*"]).resolve("localhost", 80).await.map_err(|f| f.code);
        assert_eq!(denied, Err(ErrorCode::Deny));
        assert!(!hosts(&["localhost"]).resolve("localhost", 80).await.expect("addresses").is_empty());
    }
}
