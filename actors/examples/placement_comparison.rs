//! How evenly agents are placed and how many move when a node comes or goes, against the least possible, a plain ring, and
//! rendezvous hashing with the same bound.
//!
//! ```text
//! cargo run --release --example placement_comparison
//! ```
//!
//! Prints Markdown. Counts, and CPU time of one thread, so a busy machine does not matter.
// bench: placement.md
#![expect(clippy::print_stdout, reason = "prints its result")]

use std::{collections::HashMap, hint::black_box};

use anyhow::Context;
use metaflow_actors::{
    dictionary::NodeId,
    placement::{Member, Placement, SHARDS, ShardId, State, View},
};

const REGION: &str = "region";
/// Virtual nodes of the plain ring: as many as placement has.
const PLAIN_POINTS: u64 = 1_024;
/// CPU time of one measurement.
const MEASURE_NS: u64 = 500_000_000;
/// Clusters of each size whose changes are measured.
const TRIALS: u64 = 8;

fn main() -> anyhow::Result<()> {
    println!("# Placement: how even, how much moves, how long\n");
    println!(
        "{SHARDS} shards of agents on N nodes of one weight in three zones. *max/mean*: shards of the fullest node by the mean; \
         placement allows 1.05, rounded up to a whole shard from 129 nodes on.\n*join*, *leave*: shards that change their first node, \
         in multiples of what must move, which is 1/(N+1) and 1/N of all; mean and worst of {TRIALS} clusters. Placement is to keep \
         1.3 up to 50 nodes.\n*plain ring*: {PLAIN_POINTS} random virtual nodes a node and no bound. *rendezvous*: highest random \
         weight, shard after shard, with the bound of placement.\n*CPU*: one whole computation, which for placement includes stand-ins \
         and dictionary partitions.\n"
    );
    println!("| N | method | max/mean | join, mean | join, worst | leave, mean | leave, worst | CPU |");
    println!("|---:|---|---:|---:|---:|---:|---:|---:|");
    for nodes in [3, 5, 10, 50, 200, 500] {
        let methods: [(&str, Method); 3] =
            [("placement", placement), ("plain ring", plain_ring), ("rendezvous, bounded", rendezvous)];
        for (name, method) in methods {
            println!("{}", measure(nodes, name, method)?);
        }
    }
    println!("\n{}", steps());
    println!("\n{}", partitions());
    println!("\n{}", regions()?);
    Ok(())
}

/// First node of each shard.
type Method = fn(&[u16]) -> Vec<u16>;

fn measure(nodes: usize, name: &str, method: Method) -> anyhow::Result<String> {
    let mean = f64::from(SHARDS) / nodes as f64;
    let (mut joins, mut leaves, mut most) = (Vec::new(), Vec::new(), 0.0_f64);
    for trial in 0..TRIALS {
        let ids = ids(trial, nodes + 1);
        let before = method(&ids[..nodes]);
        most = most.max(f64::from(fullest(&before)) / mean);
        joins.push(moved(&before, &method(&ids)) * (nodes + 1) as f64);
        leaves.push(moved(&before, &method(&ids[1..nodes])) * nodes as f64);
    }
    let ids = ids(0, nodes);
    let cpu_ms = cpu_ms(|| drop(black_box(method(&ids))))?;
    let average = |of: &[f64]| of.iter().sum::<f64>() / of.len() as f64;
    let worst = |of: &[f64]| of.iter().copied().fold(0.0, f64::max);
    Ok(format!(
        "| {nodes} | {name} | {most:.3} | {:.2} | {:.2} | {:.2} | {:.2} | {cpu_ms:.1} ms |",
        average(&joins),
        worst(&joins),
        average(&leaves),
        worst(&leaves)
    ))
}

/// The capacity of a node is a whole number, so with few shards a node one join in many takes a shard from every full node.
fn steps() -> String {
    let ids = ids(99, 511);
    let answers: Vec<_> = (490..=511).map(|nodes| placement(&ids[..nodes])).collect();
    let joins: Vec<_> = answers
        .windows(2)
        .zip(491..)
        .map(|(pair, after)| (moved(&pair[0], &pair[1]), f64::from(after)))
        .collect();
    let mean = joins.iter().map(|(moved, after)| moved * after).sum::<f64>() / joins.len() as f64;
    let (worst, after) = joins.into_iter().fold((0.0, 0.0), |a, b| if b.0 > a.0 { b } else { a });
    format!(
        "From 490 to 511 nodes, one after the other: {mean:.2} times what must move in the mean. At the worst, where the capacity drops \
         by a whole shard for all at once ({after} nodes), {:.1} times, which is {:.1} % of the shards.",
        worst * after,
        worst * 100.0
    )
}

