//! What time it is for a module, and how it waits. A deterministic module's time does not pass by itself: each look at a clock
//! moves it on by a step, and waiting moves it to where the module waits for.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use wasmtime::{Caller, Extern};
use wasmtime_wasi::{HostMonotonicClock, HostWallClock};

use super::host::State;

/// Time is told in steps of this: a program needs no finer one, and what measures caches would.
const PRECISION: Duration = Duration::from_micros(1);
/// By how much a look at a deterministic clock moves it on.
const STEP: Duration = Duration::from_millis(1);
/// When deterministic time begins: 2000-01-01, as s since 1970.
const BEGIN: Duration = Duration::from_secs(946_684_800);
/// Most things that a module may wait for at once: it has fewer files than that.
const SUBSCRIPTIONS_MAX: usize = 1_024;

/// Of `wasi_snapshot_preview1`.
mod errno {
    pub(super) const SUCCESS: u16 = 0;
    pub(super) const FAULT: u16 = 21;
    pub(super) const INVAL: u16 = 28;
    pub(super) const NOTSUP: u16 = 58;
}
const SUBSCRIPTION_LEN: usize = 48;
const EVENT_LEN: usize = 32;
const EVENT_CLOCK: u8 = 0;
const EVENT_FD_WRITE: u8 = 2;
const CLOCK_REALTIME: u32 = 0;
const CLOCK_MONOTONIC: u32 = 1;
const FLAG_ABSOLUTE: u16 = 1;

/// A module's time.
#[derive(Debug)]
pub(super) enum Clock {
    /// This machine's; monotonic time counts from here.
    Host(Instant),
    /// Ns that have passed.
    Steps(AtomicU64),
}

impl Clock {
    pub(super) fn new(deterministic: bool) -> Self {
        if deterministic { Self::Steps(AtomicU64::new(0)) } else { Self::Host(Instant::now()) }
    }

    fn precision(&self) -> Duration {
        if matches!(self, Self::Host(_)) { PRECISION } else { STEP }
    }

    fn monotonic(&self) -> Duration {
        match self {
            Self::Host(start) => rounded(start.elapsed()),
            Self::Steps(ns) => Duration::from_nanos(ns.fetch_add(nanos(STEP), Ordering::Relaxed)),
        }
    }

    fn wall(&self) -> Duration {
        match self {
            Self::Host(_) => rounded(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()),
            Self::Steps(_) => BEGIN + self.monotonic(),
        }
    }

