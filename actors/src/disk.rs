//! The node's own disk state: RocksDB with a column family for each kind of state. The only file that knows RocksDB.
//!
//! Holds the write-ahead log of batches, the tag dictionary, facts of agents and small counters. Leaves out what they mean.

use std::{path::Path, sync::Arc};

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, Direction, IteratorMode,
    Options, WriteBatch, WriteOptions,
};

/// Block cache of the whole database: state on the row path is in memory already, so this serves starts and lookups only.
const BLOCK_CACHE_BYTES: usize = 32 << 20;

/// A kind of state. Names on disk: never renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Batches that are acknowledged and not yet in the store.
    Wal,
    /// Batches known to be in the store, for agents that send again.
    Committed,
    /// Dictionary: kind and name to id.
    NameToId,
    /// Dictionary: kind and id to name.
    IdToName,
    /// Facts of agents.
    Facts,
    /// Counters and versions.
    Meta,
}

impl Family {
    const ALL: [Self; 6] =
        [Self::Wal, Self::Committed, Self::NameToId, Self::IdToName, Self::Facts, Self::Meta];

    const fn name(self) -> &'static str {
        match self {
            Self::Wal => "wal",
            Self::Committed => "committed",
            Self::NameToId => "name_to_id",
            Self::IdToName => "id_to_name",
            Self::Facts => "facts",
            Self::Meta => "meta",
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("failed to {action} in {family} of the node's database")]
pub struct Error {
    action: &'static str,
    family: &'static str,
    #[source]
    source: rocksdb::Error,
}

/// Changes that are applied together or not at all.
#[derive(Debug, Default)]
pub struct Changes {
    changes: Vec<(Family, Vec<u8>, Option<Vec<u8>>)>,
}

impl Changes {
    pub fn put(&mut self, family: Family, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.changes.push((family, key.into(), Some(value.into())));
    }

    pub fn delete(&mut self, family: Family, key: impl Into<Vec<u8>>) {
        self.changes.push((family, key.into(), None));
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// Whether a write returns before or after the disk has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// fsync: survives power loss.
    Synced,
    /// Survives the end of the process, not of the machine.
    Written,
}

/// The open database; clones share it. Calls block: use `spawn_blocking` for syncs and scans.
#[derive(Clone)]
pub struct Disk {
    db: Arc<DB>,
}

impl Disk {
    /// Opens or creates the database. A second process on the same folder is refused by RocksDB's lock.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
        let families = Family::ALL
            .map(|family| ColumnFamilyDescriptor::new(family.name(), family_options(family, &cache)));
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_max_background_jobs(2);
        options.set_keep_log_file_num(2);
        options.set_max_total_wal_size(256 << 20);
        let db = DB::open_cf_descriptors(&options, path, families).map_err(|source| Error {
            action: "open the database",
            family: "all families",
            source,
        })?;
        Ok(Self { db: Arc::new(db) })
    }

    pub fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        self.db.get_cf(&self.handle(family), key).map_err(|source| Error {
            action: "read a key",
            family: family.name(),
            source,
        })
    }

    pub fn write(&self, changes: Changes, durability: Durability) -> Result<(), Error> {
        self.apply(&changes, durability)
    }

    /// The same, for who may have to try again.
    pub fn apply(&self, changes: &Changes, durability: Durability) -> Result<(), Error> {
        let family = changes.changes.first().map_or("no family", |change| change.0.name());
        let mut batch = WriteBatch::default();
        for (family, key, value) in &changes.changes {
            match value {
                Some(value) => batch.put_cf(&self.handle(*family), key, value),
                None => batch.delete_cf(&self.handle(*family), key),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(durability == Durability::Synced);
        self.db.write_opt(batch, &options).map_err(|source| Error { action: "write", family, source })
    }

    /// Calls `visit` for each key from `start` on, in order, until it answers false.
    pub fn scan(
        &self,
        family: Family,
        start: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Error> {
        let mode = IteratorMode::From(start, Direction::Forward);
        for entry in self.db.iterator_cf(&self.handle(family), mode) {
            let (key, value) =
                entry.map_err(|source| Error { action: "scan", family: family.name(), source })?;
            if !visit(&key, &value) {
                break;
            }
        }
        Ok(())
    }

    fn handle(&self, family: Family) -> Arc<rocksdb::BoundColumnFamily<'_>> {
        self.db.cf_handle(family.name()).expect("every family is created at open")
    }
}

fn family_options(family: Family, cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    if family == Family::Wal {
        // Payloads are zstd already and live for seconds: mostly they die in the memtable.
        options.set_compression_type(DBCompressionType::None);
        options.set_write_buffer_size(64 << 20);
        options.set_max_write_buffer_number(3);
    } else {
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_write_buffer_size(8 << 20);
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_survive_reopening_and_scans_are_in_key_order() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path()).unwrap();
        let mut changes = Changes::default();
        changes.put(Family::Meta, *b"b", *b"2");
        changes.put(Family::Meta, *b"a", *b"1");
        changes.put(Family::Wal, *b"a", *b"other");
        disk.write(changes, Durability::Synced).unwrap();
        assert!(Disk::open(folder.path()).is_err(), "a second opener is refused");
        drop(disk);

        let disk = Disk::open(folder.path()).unwrap();
        let mut changes = Changes::default();
        changes.delete(Family::Wal, *b"a");
        disk.write(changes, Durability::Written).unwrap();
        assert_eq!(disk.get(Family::Wal, b"a").unwrap(), None);
        let mut seen = Vec::new();
        disk.scan(Family::Meta, b"", |key, value| {
            seen.push((key.to_vec(), value.to_vec()));
            true
        })
        .unwrap();
        assert_eq!(seen, [(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), b"2".to_vec())]);
    }
}
