//! kill -9 of the node, again and again, under load: what was acknowledged is stored, once.

use std::time::Duration;

use anyhow::{Result, ensure};
use metaflow_chaos::{Schedule, check_ledger, now_seconds, stored_batches};
use metaflow_cluster_tests::{ledger::LedgerAgent, process::Node};

const KILLS: u32 = 20;
const ROWS_A_BATCH: u32 = 200;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_twenty_kills_of_the_node_exactly_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut node = Node::start(folder.path()).await?;
    let url = node.grpc_url();
    // More batches than the kills leave time for: the agent is still sending when the last kill comes.
    let mut agent = LedgerAgent::new("ledger", 7, 6_000, ROWS_A_BATCH, now_seconds());
    let sending = tokio::spawn(async move {
        let result = agent.run(|| url.clone(), Duration::from_secs(400)).await;
        (agent, result)
    });
    let mut schedule = Schedule::new(20);
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(schedule.between(20..900))).await;
        node.kill().await?;
        node.restart().await?;
    }
    let (agent, result) = sending.await?;
    result?;
    ensure!(agent.breaks > 0, "no stream broke: the kills came too late");
    let stored = stored_batches(&node, "flow_log", "l7_flow_log", "ledger").await?;
    ensure!(stored.len() == 6_000, "{} batches are stored", stored.len());
    check_ledger(&agent, &stored, u64::from(ROWS_A_BATCH))?;
    node.terminate().await
}
