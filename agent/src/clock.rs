//! The one place where this process reads clocks of the system.

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds since 1970; 0 with a clock before that.
#[allow(clippy::disallowed_methods, reason = "the one place that the ban leaves")]
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// Nanoseconds of the clock that the kernel's records carry; it stands still while the machine sleeps.
pub fn monotonic_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// What the wall clock is ahead of the monotonic clock, in microseconds.
pub fn wall_minus_monotonic_us() -> i64 {
    let difference = i128::from(now()) - i128::from(monotonic_ns() / 1_000);
    i64::try_from(difference).unwrap_or(0)
}
