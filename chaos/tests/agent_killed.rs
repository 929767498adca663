//! kill -9 of the agent, while it spools and while it sends: what was spooled is stored, once.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use metaflow_agent::spool::{Config, Spool};
use metaflow_chaos::{Schedule, stored_batches};
use metaflow_cluster_tests::{
    corpus,
    process::{Node, Replay},
};
use metaflow_schema::TABLES;

const KILLS: u32 = 5;

/// Batches that wait in a copy of the spool, as table and rows.
fn spooled(data: &Path, copy: &Path) -> Result<BTreeMap<u64, u32>> {
    let status = std::process::Command::new("cp").arg("-r").arg(data).arg(copy).status()?;
    ensure!(status.success(), "failed to copy {}", data.display());
    let (mut spool, _) = Spool::open(Config::new(copy.to_owned(), 1 << 30), u32::MAX)?;
    let mut batches = BTreeMap::new();
    let mut after = None;
    while let Some((seq, _)) = spool.next_after(after) {
        after = Some(seq);
        let batch = spool.read(seq)?.with_context(|| format!("batch {seq:#x} cannot be read"))?;
        batches.insert(seq, batch.rows);
    }
    Ok(batches)
}

fn replay<'a>(folder: &'a Path, server: &str, capture: &str, times: &str) -> Replay<'a> {
    Replay {
        folder,
        server: server.to_owned(),
        machine_id: "killed",
        captures: vec![corpus().join("packets").join(capture)],
        more_arguments: ["--at", "now", "--loop", times].map(String::from).to_vec(),
    }
}

async fn kill_after(agent: &Replay<'_>, milliseconds: u64) -> Result<()> {
    let mut child = agent.spawn()?;
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    child.kill().await.context("failed to kill the agent")
}

/// Rows of every batch that the store holds, over all tables.
async fn stored(node: &Node) -> Result<BTreeMap<u64, u64>> {
    let mut all = BTreeMap::new();
    for table in TABLES.iter().filter(|table| table.database != "flow_tag") {
        for (seq, rows) in stored_batches(node, table.database, table.name, "killed").await? {
            ensure!(all.insert(seq, rows).is_none(), "batch {seq:#x} is in two tables");
        }
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_spooled_survives_kills_of_the_agent_exactly_once_with_the_corpus() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut node = Node::start(&folder.path().join("node")).await?;
    let server = node.grpc_address();
    // The agent learns its number, then the node goes and the agent can only spool.
    let agent_folder: PathBuf = folder.path().join("agent");
    replay(&agent_folder, &server, "redis/redis.pcap", "1").run(Duration::from_secs(60)).await?;
    node.terminate().await?;
    let mut schedule = Schedule::new(5);
    let busy = replay(&agent_folder, &server, "mysql/171-mysql.pcap", "100000");
    for _ in 0..KILLS {
        kill_after(&busy, schedule.between(300..1_500)).await?;
    }
    let waiting = spooled(&agent_folder.join("data"), &folder.path().join("copy"))?;
    ensure!(waiting.len() > 20, "only {} batches were spooled: the kills came too early", waiting.len());

    node.restart().await?;
    let short = replay(&agent_folder, &server, "redis/redis.pcap", "1");
    for _ in 0..KILLS {
        kill_after(&short, schedule.between(50..700)).await?;
    }
    short.run(Duration::from_secs(120)).await?;

    let stored = stored(&node).await?;
    for (seq, rows) in &waiting {
        let found = stored.get(seq).copied().unwrap_or(0);
        ensure!(
            found == u64::from(*rows),
            "batch {seq:#x} was spooled with {rows} rows; the store has {found}"
        );
    }
    node.terminate().await
}
