//! One chart as SVG: lines over two axes, or bars. Says nothing of what is drawn.

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Pixels of the whole picture.
const SIZE: (u32, u32) = (800, 500);
/// Pixels at the right, for the legend.
const LEGEND: u32 = 190;
/// Pixels at the bottom, for the caption.
const CAPTION: u32 = 46;
/// Characters of a caption's line that fit.
const CAPTION_LINE_LEN: usize = 125;
/// Points of one line beyond which nobody sees more.
const POINTS_MAX: usize = 400;
const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(60, 60, 60);
const GRID: RGBColor = RGBColor(225, 225, 225);

/// Colours that stay apart for those who see fewer (Okabe and Ito), and two more.
pub(super) const COLOURS: [RGBColor; 10] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(120, 94, 30),
    RGBColor(180, 170, 20),
    RGBColor(110, 60, 160),
    RGBColor(0, 0, 0),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// Drawing into a text cannot fail; a range without numbers can, which is ours to avoid.
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// What is said around a chart.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) title: String,
    /// The command that this comes from.
    pub(super) caption: String,
    /// What is counted to the right, with its unit.
    pub(super) x: String,
    /// What is counted upwards, with its unit.
    pub(super) y: String,
}

/// How a number stands beside an axis.
type Tick = dyn Fn(f64) -> String;

/// How a line is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// From point to point, with the points.
    Points,
    /// Without the points.
    Plain,
    /// Grey and dashed: something to compare with.
    Guide,
}

/// A line of a chart.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
    pub(super) colour: RGBColor,
    pub(super) style: Style,
}

/// A bar of a chart: its name and its lengths, one for each colour.
pub(super) type Bar = (String, Vec<u64>);

/// Which axes count in powers of ten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    Linear,
    LogX,
    LogBoth,
}

/// Lines as SVG.
pub(super) fn lines(frame: &Frame, scale: Scale, lines: &[Line]) -> String {
    svg(frame, |area| {
        let all = || lines.iter().flat_map(|line| line.points.iter());
        let (x, y) = (bounds(all().map(|p| p.0)), bounds(all().map(|p| p.1)));
        let lines: Vec<Line> = lines.iter().map(thinned).collect();
        match scale {
            Scale::Linear => draw_lines(area, frame, (linear(x), &tick), (linear(y), &tick), &lines)?,
            Scale::LogX => draw_lines(area, frame, (log(x).log_scale(), &log_tick), (linear(y), &tick), &lines)?,
            Scale::LogBoth => {
                let (x, y) = (log(x).log_scale(), log(y).log_scale());
                draw_lines(area, frame, (x, &log_tick), (y, &log_tick), &lines)?;
            }
        }
        let names: Vec<(&str, RGBColor, bool)> =
            lines.iter().map(|line| (line.name.as_str(), line.colour, line.style == Style::Guide)).collect();
        legend(area, &names)
    })
}

/// Bars as SVG, from above, `names` saying what each colour is.
pub(super) fn bars(frame: &Frame, names: &[&str], bars: &[Bar]) -> String {
    svg(frame, |area| {
        let longest = bars.iter().flat_map(|(_, lengths)| lengths).copied().max().unwrap_or(0).max(1) as f64;
        draw_bars(area, frame, longest * 1.12, bars)?;
        let names: Vec<(&str, RGBColor, bool)> =
            names.iter().zip(COLOURS).map(|(name, colour)| (*name, colour, false)).collect();
        if names.len() > 1 { legend(area, &names) } else { Ok(()) }
    })
}

fn svg(frame: &Frame, draw: impl FnOnce(&Area) -> Drawn) -> String {
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
    around(&area, frame).and_then(|()| draw(&area)).expect("a text takes any drawing, and bounds are numbers");
    drop(area);
    text
}

/// Title and caption.
fn around(area: &Area, frame: &Frame) -> Drawn {
    area.fill(&WHITE)?;
    let middle = Pos::new(HPos::Center, VPos::Top);
    let title = (FONT, 22).into_font().color(&BLACK).pos(middle);
    let (width, height) = (i32::try_from(SIZE.0)?, i32::try_from(SIZE.1)?);
    area.draw(&Text::new(frame.title.clone(), (width / 2, 12), title))?;
    let small = ("monospace", 12).into_font().color(&INK);
    for (number, line) in (0..).zip(wrapped(&frame.caption)) {
        area.draw(&Text::new(line, (14, height - i32::try_from(CAPTION)? + 8 + 13 * number), small.clone()))?;
    }
    Ok(())
}

