//! Sizes (`64MiB`), durations (`24h`), CPU shares (`0.5`) and splits (`lines:1000`), as people write them in a manifest or on
//! the command line. Integer arithmetic throughout: what is printed reads back as the same value.

use std::fmt;

use super::draft::Split;
use super::problem::excerpt;
use super::suggest::closest;

/// Units of a size, largest first, each with its bytes.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

/// Units of a duration, largest first, each with its milliseconds.
const DURATION_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Digits read before the point: one more than `u64::MAX` has, so that anything longer is surely too large.
const WHOLE_DIGITS_MAX: usize = 20;
/// Digits read after the point: with the whole ones they fit `u128`, and no unit here has more decimals to give.
const FRACTION_DIGITS_MAX: usize = 12;

/// What a text should have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    /// Bytes.
    Size,
    /// Milliseconds.
    Duration,
    /// Thousandths of a core.
    Cpus,
    /// How a round's input is cut.
    Split,
}

impl Quantity {
    /// How it is written.
    #[must_use]
    pub const fn mend(self) -> &'static str {
        match self {
            Self::Size => "write whole bytes, or a number with kB, MB, GB, TB, KiB, MiB, GiB or TiB, such as 64MiB",
            Self::Duration => "write a number with ms, s, m, h or d, such as 30s",
            Self::Cpus => "write a number of cores, at least 0.001 and with at most three decimals, such as 0.5",
            Self::Split => "write lines:COUNT, bytes:SIZE or files, such as bytes:16MiB",
        }
    }

    fn units(self) -> &'static [(&'static str, u64)] {
        match self {
            Self::Size => &SIZE_UNITS,
            Self::Duration => &DURATION_UNITS,
            Self::Cpus | Self::Split => &[],
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Size => "size",
            Self::Duration => "duration",
            Self::Cpus => "number of cores",
            Self::Split => "split",
        })
    }
}

/// What keeps a text from being a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitFault {
    /// It does not begin with a number.
    #[error("not a {0}")]
    Form(Quantity),
    /// The unit does not exist; the closest one that does, if any is close.
    #[error("`{unit}` is no unit of a {quantity}{}", .closest.map(|c| format!("; did you mean {c}?")).unwrap_or_default())]
    Unit {
        /// Of what.
        quantity: Quantity,
        /// The unit given.
        unit: String,
        /// What may have been meant.
        closest: Option<&'static str>,
    },
    /// There is no unit, and a bare number could mean anything.
    #[error("the unit is missing")]
    NoUnit,
    /// It is zero where that makes no sense.
    #[error("a {0} cannot be zero")]
    Zero(Quantity),
    /// It is smaller than the smallest step.
    #[error("finer than a {0} can be")]
    TooFine(Quantity),
    /// It does not fit.
    #[error("larger than a {0} can be")]
    TooLarge(Quantity),
}

/// A text that is no quantity: names the value and the mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}`: {fault}; {}", quantity.mend())]
pub struct UnitError {
    /// What it should have been.
    pub quantity: Quantity,
    /// What was given, shortened.
    pub value: String,
    /// What is wrong with it.
    pub fault: UnitFault,
}

impl UnitError {
    fn new(quantity: Quantity, value: &str, fault: UnitFault) -> Self {
        Self { quantity, value: excerpt(value), fault }
    }
}

/// Reads a size in bytes: `4096`, `64MiB`, `1.5 GB`. A fraction of a byte is dropped.
///
/// # Errors
/// [`UnitError`].
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    parse_with_unit(Quantity::Size, text).map_err(|fault| UnitError::new(Quantity::Size, text, fault))
}

/// Reads a duration in milliseconds: `200ms`, `30s`, `1.5h`. A fraction of a millisecond is dropped.
///
/// # Errors
/// [`UnitError`].
pub fn parse_duration(text: &str) -> Result<u64, UnitError> {
    parse_with_unit(Quantity::Duration, text).map_err(|fault| UnitError::new(Quantity::Duration, text, fault))
}

