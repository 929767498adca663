//! Copies of batches in several stores: one stays, whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use metaflow_schema::tables::{APPLICATION_1M, L7_FLOW_LOG};
use proptest::prelude::*;

use super::*;
use crate::disk::Memory;

const NODES: u16 = 4;
const BATCHES: u64 = 6;
const NOW: u64 = 1_700_000_000;

fn of(seq: u64) -> Doubt {
    Doubt { table: &L7_FLOW_LOG, partition: 7, id: BatchId { agent_id: 1, seq } }
}

fn node_id(number: u16) -> NodeId {
    NodeId::new(number).unwrap()
}

fn doubts(own: u16) -> Doubts {
    Doubts::open(node_id(own), Disk::in_memory(&Memory::default())).unwrap()
}

/// A node with a store, as `node/src/doubts.rs` drives it.
struct Simulated {
    doubts: Doubts,
    stored: BTreeSet<u64>,
    /// What agents were told, which stays true when another has the rows.
    committed: BTreeSet<u64>,
    /// In the log, each with whether it is uncertain.
    waits: BTreeMap<u64, bool>,
    asked: BTreeSet<u64>,
    /// Answers of this round.
    answers: Vec<(NodeId, Vec<(Doubt, Elsewhere)>)>,
}

impl Simulated {
    fn new(own: u16) -> Self {
        Self {
            doubts: doubts(own),
            stored: BTreeSet::new(),
            committed: BTreeSet::new(),
            waits: BTreeMap::new(),
            asked: BTreeSet::new(),
            answers: vec![],
        }
    }

    fn arrives(&mut self, seq: u64, is_resent: bool) {
        if !self.committed.contains(&seq) {
            let is_uncertain = is_resent || self.asked.contains(&seq);
            self.waits.entry(seq).or_insert(is_uncertain);
        }
    }

    fn store(&mut self, seq: u64) {
        let Some(is_uncertain) = self.waits.remove(&seq) else { return };
        self.stored.insert(seq);
        self.committed.insert(seq);
        if is_uncertain {
            self.doubts.note_now(&L7_FLOW_LOG, 7, &[of(seq).id]).unwrap();
        }
    }

    /// Killed and started: what is in the log may be stored, and it may still have `forgotten` ones of what is. Questions are gone together
    /// with the sockets.
    fn restart(&mut self, forgotten: u8) {
        self.waits.values_mut().for_each(|is_uncertain| *is_uncertain = true);
        let stored = self.stored.iter().filter(|seq| forgotten & (1 << **seq) != 0);
        self.waits.extend(stored.map(|seq| (*seq, true)));
        self.asked.clear();
        self.answers.clear();
        self.doubts.end();
    }

    fn find(&mut self, seq: u64) -> Elsewhere {
        self.asked.insert(seq);
        let was_in_doubt = self.doubts.contains(of(seq)).unwrap();
        match (self.waits.contains_key(&seq), self.stored.contains(&seq)) {
            (true, _) => Elsewhere::Waits,
            (false, false) => Elsewhere::Absent,
            (false, true) => self.doubts.tell(of(seq), was_in_doubt).unwrap(),
        }
    }

    fn decide(&mut self) {
        for (other, answers) in std::mem::take(&mut self.answers) {
            self.doubts.answered(other, &answers).unwrap();
        }
        self.doubts.end();
    }
}

/// Asks those that are reached, and removes what was decided on before.
fn ask(nodes: &mut [Simulated], own: usize, reached: &BTreeSet<NodeId>) {
    let everybody = (1..=NODES).map(node_id);
    let known = nodes[own].doubts.meet(everybody, NOW).unwrap();
    let Todo { questions, removals } = nodes[own].doubts.begin(&known, reached).unwrap();
    nodes[own].answers.clear();
    for (other, asked) in questions {
        let at = usize::from(other.get()) - 1;
        let answers: Vec<_> = asked.into_iter().map(|doubt| (doubt, nodes[at].find(doubt.id.seq))).collect();
        nodes[own].answers.push((other, answers));
    }
    for doubt in &removals {
        nodes[own].stored.remove(&doubt.id.seq);
    }
    nodes[own].doubts.removed(&removals).unwrap();
}

