//! Which host an image is pulled from. A registry is a host like others that inputs come from: the operator's rules decide, before
//! the engine is told to ask there. The engine looks the name up itself, and follows a registry that sends it on.

use std::net::IpAddr;

use sinew_crdt_state::error_code::ErrorCode;

use crate::exec::outcome::Failure;
use crate::gather::Hosts;

/// What names without a registry mean, and who answers for it.
const DEFAULT: &str = "docker.io";
const DEFAULT_SERVER: &str = "registry-1.docker.io";
/// Where a registry is asked if its name has no port.
const HTTPS: u16 = 443;

/// A registry's host and port.
#[derive(Debug, PartialEq, Eq)]
struct Registry {
    host: String,
    port: u16,
}

/// The registry in `[HOST[:PORT]/]PATH@DIGEST`; `None` where what stands for one is none.
fn registry_of(reference: &str) -> Option<Registry> {
    let default = || Registry { host: DEFAULT.to_owned(), port: HTTPS };
    let Some((first, _)) = reference.split_once('/') else { return Some(default()) };
    // As engines read it: anything else is the first part of a path.
    let is_host = first == "localhost" || first.contains(['.', ':']) || first.chars().any(char::is_uppercase);
    if !is_host {
        return Some(default());
    }
    let (host, port) = match first.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (first, HTTPS),
    };
    let host = host.trim_matches(['[', ']']);
    (!host.is_empty()).then(|| Registry { host: host.to_owned(), port })
}

/// Whether this node's engine may be told to pull an image.
///
/// # Errors
/// `E_DENY`, naming the registry; `E_FETCH` where its name is not found; `E_INVALID` where the reference names none.
pub(super) async fn check(hosts: &Hosts, reference: &str) -> Result<(), Failure> {
    let none = || Failure::new(ErrorCode::Invalid, format!("the image {reference} names no registry")).for_good();
    let Registry { host, port } = registry_of(reference).ok_or_else(none)?;
    let server = if host == DEFAULT { DEFAULT_SERVER } else { &host };
    if hosts.names(&host) || hosts.names(server) {
        return Ok(());
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return if hosts.allows(&host, address) { Ok(()) } else { Err(hosts.denied(&host)) };
    }
    if !hosts.may_allow(server) {
        return Err(hosts.denied(&host));
    }
    // The engine may take any of them.
    let found = hosts.resolve_all(server, port).await?;
    if found.iter().all(|address| hosts.allows(server, address.ip())) { Ok(()) } else { Err(hosts.denied(&host)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_of_an_image_is_what_engines_take_for_it() {
        for (reference, host, port) in [
            ("busybox@sha256:ab", DEFAULT, 443),
            ("library/busybox@sha256:ab", DEFAULT, 443),
            ("ghcr.io/team/app@sha256:ab", "ghcr.io", 443),
            ("localhost/app@sha256:ab", "localhost", 443),
            ("127.0.0.1:5000/x/y@sha256:ab", "127.0.0.1", 5_000),
            ("[::1]:5000/x@sha256:ab", "::1", 5_000),
            ("[fd00::7]/x@sha256:ab", "fd00::7", 443),
            ("HOST/x@sha256:ab", "HOST", 443),
        ] {
            assert_eq!(registry_of(reference), Some(Registry { host: host.to_owned(), port }), "{reference}");
        }
        for none in ["host:port/x@sha256:ab", ":5000/x@sha256:ab"] {
            assert_eq!(registry_of(none), None, "{none}");
        }
    }

    #[tokio::test]
    async fn registries_inside_are_refused_unless_they_are_named() {
        let hosts = |rules: &[&str]| {
            Hosts::parse(&rules.iter().map(|rule| (*rule).to_owned()).collect::<Vec<_>>()).expect("rules")
        };
        let inside = [
            "127.0.0.1:5000/x@sha256:ab",
            "localhost:5000/x@sha256:ab",
            "[::1]:5000/x@sha256:ab",
            "10.0.0.7/x@sha256:ab",
        ];
        for reference in inside {
            let denied = check(&hosts(&["*"]), reference).await.expect_err(reference);
            assert!(denied.code == ErrorCode::Deny && denied.message.contains("gather_hosts"), "{denied:?}");
        }
        for (rule, reference) in ["127.0.0.1", "localhost", "::1", "10.0.0.7"].into_iter().zip(inside) {
            assert_eq!(check(&hosts(&[rule]), reference).await, Ok(()), "{rule}");
        }
        for (rule, reference) in [("docker.io", "busybox@sha256:ab"), ("registry-1.docker.io", "a/b@sha256:ab")] {
            assert_eq!(check(&hosts(&[rule]), reference).await, Ok(()), "{rule}");
        }
        for reference in ["busybox@sha256:ab", "ghcr.io/a/b@sha256:ab"] {
            let denied = check(&hosts(&["only.example.org"]), reference).await.expect_err(reference);
            assert_eq!(denied.code, ErrorCode::Deny);
        }
    }
}
