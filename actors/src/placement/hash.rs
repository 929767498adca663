//! Hashes of placement. Every node must compute the same on every machine, architecture and release, so the constants stand here and
//! golden values in the tests; the hashers of the standard library promise none of this.
//!
//! The ring is not random, it is *stratified*: keys stand at even distances, and a node has one virtual node in each of
//! [`STRATA`] equal parts of the ring, at offsets that are a permutation of its own. Expected shares are those of a random
//! ring, but what a node takes varies by half (variance), so fewer keys meet a full node and a change of the members moves fewer.

use metaflow_schema::enums::Kind;

use super::{PARTITIONS, PartitionId, SHARDS, ShardId};

/// Virtual nodes of a node of weight one. More take longer to sort, fewer vary more with few nodes: at 1,024 the shares
/// of five nodes have a standard deviation of 2.5 %, half of the room that the capacity leaves.
pub(super) const STRATA: usize = 1 << STRATA_BITS;
const STRATA_BITS: u32 = 10;

/// The constants of SplitMix64 (Steele, Lea, Flood 2014).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const MIX_1: u64 = 0xbf58_476d_1ce4_e5b9;
const MIX_2: u64 = 0x94d0_49bb_1331_11eb;

/// The shard of an agent.
pub fn shard_of(agent_id: u32) -> ShardId {
    ShardId(top_bits(mix(u64::from(agent_id).wrapping_add(GOLDEN)), SHARDS))
}

/// The partition of the dictionary that a name belongs to.
pub fn partition_of(kind: Kind, name: &str) -> PartitionId {
    PartitionId(top_bits(text(kind as u64, name), PARTITIONS))
}

/// Tells one entry of the dictionary from another, for digests of partitions.
pub fn entry_hash(kind: Kind, id: u32, name: &str) -> u64 {
    pair(text(kind as u64, name), u64::from(id))
}

/// The key of a region on the ring of regions.
pub(super) fn region_key(name: &str) -> u64 {
    text(0, name)
}

/// Of any text, the same on every node.
pub fn text_hash(seed: u64, it: &str) -> u64 {
    text(seed, it)
}

fn text(seed: u64, text: &str) -> u64 {
    let mut state = mix(seed.wrapping_add(GOLDEN));
    for chunk in text.as_bytes().chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = pair(state, u64::from_le_bytes(word));
    }
    // Without the length, a text and the same with zero bytes behind would be one.
    pair(state, text.len() as u64)
}

/// A number below `count`, which is a power of two.
fn top_bits(hash: u64, count: u16) -> u16 {
    debug_assert!(count.is_power_of_two());
    (hash >> (u64::BITS - count.trailing_zeros())) as u16
}

/// A bijection in which each bit of the input changes about half of the output.
const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(MIX_1);
    x = (x ^ (x >> 27)).wrapping_mul(MIX_2);
    x ^ (x >> 31)
}

pub(super) const fn pair(a: u64, b: u64) -> u64 {
    mix(a.wrapping_mul(GOLDEN) ^ mix(b.wrapping_add(GOLDEN)))
}

/// A point of the ring, which is all of `u64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Point(pub(super) u64);

impl Point {
    /// The `at`th of `count` points at even distances; `count` is a power of two.
    pub(super) const fn even(at: u16, count: u16) -> Self {
        Self((at as u64) << (u64::BITS - count.trailing_zeros()))
    }
}

/// Where the virtual node `seq` of `node` stands: [`STRATA`] consecutive ones stand in as many different parts.
pub(super) fn virtual_point(node: u64, seq: u64) -> u64 {
    let stratum = seq % STRATA as u64;
    let key = pair(node, seq / STRATA as u64);
    let offset = permute(stratum, key);
    let rest = pair(key, stratum) >> (2 * STRATA_BITS);
    stratum << (u64::BITS - STRATA_BITS) | offset << (u64::BITS - 2 * STRATA_BITS) | rest
}

/// A permutation of the numbers below [`STRATA`], another one for each key: rounds of steps that can each be undone.
fn permute(mut x: u64, key: u64) -> u64 {
    for round in 0..4 {
        let random = pair(key, GOLDEN ^ round);
        x = x.wrapping_mul(random | 1).wrapping_add(random >> 32) & (STRATA as u64 - 1);
        x ^= x >> (STRATA_BITS / 2);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A change of these values would move the agents of a running cluster while it is updated. They were also computed by another
    /// program.
    #[test]
    fn hashes_are_the_same_for_ever() {
        let shards: Vec<_> = [0, 1, 1 << 22 | 1, u32::MAX].map(|id| shard_of(id).get()).into();
        assert_eq!(shards, [14_472, 9_282, 14_145, 7_404]);
        let names = [
            (Kind::Process, ""),
            (Kind::Process, "nginx"),
            (Kind::Host, "nginx"),
            (Kind::Pod, "shop-7d9f8b-x2x4z"),
        ];
        let partitions: Vec<_> = names.map(|(kind, name)| partition_of(kind, name).get()).into();
        assert_eq!(partitions, [952, 15, 853, 482]);
        let points: Vec<_> = [(1, 0), (1, 1), (2, 1), (1_023, 1_023), (1_023, 1_024)]
            .map(|(node, seq)| virtual_point(node, seq))
            .into();
        assert_eq!(
            points,
            [
                0x003d_1651_349d_a952,
                0x0060_6df7_4bff_7107,
                0x004e_3223_168f_2db5,
                0xfff8_e734_8021_6b33,
                0x0038_199c_7086_1459
            ]
        );
    }

    #[test]
    fn names_that_differ_in_little_are_hashed_apart() {
        let mut count = [0_u32; PARTITIONS as usize];
        for at in 0..102_400 {
            count[partition_of(Kind::Process, &format!("service-{at}")).index()] += 1;
        }
        // Mean 100, standard deviation 10.
        assert!(count.iter().all(|&count| (50..160).contains(&count)), "{count:?}");
        assert_ne!(partition_of(Kind::Process, "a"), partition_of(Kind::Process, "a\0"));
    }

    #[test]
    fn ids_of_one_node_are_spread_over_all_shards() {
        let mut count = vec![0_u32; usize::from(SHARDS)];
        for at in 0..16 * u32::from(SHARDS) {
            count[shard_of(1 << 22 | at).index()] += 1;
        }
        // Mean 16, standard deviation 4.
        assert!(count.iter().all(|&count| (1..45).contains(&count)));
    }

    #[test]
    fn a_node_stands_once_in_every_part_and_at_every_offset() {
        for node in [1, 2, 700, 1_023] {
            for unit in [0, 5] {
                let points = (0..STRATA as u64).map(|seq| virtual_point(node, unit * STRATA as u64 + seq));
                let (mut strata, mut offsets): (Vec<_>, Vec<_>) =
                    points.map(|point| (point >> 54, point >> 44 & 1_023)).unzip();
                strata.sort_unstable();
                offsets.sort_unstable();
                let all: Vec<_> = (0..STRATA as u64).collect();
                assert_eq!(strata, all, "node {node}");
                assert_eq!(offsets, all, "node {node}");
            }
        }
    }
}
