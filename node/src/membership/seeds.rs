//! The addresses through which a node finds the others: names are resolved again and again, because what they mean changes.
//!
//! While nobody answers, all seeds are spoken to in each interval. Later one at a time is, so that parts of a cluster that have lost
//! each other for long find together again.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use tokio::{net::lookup_host, sync::mpsc, time::Instant};

use super::stats::{Stats, add};

/// A resolver that does not answer must not stop the other names.
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);
const RESOLVE_ALONE: Duration = Duration::from_secs(3);
const RESOLVE_JOINED: Duration = Duration::from_secs(30);
const GREET_JOINED: Duration = Duration::from_secs(2);
/// Addresses of all seeds together: a name can have many.
const ADDRESSES_MAX: usize = 64;

pub(super) struct Seeds {
    pub(super) names: Vec<String>,
    /// This node's own address, which may be in the list.
    pub(super) own: SocketAddr,
    pub(super) interval: Duration,
    /// Whether no other member is live.
    pub(super) alone: Arc<AtomicBool>,
    pub(super) stats: Arc<Stats>,
}

impl Seeds {
    /// Says whom to greet, until the receiver is gone.
    pub(super) async fn run(self, greet: mpsc::Sender<SocketAddr>) {
        let mut unresolved = BTreeSet::new();
        loop {
            let addresses = self.resolve(&mut unresolved).await;
            let resolved = Instant::now();
            let mut next = 0;
            loop {
                let alone = self.alone.load(Ordering::Relaxed);
                let again = if alone { RESOLVE_ALONE } else { RESOLVE_JOINED };
                if resolved.elapsed() >= again {
                    break;
                }
                let count = if alone { addresses.len() } else { addresses.len().min(1) };
                for _ in 0..count {
                    if greet.send(addresses[next % addresses.len()]).await.is_err() {
                        return;
                    }
                    next += 1;
                }
                tokio::time::sleep(if alone { self.interval } else { GREET_JOINED }).await;
            }
        }
    }

    async fn resolve(&self, unresolved: &mut BTreeSet<String>) -> Vec<SocketAddr> {
        let mut addresses = BTreeSet::new();
        // All at one time: a name that takes long must not hold up the others.
        let lookups = self.names.iter().map(|name| tokio::time::timeout(RESOLVE_WITHIN, lookup_host(name)));
        for (name, found) in self.names.iter().zip(join_all(lookups).await) {
            match found {
                Ok(Ok(found)) => {
                    addresses.extend(found);
                    if unresolved.remove(name) {
                        tracing::info!(seed = name, "the seed's name is resolved again");
                    }
                }
                failed => {
                    add(&self.stats.seeds_unresolved, 1);
                    if unresolved.insert(name.clone()) {
                        let error = match failed {
                            Ok(Err(error)) => error.to_string(),
                            _ => "the resolver does not answer".to_owned(),
                        };
                        tracing::warn!(seed = name, error, "a seed's name is not resolved; trying again");
                    }
                }
            }
        }
        addresses.remove(&self.own);
        addresses.into_iter().take(ADDRESSES_MAX).collect()
    }
}
