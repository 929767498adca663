//! Tells the cluster, now and then, how much this node has to do, and since when it may be given work.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use metaflow_actors::placement::view::is_eligible;
use tokio::time::Instant;

use super::Parts;
use crate::membership::{Load, Membership, View};

const TICK: Duration = Duration::from_secs(1);
/// Ticks between two tellings of the load. Each travels to every node, so not too often.
const LOAD_TICKS: u64 = 5;
/// Tellings that are looked back at to find how old the oldest waiting batch is: five minutes.
const SAMPLES_MAX: usize = 60;

/// Runs until it is aborted.
pub(super) async fn tell(parts: Parts, membership: Arc<Membership>) {
    let mut lag = Lag::default();
    let mut ticks = tokio::time::interval(TICK);
    for tick in 0_u64.. {
        let now = ticks.tick().await;
        let ready_for = ready_for(&membership.view().borrow(), now);
        let crashes = u32::try_from(membership.crashes()).unwrap_or(u32::MAX);
        membership.set_eligible(ready_for.is_some_and(|ready_for| is_eligible(ready_for, crashes)));
        let work = parts.work().filter(|_| tick.is_multiple_of(LOAD_TICKS));
        if let Some(work) = work {
            let store_lag_ms = u64::try_from(lag.of(now, work.accepted, work.waiting).as_millis());
            membership.set_load(work.load(store_lag_ms.unwrap_or(u64::MAX)));
        }
    }
}

/// How long this node has been ready.
fn ready_for(view: &View, now: Instant) -> Option<Duration> {
    let since = view.member(view.own)?.ready_since?;
    Some(now.into_std().saturating_duration_since(since))
}

/// What there is to do.
pub(super) struct Work {
    pub(super) agents: u64,
    pub(super) wal_bytes: u64,
    /// Batches accepted since the start.
    pub(super) accepted: u64,
    /// Batches that wait for the store, from before the start too.
    pub(super) waiting: u64,
}

impl Work {
    pub(super) fn load(&self, store_lag_ms: u64) -> Load {
        Load { agents: self.agents, wal_bytes: self.wal_bytes, store_lag_ms }
    }
}

/// How long batches wait for the store: batches leave about as they came, so the oldest that waits came when the number accepted was
/// what is done now.
#[derive(Debug, Default)]
struct Lag {
    samples: VecDeque<(Instant, u64)>,
}

impl Lag {
    fn of(&mut self, now: Instant, accepted: u64, waiting: u64) -> Duration {
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back((now, accepted));
        if waiting == 0 {
            return Duration::ZERO;
        }
        let done = accepted.saturating_sub(waiting);
        let came =
            self.samples.iter().rfind(|(_, accepted)| *accepted <= done).or_else(|| self.samples.front());
        came.map_or(Duration::ZERO, |(came, _)| now.duration_since(*came))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_is_the_age_of_the_oldest_waiting_batch() {
        let begin = Instant::now();
        let mut lag = Lag::default();
        // Seconds, accepted, waiting, expected.
        let story = [
            (0, 10, 0, 0),
            (5, 20, 2, 5),
            (10, 30, 20, 10),
            (15, 30, 20, 15),
            (20, 40, 20, 15),
            (25, 40, 0, 0),
            (30, 40, 90, 30),
        ];
        for (seconds, accepted, waiting, expected) in story {
            let now = begin + Duration::from_secs(seconds);
            assert_eq!(lag.of(now, accepted, waiting), Duration::from_secs(expected), "at {seconds}");
        }
        for second in 31..1000 {
            lag.of(begin + Duration::from_secs(second), 40, 90);
        }
        assert_eq!(lag.samples.len(), SAMPLES_MAX);
    }
}
