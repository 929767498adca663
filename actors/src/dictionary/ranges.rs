//! Ranges: which part of its prefix one life of a node gives ids from, and how it gets it for itself alone.
//!
//! A node's own number does not tell it from another node that was given the same number, nor from a copy or an old backup of its disk. So no
//! life of a node goes on where one before it ended: it takes ranges that nobody has had, and the store is where they are noted. It notes
//! its claim first, and looks then who else has one. Of two who claim one range at the same time at least one sees the other, and who sees another
//! gives the range up. This needs no agreement, no lock and nobody's death: what is given up is lost, and there are 4,095 more.
//!
//! It rests on one server that shows at once what it has taken. Nodes with a store each cannot see each other's claims; their first range
//! is drawn, so that two with one number are likely far apart, and gossip stops them within seconds.

use std::{
    collections::HashSet,
    ops::Range,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio::sync::Notify;

use super::{COUNTER_BITS, COUNTER_MAX, Config, Dictionary, Ids, Inner};
use crate::disk::{Changes, Durability, Family};

/// The key of the range that follows the last one which this disk's node had, by its number.
pub(super) const RANGE_PREFIX: &[u8] = b"dictionary/range/";

/// Ids of one range, of each kind: a start that names little wastes little, and few starts claim more than one.
pub const RANGE_IDS: u32 = 1 << 10;
/// Ranges of one claim, at most.
const CLAIM_MAX: u32 = 16;
/// A first range is drawn of the first such part, where nodes do not share a store.
const FIRST_SHARE: u32 = 4;
/// Claims that met another one, before the next try is left to later.
const TRIES: u32 = 8;

/// Where claims are noted.
pub trait Register: Sync {
    type Error;

    /// The highest range of the node that anybody has claimed.
    fn highest(&self) -> impl Future<Output = Result<Option<u32>, Self::Error>> + Send;

    /// Notes a claim. An error says nothing: it may be noted or not, or late.
    fn note(&self, ranges: Range<u32>, holder: u64) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// All that have claimed one of these ranges.
    fn holders(&self, ranges: Range<u32>) -> impl Future<Output = Result<HashSet<u64>, Self::Error>> + Send;
}

/// What a claim depends on.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Ranges below this were this node's own.
    pub above: u32,
    /// Where no claim is noted: ranges below this have ids that were given out without one.
    pub first: u32,
    pub count: u32,
    /// All that a node can have.
    pub ranges: u32,
    /// Others with this node's number may note their claims elsewhere.
    pub is_drawn: bool,
}

/// What became of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    Ranges(Range<u32>),
    /// Others claim at this moment: to be tried again after a while.
    Contended,
    /// There are no more.
    UsedUp,
}

/// Claims ranges that nobody else has had. `random` tells claims apart.
pub async fn claim<R: Register>(
    register: &R,
    wanted: Wanted,
    mut random: impl FnMut() -> u64,
) -> Result<Claimed, R::Error> {
    let Wanted { above, first, count, ranges: end, is_drawn } = wanted;
    for _ in 0..TRIES {
        let claimed = register.highest().await?;
        let first = match claimed {
            Some(highest) => highest.saturating_add(1),
            None if is_drawn => first.saturating_add((random() % u64::from(end / FIRST_SHARE)) as u32),
            None => first,
        };
        let first = first.max(above);
        let ranges = first..first.saturating_add(count.clamp(1, CLAIM_MAX)).min(end);
        if ranges.is_empty() {
            return Ok(Claimed::UsedUp);
        }
        let holder = random();
        register.note(ranges.clone(), holder).await?;
        if register.holders(ranges.clone()).await?.iter().all(|other| *other == holder) {
            return Ok(Claimed::Ranges(ranges));
        }
    }
    Ok(Claimed::Contended)
}

/// What this life of a node holds, and wants.
#[derive(Debug)]
pub(super) struct Claims {
    /// In counters.
    held: RwLock<Vec<Range<u32>>>,
    above: AtomicU32,
    first: u32,
    /// Of the next claim.
    count: AtomicU32,
    bell: Notify,
}

