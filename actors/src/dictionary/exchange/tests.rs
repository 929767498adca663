//! Four nodes that hold partitions of one dictionary, and what comes to whom.

use std::{collections::HashMap, time::Duration};

use super::*;
use crate::{
    dictionary::{Config, Owners as Asked, Silent},
    disk::{Disk, Memory},
    placement::{Member, Placement, State, View},
};

struct Alone;

impl Asked for Alone {
    fn ask(&self, names: &[(Kind, &str)]) -> Vec<Option<u32>> {
        vec![None; names.len()]
    }
}

fn id(node: u16) -> NodeId {
    NodeId::new(node).unwrap()
}

fn open(node: u16, disk: &Memory) -> Dictionary {
    let opened = Dictionary::open(Disk::in_memory(disk), Config::new(id(node)), &HashMap::new()).unwrap();
    opened.set_owners(Arc::new(Alone));
    opened
}

fn cluster() -> (Vec<Dictionary>, Placement) {
    let member = |node| Member {
        node_id: id(node),
        state: State::Ready,
        eligible: true,
        region: String::new(),
        zone: String::new(),
        weight: 1,
    };
    let placement = Placement::new(&View { members: (1..=4).map(member).collect() });
    ((1..=4).map(|node| open(node, &Memory::default())).collect(), placement)
}

/// Brings the news of one node to those who are to hear them.
fn tell(nodes: &[Dictionary], from: u16, placement: &Placement) {
    let others: Vec<NodeId> = (1..=4).filter(|node| *node != from).map(id).collect();
    for (node, requests) in
        nodes[usize::from(from) - 1].take_news(&others, |partition| placement.owners(partition))
    {
        for request in requests {
            nodes[usize::from(node.get()) - 1].take(request.entries).unwrap();
        }
    }
}

fn compare(nodes: &[Dictionary], one: u16, other: u16, placement: &Placement) {
    let (here, there) = (&nodes[usize::from(one) - 1], &nodes[usize::from(other) - 1]);
    for mut comparison in comparisons(id(one), id(other), |partition| placement.owners(partition), false) {
        while let Some(request) = comparison.request(here) {
            for learn in comparison.answered(here, there.compare(&request).unwrap()).unwrap() {
                there.take(learn.entries).unwrap();
            }
        }
    }
}

/// A name whose owner is the first node, and one that does not hold it.
fn name_of_the_first(placement: &Placement) -> (String, u16) {
    let names = (0..).map(|number| format!("/path/{number}"));
    let owners = |name: &String| placement.owners(partition_of(Kind::Endpoint, name));
    let name = names.into_iter().find(|name| owners(name).owner() == Some(id(1))).unwrap();
    let stranger = (1..=4).find(|node| owners(&name).iter().all(|holder| holder != id(*node))).unwrap();
    (name, stranger)
}

#[test]
fn holders_hear_of_a_new_name_at_once_and_others_do_not() {
    let (nodes, placement) = cluster();
    let (name, stranger) = name_of_the_first(&placement);
    let given = nodes[0].id(Kind::Endpoint, &name).unwrap();
    tell(&nodes, 1, &placement);
    for (node, dictionary) in (1..).zip(&nodes) {
        let expected = (node != stranger).then_some(given);
        assert_eq!(dictionary.lookup(Kind::Endpoint, &name), expected, "node {node}");
    }
    assert!(nodes[1].take_news(&[id(3)], |partition| placement.owners(partition)).is_empty(), "no echo");
}

#[test]
fn every_node_takes_the_canonical_id_of_a_name_with_several() {
    let (nodes, placement) = cluster();
    let (name, stranger) = name_of_the_first(&placement);
    // In its owner's absence the name gets an id of a node that does not hold it; the owner gives it another, which is smaller.
    let large = nodes[usize::from(stranger) - 1].id(Kind::Endpoint, &name).unwrap();
    let small = nodes[0].id(Kind::Endpoint, &name).unwrap();
    assert!(small < large);
    compare(&nodes, stranger, 1, &placement);
    tell(&nodes, 1, &placement);
    for (node, dictionary) in (1..).zip(&nodes) {
        assert_eq!(dictionary.lookup(Kind::Endpoint, &name), Some(small), "node {node}");
        assert_eq!(dictionary.resolve(Kind::Endpoint, large).unwrap().as_ref(), Some(&name), "node {node}");
        assert_eq!(dictionary.stats()[0].aliases, 1);
    }
}

#[test]
fn who_missed_the_news_hears_of_it_in_rounds() {
    let (mut nodes, placement) = cluster();
    let (name, stranger) = name_of_the_first(&placement);
    let disk = Memory::default();
    let large = open(stranger, &disk).id(Kind::Endpoint, &name).unwrap();
    // The process that gave the id ended before it told anybody.
    nodes[usize::from(stranger) - 1] = open(stranger, &disk);
    let small = nodes[0].id(Kind::Endpoint, &name).unwrap();
    for (one, other) in [(1, 2), (2, 3), (3, 4), (stranger, 1), (1, 2), (2, 3), (3, 4), (4, 1)] {
        if one != other {
            compare(&nodes, one, other, &placement);
        }
    }
    let known: Vec<_> = nodes.iter().map(|node| node.lookup(Kind::Endpoint, &name)).collect();
    assert_eq!(known, [Some(small); 4]);
    assert_ne!(small, large);
}