/// Reads cores as thousandths: `2`, `0.5`. Zero is refused: a task that reserves nothing would run everywhere at once.
///
/// # Errors
/// [`UnitError`].
pub fn parse_cpus(text: &str) -> Result<u32, UnitError> {
    let read = || {
        let (number, unit) = Decimal::split(Quantity::Cpus, text)?;
        if !unit.is_empty() {
            return Err(UnitFault::Form(Quantity::Cpus));
        }
        let (milli, rest) = number.times(1_000).ok_or(UnitFault::TooLarge(Quantity::Cpus))?;
        if rest {
            return Err(UnitFault::TooFine(Quantity::Cpus));
        }
        if milli == 0 {
            return Err(UnitFault::Zero(Quantity::Cpus));
        }
        u32::try_from(milli).map_err(|_| UnitFault::TooLarge(Quantity::Cpus))
    };
    read().map_err(|fault| UnitError::new(Quantity::Cpus, text, fault))
}

/// Reads how a round's input is cut: `lines:1000`, `bytes:64MiB`, `files`.
///
/// # Errors
/// [`UnitError`]; a wrong size inside is reported as such.
pub fn parse_split(text: &str) -> Result<Split, UnitError> {
    let form = || UnitError::new(Quantity::Split, text, UnitFault::Form(Quantity::Split));
    match text.trim().split_once(':') {
        None if text.trim() == "files" => Ok(Split::Files),
        Some(("lines", count)) => count.trim().parse().map(Split::Lines).map_err(|_| form()),
        Some(("bytes", size)) => parse_size(size).map(Split::Bytes),
        _ => Err(form()),
    }
}

/// Writes bytes with the largest unit that divides them: `64MiB`, `1500kB`, `7B`.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    format_with_unit(&SIZE_UNITS, bytes)
}

/// Writes milliseconds with the largest unit that divides them: `1d`, `90s`, `200ms`.
#[must_use]
pub fn format_duration(ms: u64) -> String {
    format_with_unit(&DURATION_UNITS, ms)
}

