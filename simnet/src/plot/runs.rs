//! Runs of one size, together: how soon jobs started, how they completed, what struck, what was sent.

use std::collections::BTreeMap;

use sinew_scheduler::time::Span;

use super::Picture;
use super::chart::{Bar, COLOURS, Frame, Line, Scale, Style, bars, lines};
use crate::nemesis::{Class, Fired};
use crate::run::{Report, percentile};

/// Kinds of messages that have a bar of their own.
const KINDS_MAX: usize = 20;

pub(super) fn draw(caption: &str, reports: &[Report]) -> Vec<Picture> {
    let frame = |title: String, x: &str, y: &str| Frame {
        title,
        caption: caption.to_owned(),
        x: x.to_owned(),
        y: y.to_owned(),
    };
    let of = match reports {
        [one] => format!("{} nodes, seed {}", one.nodes, one.seed),
        [first, ..] => format!("{} nodes, {} runs", first.nodes, reports.len()),
        [] => String::new(),
    };
    let latency = frame(format!("From submit to start and end: {of}"), "milliseconds", "percent of the jobs");
    let jobs = frame(format!("Jobs over time: {of}"), "virtual seconds", "jobs");
    let faults = frame(format!("Faults: {of}"), "times", "");
    let sent = frame(format!("Messages by kind, gossip by copy: {of}"), "messages", "");
    vec![
        ("start-latency.svg", lines(&latency, Scale::LogX, &latencies(reports))),
        ("jobs.svg", lines(&jobs, Scale::Linear, &over_time(reports))),
        ("faults.svg", bars(&faults, &["struck", "felt"], &fired(reports))),
        ("messages.svg", bars(&sent, &["messages"], &kinds(reports))),
    ]
}

/// All runs' times in one order.
fn pooled(reports: &[Report], times: impl Fn(&Report) -> &Vec<Span>) -> Vec<Span> {
    let mut all: Vec<Span> = reports.iter().flat_map(times).copied().collect();
    all.sort_unstable();
    all
}

fn line(name: String, points: Vec<(f64, f64)>, number: usize) -> Line {
    Line { name, points, colour: COLOURS[number], style: Style::Plain }
}

/// The share of the jobs that had started, or ended, by so many milliseconds.
fn latencies(reports: &[Report]) -> Vec<Line> {
    let distribution = |what: &str, number: usize, all: &[Span]| {
        let share = 100.0 / all.len().max(1) as f64;
        // A step each: so many until then, one more from then on.
        let step = |(n, at): (usize, &Span)| {
            let ms = (at.0 as f64 / 1e3).max(1e-3);
            [(ms, n as f64 * share), (ms, (n + 1) as f64 * share)]
        };
        let of = |percent| percentile(all, percent).map_or(0.0, |at| at.0 as f64 / 1e3);
        let points = all.iter().enumerate().flat_map(step).collect();
        let mut found = vec![line(format!("{what}: p50 {:.1} ms", of(50)), points, number)];
        // The legend's second line.
        found.push(Line { name: format!(" p99 {:.1} ms", of(99)), points: Vec::new(), ..found[0].clone() });
        found
    };
    let mut all = distribution("started", 0, &pooled(reports, |r| &r.starts));
    all.extend(distribution("completed", 1, &pooled(reports, |r| &r.completions)));
    all
}

/// How many jobs had been submitted, and had completed, by when.
fn over_time(reports: &[Report]) -> Vec<Line> {
    let end = reports.iter().map(|r| r.virtual_time.0).max().unwrap_or_default() as f64 / 1e6;
    let curve = |name: &str, number: usize, all: &[Span]| {
        let step = |(n, at): (usize, &Span)| {
            let s = at.0 as f64 / 1e6;
            [(s, n as f64), (s, (n + 1) as f64)]
        };
        let begin = [(0.0, 0.0)];
        let points = begin.into_iter().chain(all.iter().enumerate().flat_map(step)).chain([(end, all.len() as f64)]);
        line(name.to_owned(), points.collect(), number)
    };
    vec![
        curve("submitted", 0, &pooled(reports, |r| &r.submitted_at)),
        curve("completed", 1, &pooled(reports, |r| &r.completed_at)),
    ]
}

/// How often each class struck and was felt.
fn fired(reports: &[Report]) -> Vec<Bar> {
    let mut all: BTreeMap<Class, Fired> = BTreeMap::new();
    for (class, fired) in reports.iter().flat_map(|report| &report.fired) {
        let sum = all.entry(*class).or_default();
        (sum.struck, sum.felt) = (sum.struck + fired.struck, sum.felt + fired.felt);
    }
    if all.is_empty() {
        return vec![("no faults".to_owned(), vec![0, 0])];
    }
    all.into_iter().map(|(class, fired)| (class.to_string(), vec![fired.struck, fired.felt])).collect()
}

/// The most frequent kinds, and the others in one.
fn kinds(reports: &[Report]) -> Vec<Bar> {
    let mut all: BTreeMap<&'static str, u64> = BTreeMap::new();
    for (kind, sent) in reports.iter().flat_map(|report| report.traffic.kinds()) {
        *all.entry(kind.name()).or_default() += sent.messages;
    }
    let mut all: Vec<(&str, u64)> = all.into_iter().collect();
    all.sort_by_key(|(name, messages)| (std::cmp::Reverse(*messages), *name));
    let others: u64 = all.iter().skip(KINDS_MAX).map(|(_, messages)| messages).sum();
    let mut bars: Vec<Bar> =
        all.into_iter().take(KINDS_MAX).map(|(name, messages)| (name.to_owned(), vec![messages])).collect();
    if others > 0 {
        bars.push(("all others".to_owned(), vec![others]));
    }
    bars
}
