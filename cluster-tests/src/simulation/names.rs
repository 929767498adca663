//! How nodes reach each other's dictionaries. The questions, what becomes of answers, and what is compared are the node's own code; here is
//! the network: whether a question and its answer arrive.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, Weak},
};

use metaflow_actors::{
    dictionary::{Dictionary, NodeId, Owners, Silent, comparisons},
    placement::Placement,
};
use metaflow_schema::enums::Kind;
use metaflow_wire::{LearnRequest, Name, NameIdsRequest};

use super::{Mutation, random::Random, store::Office, store::lock};

/// A node as others reach it.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) node_id: NodeId,
    pub(super) dictionary: Dictionary,
    /// As this node sees the cluster; none: it is alone.
    pub(super) placement: Option<Arc<Placement>>,
    pub(super) nodes: Vec<NodeId>,
    /// With whom it has compared since its start.
    pub(super) met: BTreeSet<NodeId>,
    /// Questions wait for ever.
    pub(super) is_paused: bool,
}

/// The wires between nodes.
pub(super) struct Net {
    random: Random,
    pub(super) members: BTreeMap<usize, Member>,
    /// Pairs, the lower first, that cannot hear each other.
    pub(super) cuts: BTreeSet<(usize, usize)>,
    pub(super) loss_percent: u64,
    silent: BTreeMap<usize, Silent>,
    /// Questions whose asker has given up, which come all the same.
    pub(super) late: Vec<(usize, NameIdsRequest)>,
    pub(super) mutation: Option<Mutation>,
    office: Arc<Office>,
}

impl Net {
    pub(super) fn new(random: Random, office: Arc<Office>, mutation: Option<Mutation>) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            random,
            members: BTreeMap::new(),
            cuts: BTreeSet::new(),
            loss_percent: 0,
            silent: BTreeMap::new(),
            late: Vec::new(),
            mutation,
            office,
        }))
    }

    pub(super) fn forget(&mut self, node: usize) {
        self.members.remove(&node);
        self.silent.remove(&node);
    }

    pub(super) fn hears(&self, one: usize, other: usize) -> bool {
        !self.cuts.contains(&(one.min(other), one.max(other)))
    }

    /// One of the processes with this node id, if there is a way to it.
    pub(super) fn reach(&mut self, from: usize, to: NodeId) -> Option<usize> {
        let found: Vec<usize> = self
            .members
            .iter()
            .filter(|(at, member)| member.node_id == to && **at != from)
            .map(|(at, _)| *at)
            .collect();
        let at = *found.get(self.random.index(found.len()))?;
        let is_open = self.hears(from, at) && !self.members[&at].is_paused;
        (is_open && !self.random.percent(self.loss_percent)).then_some(at)
    }

    fn ask(&mut self, from: usize, names: &[(Kind, &str)]) -> Vec<Option<u32>> {
        let mut told = vec![None; names.len()];
        let Some(asker) = self.members.get(&from).cloned() else { return told };
        let Some(placement) = asker.placement else { return told };
        let now = self.office.instant();
        let owners = |partition| placement.owners(partition);
        let questions = self.silent.entry(from).or_default().questions(asker.node_id, names, owners, now);
        for (node, places) in questions {
            let wanted = places.iter().map(|at| (names[*at].0 as u32, names[*at].1.to_owned()));
            let request =
                NameIdsRequest { names: wanted.map(|(kind, name)| Name { kind, name, id: 0 }).collect() };
            let ids = self.question(from, node, &request);
            let silent = self.silent.entry(from).or_default();
            silent.note(node, ids.is_some(), now);
            for (at, id) in places.iter().zip(ids.unwrap_or_default()) {
                told[*at] = Some(id).filter(|id| *id != 0);
            }
        }
        told
    }

    fn question(&mut self, from: usize, to: NodeId, request: &NameIdsRequest) -> Option<Vec<u32>> {
        let at = self.reach(from, to)?;
        if self.random.percent(self.loss_percent) {
            self.late.push((at, request.clone()));
            return None;
        }
        let answer = self.members[&at].dictionary.name(request).ok()?;
        (!self.random.percent(self.loss_percent)).then_some(answer.ids)
    }

    /// A round of comparing with another node.
    pub(super) fn compare(&mut self, from: usize, with: NodeId) {
        let Some(own) = self.members.get(&from).cloned() else { return };
        let Some(placement) = own.placement else { return };
        let owners = |partition| placement.owners(partition);
        for mut comparison in comparisons(own.node_id, with, owners, !own.met.contains(&with)) {
            while let Some(request) = comparison.request(&own.dictionary) {
                let Some(at) = self.reach(from, with) else { return };
                let Some(other) = self.members.get(&at).map(|member| member.dictionary.clone()) else {
                    return;
                };
                let Ok(mut answer) = other.compare(&request) else { return };
                if self.random.percent(self.loss_percent) {
                    return;
                }
                self.spoil(&own.dictionary, &mut answer.entries);
                let Ok(lacking) = comparison.answered(&own.dictionary, answer) else { return };
                for learn in lacking {
                    if self.reach(from, with).is_some() {
                        self.learn(at, learn);
                    }
                }
            }
        }
        if let Some(member) = self.members.get_mut(&from) {
            member.met.insert(with);
        }
    }

    /// Brings entries to a node.
    pub(super) fn learn(&self, at: usize, mut request: LearnRequest) {
        let Some(member) = self.members.get(&at) else { return };
        self.spoil(&member.dictionary, &mut request.entries);
        // A disk that takes nothing now: a later round brings it.
        member.dictionary.take(request.entries).ok();
    }

    /// [`Mutation::FirstIdStays`].
    fn spoil(&self, dictionary: &Dictionary, entries: &mut Vec<metaflow_wire::DictionaryEntry>) {
        if self.mutation == Some(Mutation::FirstIdStays) {
            entries.retain(|entry| {
                let kind = u8::try_from(entry.kind).ok().and_then(Kind::from_number);
                kind.and_then(|kind| dictionary.lookup(kind, &entry.name))
                    .is_none_or(|known| known < entry.id)
            });
        }
    }
}

/// The way of one node to the owners of names.
pub(super) struct Way {
    pub(super) node: usize,
    /// Weak: the net holds the dictionary that holds this.
    pub(super) net: Weak<Mutex<Net>>,
}

impl Owners for Way {
    fn ask(&self, names: &[(Kind, &str)]) -> Vec<Option<u32>> {
        self.net.upgrade().map_or_else(|| vec![None; names.len()], |net| lock(&net).ask(self.node, names))
    }
}