/// A text in lines, broken at blanks and, within long words, at commas; at most three lines.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_inclusive([' ', ',']) {
        if lines.last().is_some_and(|line| line.len() + word.len() > CAPTION_LINE_LEN) {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(word);
        }
    }
    if lines.len() > 3 {
        lines.truncate(3);
        lines[2].push('…');
    }
    lines
}

/// Names beside their colours; one that begins with a blank goes on with the one above.
fn legend(area: &Area, names: &[(&str, RGBColor, bool)]) -> Drawn {
    let left = i32::try_from(SIZE.0 - LEGEND)? + 14;
    let style = (FONT, 14).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
    for (number, (name, colour, dashed)) in (0..).zip(names) {
        let y = 60 + 20 * number;
        if !name.starts_with(' ') {
            let width = if *dashed { 1 } else { 3 };
            area.draw(&PathElement::new(vec![(left, y), (left + 18, y)], colour.stroke_width(width)))?;
        }
        area.draw(&Text::new((*name).to_owned(), (left + 25, y), style.clone()))?;
    }
    Ok(())
}

/// Two axes, each with what writes its numbers.
fn draw_lines<X, Y>(area: &Area, frame: &Frame, x: (X, &Tick), y: (Y, &Tick), lines: &[Line]) -> Drawn
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let mut chart = ChartBuilder::on(area)
        .margin_top(42)
        .margin_left(8)
        .margin_right(LEGEND)
        .margin_bottom(CAPTION)
        .x_label_area_size(44)
        .y_label_area_size(66)
        .build_cartesian_2d(x.0, y.0)?;
    chart
        .configure_mesh()
        .x_desc(frame.x.as_str())
        .y_desc(frame.y.as_str())
        .x_label_formatter(&|v| x.1(*v))
        .y_label_formatter(&|v| y.1(*v))
        .label_style((FONT, 14).into_font().color(&INK))
        .axis_desc_style((FONT, 16).into_font().color(&BLACK))
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(INK)
        .draw()?;
    for line in lines {
        if line.style == Style::Guide {
            chart.draw_series(DashedLineSeries::new(line.points.clone(), 5, 5, line.colour.stroke_width(1)))?;
        } else {
            chart.draw_series(LineSeries::new(line.points.clone(), line.colour.stroke_width(2)))?;
        }
        if line.style == Style::Points {
            chart.draw_series(line.points.iter().map(|p| Circle::new(*p, 4, line.colour.filled())))?;
        }
    }
    Ok(())
}

fn draw_bars(area: &Area, frame: &Frame, longest: f64, bars: &[Bar]) -> Drawn {
    let colours = bars.first().map_or(1, |(_, lengths)| lengths.len());
    let right = if colours > 1 { LEGEND } else { 24 };
    let mut chart = ChartBuilder::on(area)
        .margin_top(42)
        .margin_left(8)
        .margin_right(right)
        .margin_bottom(CAPTION)
        .x_label_area_size(44)
        .y_label_area_size(110)
        .build_cartesian_2d(0.0..longest, 0.0..bars.len().max(1) as f64)?;
    chart
        .configure_mesh()
        .x_desc(frame.x.as_str())
        .x_label_formatter(&|v| tick(*v))
        .label_style((FONT, 14).into_font().color(&INK))
        .axis_desc_style((FONT, 16).into_font().color(&BLACK))
        .disable_y_mesh()
        .y_labels(0)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(INK)
        .draw()?;
    let size = if bars.len() > 16 { 13 } else { 14 };
    let font = |at: HPos| (FONT, size).into_font().color(&INK).pos(Pos::new(at, VPos::Center));
    for (row, (name, lengths)) in bars.iter().rev().enumerate() {
        let bottom = row as f64 + 0.12;
        let (left, middle) = chart.backend_coord(&(0.0, row as f64 + 0.5));
        area.draw(&Text::new(name.clone(), (left - 8, middle), font(HPos::Right)))?;
        let thick = 0.76 / lengths.len().max(1) as f64;
        for (place, (length, colour)) in lengths.iter().rev().zip(COLOURS[..lengths.len()].iter().rev()).enumerate() {
            let low = bottom + thick * place as f64;
            let corners = [(0.0, low), (*length as f64, low + thick)];
            chart.draw_series([Rectangle::new(corners, colour.filled())])?;
            let end = chart.backend_coord(&(*length as f64, low + thick / 2.0));
            area.draw(&Text::new(length.to_string(), (end.0 + 5, end.1), font(HPos::Left)))?;
        }
    }
    Ok(())
}

