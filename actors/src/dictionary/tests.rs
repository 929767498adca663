//! Invariants of the dictionary under crashes and losses, limits, and what it costs the store.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    path::Path,
};

use metaflow_schema::{enums::Kind, tables::Dictionary as Rows};
use proptest::prelude::*;

use super::*;

const NODE: NodeId = NodeId::new(5).unwrap();

/// What the store's table would hold.
#[derive(Default)]
struct Store {
    names: RefCell<HashMap<(u8, u64), String>>,
    is_down: RefCell<bool>,
    inserts: RefCell<usize>,
}

impl Store {
    async fn insert(&self, rows: Rows) -> Result<(), &'static str> {
        if *self.is_down.borrow() {
            return Err("store is down");
        }
        *self.inserts.borrow_mut() += 1;
        for ((kind, id), name) in rows.kind.iter().zip(&rows.id).zip(rows.name.iter()) {
            let before = self.names.borrow_mut().insert((*kind, *id), name.to_owned());
            assert!(before.is_none_or(|before| before == name), "D1: id {id} of kind {kind} was renamed");
        }
        Ok(())
    }

    fn maxima(&self) -> HashMap<Kind, u64> {
        let mut maxima = HashMap::new();
        for (kind, id) in self.names.borrow().keys() {
            let entry = maxima.entry(Kind::from_number(*kind).unwrap()).or_default();
            *entry = *id.max(entry);
        }
        maxima
    }
}

fn open(folder: &Path, store: &Store, names_max: usize) -> Dictionary {
    let config = Config { names_max, ..Config::new(NODE) };
    Dictionary::open(Disk::open(folder).unwrap(), config, &store.maxima()).unwrap()
}

fn flush(dictionary: &Dictionary, store: &Store) -> bool {
    let flush = dictionary.flush(|rows| store.insert(rows));
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(flush).is_ok()
}

#[derive(Debug, Clone)]
enum Step {
    Allocate(Vec<(usize, u8)>),
    Flush,
    FailingFlush,
    /// The process ends and starts again.
    Crash,
    /// The node's disk is lost; the store stays.
    LoseDisk,
    /// The store is replaced by an empty one.
    LoseStore,
}

const KINDS: [Kind; 3] = [Kind::Process, Kind::Endpoint, Kind::Host];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => prop::collection::vec((0..KINDS.len(), 0..40_u8), 0..12).prop_map(Step::Allocate),
        3 => Just(Step::Flush),
        1 => Just(Step::FailingFlush),
        3 => Just(Step::Crash),
        1 => Just(Step::LoseDisk),
        1 => Just(Step::LoseStore),
    ];
    prop::collection::vec(step, 1..24)
}

/// Ids that were given out, across all lives of the node.
#[derive(Default)]
struct Witness {
    name_of: HashMap<(Kind, u32), String>,
    /// Given out since the disk was last lost: within that, a name has one id.
    id_of: HashMap<(Kind, String), u32>,
}

impl Witness {
    fn saw(&mut self, kind: Kind, name: &str, id: u32) {
        assert_eq!(id >> COUNTER_BITS, 5, "an id of another node");
        let before = self.name_of.insert((kind, id), name.to_owned());
        assert!(before.is_none_or(|before| before == name), "D1, D4: {id} named something else before");
        let before = self.id_of.insert((kind, name.to_owned()), id);
        assert!(before.is_none_or(|before| before == id), "D2: {name} has two ids");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn ids_are_unique_stable_and_resolve_whatever_crashes(steps in steps()) {
        let mut folder = tempfile::tempdir().unwrap();
        let store = Store::default();
        let mut dictionary = open(folder.path(), &store, 1_000);
        let mut witness = Witness::default();
        for step in steps {
            match step {
                Step::Allocate(names) => {
                    let names: Vec<_> =
                        names.iter().map(|(kind, name)| (KINDS[*kind], format!("name {name}"))).collect();
                    let wanted: Vec<_> = names.iter().map(|(kind, name)| (*kind, name.as_str())).collect();
                    for ((kind, name), id) in wanted.iter().zip(dictionary.ids(&wanted).unwrap()) {
                        witness.saw(*kind, name, id);
                        assert_eq!(dictionary.resolve(*kind, id).unwrap().as_deref(), Some(*name));
                        assert!(dictionary.may_exist(*kind, id));
                    }
                }
                Step::Flush => {
                    assert!(flush(&dictionary, &store));
                    for ((kind, name), id) in &witness.id_of {
                        let stored = store.names.borrow().get(&(*kind as u8, u64::from(*id))).cloned();
                        assert_eq!(stored.as_ref(), Some(name), "D3: {id} does not resolve in the store");
                    }
                }
                Step::FailingFlush => {
                    *store.is_down.borrow_mut() = true;
                    let pending = dictionary.pending();
                    assert_eq!(flush(&dictionary, &store), pending == 0);
                    assert_eq!(dictionary.pending(), pending);
                    *store.is_down.borrow_mut() = false;
                }
                Step::Crash => {
                    drop(dictionary);
                    dictionary = open(folder.path(), &store, 1_000);
                }
                Step::LoseDisk => {
                    // Rows with these ids may be in the store only after a flush.
                    flush(&dictionary, &store);
                    drop(dictionary);
                    folder = tempfile::tempdir().unwrap();
                    witness.id_of.clear();
                    // What neither has, was lost with every row that used it.
                    witness.name_of.retain(|(kind, id), _| {
                        store.names.borrow().contains_key(&(*kind as u8, u64::from(*id)))
                    });
                    dictionary = open(folder.path(), &store, 1_000);
                }
                Step::LoseStore => {
                    drop(dictionary);
                    store.names.borrow_mut().clear();
                    dictionary = open(folder.path(), &store, 1_000);
                }
            }
        }
    }
}

#[test]
fn names_beyond_the_limit_share_one_id_and_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::default();
    let dictionary = open(folder.path(), &store, 3);
    let names: Vec<_> = (0..10).map(|name| format!("/path/{name}")).collect();
    let wanted: Vec<_> = names.iter().map(|name| (Kind::Endpoint, name.as_str())).collect();
    let ids = dictionary.ids(&wanted).unwrap();
    let other = dictionary.lookup(Kind::Endpoint, OTHER).unwrap();
    assert_eq!(ids[3..], [other; 7]);
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 4);
    let stats = dictionary.stats();
    assert_eq!(stats.len(), 1);
    assert_eq!((stats[0].kind, stats[0].names, stats[0].overflowed), (Kind::Endpoint, 4, 7));
    // What identifies machines is not limited, and known names stay known.
    let hosts = ["a", "b", "c", "d", "e"].map(|name| (Kind::Host, name));
    assert_eq!(dictionary.ids(&hosts).unwrap().iter().collect::<HashSet<_>>().len(), 5);
    assert_eq!(dictionary.id(Kind::Endpoint, "/path/1").unwrap(), ids[1]);
    drop(dictionary);
    assert_eq!(open(folder.path(), &store, 3).id(Kind::Endpoint, "/path/99").unwrap(), other);
}

