//! The daemon's two clocks, in the core's units.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use sinew_scheduler::time::{Now, Time};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Unix ms; 0 on a clock before 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Unix microseconds; 0 on a clock before 1970.
#[must_use]
pub fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Now, for the core.
#[must_use]
pub fn now() -> Now {
    // From one second on, so that "a second ago" always exists.
    let us = u64::try_from(START.elapsed().as_micros()).unwrap_or(u64::MAX).saturating_add(1_000_000);
    Now { at: Time(us), unix_ms: unix_ms() }
}