/// Writes thousandths of a core as cores: `2`, `0.5`.
#[must_use]
pub fn format_cpus(milli: u32) -> String {
    let text = format!("{}.{:03}", milli / 1_000, milli % 1_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn format_with_unit(units: &[(&'static str, u64)], value: u64) -> String {
    // Both lists end with the unit 1, which divides everything; zero takes it too, as no unit is better.
    let fits = |(_, factor): &&(&'static str, u64)| *factor == 1 || (value != 0 && value.is_multiple_of(*factor));
    let (unit, factor) = units.iter().find(fits).copied().unwrap_or(("", 1));
    format!("{}{unit}", value / factor)
}

fn parse_with_unit(quantity: Quantity, text: &str) -> Result<u64, UnitFault> {
    let (number, unit) = Decimal::split(quantity, text)?;
    let factor = if unit.is_empty() {
        // Only bytes may stand alone; half a byte may not.
        if quantity != Quantity::Size {
            return Err(UnitFault::NoUnit);
        }
        if number.decimals > 0 {
            return Err(UnitFault::TooFine(quantity));
        }
        1
    } else {
        let known = quantity.units().iter().find(|(name, _)| *name == unit);
        known.map(|(_, factor)| *factor).ok_or_else(|| unknown_unit(quantity, unit))?
    };
    let (value, rest) = number.times(factor).ok_or(UnitFault::TooLarge(quantity))?;
    if value == 0 && rest { Err(UnitFault::TooFine(quantity)) } else { Ok(value) }
}

fn unknown_unit(quantity: Quantity, unit: &str) -> UnitFault {
    let names = quantity.units().iter().map(|(name, _)| *name);
    let same_but_case = names.clone().find(|name| name.eq_ignore_ascii_case(unit));
    UnitFault::Unit {
        quantity,
        unit: excerpt(unit),
        closest: same_but_case.or_else(|| closest(unit, names.filter(|n| n.len() > 1))),
    }
}

/// An unsigned decimal number, exactly: `digits / 10^decimals`.
struct Decimal {
    digits: u128,
    decimals: u32,
}

impl Decimal {
    /// Cuts `text` into a number and what follows it.
    fn split(quantity: Quantity, text: &str) -> Result<(Self, &str), UnitFault> {
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        if whole.is_empty() || fraction.is_empty() || fraction.contains('.') {
            return Err(UnitFault::Form(quantity));
        }
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        if whole.len() > WHOLE_DIGITS_MAX {
            return Err(UnitFault::TooLarge(quantity));
        }
        if fraction.len() > FRACTION_DIGITS_MAX {
            return Err(UnitFault::TooFine(quantity));
        }
        let digits = [whole, fraction].into_iter().flat_map(|part| part.bytes());
        let digits = digits.fold(0_u128, |sum, digit| sum * 10 + u128::from(digit - b'0'));
        let decimals = u32::try_from(fraction.len()).map_err(|_| UnitFault::TooFine(quantity))?;
        Ok((Self { digits, decimals }, unit.trim_start()))
    }

    /// The whole part of `self * factor`, and whether anything is left over; `None` when it does not fit.
    fn times(&self, factor: u64) -> Option<(u64, bool)> {
        let (product, by) = (self.digits.checked_mul(factor.into())?, 10_u128.pow(self.decimals));
        Some((u64::try_from(product / by).ok()?, product % by != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_read_as_people_write_them() {
        let sizes = [("0", 0), ("4096", 4096), ("64MiB", 64 << 20), ("1.5 GB", 1_500_000_000), ("0.1KiB", 102)];
        for (text, bytes) in sizes {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for (text, ms) in [("200ms", 200), ("30s", 30_000), ("1.5m", 90_000), ("24h", 86_400_000), ("7 d", 604_800_000)]
        {
            assert_eq!(parse_duration(text), Ok(ms), "{text}");
        }
        for (text, milli) in [("1", 1_000), ("0.5", 500), ("1.250", 1_250), ("0.001", 1), ("64", 64_000)] {
            assert_eq!(parse_cpus(text), Ok(milli), "{text}");
        }
        assert_eq!(parse_split("lines:1000"), Ok(Split::Lines(1_000)));
        assert_eq!(parse_split("bytes:64MiB"), Ok(Split::Bytes(64 << 20)));
        assert_eq!(parse_split("files"), Ok(Split::Files));
    }

    #[test]
    fn each_fault_is_told_apart() {
        let size = |text| parse_size(text).expect_err(text).fault;
        assert_eq!(size("many"), UnitFault::Form(Quantity::Size));
        assert_eq!(size("-1"), UnitFault::Form(Quantity::Size));
        assert_eq!(size(""), UnitFault::Form(Quantity::Size));
        assert_eq!(size("1."), UnitFault::Form(Quantity::Size));
        assert_eq!(size("1.2.3MB"), UnitFault::Form(Quantity::Size));
        assert_eq!(size("1.5"), UnitFault::TooFine(Quantity::Size));
        assert_eq!(size("0.1B"), UnitFault::TooFine(Quantity::Size));
        assert_eq!(size("18446744073709551616"), UnitFault::TooLarge(Quantity::Size));
        assert_eq!(size("99999999999999999999999999999999999999999999"), UnitFault::TooLarge(Quantity::Size));
        assert!(matches!(size("64mib"), UnitFault::Unit { closest: Some("MiB"), .. }));
        assert!(matches!(size("3 parsecs"), UnitFault::Unit { closest: None, .. }));
        assert_eq!(parse_duration("30").expect_err("bare").fault, UnitFault::NoUnit);
        assert_eq!(parse_duration("0.1ms").expect_err("fine").fault, UnitFault::TooFine(Quantity::Duration));
        assert_eq!(parse_cpus("0").expect_err("zero").fault, UnitFault::Zero(Quantity::Cpus));
        assert_eq!(parse_cpus("0.0005").expect_err("fine").fault, UnitFault::TooFine(Quantity::Cpus));
        assert_eq!(parse_cpus("5000000").expect_err("large").fault, UnitFault::TooLarge(Quantity::Cpus));
        assert!(parse_cpus("NaN").is_err() && parse_cpus("2 cores").is_err());
        assert!(parse_split("words:3").is_err() && parse_split("lines:x").is_err() && parse_split("").is_err());
    }

    #[test]
    fn messages_name_the_value_and_the_mend() {
        let error = parse_size("64mib").expect_err("case matters").to_string();
        assert!(
            error.contains("`64mib`") && error.contains("did you mean MiB?") && error.contains("such as 64MiB"),
            "{error}"
        );
    }

    #[test]
    fn printed_forms_are_the_shortest_exact_ones() {
        assert_eq!([0, 7, 1_500, 64 << 20].map(format_size), ["0B", "7B", "1500B", "64MiB"]);
        assert_eq!([0, 200, 90_000, 86_400_000].map(format_duration), ["0ms", "200ms", "90s", "1d"]);
        assert_eq!([1, 500, 1_000, 12_340].map(format_cpus), ["0.001", "0.5", "1", "12.34"]);
    }
}
