//! The cluster as one node sees it at one moment.

use std::{net::SocketAddr, time::Instant};

use metaflow_actors::{dictionary::NodeId, placement};
use serde::Serialize;

use super::{Facts, Load, State};

/// Everyone who is known, sorted by node id. Two nodes with the same facts about each other hold the same members, but what a node
/// noticed by itself (`live`, `ready_since`, `flaps`) may differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    pub cluster: String,
    /// The node whose view this is.
    pub own: u16,
    pub members: Vec<Member>,
    /// Node ids that are used by two running nodes: an error of configuration that must be repaired.
    pub duplicates: Vec<Duplicate>,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub node_id: u16,
    /// Where it gossips.
    pub gossip: SocketAddr,
    /// Grows with each start of its gossip.
    pub generation: u64,
    pub facts: Facts,
    /// Whether it was heard lately. The own node always is.
    pub live: bool,
    /// Since when it has been live and ready without a break, by this node's clock.
    pub ready_since: Option<Instant>,
    /// Times within the last ten minutes that it was lost without a word or its process was another one.
    pub flaps: u32,
    /// How far its wall clock was ahead of ours when it last said so; what gossip takes to arrive, below a second, looks like being behind.
    pub skew_ms: Option<i64>,
}

/// One node id, two running nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Duplicate {
    pub node_id: u16,
    pub addresses: Vec<SocketAddr>,
}

impl View {
    /// Another node runs with the id of this one: no new ids may be given out, because both would give the same.
    pub fn own_id_is_shared(&self) -> bool {
        self.duplicates.iter().any(|duplicate| duplicate.node_id == self.own)
    }

    pub fn member(&self, node_id: u16) -> Option<&Member> {
        let index = self.members.binary_search_by_key(&node_id, |member| member.node_id).ok()?;
        Some(&self.members[index])
    }

    /// By its number or its name.
    pub fn find(&self, text: &str) -> Option<&Member> {
        let number = text.parse().ok().and_then(|node_id| self.member(node_id));
        number.or_else(|| self.members.iter().find(|member| member.facts.name == text))
    }

    pub fn live(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.live)
    }

    /// What placement works on: the live members.
    pub fn placement(&self) -> placement::View {
        let members = self.live().filter_map(|member| {
            let Facts { zone, region, weight, state, eligible, .. } = &member.facts;
            Some(placement::Member {
                node_id: NodeId::new(member.node_id)?,
                state: match state {
                    State::Starting => placement::State::Starting,
                    State::Ready => placement::State::Ready,
                    State::Draining => placement::State::Draining,
                    State::Drained => placement::State::Drained,
                },
                eligible: *eligible,
                region: region.clone(),
                zone: zone.clone(),
                weight: *weight,
            })
        });
        placement::View { members: members.collect() }
    }

    pub(crate) fn report(&self, now: Instant) -> Report<'_> {
        let members = self.members.iter().map(|member| member.report(now)).collect();
        Report { cluster: &self.cluster, node_id: self.own, members, duplicates: &self.duplicates }
    }
}

impl Member {
    /// One word: its state, or that it is dead. Silence after `drained` is a node that left.
    pub(crate) fn word(&self) -> &'static str {
        match (self.live, self.facts.state) {
            (true, state) => state.name(),
            (false, State::Drained) => "left",
            (false, _) => "dead",
        }
    }

    pub(crate) fn report(&self, now: Instant) -> MemberReport<'_> {
        let Self { node_id, gossip, generation, facts, live: _, ready_since, flaps, skew_ms } = self;
        let Facts {
            name,
            zone,
            region,
            weight,
            grpc,
            http,
            state: _,
            eligible,
            start: _,
            protocol,
            version,
            load,
            clock_ms: _,
        } = facts;
        MemberReport {
            node_id: *node_id,
            name,
            state: self.word(),
            zone,
            region,
            weight: *weight,
            eligible: *eligible,
            ready_seconds: ready_since.map(|since| now.saturating_duration_since(since).as_secs()),
            flaps: *flaps,
            version,
            protocol: *protocol,
            gossip: *gossip,
            grpc: *grpc,
            http: *http,
            generation: *generation,
            load: *load,
            skew_ms: *skew_ms,
        }
    }
}

/// The view for people and programs outside.
#[derive(Debug, Serialize)]
pub(crate) struct Report<'a> {
    cluster: &'a str,
    node_id: u16,
    members: Vec<MemberReport<'a>>,
    duplicates: &'a [Duplicate],
}

#[derive(Debug, Serialize)]
pub(crate) struct MemberReport<'a> {
    node_id: u16,
    name: &'a str,
    state: &'static str,
    zone: &'a str,
    region: &'a str,
    weight: u8,
    eligible: bool,
    ready_seconds: Option<u64>,
    flaps: u32,
    version: &'a str,
    protocol: (u32, u32),
    gossip: SocketAddr,
    grpc: Option<SocketAddr>,
    http: Option<SocketAddr>,
    generation: u64,
    #[serde(flatten)]
    load: Load,
    skew_ms: Option<i64>,
}