/// A line of no more points than anybody sees.
fn thinned(line: &Line) -> Line {
    let step = line.points.len().div_ceil(POINTS_MAX).max(1);
    let last = line.points.len().saturating_sub(1);
    let kept = line.points.iter().enumerate().filter(|(i, _)| i % step == 0 || *i == last);
    Line { points: kept.map(|(_, p)| *p).collect(), ..line.clone() }
}

/// The least and the most; something to draw on when there is nothing.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (least, most) = values.fold((f64::MAX, f64::MIN), |(least, most), v| (least.min(v), most.max(v)));
    if least <= most { (least, most) } else { (1.0, 1.0) }
}

/// From zero to a little beyond the most.
fn linear((_, most): (f64, f64)) -> std::ops::Range<f64> {
    0.0..if most > 0.0 { most * 1.05 } else { 1.0 }
}

/// A little more than the values, at least a factor of ten, above zero.
fn log((least, most): (f64, f64)) -> std::ops::Range<f64> {
    let (least, most) = (least.max(1e-6) / 1.25, most.max(1e-6) * 1.25);
    if most / least < 10.0 { least / 2.0..least * 10.0 } else { least..most }
}

/// A number beside an axis, short.
fn tick(value: f64) -> String {
    let trim = |v: f64| {
        let text = format!("{v:.2}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match value.abs() {
        v if v >= 1e9 => trim(value / 1e9) + " G",
        v if v >= 1e6 => trim(value / 1e6) + " M",
        v if v >= 1e4 => trim(value / 1e3) + " k",
        v if v > 0.0 && v < 0.01 => format!("{value:.0e}"),
        _ => trim(value),
    }
}

/// On a logarithmic axis, ones, twos and fives only: the others would run into each other.
fn log_tick(value: f64) -> String {
    let digit = (value / 10_f64.powf(value.log10().floor() + 1e-9)).round();
    if [1.0, 2.0, 5.0, 10.0].contains(&digit) { tick(value) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_beside_axes_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (100.0, "100"),
            (1_000.0, "1000"),
            (25_000.0, "25 k"),
            (3e6, "3 M"),
            (2e9, "2 G"),
        ] {
            assert_eq!(tick(value), text);
        }
        assert_eq!(tick(0.001), "1e-3");
        let beside = |values: &[f64]| values.iter().map(|v| log_tick(*v)).collect::<Vec<_>>().join(" ");
        assert_eq!(beside(&[0.1, 1.0, 2.0, 3.0, 5.0, 9.0, 10.0, 50.0, 100.0]), "0.1 1 2  5  10 50 100");
    }

    #[test]
    fn captions_are_broken_and_cut() {
        let command = format!("sinew sim --seed 7 --faults {}", vec!["partition"; 80].join(","));
        let lines = wrapped(&command);
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.chars().count() <= CAPTION_LINE_LEN + 1) && lines[2].ends_with('…'));
        assert_eq!(wrapped("sinew sim"), ["sinew sim"]);
    }

    #[test]
    fn a_long_line_keeps_its_ends() {
        let points: Vec<(f64, f64)> = (0..10_000).map(|n| (f64::from(n), 1.0)).collect();
        let line = Line { name: String::new(), points, colour: INK, style: Style::Plain };
        let thin = thinned(&line);
        assert!(thin.points.len() <= POINTS_MAX + 1);
        assert_eq!((thin.points[0].0, thin.points.last().expect("points").0), (0.0, 9_999.0));
    }

    #[test]
    fn nothing_to_draw_is_drawn_too() {
        let frame = Frame { title: "t <&>".into(), caption: "c".into(), x: "x".into(), y: "y".into() };
        for scale in [Scale::Linear, Scale::LogX, Scale::LogBoth] {
            let text = lines(&frame, scale, &[]);
            assert!(text.contains("t &lt;&amp;&gt;") && text.trim_end().ends_with("</svg>"), "{text}");
        }
        assert!(bars(&frame, &["one"], &[]).trim_end().ends_with("</svg>"));
    }
}
