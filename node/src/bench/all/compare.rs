//! Figures of this run beside others: what changed, and what got worse.

use super::figure::{Better, Figure, Kind, human};
use super::table;

/// A change below this is noise.
const WORSE_BY: f64 = 0.10;

/// What became of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Better, or as it was, or not comparable.
    Fine,
    /// Slower or larger by a clock or a sample: look, or measure again.
    Worse,
    /// A count that grew: a loss.
    Loss,
}

impl Change {
    const fn mark(self) -> &'static str {
        match self {
            Self::Fine => "",
            Self::Worse => "worse",
            Self::Loss => "LOSS",
        }
    }
}

/// What became of a figure that was `old`.
pub(super) fn change(old: f64, new: &Figure) -> Change {
    // Some are differences, and may be below zero.
    let noise = old.abs() * WORSE_BY;
    let worse = match new.better {
        Better::Higher => new.value < old - noise,
        Better::Lower => new.value > old + noise,
    };
    match (worse, new.kind) {
        (false, _) => Change::Fine,
        (true, Kind::Clock) => Change::Worse,
        (true, Kind::Count) => Change::Loss,
    }
}

/// This run's figures beside `old` ones: a table, and how many losses there are.
pub(super) fn beside(old: &[Figure], new: &[Figure]) -> (String, usize) {
    let mut losses = 0;
    let mut rows = Vec::new();
    for figure in new {
        let before = old.iter().find(|o| (&o.bench, &o.name) == (&figure.bench, &figure.name)).map(|o| o.value);
        let changed = before.map_or(Change::Fine, |old| change(old, figure));
        losses += usize::from(changed == Change::Loss);
        let ratio = before.filter(|old| *old > 0.0 && figure.value >= 0.0).map(|old| human(figure.value / old));
        let cells = [
            figure.bench.clone(),
            figure.name.clone(),
            figure.unit.clone(),
            before.map_or_else(missing, human),
            human(figure.value),
            ratio.unwrap_or_else(missing),
            changed.mark().to_owned(),
        ];
        rows.push(cells.to_vec());
    }
    (table::lines(&["bench", "figure", "unit", "old", "new", "new/old", ""], &rows), losses)
}

fn missing() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::figure::tests::figure;
    use super::*;

    #[test]
    fn a_tenth_is_noise_and_more_is_worse_and_a_count_is_a_loss() {
        let of = |value, better, kind| change(100.0, &figure("x", value, better, kind));
        assert_eq!(of(109.9, Better::Lower, Kind::Count), Change::Fine);
        assert_eq!(of(110.1, Better::Lower, Kind::Count), Change::Loss);
        assert_eq!(of(110.1, Better::Lower, Kind::Clock), Change::Worse);
        assert_eq!(of(50.0, Better::Lower, Kind::Count), Change::Fine);
        assert_eq!(of(89.9, Better::Higher, Kind::Clock), Change::Worse);
        assert_eq!(of(200.0, Better::Higher, Kind::Clock), Change::Fine);
        assert_eq!(change(-1.0, &figure("x", -0.95, Better::Lower, Kind::Clock)), Change::Fine);
        assert_eq!(change(0.0, &figure("x", 1.0, Better::Lower, Kind::Count)), Change::Loss);
    }

    #[test]
    fn a_table_names_old_new_and_ratio_and_counts_losses() {
        let old =
            [figure("p50", 2.0, Better::Lower, Kind::Clock), figure("messages", 10.0, Better::Lower, Kind::Count)];
        let new = [
            figure("p50", 4.0, Better::Lower, Kind::Clock),
            figure("messages", 12.0, Better::Lower, Kind::Count),
            figure("bytes", 7.0, Better::Lower, Kind::Count),
        ];
        let (table, losses) = beside(&old, &new);
        assert_eq!(losses, 1);
        let words = |line: usize| table.lines().nth(line).expect("line").split_whitespace().collect::<Vec<_>>();
        assert_eq!(words(1), ["submit", "p50", "ms", "2.00", "4.00", "2.00", "worse"]);
        assert_eq!(words(2), ["submit", "messages", "ms", "10.0", "12.0", "1.20", "LOSS"]);
        assert_eq!(words(3), ["submit", "bytes", "ms", "-", "7.00", "-"]);
    }
}
