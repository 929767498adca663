//! A disk in memory, for the simulation: what was synced survives a crash, what was only written may not.
//!
//! Like RocksDB's own log, a sync makes everything durable that was written before it. Clones are the same disk.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Changes, Durability, Error, Family};

type Table = BTreeMap<(Family, Vec<u8>), Vec<u8>>;

#[derive(Debug, Clone, Default)]
pub struct Memory {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Clone, Default)]
struct State {
    durable: Table,
    /// Shared with who reads through it, who sees it as it was.
    current: Arc<Table>,
    /// Written since the last sync, in order.
    unsynced: Vec<Changes>,
    is_full: bool,
}

impl Memory {
    /// Power loss: of what was not synced, the first `kept` writes are there afterwards.
    pub fn crash(&self, kept: usize) {
        let mut state = self.lock();
        let unsynced = std::mem::take(&mut state.unsynced);
        for changes in unsynced.iter().take(kept) {
            apply(&mut state.durable, changes);
        }
        state.current = Arc::new(state.durable.clone());
    }

    /// Writes that a power loss could undo.
    pub fn unsynced(&self) -> usize {
        self.lock().unsynced.len()
    }

    /// From now on writes fail, or no longer.
    pub fn set_full(&self, is_full: bool) {
        self.lock().is_full = is_full;
    }

    /// Another disk with the same content: a backup, or the disk that was restored from it.
    pub fn copy(&self) -> Self {
        let mut state = self.lock().clone();
        state.is_full = false;
        Self { state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn get(&self, family: Family, key: &[u8]) -> Option<Vec<u8>> {
        self.lock().current.get(&(family, key.to_vec())).cloned()
    }

    pub(super) fn apply(&self, changes: &Changes, durability: Durability) -> Result<(), Error> {
        let mut state = self.lock();
        if state.is_full {
            let source = io::Error::from(io::ErrorKind::StorageFull).into();
            return Err(Error { action: "write", family: "a full disk", source });
        }
        apply(Arc::make_mut(&mut state.current), changes);
        state.unsynced.push(changes.clone());
        if durability == Durability::Synced {
            let State { durable, unsynced, .. } = &mut *state;
            unsynced.drain(..).for_each(|changes| apply(durable, &changes));
        }
        Ok(())
    }

    pub(super) fn scan(&self, family: Family, start: &[u8], mut visit: impl FnMut(&[u8], &[u8]) -> bool) {
        // Who visits may write.
        let table = Arc::clone(&self.lock().current);
        for ((_, key), value) in
            table.range((family, start.to_vec())..).take_while(|((of, _), _)| *of == family)
        {
            if !visit(key, value) {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn apply(table: &mut Table, changes: &Changes) {
    for (family, key, value) in &changes.changes {
        match value {
            Some(value) => table.insert((*family, key.clone()), value.clone()),
            None => table.remove(&(*family, key.clone())),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;

    fn put(disk: &Disk, key: &[u8], durability: Durability) -> Result<(), Error> {
        let mut changes = Changes::default();
        changes.put(Family::Meta, key, *b"x");
        disk.write(changes, durability)
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_the_first_of_the_rest() {
        let memory = Memory::default();
        let disk = Disk::in_memory(&memory);
        put(&disk, b"a", Durability::Written).unwrap();
        put(&disk, b"b", Durability::Synced).unwrap();
        put(&disk, b"c", Durability::Written).unwrap();
        put(&disk, b"d", Durability::Written).unwrap();
        let backup = Disk::in_memory(&memory.copy());
        memory.crash(1);
        let keys = |disk: &Disk| {
            let mut keys = Vec::new();
            disk.scan(Family::Meta, b"b", |key, _| {
                keys.extend_from_slice(key);
                true
            })
            .unwrap();
            keys
        };
        assert_eq!((keys(&disk), keys(&backup)), (b"bc".to_vec(), b"bcd".to_vec()));
        assert_eq!(disk.get(Family::Meta, b"a").unwrap(), Some(b"x".to_vec()));
        memory.set_full(true);
        assert!(put(&disk, b"e", Durability::Written).is_err());
    }
}
