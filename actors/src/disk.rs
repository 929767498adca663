//! The node's own disk state: RocksDB with a column family for each kind of state. The only file that knows RocksDB.
//!
//! Holds the write-ahead log of batches, the tag dictionary, facts of agents and small counters. Leaves out what they mean.
//!
//! RocksDB takes no write any more once the disk was full, even when there is space again: then it is closed and opened anew.

mod memory;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, TryLockError},
    time::{Duration, Instant},
};

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, Direction, ErrorKind,
    IteratorMode, Options, WriteBatch, WriteOptions,
};

pub use memory::Memory;

/// Memory of the database where nobody says otherwise: a second of the fastest ingest that was measured fits the log's buffers.
pub const MEMORY_BYTES_DEFAULT: usize = 64 << 20;

/// Of a small disk no more than this share is kept free.
const KEEP_FREE_SHARE: u64 = 16;

/// Pause between two tries to open the database anew.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// Memtables of a family: one is filled while the other goes to disk.
const BUFFERS: i32 = 2;

/// Version of what is on the disk: families, keys and values, the write-ahead log among them. A release that changes their meaning raises
/// it, and reads the one before.
pub const FORMAT: u32 = 1;

/// Where the version stands, in [`Family::Meta`]. A database without it is of the time before there were others than the first.
const FORMAT_KEY: &[u8] = b"format";

/// A kind of state. Names on disk: never renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
    /// What operators set and every node keeps.
    Documents,
}

impl Family {
    const ALL: [Self; 7] = [
        Self::Wal,
        Self::Committed,
        Self::NameToId,
        Self::IdToName,
        Self::Facts,
        Self::Meta,
        Self::Documents,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Wal => "wal",
            Self::Committed => "committed",
            Self::NameToId => "name_to_id",
            Self::IdToName => "id_to_name",
            Self::Facts => "facts",
            Self::Meta => "meta",
            Self::Documents => "documents",
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("failed to {action} in {family} of the node's database")]
pub struct Error {
    action: &'static str,
    family: &'static str,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// The source of an [`Error`] that only another release can do something about.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} was written by a newer release ({found}; this release reads format {FORMAT}): start that release again, or move this folder \
     away, then agents send again what was not stored, and new ids begin above those in the store",
    path.display()
)]
struct Newer {
    path: PathBuf,
    /// What this release does not know.
    found: String,
}

/// Changes that are applied together or not at all.
#[derive(Debug, Clone, Default)]
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
    backing: Backing,
}

#[derive(Clone)]
enum Backing {
    Rocks(Arc<Shared>),
    Memory(Memory),
}

struct Shared {
    path: PathBuf,
    memory_bytes: usize,
    /// An error when it could not be opened anew.
    db: RwLock<Result<DB, rocksdb::Error>>,
    /// When it was last tried to open it anew.
    reopened: Mutex<Option<Instant>>,
}

impl Disk {
    /// Opens or creates the database. A second process on the same folder is refused by RocksDB's lock.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_within(path, MEMORY_BYTES_DEFAULT)
    }

    /// Whether less than this is free on the disk.
    pub fn is_nearly_full(&self, keep_free: u64) -> bool {
        let Backing::Rocks(shared) = &self.backing else { return false };
        // A disk that does not say how full it is says so when it is written.
        rustix::fs::statvfs(&shared.path).is_ok_and(|status| {
            let reserve = keep_free.min(status.f_blocks * status.f_frsize / KEEP_FREE_SHARE);
            status.f_bavail * status.f_frsize < reserve
        })
    }

    /// The same within so much memory: half of it for buffers of the log, a quarter for those of all else, a quarter for blocks that are
    /// read. A family that has filled its buffers waits for the disk.
    pub fn open_within(path: &Path, memory_bytes: usize) -> Result<Self, Error> {
        let db = open_known(path, memory_bytes).map_err(|source| Error {
            action: "open the database",
            family: "all families",
            source,
        })?;
        let shared = Shared {
            path: path.to_owned(),
            memory_bytes,
            db: RwLock::new(Ok(db)),
            reopened: Mutex::new(None),
        };
        Ok(Self { backing: Backing::Rocks(Arc::new(shared)) })
    }

    /// A disk without files, whose faults the simulation decides.
    pub fn in_memory(memory: &Memory) -> Self {
        Self { backing: Backing::Memory(memory.clone()) }
    }

    pub fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        match &self.backing {
            Backing::Rocks(shared) => shared.get(family, key),
            Backing::Memory(memory) => Ok(memory.get(family, key)),
        }
    }

    pub fn write(&self, changes: Changes, durability: Durability) -> Result<(), Error> {
        self.apply(&changes, durability)
    }

    /// The same, for who may have to try again.
    pub fn apply(&self, changes: &Changes, durability: Durability) -> Result<(), Error> {
        match &self.backing {
            Backing::Rocks(shared) => shared.apply(changes, durability),
            Backing::Memory(memory) => memory.apply(changes, durability),
        }
    }

    /// Calls `visit` for each key from `start` on, in order, until it answers false.
    pub fn scan(
        &self,
        family: Family,
        start: &[u8],
        visit: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Error> {
        match &self.backing {
            Backing::Rocks(shared) => shared.scan(family, start, visit),
            Backing::Memory(memory) => {
                memory.scan(family, start, visit);
                Ok(())
            }
        }
    }
}

