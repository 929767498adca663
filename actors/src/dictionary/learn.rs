//! What other nodes named: their entries join this node's own.
//!
//! Merging needs no order and no agreement: ids are unique by construction, and the canonical id of a name is the smallest one known. So
//! nodes that learnt the same entries, in whatever order, answer alike.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, atomic::Ordering},
};

use metaflow_schema::enums::Kind;
use metaflow_wire::{NameIdsRequest, NameIdsResponse};
use tracing::error;

use super::{
    COUNTER_BITS, COUNTER_MAX, Dictionary, Error, Inner, NAME_BYTES_MAX, bounded, id_key, name_key,
    news::Audience,
};
use crate::disk::{Changes, Durability, Family};

/// Keys of entries that the store may not have.
pub(super) const UNCONFIRMED_PREFIX: &[u8] = b"dictionary/unconfirmed/";

/// An id and what it names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    pub kind: Kind,
    pub id: u32,
    pub name: String,
}

/// Names of one question; a batch brings fewer.
pub const NAMES_MAX: usize = 20_000;

/// Why a node names nothing for another.
#[derive(Debug, thiserror::Error)]
pub enum Unnamed {
    #[error("more than {NAMES_MAX} names")]
    Many,
    #[error("a kind of name is not known in this release")]
    Kind,
    #[error(transparent)]
    Dictionary(#[from] Error),
}

/// What became of entries that another node told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Learned {
    /// Entries that were not known.
    pub new: usize,
    /// Ids that name something else here: nothing was changed.
    pub conflicts: usize,
    /// Entries that no node can have made.
    pub malformed: usize,
}

impl Dictionary {
    /// Takes entries that other nodes made. `is_stored` says that their rows are in the store; otherwise they go there before any row
    /// that uses them, as this node's own do.
    ///
    /// Blocks for a disk sync when there is a new entry.
    pub fn learn(&self, entries: &[Entry], is_stored: bool) -> Result<Learned, Error> {
        // One writer of names at a time; the lock is the allocator's, whose counters an entry may move.
        let mut allocator = self.inner.allocator.lock().unwrap_or_else(PoisonError::into_inner);
        let mut learned = Learned::default();
        let mut new: HashMap<(Kind, u32), &str> = HashMap::new();
        for Entry { kind, id, name } in entries {
            if !is_well_formed(*id, name) {
                learned.malformed += 1;
                continue;
            }
            let known = match new.get(&(*kind, *id)) {
                Some(known) => Some((*known).to_owned()),
                None => self.resolve(*kind, *id)?,
            };
            match known {
                None => {
                    new.insert((*kind, *id), name);
                }
                Some(known) if known == *name => {}
                Some(known) => {
                    learned.conflicts += 1;
                    error!(kind = kind.name(), id, known, told = name, "an id has two names");
                }
            }
        }
        self.inner.conflicts.fetch_add(learned.conflicts as u64, Ordering::Relaxed);
        learned.new = new.len();
        if new.is_empty() {
            return Ok(learned);
        }
        let mut new: Vec<(Kind, u32, Arc<str>)> =
            new.into_iter().map(|((kind, id), name)| (kind, id, Arc::from(name))).collect();
        new.sort_unstable();
        self.persist_learned(&new, is_stored)?;
        let own = u32::from(self.inner.config.node_id.get());
        if !is_stored {
            self.inner.pending.add(new.clone());
        }
        for (kind, id, name) in new {
            if id >> COUNTER_BITS == own {
                // Given out in a life that this node does not remember: never again.
                allocator.skip(kind, id & COUNTER_MAX);
            }
            self.inner.join(kind, id, name);
        }
        Ok(learned)
    }

    /// Ids for another node, which may have given names ids in the absence of their owner. Their order is that of the names.
    ///
    /// Blocks for the disk.
    pub fn name(&self, request: &NameIdsRequest) -> Result<NameIdsResponse, Unnamed> {
        let names = &request.names;
        if names.len() > NAMES_MAX {
            return Err(Unnamed::Many);
        }
        let kind = |number: u32| u8::try_from(number).ok().and_then(Kind::from_number);
        let wanted: Vec<(Kind, &str)> = names
            .iter()
            .map(|name| Some((kind(name.kind)?, name.name.as_str())))
            .collect::<Option<_>>()
            .ok_or(Unnamed::Kind)?;
        let given = names.iter().zip(&wanted).filter(|(name, _)| name.id != 0);
        let given: Vec<_> = given
            .map(|(name, (kind, _))| Entry { kind: *kind, id: name.id, name: name.name.clone() })
            .collect();
        self.learn(&given, false)?;
        Ok(NameIdsResponse { ids: self.own_ids(&wanted)? })
    }

    /// Asks the owners of names; takes what they answer out of `missing`.
    pub(super) fn ask_owners(
        &self,
        wanted: &[(Kind, &str)],
        missing: &mut Vec<usize>,
        ids: &mut [u32],
    ) -> Result<(), Error> {
        let Some(owners) = self.inner.owners.get() else { return Ok(()) };
        let names: Vec<_> = missing.iter().map(|at| (wanted[*at].0, bounded(wanted[*at].1))).collect();
        let asked: Vec<_> = names.iter().map(|(kind, name)| (*kind, name.as_ref())).collect();
        let told = owners.ask(&asked);
        let entries: Vec<Entry> = asked
            .iter()
            .zip(&told)
            .filter_map(|((kind, name), id)| {
                Some(Entry { kind: *kind, id: (*id)?, name: (*name).to_owned() })
            })
            .collect();
        if entries.is_empty() {
            return Ok(());
        }
        self.learn(&entries, false)?;
        // What was told in error is not known now, and gets an id here.
        missing.retain(|at| match self.lookup(wanted[*at].0, wanted[*at].1) {
            Some(id) => {
                ids[*at] = id;
                false
            }
            None => true,
        });
        Ok(())
    }

    fn persist_learned(&self, new: &[(Kind, u32, Arc<str>)], is_stored: bool) -> Result<(), Error> {
        let mut changes = Changes::default();
        for (kind, id, name) in new {
            changes.put(Family::IdToName, id_key(*kind, *id), name.as_bytes());
            if !is_stored {
                changes.put(Family::Meta, unconfirmed_key(*kind, *id), []);
            }
        }
        for (kind, id, name) in new {
            if self.lookup(*kind, name).is_none_or(|known| *id < known) {
                changes.put(Family::NameToId, name_key(*kind, name), u64::from(*id).to_be_bytes());
            }
        }
        Ok(self.inner.disk.write(changes, Durability::Synced)?)
    }
}

impl Inner {
    /// Puts an entry into the news, where there is somebody to tell.
    pub(super) fn tell(&self, audience: Audience, kind: Kind, id: u32, name: &Arc<str>) {
        if self.owners.get().is_some() {
            self.news.add(audience, kind, id, name);
        }
    }
}

fn is_well_formed(id: u32, name: &str) -> bool {
    id >> COUNTER_BITS != 0 && id & COUNTER_MAX != 0 && !name.is_empty() && name.len() <= NAME_BYTES_MAX
}

pub(super) fn unconfirmed_key(kind: Kind, id: u32) -> Vec<u8> {
    [UNCONFIRMED_PREFIX, &[kind as u8], &id.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests;
