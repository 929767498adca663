//! Which batches may be sent: pure bookkeeping of what is in flight against the node's credit.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Credit until the node says how much it gives.
const FIRST_CREDIT: u64 = 256 << 10;

#[derive(Debug)]
struct InFlight {
    bytes: u64,
    sent: Instant,
}

/// Batches sent on one stream and not yet `received`.
#[derive(Debug)]
pub(super) struct Window {
    credit: u64,
    bytes: u64,
    in_flight: BTreeMap<u64, InFlight>,
    /// Last batch sent; the next one is behind it.
    pub(super) cursor: Option<u64>,
}

impl Window {
    pub(super) fn new() -> Self {
        Self { credit: FIRST_CREDIT, bytes: 0, in_flight: BTreeMap::new(), cursor: None }
    }

    /// A batch larger than the credit goes alone, else it would never go; with no credit nothing goes.
    pub(super) fn allows(&self, bytes: u64) -> bool {
        self.credit > 0 && (self.in_flight.is_empty() || self.bytes + bytes <= self.credit)
    }

    pub(super) fn send(&mut self, seq: u64, bytes: u64, now: Instant) {
        self.cursor = Some(seq);
        self.bytes += bytes;
        self.in_flight.insert(seq, InFlight { bytes, sent: now });
    }

    /// Ranges come from outside: only what was sent is touched.
    pub(super) fn receive(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        let received: Vec<u64> = self.in_flight.range(first..=last).map(|(seq, _)| *seq).collect();
        for seq in received {
            if let Some(sent) = self.in_flight.remove(&seq) {
                self.bytes -= sent.bytes;
            }
        }
    }

    pub(super) fn set_credit(&mut self, bytes: u64) {
        self.credit = bytes;
    }

    /// The oldest batch waits for its `received` longer than this. While the node gives no credit it says why nothing moves.
    pub(super) fn is_stuck(&self, now: Instant, wait_max: Duration) -> bool {
        self.credit > 0
            && self.in_flight.values().any(|sent| now.saturating_duration_since(sent.sent) > wait_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_bounds_what_is_in_flight_and_zero_pauses() {
        let now = Instant::now();
        let mut window = Window::new();
        window.set_credit(100);
        assert!(window.allows(1_000), "a large batch goes alone");
        window.send(5, 60, now);
        assert!(window.allows(40) && !window.allows(41));
        window.receive(9, 2);
        assert!(!window.allows(41), "a range that makes no sense changes nothing");
        window.receive(0, u64::MAX);
        assert!(window.allows(41));
        window.set_credit(0);
        assert!(!window.allows(1));
    }

    #[test]
    fn a_batch_without_an_answer_is_noticed_unless_the_node_paused() {
        let now = Instant::now();
        let mut window = Window::new();
        window.send(1, 10, now);
        let later = now + Duration::from_secs(31);
        assert!(window.is_stuck(later, Duration::from_secs(30)));
        window.set_credit(0);
        assert!(!window.is_stuck(later, Duration::from_secs(30)));
    }
}
