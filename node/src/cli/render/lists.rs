//! Peers, jobs, blobs and files, one a row.

use std::path::PathBuf;

use sinew_crdt_state::ids::Hash;

use super::super::human::{clean, cores, cut, micros, percent, plural, size, span};
use super::super::table::{Column, Table, WIDTH};
use crate::api::{JobLine, PeerView};
use crate::prune::Leftover;
use crate::secrets::store::SecretView;

/// The nodes of the mesh. With `verbose`, a second line each: what it is, and its labels.
pub(crate) fn peers(peers: &[PeerView], verbose: bool) -> String {
    let mut table = Table::new([
        Column::Left("NODE"),
        Column::Left("STATE"),
        Column::Left("ROLES"),
        Column::Right("CPU"),
        Column::Right("MEM"),
        Column::Right("RTT"),
        Column::Cut("AT"),
    ]);
    for peer in peers {
        let own = if peer.own { "*" } else { "" };
        table.row([
            format!("{}{own}", peer.node.short()),
            clean(&peer.state),
            role_letters(&peer.roles),
            peer.cpu_milli.map_or_else(dash, |(all, free)| format!("{}/{}", cores(free), cores(all))),
            peer.memory_bytes.map_or_else(dash, |(all, free)| format!("{}/{}", size(free), size(all))),
            peer.rtt_us.map_or_else(dash, micros),
            address(peer),
        ]);
    }
    let text = table.render(WIDTH);
    let mut out = String::new();
    for (i, line) in text.lines().enumerate() {
        out += &format!("{line}\n");
        if let Some(peer) = i.checked_sub(1).and_then(|i| peers.get(i)).filter(|_| verbose) {
            let labels = if peer.labels.is_empty() { "no labels".to_owned() } else { peer.labels.join(" ") };
            let runners = if peer.runners.is_empty() { "nothing" } else { &peer.runners };
            let more = format!("  {}; runs {runners}; {labels}; {} offences", clean(&peer.about), peer.offences);
            out += &format!("{}\n", cut(&clean(&more), WIDTH));
        }
    }
    out + "* this node. CPU and MEM: free/all. Roles: r run, s submit, a admin.\n"
}

/// The secrets of this node, without their values.
pub(crate) fn secrets(secrets: &[SecretView], now_ms: u64) -> String {
    if secrets.is_empty() {
        return "no secrets; `sinew secret set NAME` keeps one\n".to_owned();
    }
    let mut table = Table::new([Column::Cut("NAME"), Column::Right("SIZE"), Column::Left("SET")]);
    for secret in secrets {
        let age = format!("{} ago", span(now_ms.saturating_sub(secret.set_ms)));
        table.row([clean(&secret.name), size(secret.size), age]);
    }
    table.render(WIDTH)
}

fn dash() -> String {
    "-".to_owned()
}

fn role_letters(roles: &str) -> String {
    let letters: String = roles.split(',').filter_map(|role| role.trim().chars().next()).collect();
    if letters.is_empty() { dash() } else { clean(&letters) }
}

/// Where a peer was reached, as people write it: `192.168.1.4:9000 quic`.
fn address(peer: &PeerView) -> String {
    if peer.own {
        return dash();
    }
    let Some(address) = &peer.address else {
        return if peer.connected { dash() } else { "not connected".to_owned() };
    };
    // The daemon says it as `MULTIADDR (TRANSPORT)`.
    let (address, how) = match address.split_once(" (") {
        Some((address, how)) => (address, how.trim_end_matches(')')),
        None => (address.as_str(), if address.contains("p2p-circuit") { "relay" } else { "" }),
    };
    let parts: Vec<&str> = address.split('/').collect();
    let host = parts.iter().position(|p| p.starts_with("ip") || p.starts_with("dns")).and_then(|i| parts.get(i + 1));
    let port = parts.iter().position(|p| matches!(*p, "tcp" | "udp")).and_then(|i| parts.get(i + 1));
    match (host, port) {
        // An IPv6 address has colons of its own.
        (Some(host), Some(port)) if host.contains(':') => clean(&format!("[{host}]:{port} {how}")),
        (Some(host), Some(port)) => clean(&format!("{host}:{port} {how}")),
        _ => clean(address),
    }
}

/// Jobs, as they come.
pub(crate) fn jobs(jobs: &[JobLine], now_ms: u64) -> String {
    if jobs.is_empty() {
        return "no jobs\n".to_owned();
    }
    let mut table = Table::new([
        Column::Left("JOB"),
        Column::Cut("NAME"),
        Column::Left("KIND"),
        Column::Left("STATE"),
        Column::Right("TASKS"),
        Column::Right("DONE"),
        Column::Right("AGE"),
        Column::Left("BY"),
    ]);
    for job in jobs {
        let (done, all) = job.tasks;
        table.row([
            job.id.short(),
            clean(&job.name),
            clean(&job.kind).replace('_', "-"),
            clean(&job.status),
            all.to_string(),
            percent(done, all),
            span(now_ms.saturating_sub(job.submitted_ms)),
            job.submitter.short(),
        ]);
    }
    table.render(WIDTH)
}