impl Shared {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let failed = |source: rocksdb::Error| Error {
            action: "read a key",
            family: family.name(),
            source: source.into(),
        };
        let db = self.db();
        let db = db.as_ref().map_err(|error| failed(error.clone()))?;
        db.get_cf(&handle(db, family), key).map_err(failed)
    }

    fn apply(&self, changes: &Changes, durability: Durability) -> Result<(), Error> {
        let family = changes.changes.first().map_or("no family", |change| change.0.name());
        let written = match &*self.db() {
            Ok(db) => write(db, changes, durability),
            Err(error) => Err(error.clone()),
        };
        written.map_err(|source| {
            if source.kind() == ErrorKind::IOError {
                self.open_anew(&source);
            }
            Error { action: "write", family, source: source.into() }
        })
    }

    fn scan(
        &self,
        family: Family,
        start: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Error> {
        let failed =
            |source: rocksdb::Error| Error { action: "scan", family: family.name(), source: source.into() };
        let mode = IteratorMode::From(start, Direction::Forward);
        let db = self.db();
        let db = db.as_ref().map_err(|error| failed(error.clone()))?;
        for entry in db.iterator_cf(&handle(db, family), mode) {
            let (key, value) = entry.map_err(failed)?;
            if !visit(&key, &value) {
                break;
            }
        }
        Ok(())
    }

    fn db(&self) -> RwLockReadGuard<'_, Result<DB, rocksdb::Error>> {
        self.db.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes and opens the database, when the disk takes bytes again. Until then the old one answers reads.
    fn open_anew(&self, because: &rocksdb::Error) {
        let Self { path, memory_bytes, db, reopened } = self;
        let mut reopened = match reopened.try_lock() {
            Ok(reopened) => reopened,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Somebody else is at it.
            Err(TryLockError::WouldBlock) => return,
        };
        if reopened.is_some_and(|last| last.elapsed() < REOPEN_AFTER) {
            return;
        }
        *reopened = Some(Instant::now());
        if let Err(error) = has_space(path, *memory_bytes) {
            tracing::debug!(%error, "the disk of the node's database takes nothing yet");
            return;
        }
        let mut db = db.write().unwrap_or_else(PoisonError::into_inner);
        if let Ok(old) = &*db {
            old.cancel_all_background_work(true);
        }
        // The lock on the folder is the old one's until it is dropped.
        *db = Err(because.clone());
        *db = open(path, *memory_bytes);
        match &*db {
            Ok(_) => tracing::info!("the node's database was opened anew after a failed write"),
            Err(error) => tracing::error!(%error, "the node's database cannot be opened anew"),
        }
    }
}

fn open(path: &Path, memory_bytes: usize) -> Result<DB, rocksdb::Error> {
    // Indices and filters lie in the cache too, or they would come on top of it. State on the row path is in memory already, so the
    // cache serves starts and lookups only.
    let cache = Cache::new_lru_cache(memory_bytes / 4);
    let families = Family::ALL.map(|family| {
        ColumnFamilyDescriptor::new(family.name(), family_options(family, &cache, memory_bytes))
    });
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(2);
    options.set_max_total_wal_size(256 << 20);
    DB::open_cf_descriptors(&options, path, families)
}

/// Families that this release does not know; none in a database of its own or before it.
fn unknown_families(path: &Path) -> Option<String> {
    // A folder without a database has no list: then one is made.
    let names = DB::list_cf(&Options::default(), path).ok()?;
    let is_known =
        |name: &String| name == "default" || Family::ALL.iter().any(|family| family.name() == name);
    let unknown: Vec<_> = names.into_iter().filter(|name| !is_known(name)).collect();
    (!unknown.is_empty()).then(|| format!("with {}", unknown.join(", ")))
}

