//! Which hosts a job's programs may talk to. None by default; otherwise exact names, each with its ports. A policy is part of
//! the signed spec, and each node that runs the job enforces it, if its operator lets jobs reach those hosts at all.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Most hosts of one job: each has an address of its own in every sandbox of it.
pub const HOSTS_MAX: usize = 32;
/// Most pairs of host and port: each is a listening socket in every sandbox of the job.
pub const ENDPOINTS_MAX: usize = 64;
/// The ports of a host that is named without one: HTTP and HTTPS.
pub const PORTS_DEFAULT: [u16; 2] = [80, 443];
/// Longest name of a host, as the domain name system has it.
const NAME_LEN_MAX: usize = 253;
/// Longest part of one.
const LABEL_LEN_MAX: usize = 63;

/// What is wrong with a policy, and its mend.
pub type Wrong = (&'static str, &'static str);

/// The hosts that programs of a job may connect to, over TCP. Names are in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Network {
    hosts: BTreeMap<String, BTreeSet<u16>>,
}

/// No network.
pub static NO_NETWORK: Network = Network { hosts: BTreeMap::new() };

impl Network {
    /// Whether nothing may be reached.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.hosts.is_empty()
    }

    /// Each host with its ports, in order.
    pub fn hosts(&self) -> impl Iterator<Item = (&str, &BTreeSet<u16>)> {
        self.hosts.iter().map(|(name, ports)| (name.as_str(), ports))
    }

    /// Each pair of host and port, in order.
    pub fn endpoints(&self) -> impl Iterator<Item = (&str, u16)> {
        self.hosts().flat_map(|(name, ports)| ports.iter().map(move |port| (name, *port)))
    }

    /// Adds `NAME` or `NAME:PORT`.
    ///
    /// # Errors
    /// What is wrong with it, and what would be right.
    pub fn allow(&mut self, text: &str) -> Result<(), Wrong> {
        let (name, port) = match text.rsplit_once(':') {
            // More than one colon is an IPv6 address, which has its own complaint.
            Some((name, port)) if !name.contains(':') => (name, Some(read_port(port)?)),
            _ => (text, None),
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        check_name(&name)?;
        let ports = self.hosts.entry(name).or_default();
        match port {
            Some(port) => ports.extend([port]),
            None => ports.extend(PORTS_DEFAULT),
        }
        Ok(())
    }

    /// What is wrong with it, whoever made it.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn check(&self) -> Result<(), Wrong> {
        if self.hosts.len() > HOSTS_MAX {
            return Err(("more than 32 hosts", "name at most 32, or reach the others through one of them"));
        }
        if self.endpoints().count() > ENDPOINTS_MAX {
            return Err(("more than 64 pairs of host and port", "name fewer ports"));
        }
        for (name, ports) in &self.hosts {
            check_name(name)?;
            if name.bytes().any(|c| c.is_ascii_uppercase()) {
                return Err(("a host's name is not in lower case", "write it in lower case"));
            }
            if ports.is_empty() || ports.contains(&0) {
                return Err(PORT);
            }
        }
        Ok(())
    }
}

const PORT: Wrong = ("not a port", "write HOST:PORT with a port from 1 to 65535, or HOST alone for 80 and 443");
const MEND_NAME: &str = "write a name such as pypi.org or db.example.org:5432";

fn read_port(text: &str) -> Result<u16, Wrong> {
    let plain = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    text.parse().ok().filter(|port| plain && *port != 0).ok_or(PORT)
}

