//! Allocation: new names of a batch get their ids in one synced write.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::{Arc, PoisonError, atomic::Ordering},
};

use metaflow_schema::enums::Kind;
use tracing::warn;

use super::{
    COUNTER_BITS, COUNTER_MAX, Error, Ids, Inner, OTHER, Shard, bounded, id_key, is_limited, learn, name_key,
    news::Audience,
};
use crate::disk::{Changes, Durability, Family};

/// Where the counters stand. A counter that was taken is never taken again in this process, even if its write failed.
pub(super) struct Allocator {
    /// The counters that this life may give out, lowest first.
    held: Vec<Range<u32>>,
    /// By the number of the kind.
    places: Vec<Place>,
    /// There will be no more ranges.
    is_used_up: bool,
    /// Entries whose write failed: the disk may have them, so their names keep their ids. Bounded: who failed tries again with the
    /// same names.
    unwritten: Vec<New>,
}

/// How far a kind has come.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Of the range in use.
    range: usize,
    /// The lowest counter that was not taken.
    next: u32,
}

/// What there is for a name.
enum Taken {
    Counter(u32),
    /// Another range must be claimed first.
    Wait,
    /// The prefix has no more.
    UsedUp,
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
    pub(super) fn new(ids: Ids, shards: &[Shard]) -> Self {
        let (held, is_used_up) = match ids {
            Ids::Whole => (std::iter::once(1..COUNTER_MAX + 1).collect(), true),
            Ids::Claimed { .. } => (vec![], false),
        };
        let above = |shard: &Shard| match ids {
            Ids::Whole => u32::try_from(shard.highest.load(Ordering::Acquire)).unwrap_or(COUNTER_MAX) + 1,
            Ids::Claimed { .. } => 0,
        };
        let places = shards.iter().map(|shard| Place { range: 0, next: above(shard) }).collect();
        Self { held, places, is_used_up, unwritten: Vec::new() }
    }

    pub(super) fn grant(&mut self, counters: Range<u32>) {
        self.held.push(counters);
    }

    pub(super) fn use_up(&mut self) {
        self.is_used_up = true;
    }

    /// A counter that was given out in a life that this node does not remember.
    pub(super) fn skip(&mut self, kind: Kind, counter: u32) {
        let place = &mut self.places[kind as usize];
        if self.held.get(place.range).is_some_and(|range| range.contains(&counter)) {
            place.next = place.next.max(counter + 1);
        }
    }

    /// The next counter. The last one of the prefix is kept for `(other)`.
    fn take(&mut self, kind: Kind, is_other: bool) -> Taken {
        let place = &mut self.places[kind as usize];
        while let Some(range) = self.held.get(place.range) {
            let counter = place.next.max(range.start);
            if counter < range.end && (counter < COUNTER_MAX || is_other) {
                place.next = counter + 1;
                if counter == COUNTER_MAX / 2 {
                    warn!(kind = kind.name(), "half of the ids of this kind are used up");
                }
                return Taken::Counter(counter);
            }
            if place.range + 1 == self.held.len() {
                break;
            }
            place.range += 1;
        }
        if self.is_used_up { Taken::UsedUp } else { Taken::Wait }
    }

    /// Counters that are left to a kind.
    fn left(&self, kind: Kind) -> u32 {
        let place = self.places[kind as usize];
        let ranges = self.held.iter().skip(place.range);
        ranges.map(|range| range.end.saturating_sub(range.start.max(place.next))).sum()
    }

    /// More ranges are to be claimed in time.
    fn is_short(&self, kind: Kind, range_ids: u32) -> bool {
        !self.is_used_up && self.left(kind) < range_ids / 2
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
        let mut waiting = 0;
        for &at in missing {
            let (kind, name) = wanted[at];
            match self.find_or_take(&mut allocator, kind, bounded(name).as_ref().into(), &mut draft)? {
                Some(id) => ids[at] = id,
                None => waiting += 1,
            }
        }
        if waiting > 0 || draft.names.keys().any(|kind| allocator.is_short(*kind, self.config.range_ids)) {
            self.want_range(waiting);
        }
        // What got an id keeps it, even when others have to wait.
        let written = self.persist(&draft.new);
        match written {
            Ok(()) => self.publish(draft.new),
            Err(_) => allocator.unwritten = draft.new,
        }
        written?;
        if waiting > 0 { Err(Error::NoRange) } else { Ok(()) }
    }

    /// The id of a name; none when it has to wait for a range.
    fn find_or_take(
        &self,
        allocator: &mut Allocator,
        kind: Kind,
        name: Arc<str>,
        draft: &mut Draft,
    ) -> Result<Option<u32>, Error> {
        let shard = self.shard(kind);
        let known = shard.ids.read().unwrap_or_else(PoisonError::into_inner);
        let find = |name: &Arc<str>, draft: &Draft| {
            known.get(name).or_else(|| draft.ids.get(&(kind, Arc::clone(name)))).copied()
        };
        if let Some(id) = find(&name, draft) {
            return Ok(Some(id));
        }
        let names = known.len() + draft.names.get(&kind).copied().unwrap_or(0);
        let is_full = is_limited(kind) && names >= self.config.names_max;
        let taken = if is_full { Taken::UsedUp } else { self.take(allocator, kind, false)? };
        let (id, name) = match taken {
            Taken::Counter(counter) => (self.config.node_id.id(counter), name),
            Taken::Wait => return Ok(None),
            Taken::UsedUp => {
                shard.overflowed.fetch_add(1, Ordering::Relaxed);
                let other: Arc<str> = OTHER.into();
                if let Some(id) = find(&other, draft) {
                    return Ok(Some(id));
                }
                match self.take(allocator, kind, true)? {
                    Taken::Counter(counter) => (self.config.node_id.id(counter), other),
                    Taken::Wait => return Ok(None),
                    // All is gone and there is no `(other)`: the row goes without this name.
                    Taken::UsedUp => return Ok(Some(0)),
                }
            }
        };
        draft.add(New { kind, id, name });
        Ok(Some(id))
    }

    /// The next counter whose id names nothing yet: what is known stays, whoever said it.
    fn take(&self, allocator: &mut Allocator, kind: Kind, is_other: bool) -> Result<Taken, Error> {
        loop {
            let taken = allocator.take(kind, is_other);
            if let Taken::Counter(counter) = taken
                && self.disk.get(Family::IdToName, &id_key(kind, self.config.node_id.id(counter)))?.is_some()
            {
                continue;
            }
            return Ok(taken);
        }
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
            changes.put(Family::Meta, learn::unconfirmed_key(*kind, *id), []);
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
            if self.holds(id & COUNTER_MAX) {
                shard.given.fetch_max(u64::from(id & COUNTER_MAX), Ordering::AcqRel);
            }
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
