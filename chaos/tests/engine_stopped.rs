//! The store stands still for a minute under load: memory stays bounded, nothing is lost, the node catches up.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use metaflow_chaos::{check_ledger, stored_batches};
use metaflow_cluster_tests::{ledger::LedgerAgent, process::Node};
use rustix::process::Signal;
use tokio::time::Instant;

const STOPPED: Duration = Duration::from_secs(60);
const BUDGET: u64 = 64 << 20;
/// Beside the budget for row data: three memtables of the write-ahead log (64 MiB each), its block cache, and columns being encoded.
const BESIDE_BUDGET: u64 = 320 << 20;
const ROWS_A_BATCH: u32 = 2_000;

#[expect(clippy::disallowed_methods, reason = "rows must be younger than the table's TTL")]
fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970").as_secs()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minute_without_the_store_costs_no_row_and_no_memory() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut node = Node::start_with(folder.path(), "[memory]\nbudget = \"64MiB\"").await?;
    let url = node.grpc_url();
    let mut agent = LedgerAgent::new("ledger", 9, 1_500, ROWS_A_BATCH, now_seconds());
    let sending = tokio::spawn(async move {
        let result = agent.run(|| url.clone(), Duration::from_secs(400)).await;
        (agent, result)
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = node.resident_bytes()?;
    node.signal_engine(Signal::STOP)?;
    let end = Instant::now() + STOPPED;
    let mut most = 0;
    while Instant::now() < end {
        most = most.max(node.resident_bytes()?);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    node.signal_engine(Signal::CONT)?;
    ensure!(
        most <= before + BUDGET + BESIDE_BUDGET,
        "the node grew from {before} to {most} bytes with a budget of {BUDGET}"
    );
    let (agent, result) = sending.await?;
    result?;
    let stored = stored_batches(&node, "flow_log", "l7_flow_log", "ledger").await?;
    ensure!(stored.len() == 1_500, "{} batches are stored", stored.len());
    check_ledger(&agent, &stored, u64::from(ROWS_A_BATCH))?;
    node.terminate().await
}
