//! Allocation: new names of a batch get their ids in one synced write.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, atomic::Ordering},
};

use metaflow_schema::enums::Kind;
use tracing::warn;

use super::{
    COUNTER_BITS, COUNTER_MAX, Error, Inner, OTHER, Shard, bounded, id_key, is_limited, name_key,
    news::Audience,
};
use crate::disk::{Changes, Durability, Family};

/// Where the counters stand. A counter that was taken is never taken again in this process, even if its write failed.
pub(super) struct Allocator {
    /// Last counter taken, by the number of the kind.
    taken: Vec<u32>,
    /// Entries whose write failed: the disk may have them, so their names keep their ids. Bounded: who failed tries again with the
    /// same names.
    unwritten: Vec<New>,
}

/// An entry that is being made.
struct New {
    kind: Kind,
    id: u32,
    name: Arc<str>,
}

/// Entries made by one call.
#[derive(Default)]
struct Draft {
    ids: HashMap<(Kind, Arc<str>), u32>,
    new: Vec<New>,
    names: HashMap<Kind, usize>,
}

impl Draft {
    fn add(&mut self, new: New) {
        self.ids.insert((new.kind, Arc::clone(&new.name)), new.id);
        *self.names.entry(new.kind).or_default() += 1;
        self.new.push(new);
    }
}

impl Allocator {
    pub(super) fn new(shards: &[Shard]) -> Self {
        let last =
            |shard: &Shard| u32::try_from(shard.highest.load(Ordering::Acquire)).unwrap_or(COUNTER_MAX);
        Self { taken: shards.iter().map(last).collect(), unwritten: Vec::new() }
    }

    /// A counter that this node gave out in a life that it does not remember.
    pub(super) fn skip(&mut self, kind: Kind, counter: u32) {
        let taken = &mut self.taken[kind as usize];
        *taken = counter.max(*taken);
    }

    /// The next counter up to `limit`.
    fn take(&mut self, kind: Kind, limit: u32) -> Option<u32> {
        let taken = &mut self.taken[kind as usize];
        if *taken >= limit {
            return None;
        }
        *taken += 1;
        if *taken == limit / 2 {
            warn!(kind = kind.name(), "half of the ids of this kind are used up");
        }
        Some(*taken)
    }
}

impl Inner {
    /// Fills `ids` at `missing`. The lock is held over the sync: others who miss have to wait for a disk anyway, and theirs may be
    /// the same names.
    pub(super) fn allocate(
        &self,
        wanted: &[(Kind, &str)],
        missing: &[usize],
        ids: &mut [u32],
    ) -> Result<(), Error> {
        let mut allocator = self.allocator.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_suspended.load(Ordering::Acquire) {
            return Err(Error::Suspended(self.config.node_id.get()));
        }
        let mut draft = Draft::default();
        for new in std::mem::take(&mut allocator.unwritten) {
            draft.add(new);
        }
        for &at in missing {
            let (kind, name) = wanted[at];
            ids[at] = self.find_or_take(&mut allocator, kind, bounded(name).as_ref().into(), &mut draft);
        }
        let written = self.persist(&draft.new);
        match written {
            Ok(()) => self.publish(draft.new),
            Err(_) => allocator.unwritten = draft.new,
        }
        written
    }

    fn find_or_take(&self, allocator: &mut Allocator, kind: Kind, name: Arc<str>, draft: &mut Draft) -> u32 {
        let shard = self.shard(kind);
        let known = shard.ids.read().unwrap_or_else(PoisonError::into_inner);
        let find = |name: &Arc<str>, draft: &Draft| {
            known.get(name).or_else(|| draft.ids.get(&(kind, Arc::clone(name)))).copied()
        };
        if let Some(id) = find(&name, draft) {
            return id;
        }
        let names = known.len() + draft.names.get(&kind).copied().unwrap_or(0);
        let is_full = is_limited(kind) && names >= self.config.names_max;
        // The last counter of the range is kept for `(other)`.
        let counter = if is_full { None } else { allocator.take(kind, COUNTER_MAX - 1) };
        let (counter, name) = match counter {
            Some(counter) => (counter, name),
            None => {
                shard.overflowed.fetch_add(1, Ordering::Relaxed);
                let other: Arc<str> = OTHER.into();
                if let Some(id) = find(&other, draft) {
                    return id;
                }
                match allocator.take(kind, COUNTER_MAX) {
                    Some(counter) => (counter, other),
                    // The whole range is gone and there is no `(other)`: the row goes without this name.
                    None => return 0,
                }
            }
        };
        let id = self.config.node_id.id(counter);
        draft.add(New { kind, id, name });
        id
    }

    /// Entries of the disk that the store may not have. Between the disk and the queue an entry is in the hands of who has the lock, or
    /// left over from a write that failed.
    pub(super) fn unconfirmed(&self) -> HashSet<(Kind, u32)> {
        let allocator = self.allocator.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unconfirmed = self.pending.ids();
        unconfirmed.extend(allocator.unwritten.iter().map(|new| (new.kind, new.id)));
        unconfirmed
    }

    fn persist(&self, new: &[New]) -> Result<(), Error> {
        let mut changes = Changes::default();
        for New { kind, id, name } in new {
            changes.put(Family::IdToName, id_key(*kind, *id), name.as_bytes());
        }
        // An entry whose write failed before may have got a rival since.
        let is_canonical = |New { kind, id, name }: &&New| {
            let ids = self.shard(*kind).ids.read().unwrap_or_else(PoisonError::into_inner);
            ids.get(name).is_none_or(|known| id < known)
        };
        for New { kind, id, name } in new.iter().filter(is_canonical) {
            changes.put(Family::NameToId, name_key(*kind, name), u64::from(*id).to_be_bytes());
        }
        if changes.is_empty() {
            return Ok(());
        }
        Ok(self.disk.write(changes, Durability::Synced)?)
    }

    /// Makes durable entries visible: first to `flush`, then to lookups, so that who sees an id can flush it.
    fn publish(&self, new: Vec<New>) {
        self.pending.add(new.iter().map(|new| (new.kind, new.id, Arc::clone(&new.name))).collect());
        for New { kind, id, name } in new {
            self.tell(Audience::Holders, kind, id, &name);
            self.join(kind, id, name);
        }
    }

    /// Makes one durable entry visible. Its name may have an id already: the smallest is the canonical one.
    pub(super) fn join(&self, kind: Kind, id: u32, name: Arc<str>) {
        let shard = self.shard(kind);
        if id >> COUNTER_BITS == u32::from(self.config.node_id.get()) {
            shard.highest.fetch_max(u64::from(id & COUNTER_MAX), Ordering::AcqRel);
        }
        let mut ids = shard.ids.write().unwrap_or_else(PoisonError::into_inner);
        let known = ids.get(&name).copied();
        self.digests.add(kind, id, &name, known);
        ids.insert(Arc::clone(&name), known.map_or(id, |known| known.min(id)));
        drop(ids);
        if known.is_some() {
            shard.aliases.fetch_add(1, Ordering::Relaxed);
            for id in self.digests.ids_of(kind, &name) {
                self.tell(Audience::Everybody, kind, id, &name);
            }
        }
    }
}
