//! The memory budget: bytes of row data that may be in the process at one time.
//!
//! ractor mailboxes have no bound, so whatever carries data carries a [`Permit`]; it is given back when the data is dropped.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Accounting unit: a semaphore counts to 2^61, but one acquisition takes a u32, so 64 bytes a unit reach 256 GiB.
const UNIT: usize = 64;

/// A byte budget shared by all who take from it.
#[derive(Debug, Clone)]
pub struct Budget {
    semaphore: Arc<Semaphore>,
    capacity: usize,
}

/// All row data in the process, in two parts: rows that wait for the store never keep new ones out of the log.
#[derive(Debug, Clone)]
pub struct Memory {
    /// From the socket into the log, and the place of each batch that is in the log.
    pub intake: Budget,
    /// From the log into the store.
    pub path: Budget,
}

/// Bytes taken from a budget; dropping it gives them back.
#[derive(Debug, Default)]
pub struct Permit {
    held: Option<OwnedSemaphorePermit>,
}

/// A batch is some ten times as large on its way to the store as on its way into the log, but stays there for a moment only.
const INTAKE_SHARE: usize = 4;

impl Memory {
    pub fn new(bytes: usize) -> Self {
        let intake = Budget::new(bytes / INTAKE_SHARE);
        Self { path: Budget::new(bytes - intake.capacity()), intake }
    }

    pub fn used(&self) -> usize {
        self.capacity() - self.intake.available() - self.path.available()
    }

    pub fn capacity(&self) -> usize {
        self.intake.capacity() + self.path.capacity()
    }
}

impl Budget {
    pub fn new(bytes: usize) -> Self {
        let units = bytes / UNIT;
        Self { semaphore: Arc::new(Semaphore::new(units)), capacity: units * UNIT }
    }

    /// Waits for room. A request larger than the whole budget waits for all of it.
    pub async fn acquire(&self, bytes: usize) -> Permit {
        let units = self.units(bytes);
        let held = Arc::clone(&self.semaphore).acquire_many_owned(units).await;
        Permit { held: Some(held.expect("the semaphore is never closed")) }
    }

    /// Takes room if there is some now.
    pub fn try_acquire(&self, bytes: usize) -> Option<Permit> {
        let held = Arc::clone(&self.semaphore).try_acquire_many_owned(self.units(bytes)).ok()?;
        Some(Permit { held: Some(held) })
    }

    /// Bytes free now.
    pub fn available(&self) -> usize {
        self.semaphore.available_permits() * UNIT
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    fn units(&self, bytes: usize) -> u32 {
        let units = bytes.div_ceil(UNIT).min(self.capacity / UNIT);
        u32::try_from(units).unwrap_or(u32::MAX)
    }
}

impl Permit {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.held.as_ref().map_or(0, |held| held.num_permits() * UNIT)
    }

    /// Takes so much of it out, or as much as it has.
    pub fn split(&mut self, bytes: usize) -> Self {
        let Some(held) = &mut self.held else { return Self::default() };
        let units = bytes.div_ceil(UNIT);
        if units >= held.num_permits() {
            return std::mem::take(self);
        }
        Self { held: held.split(units) }
    }

    /// Joins another permit of the same budget into this one.
    pub fn merge(&mut self, mut other: Self) {
        match (&mut self.held, other.held.take()) {
            (Some(held), Some(more)) => held.merge(more),
            (held @ None, more) => *held = more,
            (Some(_), None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_budget_refuses_until_a_permit_is_dropped() {
        let budget = Budget::new(1024);
        let first = budget.acquire(1000).await;
        assert_eq!(first.bytes(), 1024);
        assert!(budget.try_acquire(1).is_none());
        drop(first);
        assert_eq!(budget.available(), 1024);
        let mut all = budget.acquire(1024).await;
        let part = all.split(100);
        assert_eq!((part.bytes(), all.bytes()), (128, 896));
        assert_eq!(all.split(4096).bytes(), 896);
        assert_eq!((all.bytes(), all.split(1).bytes(), budget.available()), (0, 0, 896));
        drop(part);
        assert_eq!(budget.acquire(1 << 30).await.bytes(), 1024);
    }
}
