//! Nodes that tell each other what they named.

use std::{cell::RefCell, collections::BTreeSet, path::Path};

use metaflow_schema::tables::Dictionary as Rows;
use proptest::prelude::*;

use super::*;
use crate::{
    dictionary::{Config, NodeId, Owners, Scope},
    disk::Disk,
    placement::PartitionId,
};

fn open(folder: &Path, node: u16) -> Dictionary {
    let config = Config::new(NodeId::new(node).unwrap());
    Dictionary::open(Disk::open(folder).unwrap(), config, &HashMap::new()).unwrap()
}

fn entry(kind: Kind, id: u32, name: &str) -> Entry {
    Entry { kind, id, name: name.to_owned() }
}

/// Ids that a flush brings to the store.
fn flushed(dictionary: &Dictionary) -> BTreeSet<u64> {
    let ids = RefCell::new(BTreeSet::new());
    let insert = async |rows: Rows| {
        ids.borrow_mut().extend(rows.id.iter());
        Ok::<_, &str>(())
    };
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(dictionary.flush(insert))
        .unwrap();
    ids.into_inner()
}

#[test]
fn a_name_with_two_ids_has_the_smallest_on_every_node_and_after_a_start() {
    let (one_folder, two_folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, two) = (open(one_folder.path(), 5), open(two_folder.path(), 6));
    let small = one.id(Kind::Process, "web").unwrap();
    let large = two.id(Kind::Process, "web").unwrap();
    assert!(small < large);
    assert_eq!(one.learn(&[entry(Kind::Process, large, "web")], true).unwrap().new, 1);
    assert_eq!(two.learn(&[entry(Kind::Process, small, "web")], true).unwrap().new, 1);
    drop(one);
    let one = open(one_folder.path(), 5);
    for dictionary in [&one, &two] {
        assert_eq!(dictionary.id(Kind::Process, "web").unwrap(), small);
        assert_eq!(dictionary.resolve(Kind::Process, large).unwrap().as_deref(), Some("web"));
        assert_eq!(dictionary.stats()[0].aliases, 1);
        assert_eq!(
            dictionary.learn(&[entry(Kind::Process, large, "web")], true).unwrap(),
            Learned::default()
        );
    }
    drop(two);
    assert_eq!(open(two_folder.path(), 6).id(Kind::Process, "web").unwrap(), small);
}

#[test]
fn an_id_keeps_its_name_whatever_others_say() {
    let folder = tempfile::tempdir().unwrap();
    let dictionary = open(folder.path(), 5);
    let id = dictionary.id(Kind::Host, "a").unwrap();
    let other = entry(Kind::Host, id + 1, "c");
    let told = [entry(Kind::Host, id, "b"), other.clone(), entry(Kind::Host, id + 1, "d")];
    let learned = dictionary.learn(&told, false).unwrap();
    assert_eq!(learned, Learned { new: 1, conflicts: 2, malformed: 0 });
    assert_eq!(dictionary.resolve(Kind::Host, id).unwrap().as_deref(), Some("a"));
    assert_eq!(dictionary.lookup(Kind::Host, "b"), None);
    assert_eq!(dictionary.conflicts(), 2);
    let hostile = [
        entry(Kind::Host, 0, "x"),
        entry(Kind::Host, 7, "x"),
        entry(Kind::Host, 6 << COUNTER_BITS, "x"),
        entry(Kind::Host, other.id, ""),
        entry(Kind::Host, other.id, &"x".repeat(NAME_BYTES_MAX + 1)),
    ];
    assert_eq!(dictionary.learn(&hostile, false).unwrap(), Learned { malformed: 5, ..Learned::default() });
}

#[test]
fn a_node_that_forgot_what_it_gave_out_never_gives_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let dictionary = open(folder.path(), 5);
    let first = dictionary.id(Kind::Host, "a").unwrap();
    dictionary.learn(&[entry(Kind::Host, first + 40, "z")], true).unwrap();
    assert_eq!(dictionary.id(Kind::Host, "b").unwrap(), first + 41);
    assert!(dictionary.may_exist(Kind::Host, first + 40));
}

#[test]
fn what_the_store_may_not_have_goes_there_even_after_a_crash_and_the_rest_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let dictionary = open(folder.path(), 5);
    let (stored, fresh) = (6 << COUNTER_BITS | 9, 6 << COUNTER_BITS | 4);
    dictionary.learn(&[entry(Kind::Host, stored, "stored")], true).unwrap();
    dictionary.learn(&[entry(Kind::Host, fresh, "fresh")], false).unwrap();
    drop(dictionary);
    let dictionary = open(folder.path(), 5);
    assert_eq!(flushed(&dictionary), [u64::from(fresh)].into());
    drop(dictionary);
    let dictionary = open(folder.path(), 5);
    assert_eq!(flushed(&dictionary), [].into());
    assert_eq!(dictionary.lookup(Kind::Host, "fresh"), Some(fresh));
}

