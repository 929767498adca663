//! No two lives of a node give out one id, whoever they are: a second node with its number, a copy of its disk, an old backup.

use std::{collections::HashMap, sync::Mutex};

use metaflow_schema::enums::Kind;

use super::*;
use crate::{
    dictionary::{Entry, Error, NodeId},
    disk::{Disk, Memory},
};

const RANGES: u32 = (1 << COUNTER_BITS) / RANGE_IDS;

/// Claims of all; `late` come in between a claim and its look.
#[derive(Default)]
struct Book {
    claims: Mutex<Vec<(u32, u64)>>,
    late: Mutex<Vec<(u32, u64)>>,
}

impl Register for Book {
    type Error = ();

    async fn highest(&self) -> Result<Option<u32>, ()> {
        Ok(self.claims.lock().unwrap().iter().map(|(range, _)| *range).max())
    }

    async fn note(&self, ranges: Range<u32>, holder: u64) -> Result<(), ()> {
        let mut claims = self.claims.lock().unwrap();
        claims.extend(ranges.map(|range| (range, holder)));
        claims.append(&mut self.late.lock().unwrap());
        Ok(())
    }

    async fn holders(&self, ranges: Range<u32>) -> Result<HashSet<u64>, ()> {
        let claims = self.claims.lock().unwrap();
        Ok(claims.iter().filter(|(range, _)| ranges.contains(range)).map(|(_, holder)| *holder).collect())
    }
}

fn claim_of(book: &Book, wanted: Wanted) -> Claimed {
    let mut number = 7;
    let claiming = claim(book, wanted, move || {
        number += 1;
        number
    });
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(claiming).unwrap()
}

#[test]
fn ranges_are_claimed_above_all_that_were_and_given_up_where_another_claims_them() {
    let check = |claims: &[(u32, u64)], late: &[(u32, u64)], wanted: Wanted, expected: Claimed| {
        let book = Book { claims: Mutex::new(claims.to_vec()), late: Mutex::new(late.to_vec()) };
        assert_eq!(claim_of(&book, wanted), expected, "{claims:?} {late:?} {wanted:?}");
    };
    let one = Wanted { above: 0, first: 0, count: 1, ranges: RANGES, is_drawn: false };
    let two = Wanted { count: 2, ..one };
    check(&[], &[], one, Claimed::Ranges(0..1));
    check(&[(0, 1), (4, 1)], &[], one, Claimed::Ranges(5..6));
    check(&[], &[(0, 1)], one, Claimed::Ranges(1..2));
    check(&[], &[(1, 1), (2, 1)], two, Claimed::Ranges(3..5));
    check(&[(RANGES - 2, 1)], &[], two, Claimed::Ranges(RANGES - 1..RANGES));
    check(&[(RANGES - 1, 1)], &[], one, Claimed::UsedUp);
    // A release before had no claims; a store may be an older copy than the disk.
    check(&[], &[], Wanted { first: 3, ..two }, Claimed::Ranges(3..5));
    check(&[(1, 1)], &[], Wanted { first: 9, ..one }, Claimed::Ranges(2..3));
    check(&[(1, 1)], &[], Wanted { above: 9, ..one }, Claimed::Ranges(9..10));
    let drawn = Wanted { is_drawn: true, ..one };
    check(&[(6, 1)], &[], drawn, Claimed::Ranges(7..8));
    check(&[], &[], drawn, Claimed::Ranges(8..9));
}

#[test]
fn the_ranges_of_a_node_are_all_its_counters() {
    let of = |range| counters(range, RANGE_IDS);
    let all: u64 = (0..RANGES).map(|range| of(range).len() as u64).sum();
    assert_eq!(all, u64::from(COUNTER_MAX));
    assert_eq!((of(0), of(1)), (1..RANGE_IDS, RANGE_IDS..2 * RANGE_IDS));
    assert_eq!(of(RANGES - 1).end, COUNTER_MAX + 1);
    assert_eq!([0, 1, RANGE_IDS - 1, RANGE_IDS].map(|counter| above(counter, RANGE_IDS)), [0, 1, 1, 2]);
}

const KIND: Kind = Kind::Endpoint;

