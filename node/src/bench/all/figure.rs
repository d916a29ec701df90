//! A figure of a bench, its floor and its target; a report of many, and the conditions it was made under. As JSON, these
//! are what `--out` writes and `--against` reads.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::super::meter::load_average;

/// Which way a figure gets better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Better {
    Higher,
    Lower,
}

/// How far a figure may be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// By a clock, or counted where the count depends on the time that things take: what else the machine does shows in it.
    Clock,
    /// Counted: the same on a busy machine.
    Count,
}

/// What a target is about.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Target {
    /// The value.
    Value(f64),
    /// The value over its floor.
    Ratio(f64),
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Figure {
    /// The command line after `sinew bench`, without its sizes: with the name, this tells figures apart.
    pub(super) bench: String,
    pub(super) name: String,
    pub(super) unit: String,
    pub(super) value: f64,
    /// What the machine does at best, in the same run and unit.
    pub(super) floor: Option<f64>,
    /// The value over the floor.
    pub(super) ratio: Option<f64>,
    pub(super) target: Option<Target>,
    pub(super) better: Better,
    pub(super) kind: Kind,
}

impl Figure {
    /// Whether the target is met; `None` without one.
    pub(super) fn met(&self) -> Option<bool> {
        let (found, wanted) = match self.target? {
            Target::Value(wanted) => (self.value, wanted),
            Target::Ratio(wanted) => (self.ratio?, wanted),
        };
        Some(match self.better {
            Better::Higher => found >= wanted,
            Better::Lower => found <= wanted,
        })
    }
}

/// Where and when a report was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Conditions {
    /// The day, `2026-11-29`, in UTC.
    pub(super) date: String,
    /// The commit that the program was built from, or `unknown`.
    pub(super) commit: String,
    pub(super) version: String,
    pub(super) cores: usize,
    /// Over the minute before the run.
    pub(super) load_average: f64,
    pub(super) kernel: String,
    /// Sizes of a test, not of a measurement.
    pub(super) quick: bool,
    /// Whether the program was built without optimisation.
    pub(super) debug_build: bool,
}

impl Conditions {
    pub(super) fn now(commit: Option<String>, quick: bool) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            date: crate::cli::day(u64::try_from(since.as_millis()).unwrap_or(0)),
            commit: commit.unwrap_or_else(|| option_env!("SINEW_COMMIT").unwrap_or("unknown").to_owned()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            load_average: load_average(),
            kernel: kernel.trim().to_owned(),
            quick,
            debug_build: cfg!(debug_assertions),
        }
    }
}

/// A run of all benches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) conditions: Conditions,
    pub(super) figures: Vec<Figure>,
    /// Benches that gave no figures, and why.
    pub(super) failed: Vec<(String, String)>,
    /// Figures of another program, by turns with these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) beside: Vec<Figure>,
}

/// A number as people read it: three digits that count, or whole.
pub(super) fn human(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middling if middling >= 10.0 => format!("{value:.1}"),
        small if small >= 1.0 || small == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn figure(name: &str, value: f64, better: Better, kind: Kind) -> Figure {
        let (bench, name, unit) = ("submit".to_owned(), name.to_owned(), "ms".to_owned());
        Figure { bench, name, unit, value, floor: None, ratio: None, target: None, better, kind }
    }

    #[test]
    fn targets_are_of_the_value_or_of_its_ratio() {
        let mut figure = figure("x", 4.0, Better::Lower, Kind::Clock);
        assert_eq!(figure.met(), None);
        figure.target = Some(Target::Value(4.0));
        assert_eq!(figure.met(), Some(true));
        figure.better = Better::Higher;
        figure.target = Some(Target::Ratio(0.8));
        assert_eq!(figure.met(), None, "there is no floor");
        figure.ratio = Some(0.79);
        assert_eq!(figure.met(), Some(false));
    }

    #[test]
    fn a_report_is_read_back() {
        let mut one = figure("p50", 1.5, Better::Lower, Kind::Clock);
        one.target = Some(Target::Ratio(0.8));
        let report = Report {
            conditions: Conditions::now(Some("abc".to_owned()), true),
            figures: vec![one],
            failed: vec![("gossip".to_owned(), "no sockets".to_owned())],
            beside: Vec::new(),
        };
        assert!(report.conditions.date.starts_with("20") && report.conditions.date.len() == 10);
        let text = serde_json::to_string(&report).expect("write");
        assert_eq!(serde_json::from_str::<Report>(&text).expect("read"), report);
    }

    #[test]
    fn numbers_keep_three_digits() {
        let shown: Vec<String> = [12_345.6, 123.4, 12.34, 1.234, 0.1234, 0.0].into_iter().map(human).collect();
        assert_eq!(shown, ["12346", "123", "12.3", "1.23", "0.123", "0.00"]);
    }
}