#[test]
fn digests_survive_a_start_and_entries_say_what_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let dictionary = open(folder.path(), 5);
    let id = dictionary.id(Kind::Host, "a").unwrap();
    let learnt = 6 << COUNTER_BITS | 1;
    dictionary.learn(&[entry(Kind::Host, learnt, "a")], true).unwrap();
    let partition = crate::placement::partition_of(Kind::Host, "a");
    let digest = dictionary.digest(partition);
    assert_eq!(digest.entries, 2);
    let expected = [(entry(Kind::Host, id, "a"), false), (entry(Kind::Host, learnt, "a"), true)];
    assert_eq!(dictionary.entries(Scope::All, &[partition]).unwrap(), expected);
    flushed(&dictionary);
    assert!(dictionary.entries(Scope::All, &[partition]).unwrap().iter().all(|(_, is_stored)| *is_stored));
    drop(dictionary);
    let dictionary = open(folder.path(), 5);
    assert_eq!(dictionary.digest(partition), digest);
    let all: Vec<_> = PartitionId::all().collect();
    assert_eq!(dictionary.some_of(Scope::All, [partition, partition].into_iter(), 1), [partition]);
    assert_eq!(dictionary.some_of(Scope::All, all.iter().copied(), 2).len(), all.len());
}

/// Owners that know one name, and tell an id of another name in error.
struct OneName;

impl Owners for OneName {
    fn ask(&self, names: &[(Kind, &str)]) -> Vec<Option<u32>> {
        let id = |counter: u32| Some(9 << COUNTER_BITS | counter);
        names.iter().map(|(_, name)| if *name == "gone" { None } else { id(1) }).collect()
    }
}

#[test]
fn owners_are_asked_first_and_what_they_do_not_answer_is_named_here() {
    let folder = tempfile::tempdir().unwrap();
    let dictionary = open(folder.path(), 5);
    dictionary.set_owners(Arc::new(OneName));
    let own = |id: u32| id >> COUNTER_BITS == 5;
    let asked = dictionary.id(Kind::Host, "theirs").unwrap();
    assert_eq!(asked, 9 << COUNTER_BITS | 1);
    assert!(own(dictionary.id(Kind::Host, "gone").unwrap()));
    assert!(
        own(dictionary.id(Kind::Host, "mistaken").unwrap()),
        "an id that names something else is not taken"
    );
    assert!(own(dictionary.own_ids(&[(Kind::Host, "asked of us")]).unwrap()[0]));
    assert!(flushed(&dictionary).contains(&u64::from(asked)), "their row may not be in the store");
}

#[test]
fn a_node_whose_number_is_taken_names_nothing_and_finds_what_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let dictionary = open(folder.path(), 5);
    let known = dictionary.id(Kind::Host, "a").unwrap();
    dictionary.suspend(true);
    assert_eq!(dictionary.own_ids(&[(Kind::Host, "a")]).unwrap(), [known]);
    let refused = dictionary.id(Kind::Host, "b").unwrap_err();
    assert!(refused.to_string().contains("two live nodes have the node id 5"), "{refused}");
    dictionary.suspend(false);
    assert_eq!(dictionary.id(Kind::Host, "b").unwrap(), known + 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// Three nodes that name the same things apart and then hear everything, each in another order.
    #[test]
    fn nodes_that_heard_the_same_answer_alike(
        names in prop::collection::vec((0..3_usize, 0..12_u8), 1..40),
        orders in prop::collection::vec(any::<u64>(), 3),
    ) {
        let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let nodes: Vec<_> = folders.iter().zip(1..).map(|(folder, node)| open(folder.path(), node)).collect();
        let mut entries = BTreeSet::new();
        for (node, name) in names {
            let name = format!("name {name}");
            let id = nodes[node].id(Kind::Unit, &name).unwrap();
            entries.insert(entry(Kind::Unit, id, &name));
        }
        let entries: Vec<_> = entries.into_iter().collect();
        for (node, order) in nodes.iter().zip(orders) {
            let mut shuffled = entries.clone();
            shuffled.sort_by_key(|entry| u64::from(entry.id).wrapping_mul(order | 1).rotate_left(29));
            for part in shuffled.chunks(3) {
                node.learn(part, false).unwrap();
            }
        }
        let digests = |node: &Dictionary| PartitionId::all().map(|at| node.digest(at)).collect::<Vec<_>>();
        prop_assert_eq!(digests(&nodes[0]), digests(&nodes[1]));
        prop_assert_eq!(digests(&nodes[1]), digests(&nodes[2]));
        let all: Vec<_> = PartitionId::all().collect();
        let known: BTreeSet<_> = nodes[0].entries(Scope::All, &all).unwrap().into_iter().map(|(entry, _)| entry).collect();
        prop_assert!(known.iter().eq(&entries));
        for entry in &entries {
            let canonical: BTreeSet<_> = nodes.iter().map(|node| node.lookup(Kind::Unit, &entry.name)).collect();
            prop_assert_eq!(canonical.len(), 1);
        }
    }
}