impl Claims {
    /// `highest` is the highest counter that is known of any kind, `above` what the disk has noted.
    pub(super) fn new(config: &Config, highest: u64, above: u32) -> Self {
        let whole = 1..COUNTER_MAX + 1;
        let Config { ids, range_ids, .. } = config;
        Self {
            held: RwLock::new(if *ids == Ids::Whole { vec![whole] } else { vec![] }),
            above: AtomicU32::new(above),
            first: self::above(u32::try_from(highest).unwrap_or(COUNTER_MAX), *range_ids),
            count: AtomicU32::new(1),
            bell: Notify::new(),
        }
    }
}

impl Inner {
    /// Whether this life of the node gives out a counter.
    pub(super) fn holds(&self, counter: u32) -> bool {
        let held = self.claims.held.read().unwrap_or_else(PoisonError::into_inner);
        held.iter().any(|range| range.contains(&counter))
    }

    /// Another range is wanted soon, or `waiting` names have none at all.
    pub(super) fn want_range(&self, waiting: u32) {
        self.claims.count.fetch_max(waiting / self.config.range_ids + 1, Ordering::AcqRel);
        self.claims.bell.notify_one();
    }
}

impl Dictionary {
    /// Waits until another range should be claimed.
    pub async fn range_wanted(&self) {
        self.inner.claims.bell.notified().await;
    }

    /// Claims the ranges that are wanted now; false when others claim at this moment. What was claimed is this node's when this returns.
    ///
    /// Blocks for a moment for the disk.
    pub async fn claim<R: Register>(
        &self,
        register: &R,
        random: impl FnMut() -> u64,
    ) -> Result<bool, R::Error> {
        let claims = &self.inner.claims;
        let wanted = Wanted {
            above: claims.above.load(Ordering::Acquire),
            first: claims.first,
            count: claims.count.load(Ordering::Acquire),
            ranges: (1 << COUNTER_BITS) / self.inner.config.range_ids,
            is_drawn: self.inner.config.ids == Ids::Claimed { is_drawn: true },
        };
        match claim(register, wanted, random).await? {
            Claimed::Ranges(ranges) => self.grant(ranges),
            Claimed::Contended => return Ok(false),
            Claimed::UsedUp => {
                tracing::error!(
                    "all ids of this node id are used up: new names are (other); give it another node_id"
                );
                self.inner.allocator.lock().unwrap_or_else(PoisonError::into_inner).use_up();
            }
        }
        Ok(true)
    }

    fn grant(&self, ranges: Range<u32>) {
        let claims = &self.inner.claims;
        // Who names many things soon names more.
        claims.count.store(((ranges.end - ranges.start) * 2).min(CLAIM_MAX), Ordering::Release);
        claims.above.fetch_max(ranges.end, Ordering::AcqRel);
        let mut changes = Changes::default();
        let key = [RANGE_PREFIX, &self.inner.config.node_id.get().to_be_bytes()].concat();
        changes.put(Family::Meta, key, ranges.end.to_be_bytes());
        if let Err(error) = self.inner.disk.write(changes, Durability::Written) {
            // The store has it noted, which is what counts.
            tracing::warn!(%error, "the disk did not note a range of ids");
        }
        let mut allocator = self.inner.allocator.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |range| counters(range, self.inner.config.range_ids);
        let counters = of(ranges.start).start..of(ranges.end - 1).end;
        claims.held.write().unwrap_or_else(PoisonError::into_inner).push(counters.clone());
        allocator.grant(counters);
    }
}

/// The first range above a counter.
const fn above(counter: u32, range_ids: u32) -> u32 {
    if counter == 0 { 0 } else { counter / range_ids + 1 }
}

/// The counters of a range.
fn counters(range: u32, range_ids: u32) -> Range<u32> {
    let first = range.saturating_mul(range_ids);
    // 0 names nothing.
    first.max(1)..first.saturating_add(range_ids).min(COUNTER_MAX + 1)
}

#[cfg(test)]
mod tests;
