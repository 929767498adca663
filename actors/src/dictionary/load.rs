//! Start: the dictionary as the disk and the store left it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use metaflow_schema::enums::Kind;
use tracing::warn;

use super::{
    COUNTER_BITS, COUNTER_MAX, Error, NodeId,
    confirm::CONFIRMED_PREFIX,
    exchange::Digests,
    learn::{UNCONFIRMED_PREFIX, unconfirmed_key},
    meta_key,
    ranges::RANGE_PREFIX,
};
use crate::disk::{Changes, Disk, Durability, Family};

/// Counters learnt from the store, which the disk keeps in case that the store is lost after the disk was.
const FLOOR_PREFIX: &[u8] = b"dictionary/floor/";

/// Numbers that this disk's node had: it made the entries below these itself.
const NUMBER_PREFIX: &[u8] = b"dictionary/number/";

/// Stands on disks where every entry that the store may not have is marked. Before, own ones were confirmed up to a counter.
const MARKS_KEY: &[u8] = b"dictionary/marks";

/// Kinds are numbered by a byte.
const KINDS: usize = 256;

#[derive(Default)]
pub(super) struct LoadedKind {
    pub ids: HashMap<Arc<str>, u32>,
    /// Highest counter of the node's own prefix, on disk or in the store.
    pub highest: u32,
    /// Ids beside the canonical ones.
    pub aliases: u64,
}

/// What tells entries that the store has from those that it may not have.
struct Confirmed {
    /// Numbers of this node, now and before.
    numbers: HashSet<u32>,
    /// How far own entries are confirmed, on a disk without marks.
    counters: HashMap<(Kind, u32), u32>,
    are_marked: bool,
    /// Own entries of these kinds were confirmed by another store.
    replaced: HashSet<Kind>,
    own: u32,
    /// Entries that are not confirmed, as they stand in keys.
    marked: HashSet<Vec<u8>>,
}

pub(super) struct Loaded {
    pub kinds: Vec<LoadedKind>,
    /// Entries that the store may not have, by kind and id.
    pub pending: Vec<(Kind, u32, Arc<str>)>,
    pub digests: Digests,
    /// The range that follows those which this disk's node had.
    pub range: u32,
}

pub(super) fn load(disk: &Disk, node_id: NodeId, store_maxima: &HashMap<Kind, u64>) -> Result<Loaded, Error> {
    let confirmed = counters(disk, CONFIRMED_PREFIX)?;
    let mut replaced = HashSet::new();
    let floors = counters(disk, FLOOR_PREFIX)?;
    let mut learnt = Changes::default();
    let mut loaded = Loaded {
        kinds: (0..KINDS).map(|_| LoadedKind::default()).collect(),
        pending: Vec::new(),
        digests: Digests::default(),
        range: range(disk, node_id)?,
    };
    let own = u32::from(node_id.get());
    for kind in Kind::ALL {
        let maximum = store_maxima.get(kind).map_or(0, |id| own_counter(*kind, *id, own));
        let floor = floors.get(&(*kind, own)).map_or(0, |id| id & COUNTER_MAX);
        loaded.kinds[*kind as usize].highest = maximum.max(floor);
        if maximum > floor {
            learnt.put(Family::Meta, meta_key(FLOOR_PREFIX, *kind, own), node_id.id(maximum).to_be_bytes());
        }
        if let Some(known) = confirmed.get(&(*kind, own)).filter(|known| maximum < **known & COUNTER_MAX) {
            warn!(
                kind = kind.name(),
                store = maximum,
                confirmed = *known & COUNTER_MAX,
                "the store has fewer names than it confirmed: all are sent again"
            );
            replaced.insert(*kind);
        }
    }
    learnt.put(Family::Meta, [NUMBER_PREFIX, &own.to_be_bytes()].concat(), []);
    disk.write(learnt, Durability::Synced)?;
    let confirmed = Confirmed {
        numbers: suffixes(disk, NUMBER_PREFIX)?
            .into_iter()
            .filter_map(|number| Some(u32::from_be_bytes(number.try_into().ok()?)))
            .collect(),
        counters: confirmed,
        are_marked: disk.get(Family::Meta, MARKS_KEY)?.is_some(),
        replaced,
        own,
        marked: suffixes(disk, UNCONFIRMED_PREFIX)?,
    };
    let mut damaged = None;
    disk.scan(Family::IdToName, b"", |key, name| match entry(key, name) {
        Some((kind, id, name)) => {
            loaded.add(kind, id, name, own, &confirmed);
            true
        }
        None => {
            damaged = Some(Error::Damaged(key.to_vec()));
            false
        }
    })?;
    if let Some(damaged) = damaged {
        return Err(damaged);
    }
    let mut marks = Changes::default();
    for (kind, id, _) in &loaded.pending {
        if !confirmed.marked.contains(&mark(*kind, *id)) {
            marks.put(Family::Meta, unconfirmed_key(*kind, *id), []);
        }
    }
    if !confirmed.are_marked {
        marks.put(Family::Meta, MARKS_KEY, []);
    }
    if !marks.is_empty() {
        disk.write(marks, Durability::Synced)?;
    }
    Ok(loaded)
}