#[test]
fn a_name_that_is_made_while_entries_are_read_is_not_taken_for_stored() {
    const NAMES: u32 = 400;
    let dictionary = open(2, &Memory::default());
    // Nothing is ever brought to the store here.
    std::thread::scope(|scope| {
        let naming = scope.spawn(|| {
            (0..NAMES).for_each(|name| assert!(dictionary.id(Kind::Endpoint, &name.to_string()).is_ok()));
        });
        while !naming.is_finished() {
            let all = PartitionId::all().collect::<Vec<_>>();
            let entries = dictionary.entries(Scope::All, &all).unwrap();
            assert_eq!(entries.iter().find(|(_, is_stored)| *is_stored), None);
            let entries = dictionary.entries_after((0, 0), usize::MAX).unwrap();
            assert_eq!(entries.iter().find(|(_, is_stored)| *is_stored), None);
        }
    });
}

#[test]
fn what_is_in_the_store_of_another_node_comes_to_the_own_one() {
    for (is_store_shared, pending) in [(true, 0), (false, 1)] {
        let config = Config { is_store_shared, ..Config::new(id(2)) };
        let dictionary =
            Dictionary::open(Disk::in_memory(&Memory::default()), config, &HashMap::new()).unwrap();
        let told = Entry { kind: Kind::Endpoint, id: 1 << COUNTER_BITS | 7, name: "/a".to_owned() };
        dictionary.take(vec![to_wire((told, true))]).unwrap();
        assert_eq!(dictionary.pending(), pending, "shared: {is_store_shared}");
    }
}

#[test]
fn a_node_with_an_older_disk_learns_what_it_had_named() {
    let (mut nodes, placement) = cluster();
    let (name, stranger) = name_of_the_first(&placement);
    let given = nodes[0].id(Kind::Endpoint, &name).unwrap();
    // Only a node that does not hold the name has heard of it.
    let told = Entry { kind: Kind::Endpoint, id: given, name: name.clone() };
    nodes[usize::from(stranger) - 1].learn(&[told], false).unwrap();
    nodes[0] = open(1, &Memory::default());
    let owners = |partition| placement.owners(partition);
    let there = &nodes[usize::from(stranger) - 1];
    for mut comparison in comparisons(id(1), id(stranger), owners, true) {
        while let Some(request) = comparison.request(&nodes[0]) {
            assert_eq!(comparison.answered(&nodes[0], there.compare(&request).unwrap()).unwrap(), []);
        }
    }
    assert_eq!(nodes[0].lookup(Kind::Endpoint, &name), Some(given));
    assert_eq!(nodes[0].id(Kind::Endpoint, "another").unwrap(), given + 1, "and uses no id again");
}

#[test]
fn an_entry_that_a_full_disk_kept_back_does_not_displace_a_smaller_id() {
    let disk = Memory::default();
    let dictionary = open(2, &disk);
    disk.set_full(true);
    assert!(dictionary.id(Kind::Endpoint, "/a").is_err());
    disk.set_full(false);
    let small = 1 << COUNTER_BITS | 7;
    let told = Entry { kind: Kind::Endpoint, id: small, name: "/a".to_owned() };
    dictionary.learn(&[told], true).unwrap();
    // Writes what was kept back as well.
    dictionary.id(Kind::Endpoint, "/b").unwrap();
    assert_eq!(dictionary.lookup(Kind::Endpoint, "/a"), Some(small));
    assert_eq!(dictionary.stats()[0].aliases, 1);
    assert_eq!(open(2, &disk).lookup(Kind::Endpoint, "/a"), Some(small));
}

#[test]
fn while_an_owner_is_silent_those_who_stand_in_for_it_are_asked() {
    let (_, placement) = cluster();
    let (name, stranger) = name_of_the_first(&placement);
    let owners = |partition| placement.owners(partition);
    let replicas: Vec<NodeId> = owners(partition_of(Kind::Endpoint, &name)).replicas().collect();
    let now = std::time::Instant::now();
    let names = [(Kind::Endpoint, name.as_str())];
    let mut silent = Silent::default();
    let asked = |silent: &Silent, own| {
        let questions = silent.questions(own, &names, owners, now);
        questions.keys().copied().collect::<Vec<_>>()
    };
    assert_eq!(asked(&silent, id(stranger)), [id(1)]);
    assert!(asked(&silent, id(1)).is_empty(), "the owner asks nobody");
    silent.note(id(1), false, now);
    assert_eq!(asked(&silent, id(stranger)), [replicas[0]]);
    assert!(asked(&silent, replicas[0]).is_empty(), "the first that stands in names it");
    replicas.iter().for_each(|replica| silent.note(*replica, false, now));
    assert!(asked(&silent, id(stranger)).is_empty(), "labelling goes on alone");
    assert!(!silent.is_left_alone(id(1), now + Duration::from_secs(1)));
    silent.note(id(1), true, now);
    assert_eq!(asked(&silent, id(stranger)), [id(1)]);
}