/// The blobs on this node: those with names, and with `verbose` all. A hash is never cut: it is what other commands ask for.
pub(crate) fn blobs(blobs: &[(Hash, u64, Vec<String>)], verbose: bool) -> String {
    let mut table = Table::new([Column::Left("HASH"), Column::Right("SIZE"), Column::Cut("NAMES")]);
    let (shown, others): (Vec<_>, Vec<_>) = blobs.iter().partition(|(_, _, tags)| verbose || !tags.is_empty());
    for (hash, bytes, tags) in &shown {
        table.row([hash.to_string(), size(*bytes), clean(&tags.join(" "))]);
    }
    let mut out = if shown.is_empty() { String::new() } else { table.render(WIDTH) };
    if !others.is_empty() {
        let bytes = others.iter().map(|(_, size, _)| size).sum();
        out += &format!("{} without a name, {}: -v\n", others.len(), size(bytes));
    }
    if blobs.is_empty() { "no blobs\n".to_owned() } else { out }
}

/// What was removed, or would be.
pub(crate) fn pruned(items: &[Leftover], dry_run: bool) -> String {
    if items.is_empty() {
        return "nothing to remove\n".to_owned();
    }
    let mut table = Table::new([Column::Left("KIND"), Column::Left("NAME"), Column::Right("SIZE")]);
    for item in items {
        table.row([clean(&item.kind), clean(&item.name), item.bytes.map_or_else(|| "-".to_owned(), size)]);
    }
    let end = if dry_run { "Nothing was removed: leave out --dry-run.\n" } else { "" };
    table.render(WIDTH) + end
}

/// Files that were written, in one sentence.
pub(crate) fn files(files: &[(PathBuf, u64)], out: &str) -> String {
    let bytes = files.iter().map(|(_, size)| size).sum();
    format!("{} file{}, {} in {out}", files.len(), plural(files.len()), size(bytes))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_narrow, job_line, peer};
    use super::*;

    #[test]
    fn peers_fit_and_show_how_they_are_reached() {
        let mut all = vec![peer(1, true), peer(2, false), peer(3, false), peer(4, false)];
        all[1].address = Some("/ip4/192.168.1.104/udp/9000/quic-v1 (quic)".into());
        all[2].address = Some("/ip6/fe80::1234:5678:9abc:def0/tcp/49152 (tcp)".into());
        all[3] = PeerView {
            state: "lost".into(),
            connected: false,
            address: None,
            cpu_milli: None,
            rtt_us: None,
            ..peer(4, false)
        };
        let text = peers(&all, false);
        assert_narrow(&text);
        assert_eq!(
            text,
            "\
NODE         STATE    ROLES    CPU          MEM    RTT  AT
aeaqcaibae*  healthy  rsa    3.5/4  1.5GiB/8GiB      -  -
aibaeaqcai   healthy  rs     3.5/4  1.5GiB/8GiB  1.2ms  192.168.1.104:9000 quic
ambqgaydam   healthy  rs     3.5/4  1.5GiB/8GiB  1.2ms  [fe80::1234:5678:9abc:d…
aqcaibaeaq   lost     rs         -  1.5GiB/8GiB      -  not connected
* this node. CPU and MEM: free/all. Roles: r run, s submit, a admin.
"
        );
    }

    #[test]
    fn verbose_peers_have_a_second_line_each() {
        let mut one = peer(2, false);
        one.about = "host\x1b[31m linux x86_64 0.1.0".into();
        one.labels = vec!["zone=a".repeat(40)];
        let text = peers(&[one], true);
        assert_narrow(&text);
        assert!(text.contains("\n  host\\u{1b}[31m linux x86_64 0.1.0; runs process; zone=a"), "{text}");
    }

    #[test]
    fn jobs_fit_whatever_they_are_called() {
        let mut long = job_line(2, "completed");
        long.name = "a name of the longest kind ".repeat(4);
        long.kind = "map_reduce".into();
        long.tasks = (99_999_999, 100_000_000);
        let text = jobs(&[job_line(1, "running"), long], 1_785_499_203_000);
        assert_narrow(&text);
        assert_eq!(
            text,
            "\
JOB         NAME         KIND        STATE          TASKS  DONE  AGE  BY
aeaqcaibae  count        batch       running           10   40%  34s  a4dqobyha4
aibaeaqcai  a name of …  map-reduce  completed  100000000   99%  34s  a4dqobyha4
"
        );
        assert_eq!(jobs(&[], 0), "no jobs\n");
    }

    #[test]
    fn blobs_keep_their_hashes_whole() {
        let hash = Hash([9; 32]);
        let named = (hash, 3 << 20, vec!["model".into(), "a-name-that-takes-its-room".into()]);
        let all = [named, (Hash([8; 32]), 1_024, Vec::new())];
        let text = blobs(&all, false);
        assert_narrow(&text);
        assert!(text.contains(&hash.to_string()) && text.ends_with("\n1 without a name, 1KiB: -v\n"), "{text}");
        assert!(blobs(&all, true).contains(&Hash([8; 32]).to_string()));
        assert_eq!(blobs(&[], false), "no blobs\n");
        assert_eq!(files(&[("a".into(), 1 << 20)], "out"), "1 file, 1MiB in out");
    }
}