#[test]
fn a_used_up_range_gives_other_and_never_an_id_of_the_next_node() {
    let folder = tempfile::tempdir().unwrap();
    let almost = HashMap::from([(Kind::Process, u64::from(NODE.id(COUNTER_MAX - 2)))]);
    let disk = Disk::open(folder.path()).unwrap();
    let dictionary = Dictionary::open(disk, Config::new(NODE), &almost).unwrap();
    let names = ["a", "b", "c"].map(|name| (Kind::Process, name));
    let ids = dictionary.ids(&names).unwrap();
    assert_eq!(ids, [NODE.id(COUNTER_MAX - 1), NODE.id(COUNTER_MAX), NODE.id(COUNTER_MAX)]);
    assert_eq!(dictionary.lookup(Kind::Process, OTHER), Some(ids[1]));
}

#[test]
fn counters_start_above_the_store_and_ignore_ids_of_other_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let maxima = HashMap::from([
        (Kind::Host, u64::from(NODE.id(41))),
        (Kind::Process, u64::from(NodeId::new(6).unwrap().id(900))),
    ]);
    let disk = Disk::open(folder.path()).unwrap();
    let dictionary = Dictionary::open(disk, Config::new(NODE), &maxima).unwrap();
    assert_eq!(dictionary.id(Kind::Host, "h").unwrap(), NODE.id(42));
    assert_eq!(dictionary.id(Kind::Process, "p").unwrap(), NODE.id(1));
    // What this node never gave does not exist; of other nodes it cannot know.
    let other = NodeId::new(6).unwrap().id(1);
    let cases = [
        (NODE.id(41), true),
        (NODE.id(43), false),
        (NODE.id(0), false),
        (0, false),
        (7, false),
        (other, true),
    ];
    for (id, expected) in cases {
        assert_eq!(dictionary.may_exist(Kind::Host, id), expected, "{id}");
    }
}

#[test]
fn long_names_are_cut_at_a_character_and_stay_apart() {
    let one = format!("{}a", "\u{e9}".repeat(400));
    let two = format!("{}b", "\u{e9}".repeat(400));
    assert!(bounded(&one).len() <= NAME_BYTES_MAX && bounded(&one) != bounded(&two));
    assert_eq!(bounded("short"), "short");
    let folder = tempfile::tempdir().unwrap();
    let dictionary = open(folder.path(), &Store::default(), 10);
    let ids = dictionary.ids(&[(Kind::Process, &one), (Kind::Process, &two), (Kind::Process, "")]).unwrap();
    assert!(ids[0] != ids[1] && ids[2] == 0);
    assert_eq!(dictionary.lookup(Kind::Process, &one), Some(ids[0]));
}

#[test]
fn a_flush_with_nothing_new_does_not_touch_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::default();
    let dictionary = open(folder.path(), &store, 10);
    dictionary.id(Kind::Process, "nginx").unwrap();
    assert!(flush(&dictionary, &store) && flush(&dictionary, &store));
    assert_eq!(*store.inserts.borrow(), 1);
    drop(dictionary);
    // Confirmed names are not sent again after a start.
    assert_eq!(open(folder.path(), &store, 10).pending(), 0);
}

#[test]
fn threads_that_meet_the_same_names_agree() {
    let folder = tempfile::tempdir().unwrap();
    let dictionary = open(folder.path(), &Store::default(), 10_000);
    let names: Vec<_> = (0..200).map(|name| format!("n{name}")).collect();
    let answers: Vec<Vec<u32>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let part = |names: &[String]| {
                        let wanted: Vec<_> =
                            names.iter().map(|name| (Kind::Endpoint, name.as_str())).collect();
                        dictionary.ids(&wanted).unwrap()
                    };
                    names.chunks(20).flat_map(part).collect()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|ids| *ids == answers[0]));
    assert_eq!(answers[0].iter().collect::<HashSet<_>>().len(), 200);
}
