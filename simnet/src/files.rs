//! What is written about runs, as texts under names of files. Writing them is the caller's business.

use crate::plot;
use crate::run::{Growth, Report, csv};

/// Tables of all runs, for several sizes of how cost grows, and plots.
#[must_use]
pub fn of(reports: &[Report]) -> Vec<(String, String)> {
    let lines: String = reports.iter().map(|report| format!("{}\n", report.to_json())).collect();
    let mut files = vec![("runs.csv".to_owned(), csv(reports)), ("runs.jsonl".to_owned(), lines)];
    if let Some(growth) = Growth::of(reports) {
        files.push(("growth.csv".to_owned(), growth.csv()));
        files.push(("growth.txt".to_owned(), growth.to_string()));
    }
    files.extend(plot::of(reports).into_iter().map(|(name, svg)| (name.to_owned(), svg)));
    files
}
