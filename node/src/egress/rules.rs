//! Which hosts jobs may reach, as the operator says.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::network::Network;

use super::cannot;
use crate::exec::outcome::Failure;
use crate::gather::{BadHostRule, Hosts};

/// Rules for the hosts of jobs: those of [`Hosts`], and `NAME=ADDRESS`, which allows a name and says where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    hosts: Hosts,
    placed: BTreeMap<String, IpAddr>,
    is_none: bool,
}

impl Rules {
    /// From what an operator wrote.
    ///
    /// # Errors
    /// The first rule that is none. An address alone is none: jobs name hosts, and no address.
    pub fn parse(rules: &[String]) -> Result<Self, BadHostRule> {
        let mut placed = BTreeMap::new();
        let mut plain = Vec::new();
        for rule in rules {
            let bad = || BadHostRule(rule.clone());
            match rule.split_once('=') {
                Some((name, address)) => {
                    let mut network = Network::default();
                    // Without a port: it is the name that is checked.
                    let named = !name.contains(':') && network.allow(name).is_ok();
                    let name = network.hosts().next().map(|(name, _)| name.to_owned()).filter(|_| named);
                    placed.insert(name.ok_or_else(bad)?, address.parse().map_err(|_| bad())?);
                }
                None if rule.parse::<IpAddr>().is_ok() => return Err(bad()),
                None => plain.push(rule.clone()),
            }
        }
        Ok(Self { hosts: Hosts::parse(&plain)?, placed, is_none: rules.is_empty() })
    }

    /// Whether no host at all may be reached.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.is_none
    }

    /// Whether `host` may be reached, as far as its name says.
    pub(super) fn check(&self, host: &str) -> Result<(), Failure> {
        if self.placed.contains_key(host) || self.hosts.may_allow(host) { Ok(()) } else { Err(denied(host, "")) }
    }

    /// Where `host` may be reached.
    ///
    /// # Errors
    /// `E_FETCH` when it is not found, `E_DENY` when none of its addresses is allowed.
    pub(super) async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
        if let Some(address) = self.placed.get(host) {
            return Ok(vec![SocketAddr::new(*address, port)]);
        }
        self.check(host)?;
        let inside = || denied(host, " inside its own network");
        let found = self.hosts.resolve(host, port).await;
        found.map_err(|why| if why.code == ErrorCode::Deny { inside() } else { why })
    }
}

fn denied(host: &str, place: &str) -> Failure {
    let why = format!("this node lets no job reach `{host}`{place}: its operator can allow it with job_hosts");
    cannot(&why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(rules: &[&str]) -> Result<Rules, BadHostRule> {
        Rules::parse(&rules.iter().map(|rule| (*rule).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn rules_name_hosts_or_say_where_they_are() {
        let some = rules(&["*.example.org", "DB.lab=10.0.0.7", "v6.lab=fd00::7"]).expect("rules");
        assert!(some.check("a.example.org").is_ok() && some.check("db.lab").is_ok() && !some.is_none());
        let denied = some.check("example.org").expect_err("not named");
        assert!(denied.code == ErrorCode::Deny && denied.retryable, "{denied:?}");
        assert!(denied.message.contains("example.org") && denied.message.contains("job_hosts"), "{denied:?}");
        assert!(rules(&["*"]).expect("rules").check("anything.example").is_ok());
        let none = rules(&[]).expect("rules");
        assert!(none.is_none() && none.check("pypi.org").is_err());
        for wrong in
            ["10.0.0.7", "::1", "a=b", "a=", "=1.2.3.4", "a:80=1.2.3.4", "*.a=1.2.3.4", "10.0.0.1=1.2.3.4", "a b"]
        {
            assert_eq!(rules(&[wrong]), Err(BadHostRule(wrong.to_owned())), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_inside_is_refused_unless_it_is_named() {
        let any = rules(&["*"]).expect("rules");
        let denied = any.addresses("localhost", 80).await.expect_err("this machine");
        assert!(denied.code == ErrorCode::Deny && denied.message.contains("job_hosts"), "{denied:?}");
        let named = rules(&["localhost", "there.lab=127.0.0.9"]).expect("rules");
        assert!(!named.addresses("localhost", 80).await.expect("named").is_empty());
        let there: SocketAddr = "127.0.0.9:80".parse().expect("address");
        assert_eq!(named.addresses("there.lab", 80).await, Ok(vec![there]));
    }
}