/// Opens what this release or one before it wrote, and refuses what a newer one did; notes the version where there is none.
fn open_known(path: &Path, memory_bytes: usize) -> Result<DB, Box<dyn std::error::Error + Send + Sync>> {
    let newer = |found| Newer { path: path.to_owned(), found };
    if let Some(found) = unknown_families(path) {
        return Err(newer(found).into());
    }
    let db = open(path, memory_bytes)?;
    let found = db.get_cf(&handle(&db, Family::Meta), FORMAT_KEY)?;
    let format = found.map(|found| <[u8; 4]>::try_from(found.as_slice()).map(u32::from_be_bytes));
    match format {
        None => db.put_cf(&handle(&db, Family::Meta), FORMAT_KEY, FORMAT.to_be_bytes())?,
        Some(Ok(format)) if format <= FORMAT => {}
        Some(Ok(format)) => return Err(newer(format!("format {format}")).into()),
        Some(Err(_)) => return Err(newer("a format that is no number".to_owned()).into()),
    }
    Ok(db)
}

fn write(db: &DB, changes: &Changes, durability: Durability) -> Result<(), rocksdb::Error> {
    let mut batch = WriteBatch::default();
    for (family, key, value) in &changes.changes {
        match value {
            Some(value) => batch.put_cf(&handle(db, *family), key, value),
            None => batch.delete_cf(&handle(db, *family), key),
        }
    }
    let mut options = WriteOptions::default();
    options.set_sync(durability == Durability::Synced);
    db.write_opt(batch, &options)
}

fn handle(db: &DB, family: Family) -> Arc<rocksdb::BoundColumnFamily<'_>> {
    db.cf_handle(family.name()).expect("every family is created at open")
}

/// Tries the disk with as many bytes as an opening writes: the buffers of the log.
fn has_space(path: &Path, memory_bytes: usize) -> io::Result<()> {
    let probe = path.join("probe");
    let written = fs::write(&probe, vec![0; memory_bytes / 2]);
    fs::remove_file(&probe)?;
    written
}

fn family_options(family: Family, cache: &Cache, memory_bytes: usize) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_max_write_buffer_number(BUFFERS);
    if family == Family::Wal {
        // Payloads are zstd already and live for seconds: mostly they die in the memtable.
        options.set_compression_type(DBCompressionType::None);
        options.set_write_buffer_size(memory_bytes / 2 / BUFFERS as usize);
    } else {
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_write_buffer_size(memory_bytes / 4 / (Family::ALL.len() - 1) / BUFFERS as usize);
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of the refusal.
    fn refused(path: &Path) -> String {
        Disk::open(path).err().map_or_else(String::new, |error| format!("{:#}", anyhow::Error::new(error)))
    }

    #[test]
    fn what_a_newer_release_wrote_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path()).unwrap();
        assert_eq!(disk.get(Family::Meta, FORMAT_KEY).unwrap(), Some(FORMAT.to_be_bytes().to_vec()));
        let mut changes = Changes::default();
        changes.put(Family::Meta, FORMAT_KEY, (FORMAT + 1).to_be_bytes());
        disk.write(changes, Durability::Synced).unwrap();
        drop(disk);
        let error = refused(folder.path());
        let part = format!("newer release (format {}; this release reads format {FORMAT})", FORMAT + 1);
        assert!(error.contains(&part) && error.contains("move this folder away"), "{error}");
        assert!(error.contains(&folder.path().display().to_string()), "{error}");
    }

    #[test]
    fn kinds_of_state_of_a_newer_release_are_named() {
        let folder = tempfile::tempdir().unwrap();
        drop(Disk::open(folder.path()).unwrap());
        let mut options = Options::default();
        options.create_missing_column_families(true);
        let names = Family::ALL.map(Family::name).into_iter().chain(["default", "rollouts"]);
        drop(DB::open_cf(&options, folder.path(), names).unwrap());
        let error = refused(folder.path());
        assert!(error.contains("with rollouts"), "{error}");
    }

    #[test]
    fn a_database_from_before_there_were_versions_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path()).unwrap();
        let mut changes = Changes::default();
        changes.delete(Family::Meta, FORMAT_KEY);
        changes.put(Family::Meta, *b"a", *b"1");
        disk.write(changes, Durability::Synced).unwrap();
        drop(disk);
        let disk = Disk::open(folder.path()).unwrap();
        assert_eq!(disk.get(Family::Meta, b"a").unwrap(), Some(b"1".to_vec()));
    }

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
            key != b"b"
        })
        .unwrap();
        assert_eq!(seen, [(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), b"2".to_vec())]);
    }
}
