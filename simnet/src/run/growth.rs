//! How cost grows with the size of the mesh: runs of several sizes side by side.

use std::collections::BTreeMap;
use std::fmt;

use sinew_scheduler::kind::Family;

use super::Report;
use super::report::{ms, percentile};
use crate::traffic::Sent;

/// A figure of one size that is looked at across sizes.
type Figure = fn(&Report, Sent) -> f64;
/// A figure of a whole run, if it has it.
type WholeFigure = fn(&Report) -> Option<f64>;

/// What is measured of each family's traffic.
pub(crate) const MEASURES: [(&str, Figure); 4] = [
    ("messages_per_job", |r, s| r.per_job(s.messages)),
    ("messages_per_node_s", |r, s| r.per_node_s(s.messages)),
    ("bytes_per_job", |r, s| r.per_job(s.bytes)),
    ("bytes_per_node_s", |r, s| r.per_node_s(s.bytes)),
];

/// What is measured of a run as a whole.
const WHOLE: [(&str, WholeFigure); 9] = [
    ("copies_per_advert", |r| per_advert(r, |sent| sent.messages)),
    ("bytes_per_advert", |r| per_advert(r, |sent| sent.bytes)),
    ("events_per_job", |r| Some(r.per_job(r.events))),
    ("events_per_node_s", |r| Some(r.per_node_s(r.events))),
    ("start_p50_ms", |r| percentile(&r.starts, 50).map(ms)),
    ("start_p99_ms", |r| percentile(&r.starts, 99).map(ms)),
    ("completion_p50_ms", |r| percentile(&r.completions, 50).map(ms)),
    ("completion_p99_ms", |r| percentile(&r.completions, 99).map(ms)),
    ("converged_ms", |r| Some(ms(r.converged))),
];

/// What one advert costs until the whole mesh has it. `None` when nobody needed any.
fn per_advert(report: &Report, of: fn(Sent) -> u64) -> Option<f64> {
    let sent = of(report.traffic.family(Family::Advert)) as f64;
    (report.adverts > 0).then(|| sent / report.adverts as f64)
}

/// A figure at each size at which it is not zero: size and mean over that size's runs.
pub(crate) type Line = Vec<(f64, f64)>;

/// Runs by size.
#[derive(Debug)]
pub struct Growth<'a> {
    sizes: BTreeMap<usize, Vec<&'a Report>>,
}

impl<'a> Growth<'a> {
    /// Sorts runs by size. `None` when there are not two sizes: nothing grows.
    #[must_use]
    pub fn of(reports: &'a [Report]) -> Option<Self> {
        let mut sizes: BTreeMap<usize, Vec<&Report>> = BTreeMap::new();
        for report in reports {
            sizes.entry(report.nodes).or_default().push(report);
        }
        (sizes.len() > 1).then_some(Self { sizes })
    }

    /// A family's figure by size, by the measure's name; of all families without one.
    pub(crate) fn traffic(&self, measure: &str, family: Option<Family>) -> Line {
        let figure = MEASURES.iter().find(|(name, _)| *name == measure).map(|(_, figure)| *figure);
        self.line(|report| {
            let sent = family.map_or_else(|| report.traffic.total(), |family| report.traffic.family(family));
            figure.map(|figure| figure(report, sent))
        })
    }

    /// A figure of whole runs by size.
    pub(crate) fn whole(&self, measure: &str) -> Line {
        let figure = WHOLE.iter().find(|(name, _)| *name == measure).map(|(_, figure)| *figure);
        self.line(|report| figure.and_then(|figure| figure(report)))
    }

    fn line(&self, figure: impl Fn(&Report) -> Option<f64>) -> Line {
        let mean = |reports: &Vec<&Report>| {
            let values: Vec<f64> = reports.iter().filter_map(|r| figure(r)).collect();
            values.iter().sum::<f64>() / values.len().max(1) as f64
        };
        self.sizes.iter().map(|(nodes, reports)| (*nodes as f64, mean(reports))).filter(|(_, v)| *v > 0.0).collect()
    }

