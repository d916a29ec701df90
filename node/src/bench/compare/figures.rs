//! What both runs of the experiment leave, and the table that sets them side by side.

use std::ops::{Add, Sub};
use std::time::Duration;

use serde::Serialize;

use super::super::meter::quantile_ms;
use super::Experiment;

/// Traffic of all nodes together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Traffic {
    pub(super) control_frames: u64,
    pub(super) control_bytes: u64,
    pub(super) bulk_frames: u64,
    pub(super) bulk_bytes: u64,
    /// Messages of the core in these frames.
    pub(super) messages: u64,
    pub(super) published: u64,
    pub(super) copies: u64,
    pub(super) copies_bytes: u64,
}

impl Traffic {
    fn with(self, other: Self, each: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            control_frames: each(self.control_frames, other.control_frames),
            control_bytes: each(self.control_bytes, other.control_bytes),
            bulk_frames: each(self.bulk_frames, other.bulk_frames),
            bulk_bytes: each(self.bulk_bytes, other.bulk_bytes),
            messages: each(self.messages, other.messages),
            published: each(self.published, other.published),
            copies: each(self.copies, other.copies),
            copies_bytes: each(self.copies_bytes, other.copies_bytes),
        }
    }

    /// In the order of [`TRAFFIC`].
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    fn values(&self) -> [f64; 7] {
        [
            self.messages as f64,
            self.control_frames as f64,
            self.control_bytes as f64,
            self.bulk_frames as f64,
            self.bulk_bytes as f64,
            self.copies as f64,
            self.copies_bytes as f64,
        ]
    }
}

const TRAFFIC: [&str; 7] =
    ["messages", "control frames", "control bytes", "bulk frames", "bulk bytes", "gossip copies", "gossip bytes"];

impl Add for Traffic {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.with(other, u64::saturating_add)
    }
}

impl Sub for Traffic {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self.with(other, u64::saturating_sub)
    }
}

/// One run of the experiment. All lists of times are sorted.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// From publishing to arrival, of each advert at each other node.
    pub(super) arrivals: Vec<Duration>,
    /// The same for the last node that each advert reached.
    pub(super) last_arrivals: Vec<Duration>,
    /// Arrivals that never came.
    pub(super) missed: usize,
    /// Traffic while the adverts spread.
    pub(super) spread: Traffic,
    /// Peers that a node passes adverts on to, on average.
    pub(super) gossip_peers: f64,
    /// From handing a job to the submitter's core to the acknowledgement.
    pub(super) acknowledged: Vec<Duration>,
    /// ... to its task's start.
    pub(super) starts: Vec<Duration>,
    /// Jobs without a start.
    pub(super) unstarted: usize,
    /// Traffic and time without any work.
    pub(super) idle: (Traffic, Duration),
    /// Traffic and time with jobs.
    pub(super) busy: (Traffic, Duration),
}

/// One line of the comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) figure: String,
    pub(super) unit: &'static str,
    pub(super) real: f64,
    pub(super) simulated: f64,
    /// Real to simulated, where that says something.
    pub(super) ratio: Option<f64>,
}

type Line = (String, &'static str, f64);

/// Beside each other, line by line.
pub(super) fn rows(plan: &Experiment, real: &Figures, simulated: &Figures) -> Vec<Row> {
    let beside = |(a, b): (Line, Line)| Row {
        ratio: (a.2 > 0.0 && b.2 > 0.0).then(|| a.2 / b.2),
        figure: a.0,
        unit: a.1,
        real: a.2,
        simulated: b.2,
    };
    real.lines(plan).into_iter().zip(simulated.lines(plan)).map(beside).collect()
}

impl Figures {
    /// Takes note of one advert: when it was at each of the nodes that had it, its publisher among them, µs.
    pub(super) fn add_advert(&mut self, plan: &Experiment, mut at_us: Vec<u64>) {
        at_us.sort_unstable();
        self.missed += plan.nodes - at_us.len();
        let Some((published, heard)) = at_us.split_first() else { return };
        let arrivals = heard.iter().map(|at| Duration::from_micros(at - published));
        self.last_arrivals.extend(arrivals.clone().next_back());
        self.arrivals.extend(arrivals);
    }

    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    fn lines(&self, plan: &Experiment) -> Vec<Line> {
        let mut lines: Vec<Line> = Vec::new();
        let mut say = |figure: &str, unit, value| lines.push((figure.to_owned(), unit, value));
        for (name, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            say(&format!("advert to a node, {name}"), "ms", quantile_ms(&self.arrivals, share));
        }
        say("advert to the last node, p50", "ms", quantile_ms(&self.last_arrivals, 0.5));
        say("adverts that missed a node", "", self.missed as f64);
        let deliveries = self.spread.published as f64 * (plan.nodes - 1) as f64;
        say("copies of an advert a node gets", "", self.spread.copies as f64 / deliveries.max(1.0));
        say("bytes of a copy", "B", self.spread.copies_bytes as f64 / (self.spread.copies as f64).max(1.0));
        say("peers in a node's gossip mesh", "", self.gossip_peers);
        for (name, times) in [("acknowledged", &self.acknowledged), ("started", &self.starts)] {
            say(&format!("submit to {name}, p50"), "ms", quantile_ms(times, 0.5));
            say(&format!("submit to {name}, p99"), "ms", quantile_ms(times, 0.99));
        }
        say("jobs that did not start", "", self.unstarted as f64);
        for (name, value) in TRAFFIC.iter().zip(self.per_job(plan)) {
            say(&format!("{name} a job"), "", value);
        }
        let idle_s = self.idle.1.as_secs_f64() * plan.nodes as f64;
        for (name, value) in TRAFFIC.iter().zip(self.idle.0.values()) {
            say(&format!("{name} an idle node and second"), "", value / idle_s);
        }
        lines
    }

    /// What a job adds to what the mesh says anyway.
    fn per_job(&self, plan: &Experiment) -> Vec<f64> {
        let share = self.busy.1.as_secs_f64() / self.idle.1.as_secs_f64();
        let (busy, idle) = (self.busy.0.values(), self.idle.0.values());
        busy.iter().zip(idle).map(|(busy, idle)| (busy - idle * share) / f64::from(plan.jobs)).collect()
    }
}

/// For people.
pub(super) fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|r| r.figure.len()).max().unwrap_or(0);
    let mut text = format!("{:width$}  {:>12} {:>12} {:>7}\n", "", "real", "simulated", "ratio");
    for row in rows {
        let value = |v: f64| format!("{}{}", number(v), if row.unit.is_empty() { "   " } else { row.unit });
        let ratio = row.ratio.map(|r| format!("{r:.2}")).unwrap_or_default();
        let (figure, real, simulated) = (&row.figure, value(row.real), value(row.simulated));
        text += format!("{figure:width$}  {real:>12} {simulated:>12} {ratio:>7}").trim_end();
        text.push('\n');
    }
    text
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 || value.abs() >= 1_000.0 { format!("{value:.0} ") } else { format!("{value:.2} ") }
}
