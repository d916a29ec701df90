//! The daemon's two clocks, in the core's units.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use sinew_scheduler::time::{Now, Time};

static START: LazyLock<Duration> = LazyLock::new(since_boot);

/// Time since the machine was started, sleep included: a lease goes on running out while a laptop or a virtual machine is
/// suspended, as it does for everybody else.
#[must_use]
pub fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

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

/// A moment of the core's clock, in nanoseconds of the one that goes on while the machine sleeps.
#[must_use]
pub fn boot_ns(at: Time) -> u64 {
    let (boot, now) = (crate::exec::switch::boot_ns(), now().at);
    let ns = |span: sinew_scheduler::time::Span| span.0.saturating_mul(1_000);
    if at >= now { boot.saturating_add(ns(at - now)) } else { boot.saturating_sub(ns(now - at)) }
}

/// Now, for the core.
#[must_use]
pub fn now() -> Now {
    // From one second on, so that "a second ago" always exists.
    let us =
        u64::try_from(since_boot().saturating_sub(*START).as_micros()).unwrap_or(u64::MAX).saturating_add(1_000_000);
    Now { at: Time(us), unix_ms: unix_ms() }
}