    /// All lines with their names: measure, family.
    fn lines(&self) -> Vec<(&'static str, &'static str, Line)> {
        let families = || Family::ALL.into_iter().map(Some).chain([None]);
        let traffic = MEASURES.iter().flat_map(|(measure, _)| {
            families().map(|f| (*measure, f.map_or("all", Family::name), self.traffic(measure, f)))
        });
        let whole = WHOLE.iter().map(|(measure, _)| (*measure, "all", self.whole(measure)));
        traffic.chain(whole).collect()
    }

    /// One line for each figure and size, as CSV.
    #[must_use]
    pub fn csv(&self) -> String {
        let mut text = "measure,family,nodes,value\n".to_owned();
        for (measure, family, line) in self.lines() {
            for (nodes, value) in line {
                text += &format!("{measure},{family},{nodes},{value:.3}\n");
            }
        }
        text
    }
}

/// The slope of a straight line through the logarithms, by least squares: 0 does not grow, 1 grows with the mesh.
#[must_use]
pub(crate) fn exponent(line: &[(f64, f64)]) -> Option<f64> {
    let logs: Vec<(f64, f64)> = line.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
    let count = logs.len() as f64;
    let (mean_x, mean_y) =
        (logs.iter().map(|l| l.0).sum::<f64>() / count, logs.iter().map(|l| l.1).sum::<f64>() / count);
    let spread: f64 = logs.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    let common: f64 = logs.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    (logs.len() > 1).then(|| common / spread)
}

/// A number with three digits that count.
fn short(value: f64) -> String {
    match value {
        v if v >= 100_000.0 => format!("{v:.2e}"),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

impl fmt::Display for Growth<'_> {
    /// A table: a line for each figure, a column for each size, and at last the power of the size that it grows with.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<20} {:<12}", "nodes", "")?;
        for nodes in self.sizes.keys() {
            write!(f, "{nodes:>10}")?;
        }
        writeln!(f, "{:>9}", "power")?;
        let mut last = "";
        for (measure, family, line) in self.lines() {
            write!(f, "{:<20} {family:<12}", if measure == last { "" } else { measure })?;
            last = measure;
            for nodes in self.sizes.keys() {
                let value = line.iter().find(|(n, _)| *n == *nodes as f64).map_or("-".to_owned(), |(_, v)| short(*v));
                write!(f, "{value:>10}")?;
            }
            writeln!(f, "{:>9}", exponent(&line).map_or("-".to_owned(), |e| format!("{e:.2}")))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sinew_scheduler::time::Span;

    use super::*;
    use crate::run::{Options, Workload, run};

    #[test]
    fn the_power_is_the_slope_of_the_logarithms() {
        let line = |power: f64| [10.0, 100.0, 1_000.0].map(|n: f64| (n, 7.0 * n.powf(power))).to_vec();
        for power in [-0.5, 0.0, 1.0, 2.0] {
            assert!((exponent(&line(power)).expect("points") - power).abs() < 1e-9);
        }
        assert_eq!(exponent(&[(10.0, 3.0)]), None);
    }

    /// What jobs cost beside adverts and the spreading of facts does not follow the size; adverts do.
    #[test]
    fn claims_do_not_grow_with_the_mesh() {
        let of = |nodes| Options {
            nodes,
            jobs: 30,
            duration: Span::ms(6_000),
            workload: Workload::Jobs,
            ..Options::default()
        };
        let reports = [4, 16].map(|nodes| run(&of(nodes)).expect("it holds"));
        let growth = Growth::of(&reports).expect("two sizes");
        assert!(Growth::of(&reports[..1]).is_none());
        for family in [Family::Claim, Family::Work, Family::BrainSet] {
            let line = growth.traffic("messages_per_job", Some(family));
            assert_eq!(line.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [4.0, 16.0], "{family:?}");
            assert!(exponent(&line).expect("points") < 0.5, "{family:?}: {line:?}");
        }
        let (text, csv) = (growth.to_string(), growth.csv());
        assert!(csv.contains("\nmessages_per_job,claim,16,") && csv.contains("\nstart_p99_ms,all,4,"), "{csv}");
        assert!(text.lines().next().expect("a head").ends_with("4        16    power"), "{text}");
    }
}
