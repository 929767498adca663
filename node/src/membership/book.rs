//! What this node remembers of the others: pure bookkeeping from what gossip shows at one moment to a [`View`].
//!
//! Gossip knows starts of nodes, each with its own generation and address; the book joins them to nodes. The start that is live
//! speaks for a node, the latest when several are or none is.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{Duplicate, Facts, Member, State, View, gossip::Seen, member::node_id, screen::Identity};

/// Two starts with one node id are two nodes when both give signs of life this long after both were there. A node that was started
/// anew is not taken for two, because what its former life said has spread by then.
const SHARED_AFTER: Duration = Duration::from_secs(3);
/// A start that was never heard is not shown before this: it takes some signs of life until one counts as live.
const UNHEARD_SHOWN_AFTER: Duration = Duration::from_secs(5);
/// Flaps are counted for this long, and so many of them.
const FLAPS_WITHIN: Duration = Duration::from_secs(600);
const FLAPS_MAX: usize = 32;
/// A node that died is shown this long; one that left, until everybody had time to see it.
const DEAD_SHOWN: Duration = Duration::from_secs(3600);
const LEFT_SHOWN: Duration = Duration::from_secs(60);

/// What a value could not be read of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// An id that is no number of a node.
    NodeId,
    Key(&'static str),
}

/// One start of a node, as gossip knows it.
#[derive(Debug)]
struct Start {
    node_id: Option<u16>,
    facts: Facts,
    version: u64,
    heartbeat: u64,
    live: bool,
    /// When gossip first showed it.
    shown: Instant,
    /// Since when it has been live; none: it never was.
    live_since: Option<Instant>,
    /// The last sign of life.
    heard: Instant,
    skew_ms: Option<i64>,
}

/// One node, over all its starts.
#[derive(Debug)]
struct Node {
    member: Member,
    flaps: VecDeque<Instant>,
    heard: Instant,
    /// When it was last live.
    lost: Instant,
}

#[derive(Debug)]
pub(super) struct Book {
    cluster: String,
    own: u16,
    starts: HashMap<Identity, Start>,
    nodes: BTreeMap<u16, Node>,
    /// Dead nodes that an operator removed, with the generation up to which they are not shown.
    forgotten: BTreeMap<u16, u64>,
    /// Gossip was started anew and has to hear of the others again: until then its ignorance says nothing about them.
    relearns_until: Option<Instant>,
}

impl Book {
    pub(super) fn new(cluster: String, own: u16) -> Self {
        Self {
            cluster,
            own,
            starts: HashMap::new(),
            nodes: BTreeMap::new(),
            forgotten: BTreeMap::new(),
            relearns_until: None,
        }
    }

    /// Gossip starts anew and knows nobody yet: what the book holds of the others stays as it is until then.
    pub(super) fn relearn(&mut self, until: Instant) {
        self.relearns_until = Some(until);
    }

    /// The version of a start's values that is in the book.
    pub(super) fn version(&self, identity: &Identity) -> Option<u64> {
        self.starts.get(identity).map(|start| start.version)
    }

    pub(super) fn knows(&self, identity: &Identity) -> bool {
        self.starts.contains_key(identity)
    }

    /// Time since each live node but this one gave a sign of life.
    pub(super) fn silences(&self, now: Instant) -> impl Iterator<Item = (u16, Duration)> {
        let live = self.nodes.values().filter(|node| node.member.live && node.member.node_id != self.own);
        live.map(move |node| (node.member.node_id, now.saturating_duration_since(node.heard)))
    }

    /// Shows a node no more while it is as dead as it is; false when it is not there or lives.
    pub(super) fn forget(&mut self, node_id: u16, generation: u64) -> bool {
        if self.nodes.get(&node_id).is_none_or(|node| node.member.live) {
            return false;
        }
        self.nodes.remove(&node_id);
        self.forgotten.insert(node_id, generation);
        true
    }

    /// Takes in all that gossip shows. `clock_ms` is the wall clock, to compare others with.
    pub(super) fn observe(
        &mut self,
        seen: Vec<Seen>,
        now: Instant,
        clock_ms: u64,
        mut unreadable: impl FnMut(Unreadable),
    ) -> View {
        let mut before = std::mem::take(&mut self.starts);
        self.relearns_until = self.relearns_until.filter(|until| now < *until);
        let relearns = self.relearns_until.is_some();
        for Seen { identity, heartbeat, version, live, values } in seen {
            let mut start = before.remove(&identity).unwrap_or_else(|| {
                let node_id = node_id(&identity.node);
                if node_id.is_none() {
                    unreadable(Unreadable::NodeId);
                }
                Start::new(node_id, now)
            });
            if heartbeat > start.heartbeat {
                (start.heartbeat, start.heard) = (heartbeat, now);
            }
            if live && !start.live {
                start.live_since = Some(now);
            }
            start.live = live || (relearns && start.live);
            // A start never takes back what it said: fewer values are those of gossip that has not heard all of them yet.
            if let Some(values) = values.filter(|_| version >= start.version) {
                let borrowed = values.iter().map(|(key, value)| (key.as_str(), value.as_str()));
                let facts = Facts::parse(borrowed, |key| unreadable(Unreadable::Key(key)));
                // The first value may be old: who joins is shown what was said before.
                if facts.clock_ms != start.facts.clock_ms && start.facts.clock_ms != 0 && facts.clock_ms != 0
                {
                    start.skew_ms = Some(facts.clock_ms.cast_signed().saturating_sub(clock_ms.cast_signed()));
                }
                (start.facts, start.version) = (facts, version);
            }
            self.starts.insert(identity, start);
        }
        if relearns {
            self.starts.extend(before);
        }
        self.join(now);
        View {
            cluster: self.cluster.clone(),
            own: self.own,
            members: self.nodes.values().map(|node| node.member.clone()).collect(),
            duplicates: self.duplicates(),
        }
    }

