//! Which node does what: 16,384 shards of agents and 1,024 partitions of the dictionary, to the nodes of a cluster.
//!
//! A pure function of the [`View`]: every node computes it alone, and nodes with the same view come to the same answer, so nothing has
//! to be agreed on. A wrong or an old view costs detours and aliases, never data.
//!
//! * Agents stay in their region as long as it has a ready node, else they go anywhere. An agent gets a first node, two in
//!   other zones and one in another region.
//! * A partition has an owner and two replicas in other zones.
//! * A node is first for 1.05 times its share (by weight) at most; of shares below 128, where one shard is near a percent, the bound is
//!   rounded up. Stand-ins are not bounded: with zones of different sizes, the bound and other zones cannot both be had, and another
//!   zone is worth more.
//! * A node that has been ready for too short a time is left out while there is another, see [`view`].
//!
//! How even it is and how much moves is measured in `bench/placement.md`. Leaves out the membership itself and what a node does
//! with its shards.

mod assign;
mod explain;
mod hash;
mod ring;
pub mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use assign::Table;
pub use explain::{Candidate, Explanation, Verdict};
use hash::Point;
pub use hash::{entry_hash, partition_of, shard_of, text_hash};
use ring::{Pool, Ring, Slot};
pub use view::{Member, State, View};

use crate::dictionary::NodeId;

/// Shards of agents in a region: at 100,000 agents a shard is six, so a node's share is even without moving single agents.
pub const SHARDS: u16 = 16_384;

/// Partitions of the dictionary.
pub const PARTITIONS: u16 = 1_024;

/// Regions with a table of their own (128 KiB each). Agents of further ones, by name, go to any node.
pub const REGIONS_MAX: usize = 64;

/// Nodes of a region that an agent is given, and nodes that hold a partition.
const LISTED: usize = 3;

/// The weight of a region, that of its nodes, counts up to this when another region is chosen: enough to spare a small one.
const REGION_WEIGHT_MAX: u64 = view::WEIGHT_MAX as u64;

/// Agents that are served together, below [`SHARDS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(u16);

/// Names of the dictionary that have one owner, below [`PARTITIONS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionId(u16);

macro_rules! number {
    ($name:ident, $count:ident) => {
        impl $name {
            /// None when out of range.
            pub const fn new(number: u16) -> Option<Self> {
                if number < $count { Some(Self(number)) } else { None }
            }

            pub fn all() -> impl Iterator<Item = Self> {
                (0..$count).map(Self)
            }

            pub const fn get(self) -> u16 {
                self.0
            }

            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}
number!(ShardId, SHARDS);
number!(PartitionId, PARTITIONS);

/// The nodes of an agent, in the order in which it tries them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Servers([u16; LISTED + 1]);

impl Servers {
    /// The node that serves it.
    pub fn primary(self) -> Option<NodeId> {
        NodeId::new(self.0[0])
    }

    /// In the same region, in other zones if there are any.
    pub fn fallbacks(self) -> impl Iterator<Item = NodeId> {
        self.0.into_iter().skip(1).take(LISTED - 1).filter_map(NodeId::new)
    }

    /// In another region, if there is one.
    pub fn last_resort(self) -> Option<NodeId> {
        NodeId::new(self.0[LISTED])
    }

    pub fn iter(self) -> impl Iterator<Item = NodeId> {
        self.0.into_iter().filter_map(NodeId::new)
    }
}

/// The nodes that hold a partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Owners([u16; LISTED]);

impl Owners {
    pub fn owner(self) -> Option<NodeId> {
        NodeId::new(self.0[0])
    }

    pub fn holds(self, node: NodeId) -> bool {
        self.0.contains(&node.get())
    }

    pub fn replicas(self) -> impl Iterator<Item = NodeId> {
        self.iter().skip(1)
    }

    pub fn iter(self) -> impl Iterator<Item = NodeId> {
        self.0.into_iter().filter_map(NodeId::new)
    }
}

/// What a node was given of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    pub node_id: NodeId,
    /// Keys for which it is the first node.
    pub first: u16,
    /// As many as it may be given.
    pub capacity: u16,
}

type ShardTable = Table<{ LISTED + 1 }>;

/// Everything of one view, computed once: 128 KiB a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// By id, each id once.
    members: Vec<Member>,
    /// Tables of the regions that have a node.
    regions: BTreeMap<String, ShardTable>,
    /// For agents of all other regions.
    anywhere: ShardTable,
    partitions: Table<LISTED>,
}