fn open(disk: &Memory, register: &Book) -> Dictionary {
    let ids = Ids::Claimed { is_drawn: false };
    let config = Config { ids, range_ids: 4, ..Config::new(NodeId::new(7).unwrap()) };
    let dictionary = Dictionary::open(Disk::in_memory(disk), config, &HashMap::new()).unwrap();
    assert!(claim_for(&dictionary, register));
    dictionary
}

fn claim_for(dictionary: &Dictionary, register: &Book) -> bool {
    let random = || std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), ());
    let claiming = dictionary.claim(register, random);
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(claiming).unwrap()
}

/// Names some things, claiming ids whenever there are too few.
fn name(dictionary: &Dictionary, register: &Book, names: Range<u32>, of: &str) -> Vec<u32> {
    let names: Vec<_> = names.map(|name| format!("{of}{name}")).collect();
    let wanted: Vec<_> = names.iter().map(|name| (KIND, name.as_str())).collect();
    loop {
        match dictionary.ids(&wanted) {
            Ok(ids) => return ids,
            Err(Error::NoRange) => assert!(claim_for(dictionary, register)),
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn two_nodes_with_one_number_never_give_one_id_to_two_names() {
    let register = Book::default();
    let disks = [Memory::default(), Memory::default()];
    let (one, other) = (open(&disks[0], &register), open(&disks[1], &register));
    let mut given = HashSet::new();
    for round in 0..20 {
        given.extend(name(&one, &register, round * 5..round * 5 + 5, "a"));
        given.extend(name(&other, &register, round * 5..round * 5 + 5, "b"));
    }
    assert_eq!(given.len(), 200, "an id was given twice");
}

#[test]
fn a_copy_and_an_old_backup_of_a_disk_go_on_with_ids_of_their_own() {
    let register = Book::default();
    let disk = Memory::default();
    let node = open(&disk, &register);
    let before = name(&node, &register, 0..6, "a");
    let copy = disk.copy();
    let after = name(&node, &register, 6..20, "a");
    let clone = open(&copy, &register);
    assert_eq!(name(&clone, &register, 0..6, "a"), before, "what it knows keeps its id");
    let own = name(&clone, &register, 0..20, "b");
    let given: HashSet<_> = before.iter().chain(&after).chain(&own).collect();
    assert_eq!(given.len(), 40, "an id was given twice");
}

#[test]
fn who_has_no_range_names_nothing_and_what_it_named_stays() {
    let register = Book::default();
    let node = open(&Memory::default(), &register);
    let wanted = ["a", "b", "c", "d", "e"].map(|name| (KIND, name));
    assert!(matches!(node.ids(&wanted), Err(Error::NoRange)));
    let given: Vec<_> = wanted.iter().filter_map(|(kind, name)| node.lookup(*kind, name)).collect();
    assert_eq!(given.len(), 3, "0 is no id, so the first range has three");
    assert!(claim_for(&node, &register));
    assert_eq!(node.ids(&wanted).unwrap()[..3], given);
    // What is further on is another life's; within its own ranges a node knows what it never gave.
    let exists = [4, 5, 6, 11, 12].map(|counter| node.may_exist(KIND, 7 << 22 | counter));
    assert_eq!(exists, [true, true, false, false, true]);
}

#[test]
fn an_id_that_is_known_is_not_given_out_whoever_told_it() {
    let register = Book::default();
    let node = open(&Memory::default(), &register);
    let told = [Entry { kind: KIND, id: 7 << 22 | 5, name: "told".to_owned() }];
    node.learn(&told, false).unwrap();
    let ids = name(&node, &register, 0..10, "a");
    assert!(!ids.contains(&(7 << 22 | 5)), "{ids:?}");
}

#[test]
fn ids_go_on_above_those_of_a_release_without_claims() {
    let disk = Memory::default();
    let config = Config { range_ids: 4, ..Config::new(NodeId::new(7).unwrap()) };
    let before = Dictionary::open(Disk::in_memory(&disk), config, &HashMap::new()).unwrap();
    assert_eq!(before.id(KIND, "before").unwrap() & COUNTER_MAX, 1);
    drop(before);
    let register = Book::default();
    let node = open(&disk, &register);
    assert_eq!(name(&node, &register, 0..1, "a"), [7 << 22 | 4]);
    drop(node);
    // The register was lost with its store.
    let register = Book::default();
    assert_eq!(name(&open(&disk, &register), &register, 0..1, "b"), [7 << 22 | 8]);
}
