//! Writes a report into a page of the documentation: the part between two comments is the program's, the rest is people's.

use std::io::Write;
use std::path::Path;

use super::figure::{Better, Figure, Report, Target, human};
use super::table;

/// Opens the program's part.
const BEGIN: &str = "<!-- bench all: begin -->";
/// Closes it.
const END: &str = "<!-- bench all: end -->";

/// Why a page could not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum PageError {
    /// The page could not be read or replaced.
    #[error("cannot write the page: {0}")]
    Io(#[from] std::io::Error),
    /// It has no part for the program.
    #[error("the page does not hold `{BEGIN}` and, after it, `{END}`, each once on a line of its own")]
    NoMarkers,
}

/// Replaces the program's part of the page at `path`.
pub(super) fn write(path: &Path, report: &Report) -> Result<(), PageError> {
    let page = std::fs::read_to_string(path)?;
    let new = with_part(&page, &part(report))?;
    // In one step: an interrupted write must not leave half of what people wrote.
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(new.as_bytes())?;
    std::fs::set_permissions(file.path(), std::fs::metadata(path)?.permissions())?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

fn with_part(page: &str, part: &str) -> Result<String, PageError> {
    let place = |marker: &str| {
        let mut found = page.match_indices(marker).map(|(at, _)| at);
        found.next().filter(|_| found.next().is_none())
    };
    let (begin, end) = place(BEGIN).zip(place(END)).filter(|(b, e)| b < e).ok_or(PageError::NoMarkers)?;
    let (before, after) = (&page[..begin + BEGIN.len()], &page[end..]);
    Ok(format!("{before}\n{part}{after}"))
}

fn part(report: &Report) -> String {
    let c = &report.conditions;
    let commit: String = c.commit.chars().take(12).collect();
    let mut notes = String::new();
    if c.quick {
        notes += " With `--quick`: sizes of a test, not of a measurement.";
    }
    if c.debug_build {
        notes += " Of a build without optimisation.";
    }
    let mut text = format!(
        "Written by `sinew bench all` on {} from commit {commit} (version {}), on {} cores, Linux {}, with a load of {:.2}\n\
         before the run.{notes}\n\n",
        c.date, c.version, c.cores, c.kernel, c.load_average,
    );
    let rows: Vec<Vec<String>> = report.figures.iter().map(row).collect();
    text += &table::markdown(&["bench", "figure", "value", "floor", "ratio", "target", "met"], &rows);
    for (bench, why) in &report.failed {
        text += &format!("\nNo figures of `{bench}`: {}.\n", why.lines().last().unwrap_or_default());
    }
    text
}

fn row(figure: &Figure) -> Vec<String> {
    let with_unit = |value: f64| format!("{} {}", human(value), figure.unit).trim_end().to_owned();
    let none = || "–".to_owned();
    let sign = if figure.better == Better::Higher { "≥" } else { "≤" };
    let target = figure.target.map_or_else(none, |target| match target {
        Target::Value(value) => format!("{sign} {}", with_unit(value)),
        Target::Ratio(ratio) => format!("ratio {sign} {ratio:.2}"),
    });
    let met = figure.met().map_or_else(none, |met| if met { "yes" } else { "no" }.to_owned());
    vec![
        figure.bench.clone(),
        figure.name.clone(),
        with_unit(figure.value),
        figure.floor.map_or_else(none, with_unit),
        figure.ratio.map_or_else(none, human),
        target,
        met,
    ]
}

#[cfg(test)]
mod tests {
    use super::super::figure::tests::figure;
    use super::super::figure::{Conditions, Kind};
    use super::*;

    fn report() -> Report {
        let mut one = figure("submit to result, p50", 4.25, Better::Lower, Kind::Clock);
        (one.floor, one.ratio, one.target) = (Some(0.5), Some(8.5), Some(Target::Value(5.0)));
        Report {
            conditions: Conditions { date: "2026-11-29".to_owned(), ..Conditions::now(Some("c0ffee".into()), false) },
            figures: vec![one, figure("messages", 9.0, Better::Lower, Kind::Count)],
            failed: vec![("blobs".to_owned(), "no disk".to_owned())],
            beside: Vec::new(),
        }
    }

    #[test]
    fn only_the_part_between_the_marks_changes_and_twice_is_as_once() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("page.md");
        let (above, below) = ("# Performance\n\nBy hand.\n\n", "\n\n## Below\n\nBy hand too: | a | b |\n");
        std::fs::write(&path, format!("{above}{BEGIN}\nold\n{END}{below}")).expect("write");
        write(&path, &report()).expect("page");
        let once = std::fs::read_to_string(&path).expect("read");
        assert!(once.starts_with(above) && once.ends_with(below) && !once.contains("old"), "{once}");
        assert!(once.contains("on 2026-11-29 from commit c0ffee"), "{once}");
        assert!(once.contains("| submit | submit to result, p50 | 4.25 ms | 0.500 ms | 8.50 | ≤ 5.00 ms | yes |"));
        assert!(once.contains("| submit | messages | 9.00 ms | – | – | – | – |"), "{once}");
        assert!(once.contains("No figures of `blobs`: no disk."));
        write(&path, &report()).expect("again");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), once);
    }

    #[test]
    fn a_page_without_both_marks_in_order_is_left_alone() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("page.md");
        for text in ["nothing", BEGIN, &format!("{END}\n{BEGIN}"), &format!("{BEGIN}{BEGIN}{END}")] {
            std::fs::write(&path, text).expect("write");
            assert!(matches!(write(&path, &report()), Err(PageError::NoMarkers)), "{text}");
            assert_eq!(std::fs::read_to_string(&path).expect("read"), *text);
        }
    }
}
