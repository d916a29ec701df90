//! How a daemon is, line by line.

use super::super::human::{clean, cores, cut, size, span};
use super::super::table::WIDTH;
use crate::api::{StatusView, TrafficView};

/// Width of the words on the left.
const LABEL_WIDTH: usize = 10;

/// A daemon and its node.
pub(crate) fn status(view: &StatusView) -> String {
    let (cpu, memory) = (view.cpu_milli, view.memory_bytes);
    let sound = view.sandbox_missing.is_empty() && view.sandbox_refusal.is_none();
    let mut lines = vec![
        ("node", view.node.to_string()),
        ("mesh", format!("{} ({})", view.mesh, view.mesh_name)),
        ("roles", view.roles.clone()),
        ("daemon", format!("sinew {}, process {}, up {}", view.version, view.pid, span(view.uptime_ms))),
        ("listens", view.listen.join(" ")),
        ("peers", format!("{} connected; reachable from outside: {}", view.peers, view.nat)),
        ("cpu", format!("{} of {} cores free", cores(cpu.1), cores(cpu.0))),
        ("memory", format!("{} of {} free", size(memory.1), size(memory.0))),
        ("disk", disk(view)),
        ("work", format!("{} tasks running here, {} jobs led", view.tasks_running, view.jobs_led)),
        ("ledger", format!("{} live and {} sealed entries", view.ledger_entries.0, view.ledger_entries.1)),
        ("root", view.ledger_root.clone()),
        ("blobs", format!("{}, {}", view.blobs.0, size(view.blobs.1))),
        ("traffic", traffic(&view.traffic)),
        (if sound { "sandbox" } else { "SANDBOX" }, sandbox(view)),
        ("runners", runners(view)),
    ];
    if !view.refused.is_empty() {
        let refused: Vec<String> = view.refused.iter().map(|(why, count)| format!("{why} {count}")).collect();
        lines.push(("refused", refused.join(", ")));
    }
    if let Some(problem) = &view.storage_problem {
        lines.push(("STORAGE", problem.clone()));
    }
    if let Some(remark) = &view.storage_remark {
        lines.push(("storage", remark.clone()));
    }
    lines.iter().map(|(label, text)| field(label, text)).collect()
}

fn disk(view: &StatusView) -> String {
    let free = format!("{} of {} free to reserve", size(view.disk_bytes.1), size(view.disk_bytes.0));
    view.output_bytes_max.map_or_else(|| free.clone(), |most| format!("{free}; a task writes {} at most", size(most)))
}

fn sandbox(view: &StatusView) -> String {
    match (&view.sandbox_refusal, &view.sandbox_missing[..]) {
        (Some(why), _) => format!("{}; no program runs here: {why}", view.sandbox),
        (None, []) => format!("{}, complete", view.sandbox),
        (None, missing) => format!("{}; missing: {}", view.sandbox, missing.join("; ")),
    }
}

fn runners(view: &StatusView) -> String {
    let one = |(name, why): &(String, Option<String>)| match why {
        None => name.clone(),
        Some(why) => format!("{name}: not here, {}", clean(why)),
    };
    view.runners.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn traffic(view: &TrafficView) -> String {
    let (c, b) = (&view.control, &view.bulk);
    let sent = format!("{} frames sent ({})", c.sent + b.sent, size(c.sent_bytes + b.sent_bytes));
    let received = format!("{} received ({})", c.received + b.received, size(c.received_bytes + b.received_bytes));
    let (published, heard, copies) = (view.gossip_published, view.gossip_heard, view.gossip_copies);
    format!("{sent}, {received}; gossip: {published} messages published, {heard} heard in {copies} copies")
}

/// `label     text`, the text going on under itself where it is too long.
pub(super) fn field(label: &str, text: &str) -> String {
    let mut out = String::new();
    let mut line = format!("{label:<LABEL_WIDTH$}");
    let mut fresh = true;
    for word in clean(text).split(' ') {
        if !fresh && line.chars().count() + 1 + word.chars().count() > WIDTH {
            out += &format!("{line}\n");
            (line, fresh) = (" ".repeat(LABEL_WIDTH), true);
        }
        if !fresh {
            line.push(' ');
        }
        // A word longer than a line cannot be helped: addresses and ids are not broken, the rest is.
        line += &cut(word, WIDTH - LABEL_WIDTH);
        fresh = false;
    }
    out + &line + "\n"
}

#[cfg(test)]
mod tests {
    use sinew_crdt_state::ids::{MeshId, NodeId};

    use super::super::testing::assert_narrow;
    use super::*;
    use crate::api::FramesView;

    #[test]
    fn status_says_it_all_in_80_columns() {
        let view = StatusView {
            node: NodeId([1; 32]),
            mesh: MeshId([2; 32]),
            mesh_name: "lab".into(),
            roles: "run,submit,admin".into(),
            version: "0.1.0".into(),
            pid: 4242,
            uptime_ms: 11_520_000,
            listen: vec![
                "/ip4/192.168.1.4/tcp/9000".into(),
                "/ip4/192.168.1.4/udp/9000/quic-v1".into(),
                "/ip4/127.0.0.1/tcp/9000".into(),
            ],
            peers: 2,
            cpu_milli: (8_000, 6_500),
            memory_bytes: (16 << 30, 12 << 30),
            disk_bytes: (200 << 30, 150 << 30),
            output_bytes_max: Some(1 << 30),
            tasks_running: 3,
            jobs_led: 1,
            ledger_entries: (4, 120),
            ledger_root: "00ff".into(),
            blobs: (17, 3 << 30),
            storage_problem: Some("no space left on device".into()),
            storage_remark: None,
            sandbox: "best-effort".into(),
            sandbox_missing: vec!["landlock (this kernel does not have it)".into()],
            sandbox_refusal: None,
            runners: vec![("process".into(), None), ("docker".into(), Some("no engine answers".into()))],
            refused: vec![("expired".into(), 2)],
            nat: "unknown".into(),
            traffic: TrafficView {
                control: FramesView { sent: 70_000, sent_bytes: 1 << 20, received: 69_998, received_bytes: 1 << 20 },
                bulk: FramesView { sent: 5_000, sent_bytes: 2 << 20, received: 4_000, received_bytes: 1 << 20 },
                messages_sent: 90_000,
                gossip_published: 17,
                gossip_heard: 400,
                gossip_copies: 1_200,
                gossip_copies_bytes: 300_000,
                gossip_peers: 4,
            },
        };
        let text = status(&view);
        assert_narrow(&text);
        assert_eq!(
            text,
            "\
node      aeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaq
mesh      aibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaiba (lab)
roles     run,submit,admin
daemon    sinew 0.1.0, process 4242, up 3h12m
listens   /ip4/192.168.1.4/tcp/9000 /ip4/192.168.1.4/udp/9000/quic-v1
          /ip4/127.0.0.1/tcp/9000
peers     2 connected; reachable from outside: unknown
cpu       6.5 of 8 cores free
memory    12GiB of 16GiB free
disk      150GiB of 200GiB free to reserve; a task writes 1GiB at most
work      3 tasks running here, 1 jobs led
ledger    4 live and 120 sealed entries
root      00ff
blobs     17, 3GiB
traffic   75000 frames sent (3MiB), 73998 received (2MiB); gossip: 17 messages
          published, 400 heard in 1200 copies
SANDBOX   best-effort; missing: landlock (this kernel does not have it)
runners   process; docker: not here, no engine answers
refused   expired 2
STORAGE   no space left on device
"
        );
    }
}