    /// Lets time pass, if it does not do so by itself.
    fn skip(&self, time: Duration) -> bool {
        if let Self::Steps(ns) = self {
            ns.fetch_add(nanos(time), Ordering::Relaxed);
        }
        matches!(self, Self::Steps(_))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn rounded(time: Duration) -> Duration {
    let over = time.as_nanos() % PRECISION.as_nanos();
    time.saturating_sub(Duration::from_nanos(u64::try_from(over).unwrap_or(0)))
}

/// A module's clocks.
#[derive(Debug, Clone)]
pub(super) struct Clocks(pub(super) Arc<Clock>);

impl HostMonotonicClock for Clocks {
    fn resolution(&self) -> u64 {
        nanos(self.0.precision())
    }

    fn now(&self) -> u64 {
        nanos(self.0.monotonic())
    }
}

impl HostWallClock for Clocks {
    fn resolution(&self) -> Duration {
        self.0.precision()
    }

    fn now(&self) -> Duration {
        self.0.wall()
    }
}

/// Until when a module waits, for the thread that runs it.
#[derive(Debug, Clone, Default)]
pub(super) struct Alarm(Arc<Mutex<Option<Instant>>>);

impl Alarm {
    pub(super) fn at(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, at: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    async fn sleep(&self, time: Duration) {
        // A time too far away to be told never comes; the task's limits do.
        let at = Instant::now().checked_add(time);
        let forever = Duration::from_secs(86_400);
        poll_fn(|_| {
            if at.is_some_and(|at| Instant::now() >= at) {
                self.set(None);
                return Poll::Ready(());
            }
            self.set(Some(at.unwrap_or_else(|| Instant::now() + forever)));
            Poll::Pending
        })
        .await;
    }
}

/// One thing that a module waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Subscription {
    userdata: u64,
    kind: u8,
    clock: u32,
    timeout: Duration,
    is_absolute: bool,
}

impl Subscription {
    fn parse(bytes: &[u8; SUBSCRIPTION_LEN]) -> Self {
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        Self {
            userdata: u64_at(0),
            kind: bytes[8],
            clock: u32_at(16),
            timeout: Duration::from_nanos(u64_at(24)),
            is_absolute: u16::from_le_bytes([bytes[40], bytes[41]]) & FLAG_ABSOLUTE != 0,
        }
    }

    /// How long it takes yet; nothing for files and streams, which are always ready.
    fn left(&self, clock: &Clock) -> Result<Duration, u16> {
        match (self.kind, self.clock) {
            (EVENT_CLOCK, _) if !self.is_absolute => Ok(self.timeout),
            (EVENT_CLOCK, CLOCK_REALTIME) => Ok(self.timeout.saturating_sub(clock.wall())),
            (EVENT_CLOCK, CLOCK_MONOTONIC) => Ok(self.timeout.saturating_sub(clock.monotonic())),
            (EVENT_CLOCK, _) => Err(errno::NOTSUP),
            _ => Ok(Duration::ZERO),
        }
    }

    fn event(&self, error: u16) -> [u8; EVENT_LEN] {
        let mut event = [0; EVENT_LEN];
        event[..8].copy_from_slice(&self.userdata.to_le_bytes());
        event[8..10].copy_from_slice(&error.to_le_bytes());
        event[10] = self.kind;
        // Bytes that can be read or written: some.
        event[16] = u8::from(self.kind != EVENT_CLOCK);
        event
    }
}

/// `poll_oneoff`. The one of `wasmtime-wasi` would block the thread, stop handle and limits with it.
pub(super) async fn poll_oneoff(
    mut caller: Caller<'_, State>,
    (subscriptions, events, count, result): (i32, i32, i32, i32),
) -> wasmtime::Result<i32> {
    let [from, to, count, result] = [subscriptions, events, count, result].map(|n| n.cast_unsigned() as usize);
    let memory = caller.get_export("memory").and_then(Extern::into_memory);
    let memory = memory.ok_or_else(|| wasmtime::format_err!("the module exports no `memory`"))?;
    if count == 0 || count > SUBSCRIPTIONS_MAX {
        return Ok(errno::INVAL.into());
    }
    let bytes = memory.data(&caller).get(from..).and_then(|rest| rest.get(..count * SUBSCRIPTION_LEN));
    let Some(bytes) = bytes else { return Ok(errno::FAULT.into()) };
    let (all, _) = bytes.as_chunks::<SUBSCRIPTION_LEN>();
    let all: Vec<Subscription> = all.iter().map(Subscription::parse).collect();
    if all.iter().any(|s| s.kind > EVENT_FD_WRITE) {
        return Ok(errno::INVAL.into());
    }
    let clock = Arc::clone(&caller.data().clock);
    let left: Vec<_> = all.iter().map(|s| s.left(&clock)).collect();
    let wait = left.iter().map(|left| left.unwrap_or_default()).min().unwrap_or_default();
    if !wait.is_zero() && !clock.skip(wait) {
        let alarm = caller.data().alarm.clone();
        alarm.sleep(wait).await;
    }
    let happened = all.iter().zip(left).filter_map(|(subscription, left)| match left {
        Ok(left) => (left <= wait).then(|| subscription.event(errno::SUCCESS)),
        Err(error) => Some(subscription.event(error)),
    });
    let happened: Vec<u8> = happened.flatten().collect();
    let number = u32::try_from(happened.len() / EVENT_LEN).unwrap_or(0).to_le_bytes();
    let written = memory.write(&mut caller, to, &happened).and_then(|()| memory.write(&mut caller, result, &number));
    Ok(written.map_or(errno::FAULT, |()| errno::SUCCESS).into())
}
