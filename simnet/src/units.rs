//! Spans of virtual time, as scenarios write them.

use sinew_scheduler::time::Span;

/// So many seconds of virtual time.
#[must_use]
pub const fn seconds(s: u64) -> Span {
    Span::ms(s * 1_000)
}

/// So many milliseconds of virtual time.
#[must_use]
pub const fn millis(ms: u64) -> Span {
    Span::ms(ms)
}

/// So many microseconds of virtual time.
#[must_use]
pub const fn micros(us: u64) -> Span {
    Span(us)
}
