//! Tables that fit a terminal of 80 columns, whatever is in them. Characters are counted as one column each.

use super::human::cut;

/// What everything printed here fits: the narrowest terminal that people still use.
pub(super) const WIDTH: usize = 80;
/// Between two columns.
const GAP: &str = "  ";
/// Narrower than this a shortened text says nothing.
const NARROWEST: usize = 6;

/// How a column is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    /// Texts, kept whole as long as some other column can give way.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
    /// Texts that are cut first when the table is too wide.
    Cut(&'static str),
}

impl Column {
    const fn title(self) -> &'static str {
        match self {
            Self::Left(title) | Self::Right(title) | Self::Cut(title) => title,
        }
    }
}

/// Rows under titles.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table, at most `width` wide, each line ended.
    pub(super) fn render(&self, width: usize) -> String {
        let widths = self.widths(width);
        let titles = self.columns.iter().map(|c| c.title().to_owned()).collect();
        let mut out = String::new();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let cells: Vec<String> =
                self.columns.iter().zip(row).zip(&widths).map(|((c, t), w)| cell(*c, t, *w)).collect();
            out += cells.join(GAP).trim_end();
            out.push('\n');
        }
        out
    }

    fn widths(&self, width: usize) -> Vec<usize> {
        let longest = |i: usize| self.rows.iter().filter_map(|row| row.get(i)).map(|t| t.chars().count()).max();
        let mut widths: Vec<usize> =
            self.columns.iter().enumerate().map(|(i, c)| c.title().len().max(longest(i).unwrap_or(0))).collect();
        let room = width.saturating_sub(GAP.len() * self.columns.len().saturating_sub(1));
        while widths.iter().sum::<usize>() > room {
            let wide = |i: &usize| widths[*i] > NARROWEST;
            let cut_first = (0..widths.len()).filter(|i| matches!(self.columns[*i], Column::Cut(_)));
            let widest = cut_first.filter(wide).max_by_key(|i| widths[*i]);
            let Some(i) = widest.or_else(|| (0..widths.len()).filter(wide).max_by_key(|i| widths[*i])) else { break };
            widths[i] -= 1;
        }
        widths
    }
}

fn cell(column: Column, text: &str, width: usize) -> String {
    let text = cut(text, width);
    match column {
        Column::Right(_) => format!("{text:>width$}"),
        Column::Left(_) | Column::Cut(_) => format!("{text:<width$}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_give_way() {
        let mut table = Table::new([Column::Left("ID"), Column::Cut("NAME"), Column::Right("TASKS")]);
        table.row(["abc".to_owned(), "a long name that goes on".to_owned(), "1".to_owned()]);
        table.row(["defghi".to_owned(), "b".to_owned(), "12345".to_owned()]);
        assert_eq!(table.render(24), "ID      NAME       TASKS\nabc     a long n…      1\ndefghi  b          12345\n");
        assert_eq!(table.render(WIDTH).lines().nth(1), Some("abc     a long name that goes on      1"));
    }

    #[test]
    fn nothing_is_wider_than_asked() {
        let mut table = Table::new([Column::Left("A"), Column::Cut("B"), Column::Right("C")]);
        table.row(["x".repeat(200), "ü".repeat(200), "9".repeat(200)]);
        assert!(table.render(WIDTH).lines().all(|line| line.chars().count() <= WIDTH));
    }
}
