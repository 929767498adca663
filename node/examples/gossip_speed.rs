//! How fast a cluster forms, how fast a death is noticed by everybody, and what gossip costs, for several sizes.
//!
//! All nodes run in this process, on a network in memory: what is measured is the protocol at its intervals, not the machine's
//! sockets. That holds while the machine keeps up: 200 nodes need a core. A death is noticed by the slowest of all survivors. `mistakes` are members that were taken for dead while they lived.
#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use metaflow_node::membership::{Config, Facts, Membership, Network, State, Transport, View};

/// Nodes, milliseconds between two rounds, and the mark for a death in seconds.
const SIZES: [(u16, u64, f64); 4] = [(3, 200, 1.1), (5, 200, 1.1), (50, 200, 1.7), (200, 500, 3.0)];
/// Time in which nothing happens, to measure what rest costs.
const REST: Duration = Duration::from_secs(6);
/// Deaths of each size, one after the other.
const DEATHS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    println!(
        "nodes  interval  formed   bytes/s a node  datagrams/s a node  mistakes  death noticed by all (mark)"
    );
    // A number as argument: only the cluster of that size.
    let only: Option<u16> = std::env::args().nth(1).map(|size| size.parse()).transpose()?;
    for (size, interval_ms, mark) in
        SIZES.into_iter().filter(|(size, ..)| only.is_none_or(|only| only == *size))
    {
        let folder = tempfile::tempdir()?;
        let measured = measure(folder.path(), size, Duration::from_millis(interval_ms), mark).await;
        if let Err(error) = measured {
            println!("{size:>5}  {interval_ms:>5} ms  {error:#}");
        }
    }
    Ok(())
}

async fn measure(folder: &Path, size: u16, interval: Duration, mark: f64) -> anyhow::Result<()> {
    let network = Network::default();
    let began = Instant::now();
    let mut members = Vec::new();
    for node_id in 1..=size {
        members.push(start(folder, node_id, interval, &network).await?);
    }
    everyone(&members, |view| view.live().count() == usize::from(size)).await.context("while it formed")?;
    let formed = began.elapsed().as_secs_f64();

    let (bytes, datagrams) = network.sent();
    let rested = Instant::now();
    tokio::time::sleep(REST).await;
    let (bytes_after, datagrams_after) = network.sent();
    let node_seconds = rested.elapsed().as_secs_f64() * f64::from(size);
    let rate = |before: u64, after: u64| (after - before) as f64 / node_seconds;
    let mistakes: u32 = members.iter().map(|member| flaps(&member.view().borrow())).sum();

    let mut deaths = Vec::new();
    for _ in 0..DEATHS.min(members.len() - 1) {
        drop(members.pop());
        let died = Instant::now();
        let left = members.len();
        everyone(&members, |view| view.live().count() == left).await.context("after a death")?;
        deaths.push(died.elapsed().as_secs_f64());
    }
    let deaths: Vec<String> = deaths.iter().map(|seconds| format!("{seconds:.1} s")).collect();
    println!(
        "{size:>5}  {:>5} ms  {formed:>4.1} s  {:>15.0}  {:>18.0}  {mistakes:>8}  {} ({mark:.1} s)",
        interval.as_millis(),
        rate(bytes, bytes_after),
        rate(datagrams, datagrams_after),
        deaths.join(", "),
    );
    Ok(())
}

fn flaps(view: &View) -> u32 {
    view.members.iter().map(|member| member.flaps).sum()
}

async fn start(
    folder: &Path,
    node_id: u16,
    interval: Duration,
    network: &Network,
) -> anyhow::Result<Membership> {
    let address = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let facts = Facts {
        name: format!("n{node_id}"),
        zone: format!("zone-{}", node_id % 3),
        region: "region".to_owned(),
        grpc: Some(address(node_id)),
        http: Some(address(node_id)),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Facts::default()
    };
    let config = Config {
        cluster: "speed".to_owned(),
        node_id,
        facts,
        seeds: vec![address(1).to_string()],
        interval: Some(interval),
        phi_threshold: 5.0,
        generation_file: folder.join(node_id.to_string()),
    };
    let member = Membership::start(config, Transport::Memory(network.clone(), address(node_id))).await?;
    member.set_state(State::Ready);
    Ok(member)
}

/// Waits until everybody's view is as told.
async fn everyone(members: &[Membership], told: impl Fn(&View) -> bool) -> anyhow::Result<()> {
    let waiting = async {
        for member in members {
            member.view().wait_for(|view| told(view)).await.context("the membership ended")?;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .context("no answer: one core for itself is too little, or the machine is busy")?
}
