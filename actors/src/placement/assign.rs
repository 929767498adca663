//! From a pool of nodes to a table: consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2018) for the first node
//! of each key, and the zones for those that stand in.
//!
//! Keys are given in rounds: first each key asks the node that it prefers, then those that met a full node ask their second, and
//! so on. Compared with key after key this keeps more keys with the node that they prefer, so a change of members moves fewer.

use super::{
    Load,
    hash::Point,
    ring::{Pool, Slot},
};

/// Keys ask in steps of this through their number range: neighbours prefer the same nodes when nodes are few, and so the ones that
/// meet a full node are not all neighbours. Odd, so every key has its turn.
const STEP: u16 = 0x9e37;

/// First node and stand-ins of each key, as ids; 0 is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table<const N: usize> {
    pub(super) rows: Vec<[u16; N]>,
    pub(super) loads: Vec<Load>,
}

impl<const N: usize> Table<N> {
    /// The first `listed` places of each row are filled as far as there are nodes; `keys` is a power of two.
    pub(super) fn new(pool: &mut Pool<'_>, keys: u16, listed: usize) -> Self {
        let mut rows = vec![[0; N]; usize::from(keys)];
        let capacities = pool.capacities(keys);
        let first = first_nodes(pool, keys, &capacities);
        let mut loads: Vec<_> = pool
            .members
            .iter()
            .zip(capacities)
            .map(|(member, capacity)| Load { node_id: member.node_id, first: 0, capacity })
            .collect();
        for ((at, row), first) in (0..).zip(&mut rows).zip(first) {
            let Some(first) = first else { continue };
            loads[usize::from(first)].first += 1;
            let point = Point::even(at, keys);
            let mut chosen = vec![first];
            while chosen.len() < listed.min(N) {
                let Some(next) = pool.stand_in(point, &chosen) else { break };
                chosen.push(next);
            }
            for (place, slot) in row.iter_mut().zip(chosen) {
                *place = pool.members[usize::from(slot)].node_id.get();
            }
        }
        Self { rows, loads }
    }
}

/// The first node of each key; none only when the pool is empty.
fn first_nodes(pool: &Pool<'_>, keys: u16, capacities: &[u16]) -> Vec<Option<Slot>> {
    let mut room = capacities.to_vec();
    let mut given = vec![None; usize::from(keys)];
    let mut give = |key: u16, slot: Slot| {
        let free = room[usize::from(slot)] > 0;
        if free {
            room[usize::from(slot)] -= 1;
            given[usize::from(key)] = Some(slot);
        }
        free
    };
    let mut waiting = Vec::new();
    for at in 0..keys {
        let key = at.wrapping_mul(STEP) & (keys - 1);
        let mut order = pool.ring.order(Point::even(key, keys));
        if order.next().is_some_and(|slot| !give(key, slot)) {
            waiting.push((key, order));
        }
    }
    // A key that has asked every node would leave the rounds, but there is more room than keys.
    while !waiting.is_empty() {
        waiting.retain_mut(|(key, order)| order.next().is_some_and(|slot| !give(*key, slot)));
    }
    given
}