#[derive(Debug, Clone)]
enum Event {
    /// The batch comes to a node: for the first time, if it did not come to any before.
    Arrives(usize, u64),
    Store(usize, u64),
    Restart(usize, u8),
    /// A node asks those whose bits are set.
    Asks(usize, u8),
    /// It decides on their answers.
    Decides(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let node = 0..usize::from(NODES);
    prop_oneof![
        3 => (node.clone(), 0..BATCHES).prop_map(|(node, seq)| Event::Arrives(node, seq)),
        3 => (node.clone(), 0..BATCHES).prop_map(|(node, seq)| Event::Store(node, seq)),
        1 => (node.clone(), any::<u8>()).prop_map(|(node, forgotten)| Event::Restart(node, forgotten)),
        3 => (node.clone(), any::<u8>()).prop_map(|(node, reached)| Event::Asks(node, reached)),
        3 => node.prop_map(Event::Decides),
    ]
}

/// Plays events, then makes everybody reach everybody; the answer is how many copies of each batch that came there are. What was sent first
/// of the `late` ones lies in the socket of a node that is stopped, and is read at the very end.
fn copies(events: Vec<Event>, late: &[u64]) -> Vec<usize> {
    let mut nodes: Vec<_> = (1..=NODES).map(Simulated::new).collect();
    let mut first: BTreeMap<u64, usize> = BTreeMap::new();
    let mut in_sockets: BTreeMap<u64, usize> = BTreeMap::new();
    let mut came = BTreeSet::new();
    for event in events {
        match event {
            Event::Arrives(node, seq) => match first.get(&seq) {
                Some(_) => {
                    came.insert(seq);
                    nodes[node].arrives(seq, true);
                }
                None => {
                    first.insert(seq, node);
                    if late.contains(&seq) {
                        in_sockets.insert(seq, node);
                    } else {
                        came.insert(seq);
                        nodes[node].arrives(seq, false);
                    }
                }
            },
            Event::Store(node, seq) => nodes[node].store(seq),
            Event::Restart(node, forgotten) => {
                nodes[node].restart(forgotten);
                in_sockets.retain(|_, at| *at != node);
            }
            Event::Asks(node, bits) => {
                let reached = (1..=NODES).filter(|number| bits & (1 << number) != 0).map(node_id).collect();
                ask(&mut nodes, node, &reached);
            }
            Event::Decides(node) => nodes[node].decide(),
        }
    }
    for (seq, node) in in_sockets {
        came.insert(seq);
        nodes[node].arrives(seq, false);
    }
    let reached: BTreeSet<NodeId> = (1..=NODES).map(node_id).collect();
    for _ in 0..8 {
        (0..BATCHES).for_each(|seq| nodes.iter_mut().for_each(|node| node.store(seq)));
        for own in 0..nodes.len() {
            ask(&mut nodes, own, &reached);
            nodes[own].decide();
        }
    }
    assert!(nodes.iter().all(|node| node.doubts.is_empty()), "no doubt is left");
    came.iter().map(|seq| nodes.iter().filter(|node| node.stored.contains(seq)).count()).collect()
}

proptest! {
    // What two nodes do within one another's rounds comes rarely.
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn of_all_copies_one_stays_whatever_happened(
        events in prop::collection::vec(event(), 0..80),
        late in prop::collection::vec(0..BATCHES, 0..3),
    ) {
        let copies = copies(events, &late);
        prop_assert!(copies.iter().all(|count| *count == 1), "{copies:?}");
    }
}

/// The last asked the first before that one had a copy, and waits for another.
#[test]
fn who_asked_too_early_is_asked_until_it_is_done() {
    let events = vec![
        Event::Arrives(2, 5),
        Event::Arrives(3, 5),
        Event::Store(3, 5),
        Event::Restart(2, 0),
        Event::Asks(3, 0b110),
        Event::Decides(3),
        Event::Arrives(0, 5),
    ];
    assert_eq!(copies(events, &[]), [1]);
}

#[test]
fn two_that_heard_of_each_other_do_not_both_remove_their_copies() {
    let mut nodes: Vec<_> = (1..=NODES).map(Simulated::new).collect();
    let reached: BTreeSet<NodeId> = (1..=NODES).map(node_id).collect();
    nodes[0].arrives(1, true);
    nodes[0].store(1);
    nodes[1].arrives(1, false);
    nodes[1].store(1);
    // The first hears of the second's copy, which nobody doubts, and decides late. Meanwhile the second is started again and doubts.
    ask(&mut nodes, 0, &reached);
    nodes[1].restart(u8::MAX);
    nodes[1].store(1);
    ask(&mut nodes, 1, &reached);
    nodes[1].decide();
    nodes[0].decide();
    (0..2).for_each(|own| ask(&mut nodes, own, &BTreeSet::new()));
    assert_eq!(nodes.iter().filter(|node| node.stored.contains(&1)).count(), 1);
}

#[test]
fn a_doubt_waits_for_who_is_away_and_lives_through_a_restart() {
    let memory = Memory::default();
    let open = || Doubts::open(node_id(1), Disk::in_memory(&memory)).unwrap();
    let doubts = open();
    let known = doubts.meet([node_id(2), node_id(3)], NOW).unwrap();
    doubts.note_now(&L7_FLOW_LOG, 7, &[of(1).id, of(2).id]).unwrap();
    doubts.note_now(&APPLICATION_1M, 7, &[of(1).id]).unwrap();
    let ask = |doubts: &Doubts, known: &BTreeSet<NodeId>, node: u16| {
        let Todo { mut questions, .. } = doubts.begin(known, &BTreeSet::from([node_id(node)])).unwrap();
        questions.remove(&node_id(node)).unwrap_or_default()
    };
    let asked = ask(&doubts, &known, 2);
    assert_eq!(asked.len(), 3);
    let answers: Vec<_> = asked.into_iter().map(|doubt| (doubt, Elsewhere::Absent)).collect();
    doubts.answered(node_id(2), &answers).unwrap();
    assert!(ask(&doubts, &known, 2).is_empty(), "it has answered");

    let doubts = open();
    assert_eq!(doubts.metrics().open.load(Relaxed), 3);
    // Nobody is seen any more, and still the third is waited for.
    let known = doubts.meet([], NOW + 3_600).unwrap();
    let asked = ask(&doubts, &known, 3);
    assert_eq!(asked.len(), 3, "the third was not asked");
    let answers = [(asked[0], Elsewhere::Stored { in_doubt: false }), (asked[1], Elsewhere::Waits)];
    doubts.answered(node_id(3), &answers).unwrap();
    let told = doubts.tell(asked[0], true).unwrap();
    assert_eq!(told, Elsewhere::Absent, "who heard of the other copy does not speak of its own");
    let Todo { removals, .. } = doubts.begin(&known, &known).unwrap();
    assert_eq!(removals.len(), 1);
    doubts.removed(&removals).unwrap();
    assert!(!doubts.contains(removals[0]).unwrap());
    assert_eq!(ask(&doubts, &known, 3).len(), 2);
    // It will never come back.
    let known = doubts.meet([node_id(2)], NOW + AWAY_SECONDS_MAX + 1).unwrap();
    assert!(ask(&doubts, &known, 2).is_empty());
    assert!(doubts.is_empty(), "all who may have a copy have answered");
}