    /// From starts to nodes.
    fn join(&mut self, now: Instant) {
        let mut speakers: BTreeMap<u16, (&Identity, &Start)> = BTreeMap::new();
        for (identity, start) in &self.starts {
            let Some(node_id) = start.node_id else { continue };
            let is_young = now.saturating_duration_since(start.shown) < UNHEARD_SHOWN_AFTER;
            let forgotten = self.forgotten.get(&node_id);
            let is_forgotten = !start.live && forgotten.is_some_and(|until| identity.generation <= *until);
            if is_forgotten || (start.live_since.is_none() && is_young) {
                continue;
            }
            // A start whose values are still on their way says nothing yet.
            let rank = |(identity, start): (&Identity, &Start)| {
                (start.live && start.version > 0, start.live, identity.generation, identity.address)
            };
            let speaker = speakers.entry(node_id).or_insert((identity, start));
            if rank((identity, start)) > rank(*speaker) {
                *speaker = (identity, start);
            }
        }
        for (node_id, (identity, start)) in &speakers {
            match self.nodes.get_mut(node_id) {
                Some(node) => node.update(identity, start, now),
                None => {
                    self.nodes.insert(*node_id, Node::new(*node_id, identity, start, now));
                }
            }
        }
        for node in self.nodes.values_mut().filter(|node| !speakers.contains_key(&node.member.node_id)) {
            // Gossip forgets sooner than the book does.
            node.silent(now);
        }
        self.nodes.retain(|_, node| {
            let shown = if node.member.facts.state == State::Drained { LEFT_SHOWN } else { DEAD_SHOWN };
            node.member.live || now.saturating_duration_since(node.lost) < shown
        });
    }

    fn duplicates(&self) -> Vec<Duplicate> {
        let mut by_node: BTreeMap<u16, Vec<(&Identity, &Start)>> = BTreeMap::new();
        for (identity, start) in &self.starts {
            if let (Some(node_id), true) = (start.node_id, start.live) {
                by_node.entry(node_id).or_default().push((identity, start));
            }
        }
        let shared = |starts: &[(&Identity, &Start)]| {
            let is_running = |start: &Start, since: Option<Instant>| {
                since.is_some_and(|since| start.heard >= since + SHARED_AFTER)
            };
            let pairs = |(index, (_, one)): (usize, &(&Identity, &Start))| {
                starts[index + 1..].iter().any(|(_, other)| {
                    let both_since = one.live_since.max(other.live_since);
                    is_running(one, both_since) && is_running(other, both_since)
                })
            };
            starts.iter().enumerate().any(pairs)
        };
        let duplicates = by_node.into_iter().filter(|(_, starts)| shared(starts));
        duplicates
            .map(|(node_id, starts)| {
                let mut addresses: Vec<SocketAddr> =
                    starts.iter().map(|(identity, _)| identity.address).collect();
                addresses.sort_unstable();
                Duplicate { node_id, addresses }
            })
            .collect()
    }
}

impl Start {
    fn new(node_id: Option<u16>, now: Instant) -> Self {
        Self {
            node_id,
            facts: Facts::default(),
            version: 0,
            heartbeat: 0,
            live: false,
            shown: now,
            live_since: None,
            heard: now,
            skew_ms: None,
        }
    }
}

impl Node {
    fn new(node_id: u16, identity: &Identity, start: &Start, now: Instant) -> Self {
        let member = Member {
            node_id,
            gossip: identity.address,
            generation: identity.generation,
            facts: start.facts.clone(),
            live: false,
            ready_since: None,
            flaps: 0,
            skew_ms: None,
        };
        let mut node = Self { member, flaps: VecDeque::new(), heard: start.heard, lost: now };
        node.update(identity, start, now);
        node
    }

    /// `start` speaks for the node.
    fn update(&mut self, identity: &Identity, start: &Start, now: Instant) {
        let was_live = self.member.live;
        let had_left = self.member.facts.state == State::Drained;
        // 0: nothing was heard of it yet, as of a member whose first values are still on their way.
        let (before, after) = (self.member.facts.start, start.facts.start);
        let is_other_process = before != 0 && after != 0 && before != after;
        self.member.gossip = identity.address;
        self.member.generation = identity.generation;
        self.member.facts = start.facts.clone();
        self.member.skew_ms = start.skew_ms;
        self.heard = start.heard;
        if !start.live {
            return self.silent(now);
        }
        self.member.live = true;
        self.lost = now;
        if is_other_process {
            self.member.ready_since = None;
            // A death that was noticed is counted already, and one who left was asked to.
            if was_live && !had_left {
                self.flap(now);
            }
        }
        match start.facts.state {
            State::Ready => self.member.ready_since = self.member.ready_since.or(Some(now)),
            State::Starting | State::Draining | State::Drained => self.member.ready_since = None,
        }
        self.count_flaps(now);
    }

    /// Nothing is heard of the node.
    fn silent(&mut self, now: Instant) {
        if self.member.live {
            self.member.live = false;
            self.lost = now;
            if self.member.facts.state != State::Drained {
                self.flap(now);
            }
        }
        self.member.ready_since = None;
        self.count_flaps(now);
    }

    fn flap(&mut self, now: Instant) {
        if self.flaps.len() == FLAPS_MAX {
            self.flaps.pop_front();
        }
        self.flaps.push_back(now);
    }

    fn count_flaps(&mut self, now: Instant) {
        while self.flaps.front().is_some_and(|at| now.saturating_duration_since(*at) > FLAPS_WITHIN) {
            self.flaps.pop_front();
        }
        self.member.flaps = u32::try_from(self.flaps.len()).unwrap_or(u32::MAX);
    }
}
