//! The one place where this process reads the wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds since 1970; 0 with a clock before that.
#[allow(clippy::disallowed_methods, reason = "the one place that the ban leaves")]
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
