//! Runs as a table, one line each. The columns' names do not change; `docs/simulator.md` says what they mean.

use sinew_scheduler::kind::Family;
use sinew_scheduler::time::Span;

use super::Report;
use super::report::{ms, percentile};
use crate::nemesis::Class;

type Cell = fn(&Report) -> String;

const FIRST: [(&str, Cell); 29] = [
    ("seed", |r| r.seed.to_string()),
    ("nodes", |r| r.nodes.to_string()),
    ("virtual_ms", |r| ms(r.virtual_time).to_string()),
    ("jobs_submitted", |r| r.jobs_submitted.to_string()),
    ("jobs_acknowledged", |r| r.jobs_acknowledged.to_string()),
    ("jobs_completed", |r| r.jobs_completed.to_string()),
    ("jobs_ended_otherwise", |r| r.jobs_ended_otherwise.to_string()),
    ("jobs_refused", |r| r.jobs_refused.to_string()),
    ("tasks_started", |r| r.tasks_started.to_string()),
    ("tasks_run_again", |r| r.tasks_run_again.to_string()),
    ("double_starts", |r| r.double_starts.to_string()),
    ("start_p50_ms", |r| time(&r.starts, 50)),
    ("start_p99_ms", |r| time(&r.starts, 99)),
    ("completion_p50_ms", |r| time(&r.completions, 50)),
    ("completion_p99_ms", |r| time(&r.completions, 99)),
    ("converged_ms", |r| ms(r.converged).to_string()),
    ("events", |r| r.events.to_string()),
    ("frames", |r| r.frames.to_string()),
    ("messages", |r| r.traffic.total().messages.to_string()),
    ("bytes", |r| r.traffic.total().bytes.to_string()),
    ("messages_per_job", |r| share(r.per_job(r.traffic.total().messages))),
    ("bytes_per_job", |r| share(r.per_job(r.traffic.total().bytes))),
    ("messages_per_node_s", |r| share(r.per_node_s(r.traffic.total().messages))),
    ("bytes_per_node_s", |r| share(r.per_node_s(r.traffic.total().bytes))),
    ("adverts_published", |r| r.adverts.to_string()),
    ("gossip_duplicates", |r| r.gossip_duplicates.to_string()),
    ("gossip_control", |r| r.gossip_control.to_string()),
    ("forming_messages", |r| r.forming.messages.to_string()),
    ("forming_bytes", |r| r.forming.bytes.to_string()),
];

/// Behind the columns of families and faults.
const LAST: [(&str, Cell); 3] = [
    ("liars_caught", |r| r.caught.to_string()),
    ("trace", |r| r.trace.to_string()),
    // It has commas; it has no quotes.
    ("command", |r| format!("\"{}\"", r.command)),
];

fn time(sorted: &[Span], percent: usize) -> String {
    percentile(sorted, percent).map_or_else(String::new, |t| ms(t).to_string())
}

fn share(value: f64) -> String {
    format!("{value:.3}")
}

fn column(what: &str, of: &str) -> String {
    format!("{what}_{}", of.replace('-', "_"))
}

fn head() -> Vec<String> {
    let families = Family::ALL.into_iter().flat_map(|f| [column("messages", f.name()), column("bytes", f.name())]);
    let faults = Class::ALL.into_iter().flat_map(|c| [column("struck", c.name()), column("felt", c.name())]);
    let first = FIRST.iter().map(|(name, _)| (*name).to_owned());
    first.chain(families).chain(faults).chain(LAST.iter().map(|(name, _)| (*name).to_owned())).collect()
}

fn row(report: &Report) -> Vec<String> {
    let families = Family::ALL.into_iter().flat_map(|family| {
        let sent = report.traffic.family(family);
        [sent.messages.to_string(), sent.bytes.to_string()]
    });
    let faults = Class::ALL.into_iter().flat_map(|class| {
        let fired = report.fired.get(&class).copied().unwrap_or_default();
        [fired.struck.to_string(), fired.felt.to_string()]
    });
    let first = FIRST.iter().map(|(_, cell)| cell(report));
    first.chain(families).chain(faults).chain(LAST.iter().map(|(_, cell)| cell(report))).collect()
}

/// All runs as CSV, with a line of names.
#[must_use]
pub fn csv(reports: &[Report]) -> String {
    let mut text = head().join(",") + "\n";
    for report in reports {
        text += &(row(report).join(",") + "\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Options, run};

    /// The value under a column's name.
    fn cell<'a>(csv: &'a str, name: &str) -> &'a str {
        let mut lines = csv.lines();
        let place = lines.next().expect("a head").split(',').position(|n| n == name).expect(name);
        lines.next().expect("a run").split(',').nth(place).expect("a cell")
    }

    #[test]
    fn every_column_is_documented_and_a_row_has_as_many_cells() {
        let page = include_str!("../../../docs/simulator.md");
        let names = head();
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len(), "names are apart");
        for name in FIRST.iter().chain(&LAST).map(|(name, _)| *name) {
            assert!(page.contains(&format!("| `{name}` |")), "{name}");
        }
        for name in Family::ALL.map(Family::name).into_iter().chain(Class::ALL.map(Class::name)) {
            assert!(page.contains(&format!("| `{name}` |")), "{name}");
        }
    }

    #[test]
    fn the_parts_of_a_run_s_traffic_add_up() {
        let faults = [Class::Crash, Class::Drop].into();
        let report = run(&Options { nodes: 4, jobs: 12, duration: Span::ms(12_000), faults, ..Options::default() });
        let report = report.expect("it holds");
        let csv = csv(std::slice::from_ref(&report));
        let number = |name: &str| cell(&csv, name).parse::<f64>().expect(name);
        for what in ["messages", "bytes"] {
            let parts: f64 = Family::ALL.into_iter().map(|f| number(&column(what, f.name()))).sum();
            assert!(parts > 0.0 && (parts - number(what)).abs() < 0.5, "{what}");
            let per_job = number(&format!("{what}_per_job")) * number("jobs_acknowledged");
            assert!((per_job - parts).abs() < parts / 1e3, "{what}");
            let per_node = number(&format!("{what}_per_node_s")) * 4.0 * number("virtual_ms") / 1e3;
            assert!((per_node - parts).abs() < parts / 1e3, "{what}");
        }
        for family in ["claim", "work", "lease", "brain_set", "swim", "load", "sync"] {
            assert!(number(&format!("messages_{family}")) > 0.0, "{family}");
        }
        assert!(number("struck_crash") > 0.0 && number("felt_drop") > 0.0 && number("struck_wipe") == 0.0);
        assert!(number("start_p50_ms") < number("completion_p50_ms"));
        assert!(number("completion_p50_ms") <= number("completion_p99_ms"));
        let direct = number("messages") - number("messages_advert");
        assert!(number("frames") < direct, "some frames hold several messages");
        assert!(csv.ends_with(&format!("\"{}\"\n", report.command)));
    }
}
