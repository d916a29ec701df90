//! Sizes, times, rates and other people's texts, short enough for a table. Integer arithmetic wherever it will do; nothing
//! here reads a clock.

/// Binary units, largest first.
const SIZES: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// Bytes: `7B`, `1.5KiB`, `640MiB`.
pub(super) fn size(bytes: u64) -> String {
    let Some((unit, factor)) = SIZES.iter().find(|(_, factor)| bytes >= *factor) else {
        return format!("{bytes}B");
    };
    let (whole, tenth) = (bytes / factor, bytes % factor * 10 / factor);
    if whole < 10 && tenth > 0 { format!("{whole}.{tenth}{unit}") } else { format!("{whole}{unit}") }
}

/// A span of ms: `340ms`, `3.4s`, `34s`, `2m05s`, `3h12m`, `4d02h`.
pub(super) fn span(ms: u64) -> String {
    let s = ms / 1_000;
    match (ms, s) {
        (0..1_000, _) => format!("{ms}ms"),
        (_, 1..10) => format!("{s}.{}s", ms % 1_000 / 100),
        (_, 10..60) => format!("{s}s"),
        (_, 60..3_600) => format!("{}m{:02}s", s / 60, s % 60),
        (_, 3_600..86_400) => format!("{}h{:02}m", s / 3_600, s % 3_600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3_600),
    }
}

/// Microseconds: `85us`, `1.2ms`, `34ms`.
pub(super) fn micros(us: u32) -> String {
    match us {
        0..1_000 => format!("{us}us"),
        1_000..10_000 => format!("{}.{}ms", us / 1_000, us % 1_000 / 100),
        _ => format!("{}ms", us / 1_000),
    }
}

/// Things per second: `12.3k/s`, `55.1/s`, `2.5/min`.
pub(super) fn rate(per_s: f64) -> String {
    match per_s {
        r if r >= 1e6 => format!("{:.1}M/s", r / 1e6),
        r if r >= 1e4 => format!("{:.1}k/s", r / 1e3),
        r if r >= 100.0 => format!("{r:.0}/s"),
        r if r >= 1.0 => format!("{r:.1}/s"),
        r => format!("{:.1}/min", r * 60.0),
    }
}

/// `done` of `all`, rounded down: 100% is said of the whole only.
pub(super) fn percent(done: u64, all: u64) -> String {
    let percent = u128::from(done) * 100 / u128::from(all.max(1));
    format!("{}%", if all == 0 { 100 } else { percent.min(100) })
}

/// Thousandths of a core: `3.5`, `16`.
pub(super) fn cores(milli: u32) -> String {
    let tenths = milli / 100;
    if tenths.is_multiple_of(10) { format!("{}", tenths / 10) } else { format!("{}.{}", tenths / 10, tenths % 10) }
}

/// Unix ms as `2026-07-31 12:00:03`, UTC.
pub(super) fn utc(ms: u64) -> String {
    let (days, second) = (ms / 86_400_000, ms / 1_000 % 86_400);
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3_600, second / 60 % 60, second % 60)
}

/// The time of day in unix ms: `12:00:03.123`, UTC.
pub(super) fn clock(ms: u64) -> String {
    let second = ms / 1_000 % 86_400;
    format!("{:02}:{:02}:{:02}.{:03}", second / 3_600, second / 60 % 60, second % 60, ms % 1_000)
}

/// Days since 1970 as a date of the Gregorian calendar, counted in years that begin in March, so that the odd month is the
/// last one: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
const fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year + (month <= 2) as u64, month, day)
}

/// Somebody else's text on one line: control characters could redraw the terminal, so they show as escapes.
pub(super) fn clean(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// [`clean`], line by line, with tabs as blanks.
pub(super) fn clean_lines(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| clean(&line.replace('\t', "    "))).collect();
    lines.join("\n")
}

/// `text`, cut to `len` characters with an ellipsis.
pub(super) fn cut(text: &str, len: usize) -> String {
    if text.chars().count() <= len {
        return text.to_owned();
    }
    text.chars().take(len.saturating_sub(1)).chain(['…']).collect()
}

/// `s` unless it is one.
pub(super) const fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_times_and_rates_are_short() {
        for (bytes, text) in [(0, "0B"), (1023, "1023B"), (1536, "1.5KiB"), (10 << 20, "10MiB"), (1 << 30, "1GiB")] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(u64::MAX), "16777215TiB");
        for (ms, text) in [
            (340, "340ms"),
            (3_460, "3.4s"),
            (34_000, "34s"),
            (125_000, "2m05s"),
            (11_520_000, "3h12m"),
            (352_800_000, "4d02h"),
        ] {
            assert_eq!(span(ms), text);
        }
        assert_eq!((micros(85), micros(1_250), micros(34_000)), ("85us".into(), "1.2ms".into(), "34ms".into()));
        for (per_s, text) in
            [(12_345.0, "12.3k/s"), (55.12, "55.1/s"), (0.04, "2.4/min"), (432.1, "432/s"), (3e6, "3.0M/s")]
        {
            assert_eq!(rate(per_s), text);
        }
        assert_eq!((percent(999, 1000), percent(3, 3), percent(0, 0)), ("99%".into(), "100%".into(), "100%".into()));
        assert_eq!((cores(3_500), cores(16_000), cores(50)), ("3.5".into(), "16".into(), "0".into()));
    }

    #[test]
    fn dates_are_right_around_leap_days() {
        for (s, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_785_499_203, "2026-07-31 12:00:03"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(utc(s * 1_000), text);
        }
        assert_eq!(clock(1_785_499_203_123), "12:00:03.123");
    }

    #[test]
    fn texts_of_others_cannot_draw() {
        assert_eq!(clean("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(clean_lines("a\tb\nc\r\n\x07"), "a    b\nc\n\\u{7}");
        assert_eq!((cut("abcdef", 4).as_str(), cut("abcd", 4).as_str()), ("abc…", "abcd"));
    }
}
