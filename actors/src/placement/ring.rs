//! The nodes that may take a key, and the order in which each key prefers them. The one file that uses `consistent_hash`.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
};

use consistent_hash::{Candidates, Node, RingHash, StaticHashRing};

use super::{
    hash::{Point, STRATA, pair, virtual_point},
    view::Member,
};

/// Candidates that are looked at on the whole ring for one in another zone, before a ring of the other zones alone is made. It is made
/// when the other zones are few nodes in many, so it is small.
const WALK_MAX: usize = 64;

/// Capacity in percent of the share.
const CAPACITY_PERCENT: u64 = 105;
/// Capacities are rounded down from this share on. Below, a key is near one percent, and rounding down would leave so little room that
/// most nodes are full and a change moves several times more.
const ROUND_DOWN_FROM: u64 = 128;

/// Index of a node in its pool.
pub(super) type Slot = u16;

/// Consistent hashing: a change of the members changes the order of the others for no key.
pub(super) struct Ring(StaticHashRing<'static, u64, Slot, Strata>);

impl Ring {
    /// Of `(key, slot, weight)`.
    pub(super) fn new(nodes: impl Iterator<Item = (u64, Slot, u8)>) -> Self {
        Self(StaticHashRing::new(
            Strata,
            nodes
                .map(|(key, slot, weight)| Node::new(key).value(slot).quantity(STRATA * usize::from(weight))),
        ))
    }

    /// Every node once, the most preferred first.
    pub(super) fn order(&self, point: Point) -> Order<'_> {
        Order(self.0.calc_candidates(&point))
    }
}

pub(super) struct Order<'a>(Candidates<'a, u64, Slot>);

impl Iterator for Order<'_> {
    type Item = Slot;

    fn next(&mut self) -> Option<Slot> {
        self.0.next().map(|node| node.value)
    }
}

/// Nodes that share the keys of one table.
pub(super) struct Pool<'a> {
    /// By id. A [`Slot`] is an index of this.
    pub(super) members: Vec<&'a Member>,
    /// Number of the zone of each member.
    zones: Vec<u16>,
    zone_count: usize,
    pub(super) ring: Ring,
    /// Rings without the nodes of certain zones.
    elsewhere: HashMap<Vec<u16>, Ring>,
}

impl<'a> Pool<'a> {
    pub(super) fn new(members: Vec<&'a Member>) -> Self {
        let mut numbers = HashMap::new();
        let zones = members
            .iter()
            .map(|member| {
                let next = numbers.len() as u16;
                *numbers.entry((member.region.as_str(), member.zone.as_str())).or_insert(next)
            })
            .collect();
        let zone_count = numbers.len();
        let ring = ring_of(&members, |_| true);
        Self { members, zones, zone_count, ring, elsewhere: HashMap::new() }
    }

    /// How many of `keys` each member may take: its share by weight and 5 %. In all it is at least `keys`.
    pub(super) fn capacities(&self, keys: u16) -> Vec<u16> {
        let weight: u64 = self.members.iter().map(|member| u64::from(member.weight())).sum();
        let capacity = |member: &&Member| {
            let part = u64::from(keys) * u64::from(member.weight());
            let (above, whole) = (part * CAPACITY_PERCENT, 100 * weight);
            let capacity =
                if part >= weight * ROUND_DOWN_FROM { above / whole } else { above.div_ceil(whole) };
            capacity.min(u64::from(keys)) as u16
        };
        self.members.iter().map(capacity).collect()
    }

    /// The member that stands in for `chosen` next: in a zone that none of them is in; else in another zone than the first of
    /// them; else any other. Among these the one that the key prefers.
    pub(super) fn stand_in(&mut self, point: Point, chosen: &[Slot]) -> Option<Slot> {
        let mut used: Vec<u16> = chosen.iter().map(|&slot| self.zones[usize::from(slot)]).collect();
        let first = used.first().copied();
        used.sort_unstable();
        used.dedup();
        if used.len() < self.zone_count {
            return self.find(point, &used, chosen);
        }
        let beside = first.and_then(|zone| self.find(point, &[zone], chosen));
        beside.or_else(|| self.find(point, &[], chosen))
    }

    /// The most preferred member that is not in these zones and not among `chosen`.
    fn find(&mut self, point: Point, not_in: &[u16], chosen: &[Slot]) -> Option<Slot> {
        let Self { members, zones, ring, elsewhere, .. } = self;
        let outside = |slot: Slot| !not_in.contains(&zones[usize::from(slot)]);
        let fits = |slot: &Slot| outside(*slot) && !chosen.contains(slot);
        if let Some(slot) = ring.order(point).take(WALK_MAX).find(fits) {
            return Some(slot);
        }
        if members.len() <= WALK_MAX {
            return None;
        }
        let ring = elsewhere.entry(not_in.to_vec()).or_insert_with(|| ring_of(members, outside));
        ring.order(point).find(fits)
    }
}

/// A ring of some of the members. The order of these is the same on every ring.
pub(super) fn ring_of(members: &[&Member], included: impl Fn(Slot) -> bool) -> Ring {
    let nodes = members.iter().zip(0..).filter(|&(_, slot)| included(slot));
    Ring::new(nodes.map(|(member, slot)| (u64::from(member.node_id.get()), slot, member.weight())))
}

/// The hash of our rings: a key says itself where it stands ([`Point`]), and a node stands where [`virtual_point`] puts it.
#[derive(Debug, Clone, Copy)]
struct Strata;

impl RingHash for Strata {
    fn hash_item<T: Hash>(&self, item: &T) -> u64 {
        let mut hasher = Number(0);
        item.hash(&mut hasher);
        hasher.finish()
    }

    fn hash_vnode<K: Hash>(&self, node_key: &K, vnode_seq: usize) -> u64 {
        virtual_point(self.hash_item(node_key), vnode_seq as u64)
    }
}

/// Takes a hashed integer as it is. Bytes and further integers are mixed in, so that any type has a fixed hash.
struct Number(u64);

impl Hasher for Number {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u8(&mut self, i: u8) {
        self.write_u64(u64::from(i));
    }

    // The defaults write the bytes in the order of the machine.
    fn write_u16(&mut self, i: u16) {
        self.write_u64(u64::from(i));
    }

    fn write_u32(&mut self, i: u32) {
        self.write_u64(u64::from(i));
    }

    fn write_u64(&mut self, i: u64) {
        self.0 = if self.0 == 0 { i } else { pair(self.0, i) };
    }

    fn write_usize(&mut self, i: usize) {
        self.write_u64(i as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_stand_where_they_say_and_nodes_where_they_are_put() {
        for point in [0, 7 << 50, u64::MAX] {
            assert_eq!(Strata.hash_item(&Point(point)), point);
        }
        for (node, seq) in [(2, 1), (1_023, 4_000)] {
            assert_eq!(Strata.hash_vnode(&node, seq as usize), virtual_point(node, seq));
        }
    }
}