impl Placement {
    pub fn new(view: &View) -> Self {
        let mut members = view.members.clone();
        members.sort_unstable();
        members.dedup_by_key(|member| member.node_id);

        let mut everyone = Pool::new(pool(&members, None));
        let partitions = Table::new(&mut everyone, PARTITIONS, LISTED);
        let mut anywhere = Table::new(&mut everyone, SHARDS, LISTED);
        let mut regions = BTreeMap::new();
        for region in region_names(&members) {
            let inside = pool(&members, Some(region));
            let table = if inside == everyone.members {
                anywhere.clone()
            } else {
                Table::new(&mut Pool::new(inside), SHARDS, LISTED)
            };
            regions.insert(region.to_owned(), table);
        }
        add_last_resorts(&members, &mut regions, &mut anywhere);
        Self { members, regions, anywhere, partitions }
    }

    /// The nodes of an agent of this region; none when no node is ready.
    pub fn servers(&self, region: &str, shard: ShardId) -> Servers {
        Servers(self.regions.get(region).unwrap_or(&self.anywhere).rows[shard.index()])
    }

    /// The nodes of a partition of the dictionary; none when no node is ready.
    pub fn owners(&self, partition: PartitionId) -> Owners {
        Owners(self.partitions.rows[partition.index()])
    }

    /// Regions whose agents stay there.
    pub fn regions(&self) -> impl Iterator<Item = &str> {
        self.regions.keys().map(String::as_str)
    }

    /// Shards of a region by node, by id; of all nodes when the region has none.
    pub fn shard_loads(&self, region: &str) -> &[Load] {
        &self.regions.get(region).unwrap_or(&self.anywhere).loads
    }

    /// Partitions by owner, by id.
    pub fn partition_loads(&self) -> &[Load] {
        &self.partitions.loads
    }
}

/// The members that may be given work, of one region or of all. Those that were held back take it when they are alone.
fn pool<'a>(members: &'a [Member], region: Option<&str>) -> Vec<&'a Member> {
    let mut ready: Vec<_> = members
        .iter()
        .filter(|member| member.state == State::Ready && region.is_none_or(|region| member.region == region))
        .collect();
    if ready.iter().any(|member| member.eligible) {
        ready.retain(|member| member.eligible);
    }
    ready
}

/// Regions with a ready node, by name.
fn region_names(members: &[Member]) -> Vec<&str> {
    let ready = members.iter().filter(|member| member.state == State::Ready);
    let names: BTreeSet<_> = ready.map(|member| member.region.as_str()).collect();
    names.into_iter().take(REGIONS_MAX).collect()
}

/// Gives each shard the node that is first for it in another region. Which region is the shard's own choice, so that the agents of
/// a region that is lost are spread over all others.
fn add_last_resorts(
    members: &[Member],
    regions: &mut BTreeMap<String, ShardTable>,
    anywhere: &mut ShardTable,
) {
    if regions.len() < 2 {
        return;
    }
    let ring = Ring::new(regions.keys().zip(0..).map(|(name, slot)| {
        let weight: u64 = pool(members, Some(name)).iter().map(|member| u64::from(member.weight())).sum();
        (hash::region_key(name), slot, weight.min(REGION_WEIGHT_MAX) as u8)
    }));
    let first_of: Vec<Vec<u16>> =
        regions.values().map(|table| table.rows.iter().map(|row| row[0]).collect()).collect();
    let slots: BTreeMap<String, Slot> = regions.keys().cloned().zip(0..).collect();
    let home: HashMap<u16, Slot> = members
        .iter()
        .filter_map(|member| Some((member.node_id.get(), *slots.get(&member.region)?)))
        .collect();
    for shard in ShardId::all() {
        let order: Vec<Slot> = ring.order(Point::even(shard.get(), SHARDS)).take(LISTED + 1).collect();
        let tables = regions.values_mut().map(|table| &mut table.rows[shard.index()]);
        for row in tables.chain([&mut anywhere.rows[shard.index()]]) {
            let own = home.get(&row[0]);
            let others = order.iter().filter(|&slot| Some(slot) != own);
            let mut nodes = others.map(|&slot| first_of[usize::from(slot)][shard.index()]);
            row[LISTED] = nodes.find(|node| !row.contains(node)).unwrap_or(0);
        }
    }
}

#[cfg(test)]
mod tests;
