//! How often a node gossips, and what of silence it makes: small clusters notice a death sooner, large ones send less.
//!
//! The failure detector compares the silence of a member with the mean time between two signs of life of it. That mean is taken of few
//! samples and an expected value with the weight of five, so that a burst of signs does not make a short silence suspicious.

use std::time::Duration;

/// Members from which the pace of large clusters is used, and below which a large one counts as small again.
const LARGE_FROM: usize = 100;
const SMALL_BELOW: usize = 80;
const SMALL_INTERVAL: Duration = Duration::from_millis(200);
const LARGE_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pace {
    pub(super) interval: Duration,
    /// The expected time between two signs of life.
    pub(super) expected: Duration,
    /// Samples that are averaged with it.
    pub(super) samples: usize,
    /// A longer silence is no sample.
    pub(super) sample_max: Duration,
}

impl Pace {
    pub(super) fn of_interval(interval: Duration) -> Self {
        Self { interval, expected: interval, samples: 5, sample_max: interval * 5 }
    }

    /// For a number of members; `now` is the pace until now.
    pub(super) fn of_members(members: usize, now: Option<Self>) -> Self {
        let is_large = now.is_some_and(|pace| pace.interval == LARGE_INTERVAL);
        let large = members >= if is_large { SMALL_BELOW } else { LARGE_FROM };
        Self::of_interval(if large { LARGE_INTERVAL } else { SMALL_INTERVAL })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_follows_the_size_and_does_not_swing() {
        let small = Pace::of_members(1, None);
        assert_eq!(small.interval, SMALL_INTERVAL);
        assert_eq!(Pace::of_members(99, Some(small)), small);
        let large = Pace::of_members(100, Some(small));
        assert_eq!(large.interval, LARGE_INTERVAL);
        assert_eq!(Pace::of_members(80, Some(large)), large);
        assert_eq!(Pace::of_members(79, Some(large)), small);
    }
}
