//! What happened to gossip, in counters.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{member, screen::Refusal};
use crate::metrics::Reading;

/// Why the gossip of this node was started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restart {
    /// Our side of it, or what it calls in the library, panicked.
    Panicked,
    /// The library's task came to an end, by a panic or otherwise.
    Ended,
    /// It could not be started.
    Failed,
    /// Others were told things in our name: only a new generation is heard again.
    Impersonated,
    /// The cluster has grown or shrunk beyond what the interval is made for.
    Pace,
}

impl Restart {
    const ALL: [Self; 5] = [Self::Panicked, Self::Ended, Self::Failed, Self::Impersonated, Self::Pace];

    fn name(self) -> &'static str {
        match self {
            Self::Panicked => "panicked",
            Self::Ended => "ended",
            Self::Failed => "failed",
            Self::Impersonated => "impersonated",
            Self::Pace => "pace",
        }
    }
}

/// Counters of the process's gossip.
#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) datagrams_in: AtomicU64,
    pub(super) datagrams_out: AtomicU64,
    pub(super) bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
    /// The largest datagram that was sent.
    pub(super) largest_out: AtomicU64,
    pub(super) socket_errors: AtomicU64,
    pub(super) seeds_unresolved: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
    restarts: [AtomicU64; Restart::ALL.len()],
    malformed: [AtomicU64; member::KEYS.len()],
    /// Members whose id is no number of a node.
    pub(super) foreign_ids: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Relaxed);
}

pub(super) fn raise(counter: &AtomicU64, number: u64) {
    counter.fetch_max(number, Relaxed);
}

impl Stats {
    pub(super) fn refuse(&self, refusal: Refusal) {
        add(&self.refused[refusal as usize], 1);
    }

    pub(super) fn restart(&self, reason: Restart) {
        add(&self.restarts[reason as usize], 1);
    }

    pub(super) fn malformed(&self, key: &'static str) {
        if let Some(index) = member::KEYS.iter().position(|known| *known == key) {
            add(&self.malformed[index], 1);
        }
    }

    pub(super) fn refused(&self, refusal: Refusal) -> u64 {
        self.refused[refusal as usize].load(Relaxed)
    }

    pub(super) fn restarts(&self, reason: Restart) -> u64 {
        self.restarts[reason as usize].load(Relaxed)
    }

    pub(super) fn read(&self, out: &mut Vec<Reading>) {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        for (direction, counter) in [("in", &self.datagrams_in), ("out", &self.datagrams_out)] {
            let reading = Reading::counter("gossip_datagrams", "Datagrams of gossip", get(counter));
            out.push(reading.label("direction", direction));
        }
        for (direction, counter) in [("in", &self.bytes_in), ("out", &self.bytes_out)] {
            let reading = Reading::counter("gossip_bytes", "Bytes of gossip", get(counter));
            out.push(reading.label("direction", direction));
        }
        let help = "Datagrams that the socket did not send or receive";
        out.push(Reading::counter("gossip_socket_errors", help, get(&self.socket_errors)));
        let help = "Attempts to resolve a seed's name that failed";
        out.push(Reading::counter("gossip_seeds_unresolved", help, get(&self.seeds_unresolved)));
        for refusal in Refusal::ALL {
            let help = "Datagrams that were refused, by reason";
            let reading = Reading::counter("gossip_refused", help, self.refused(refusal));
            out.push(reading.label("reason", refusal.name()));
        }
        for reason in Restart::ALL {
            let help = "Times that gossip was started again, by reason";
            let reading = Reading::counter("gossip_restarts", help, self.restarts(reason));
            out.push(reading.label("reason", reason.name()));
        }
        let keys = member::KEYS.iter().zip(&self.malformed);
        for (key, counter) in keys.chain([(&"node_id", &self.foreign_ids)]) {
            let help = "Values of members that could not be read, by key";
            out.push(Reading::counter("cluster_values_malformed", help, get(counter)).label("key", *key));
        }
    }
}
