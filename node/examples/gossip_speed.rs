//! How fast a cluster forms, how fast a death is noticed by everybody, and what gossip costs, for several sizes.
//!
//! All nodes run in this process, on a network in memory: what is measured is the protocol at its intervals, not the machine's
//! sockets. 200 nodes together need more than two cores, so their time is stretched: every interval is as many times longer, and what
//! was measured is divided by it. A death is noticed by the slowest of all survivors. `mistakes` are members that were taken for dead while they lived.
#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use metaflow_node::membership::{Config, Facts, Membership, Network, State, Transport, View};

struct Size {
    nodes: u16,
    /// Milliseconds between two rounds.
    interval_ms: u32,
    /// The mark for a death, in seconds.
    mark: f64,
    /// How many times longer than real everything takes.
    stretch: u32,
    /// Deaths, one after the other.
    deaths: usize,
}

const SIZES: [Size; 4] = [
    Size { nodes: 3, interval_ms: 200, mark: 1.1, stretch: 1, deaths: 2 },
    Size { nodes: 5, interval_ms: 200, mark: 1.1, stretch: 1, deaths: 3 },
    Size { nodes: 50, interval_ms: 200, mark: 1.7, stretch: 1, deaths: 5 },
    Size { nodes: 200, interval_ms: 500, mark: 3.0, stretch: 8, deaths: 2 },
];
/// Rounds in which nothing happens, to measure what rest costs.
const REST_ROUNDS: u32 = 10;
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    println!(
        "nodes  interval  formed   bytes/s a node  datagrams/s a node  mistakes: forming, later  death noticed by all (mark)"
    );
    // A number as argument: only the cluster of that size.
    let only: Option<u16> = std::env::args().nth(1).map(|size| size.parse()).transpose()?;
    for size in SIZES.into_iter().filter(|size| only.is_none_or(|only| only == size.nodes)) {
        let folder = tempfile::tempdir()?;
        let nodes = size.nodes;
        if let Err(error) = measure(folder.path(), size).await {
            println!("{nodes:>5}  {error:#}");
        }
    }
    Ok(())
}

async fn measure(folder: &Path, size: Size) -> anyhow::Result<()> {
    let Size { nodes, interval_ms, mark, stretch, deaths } = size;
    let interval = Duration::from_millis(interval_ms.into()) * stretch;
    let since = |began: Instant| began.elapsed().as_secs_f64() / f64::from(stretch);
    let network = Network::default();
    let began = Instant::now();
    let mut members = Vec::new();
    for node_id in 1..=nodes {
        members.push(start(folder, node_id, interval, &network).await?);
    }
    everyone(&members, |view| view.live().count() == usize::from(nodes)).await.context("while it formed")?;
    let formed = since(began);

    let mistakes_before: u32 = members.iter().map(|member| flaps(&member.view().borrow())).sum();
    let (bytes, datagrams) = network.sent();
    let rested = Instant::now();
    tokio::time::sleep(interval * REST_ROUNDS).await;
    let (bytes_after, datagrams_after) = network.sent();
    let rate = |before: u64, after: u64| (after - before) as f64 / since(rested) / f64::from(nodes);
    let (bytes, datagrams) = (rate(bytes, bytes_after), rate(datagrams, datagrams_after));

    let mut noticed = Vec::new();
    for _ in 0..deaths.min(members.len() - 1) {
        drop(members.pop());
        let died = Instant::now();
        let left = members.len();
        everyone(&members, |view| view.live().count() == left).await.context("after a death")?;
        noticed.push(format!("{:.1}", since(died)));
    }
    // Each death counts once with each survivor.
    let right: usize = (0..noticed.len()).map(|_| members.len()).sum();
    let mistakes: u32 = members.iter().map(|member| flaps(&member.view().borrow())).sum();
    let mistakes = (mistakes as usize).saturating_sub(right);
    println!(
        "{nodes:>5}  {interval_ms:>5} ms  {formed:>4.1} s  {bytes:>15.0}  {datagrams:>18.0}  {mistakes_before:>17}, {mistakes:<5}  {} s ({mark:.1} s)",
        noticed.join(", "),
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