impl Loaded {
    fn add(&mut self, kind: Kind, id: u32, name: Arc<str>, own: u32, confirmed: &Confirmed) {
        let node = id >> COUNTER_BITS;
        let loaded = &mut self.kinds[kind as usize];
        if node == own {
            loaded.highest = loaded.highest.max(id & COUNTER_MAX);
        }
        self.digests.add(kind, id, &name, loaded.ids.get(&name).copied());
        if !confirmed.has(kind, id) {
            self.pending.push((kind, id, Arc::clone(&name)));
        }
        // Ids come in their order: the first of a name is the smallest, which is the canonical one.
        let canonical = *loaded.ids.entry(name).or_insert(id);
        loaded.aliases += u64::from(canonical != id);
    }
}

impl Confirmed {
    fn has(&self, kind: Kind, id: u32) -> bool {
        let node = id >> COUNTER_BITS;
        let is_counted = self.counters.get(&(kind, node)).is_some_and(|known| id <= *known);
        let is_of_another_store = node == self.own && self.replaced.contains(&kind);
        (self.are_marked || is_counted || !self.numbers.contains(&node))
            && !is_of_another_store
            && !self.marked.contains(&mark(kind, id))
    }
}

/// An entry as it stands in a key.
fn mark(kind: Kind, id: u32) -> Vec<u8> {
    [&[kind as u8], &id.to_be_bytes()[..]].concat()
}

fn range(disk: &Disk, node_id: NodeId) -> Result<u32, Error> {
    let noted = disk.get(Family::Meta, &[RANGE_PREFIX, &node_id.get().to_be_bytes()].concat())?;
    Ok(noted.and_then(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?))).unwrap_or(0))
}

/// What follows a prefix in the keys that have it.
fn suffixes(disk: &Disk, prefix: &[u8]) -> Result<HashSet<Vec<u8>>, Error> {
    let mut suffixes = HashSet::new();
    disk.scan(Family::Meta, prefix, |key, _| {
        let suffix = key.strip_prefix(prefix);
        suffixes.extend(suffix.map(<[u8]>::to_vec));
        suffix.is_some()
    })?;
    Ok(suffixes)
}

/// Ids by kind and node below a prefix of keys.
fn counters(disk: &Disk, prefix: &[u8]) -> Result<HashMap<(Kind, u32), u32>, Error> {
    let mut counters = HashMap::new();
    disk.scan(Family::Meta, prefix, |key, value| {
        let Some(rest) = key.strip_prefix(prefix) else { return false };
        // What cannot be read counts as unknown: names are sent to the store again, which harms nothing.
        if let Some((&[kind], node)) = rest.split_first_chunk()
            && let (Some(kind), Ok(node), Ok(id)) =
                (Kind::from_number(kind), <[u8; 4]>::try_from(node), <[u8; 4]>::try_from(value))
        {
            counters.insert((kind, u32::from_be_bytes(node)), u32::from_be_bytes(id));
        }
        true
    })?;
    Ok(counters)
}

pub(super) fn entry(key: &[u8], name: &[u8]) -> Option<(Kind, u32, Arc<str>)> {
    let (kind, id) = key.split_first()?;
    let id = u64::from_be_bytes(id.try_into().ok()?);
    Some((Kind::from_number(*kind)?, u32::try_from(id).ok()?, std::str::from_utf8(name).ok()?.into()))
}

fn own_counter(kind: Kind, id: u64, own: u32) -> u32 {
    match u32::try_from(id) {
        Ok(id) if id >> COUNTER_BITS == own => id & COUNTER_MAX,
        _ => {
            warn!(kind = kind.name(), id, "the store's highest id is not of this node: ignored");
            0
        }
    }
}