fn partitions() -> String {
    let rows = [3, 5, 10, 50].map(|nodes| {
        let ids = ids(7, nodes + 1);
        let loads = |ids: &[u16]| Placement::new(&view(ids));
        let (before, after) = (loads(&ids[..nodes]), loads(&ids));
        let owners = |placement: &Placement| -> Vec<u16> {
            metaflow_actors::placement::PartitionId::all()
                .filter_map(|partition| placement.owners(partition).owner().map(NodeId::get))
                .collect()
        };
        let (before, after) = (owners(&before), owners(&after));
        let most = f64::from(fullest(&before)) * nodes as f64 / before.len() as f64;
        format!(
            "{nodes} nodes: max/mean {most:.3}, a join {:.2}",
            moved(&before, &after) * (nodes + 1) as f64
        )
    });
    format!("Partitions of the dictionary, by owner: {}.", rows.join("; "))
}

fn regions() -> anyhow::Result<String> {
    let mut view = view(&ids(1, 500));
    for (at, member) in view.members.iter_mut().enumerate() {
        member.region = format!("region-{}", at % 5);
    }
    let cpu_ms = cpu_ms(|| drop(black_box(Placement::new(&view))))?;
    Ok(format!("500 nodes in five regions, all tables: {cpu_ms:.0} ms of CPU."))
}

fn placement(ids: &[u16]) -> Vec<u16> {
    let placement = Placement::new(&view(ids));
    ShardId::all().filter_map(|shard| placement.servers(REGION, shard).primary().map(NodeId::get)).collect()
}

fn plain_ring(ids: &[u16]) -> Vec<u16> {
    let mut ring: Vec<_> =
        ids.iter().flat_map(|&id| (0..PLAIN_POINTS).map(move |at| (random(u64::from(id), at), id))).collect();
    ring.sort_unstable();
    (0..u64::from(SHARDS))
        .map(|shard| {
            let key = random(1 << 32, shard);
            ring[ring.partition_point(|point| point.0 < key) % ring.len()].1
        })
        .collect()
}

fn rendezvous(ids: &[u16]) -> Vec<u16> {
    let loads = Placement::new(&view(ids));
    let mut room: HashMap<u16, u16> =
        loads.shard_loads(REGION).iter().map(|load| (load.node_id.get(), load.capacity)).collect();
    let mut ids = ids.to_vec();
    let mut first = Vec::new();
    for shard in 0..u64::from(SHARDS) {
        let Some(&best) = ids.iter().max_by_key(|&&id| random(u64::from(id), shard)) else { break };
        first.push(best);
        let left = room.entry(best).or_insert(1);
        *left -= 1;
        if *left == 0 {
            ids.retain(|&id| id != best);
        }
    }
    first
}

fn view(ids: &[u16]) -> View {
    let member = |(&id, zone): (&u16, &str)| {
        Some(Member {
            node_id: NodeId::new(id)?,
            state: State::Ready,
            eligible: true,
            region: REGION.into(),
            zone: zone.into(),
            weight: 1,
        })
    };
    View { members: ids.iter().zip(["a", "b", "c"].into_iter().cycle()).filter_map(member).collect() }
}

/// Share of the keys whose first node is another.
fn moved(before: &[u16], after: &[u16]) -> f64 {
    before.iter().zip(after).filter(|(before, after)| before != after).count() as f64 / before.len() as f64
}

fn fullest(first: &[u16]) -> u32 {
    let mut count = HashMap::<u16, u32>::new();
    for &id in first {
        *count.entry(id).or_default() += 1;
    }
    count.into_values().max().unwrap_or(0)
}

/// Different ids in a random order.
fn ids(seed: u64, count: usize) -> Vec<u16> {
    let mut all: Vec<u16> = (1..=NodeId::MAX).collect();
    all.sort_by_key(|&id| random(seed + (1 << 40), u64::from(id)));
    all.truncate(count);
    all
}

/// A hash that has nothing to do with that of placement (constants of MurmurHash3's finalizer, Appleby).
fn random(a: u64, b: u64) -> u64 {
    let mix = |mut x: u64| {
        x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        x ^ (x >> 33)
    };
    mix(mix(a.wrapping_add(0x1234_5678_9abc_def1)).wrapping_add(b))
}

/// CPU time of one call: of as many as make the resolution of the clock, some milliseconds, not matter.
fn cpu_ms(mut call: impl FnMut()) -> anyhow::Result<f64> {
    let start = cpu_ns()?;
    let mut calls = 0;
    loop {
        call();
        calls += 1;
        let spent = cpu_ns()? - start;
        if spent >= MEASURE_NS {
            return Ok(spent as f64 / 1e6 / f64::from(calls));
        }
    }
}

/// CPU time of this thread.
fn cpu_ns() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").context("failed to read CPU time")?;
    text.split(' ')
        .next()
        .and_then(|first| first.parse().ok())
        .context("no CPU time in /proc/thread-self/schedstat")
}