/// A name that a hosts file can have, and that no C library takes for an address or for this machine.
fn check_name(name: &str) -> Result<(), Wrong> {
    if name.contains('*') {
        let mend = "name each host: a program finds a host by its exact name, and there is no list of all below one";
        return Err(("a pattern of hosts", mend));
    }
    if name.contains("//") {
        return Err(("an address of a page", "write the host's name alone, such as pypi.org"));
    }
    if name == "mesh" {
        let mend = "name hosts: services of the mesh, for which this word is kept, are not available in this version";
        return Err(("`mesh` is no host", mend));
    }
    if name == "none" {
        return Err(("`none` is no host", "write network = \"none\", without brackets, or leave it out"));
    }
    if matches!(name, "localhost" | "cell") || name.ends_with(".localhost") {
        return Err(("the program's own machine", "leave it out: programs of a task reach each other there anyway"));
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_number = |text: &str| {
        text.bytes().all(|c| c.is_ascii_digit())
            || text.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|c| c.is_ascii_hexdigit()))
    };
    if name.contains([':', '[']) || !last.is_empty() && is_number(last) {
        let mend = "write the host's name: an operator can give an address one, with job_hosts = [\"NAME=ADDRESS\"]";
        return Err(("an address and not a name", mend));
    }
    if !name.is_ascii() {
        return Err(("a name with letters beyond ASCII", "write its xn-- form"));
    }
    let label = |label: &str| {
        (1..=LABEL_LEN_MAX).contains(&label.len())
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > NAME_LEN_MAX || !name.split('.').all(label) {
        return Err(("not a host's name", MEND_NAME));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(hosts: &[&str]) -> Result<Network, Wrong> {
        let mut network = Network::default();
        hosts.iter().try_for_each(|host| network.allow(host))?;
        network.check().map(|()| network)
    }

    #[test]
    fn hosts_have_the_ports_named_or_those_of_the_web() {
        let network = network(&["PyPI.org", "db.example.org:5432", "db.example.org:6432", "pypi.org.:8080", "a_b"]);
        let network = network.expect("policy");
        let ports: Vec<(&str, Vec<u16>)> = network.hosts().map(|(n, p)| (n, p.iter().copied().collect())).collect();
        let expected =
            [("a_b", vec![80, 443]), ("db.example.org", vec![5_432, 6_432]), ("pypi.org", vec![80, 443, 8_080])];
        assert_eq!(ports, expected);
        assert_eq!(network.endpoints().count(), 7);
        assert!(NO_NETWORK.is_none() && !network.is_none());
    }

    #[test]
    fn what_is_no_host_is_refused_with_its_mend() {
        for (wrong, word) in [
            ("*.example.org", "exact name"),
            ("*", "exact name"),
            ("mesh", "not available"),
            ("none", "brackets"),
            ("localhost", "anyway"),
            ("a.localhost:80", "anyway"),
            ("10.0.0.1", "job_hosts"),
            ("0x7f.1", "job_hosts"),
            ("2130706433:80", "job_hosts"),
            ("0x7f000001", "job_hosts"),
            ("::1", "job_hosts"),
            ("[::1]:80", "job_hosts"),
            ("https://pypi.org", "alone"),
            ("a:0", "65535"),
            ("a:65536", "65535"),
            ("a:+1", "65535"),
            ("a:", "65535"),
            ("", "pypi.org"),
            ("a..b", "pypi.org"),
            ("a b", "pypi.org"),
            ("a\n127.0.0.1 b", "pypi.org"),
            ("-a", "pypi.org"),
            ("bücher.example", "xn--"),
        ] {
            assert!(network(&[wrong]).is_err_and(|(_, mend)| mend.contains(word)), "{wrong}: {:?}", network(&[wrong]));
        }
        let long = format!("{}.example", "x".repeat(64));
        assert!(network(&[&long]).is_err() && network(&[&long[1..]]).is_ok());
    }

    #[test]
    fn a_policy_has_its_bounds() {
        let many = |n: usize| (0..n).map(|i| format!("h{i}.example")).collect::<Vec<_>>();
        let of = |hosts: &[String]| network(&hosts.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(of(&many(32)).is_ok() && of(&many(33)).is_err());
        let ports: Vec<String> = (1..=65).map(|port| format!("h.example:{port}")).collect();
        assert!(of(&ports[..64]).is_ok() && of(&ports).is_err());
        // What a peer may have signed without this reader.
        for bad in [r#"{"a":[]}"#, r#"{"a":[0]}"#, r#"{"A":[80]}"#, r#"{"10.0.0.1":[80]}"#, r#"{"a\nb":[80]}"#] {
            let network: Network = serde_json::from_str(bad).expect("json");
            assert!(network.check().is_err(), "{bad}");
        }
    }
}
