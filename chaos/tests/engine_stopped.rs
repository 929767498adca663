//! The store stands still for a minute under load: the node goes on accepting into its log, memory stays within the budget, nothing is
//! lost, the node catches up.

use std::time::Duration;

use anyhow::{Result, ensure};
use metaflow_chaos::{check_ledger, now_seconds, stored_batches};
use metaflow_cluster_tests::{ledger::LedgerAgent, process::Node, wait_for};
use rustix::process::Signal;
use tokio::time::Instant;

const STOPPED: Duration = Duration::from_secs(60);
/// What the whole process may use, from its start to its end.
const BUDGET: u64 = 192 << 20;
const BATCHES: u32 = 1_200;
const ROWS_A_BATCH: u32 = 2_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_minute_without_the_store_costs_no_row_and_stays_within_the_memory_budget() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut node =
        Node::start_with(folder.path(), &format!("[memory]\nbudget = \"{}MiB\"", BUDGET >> 20)).await?;
    let url = node.grpc_url();
    let mut agent = LedgerAgent::new("ledger", 9, BATCHES, ROWS_A_BATCH, now_seconds());
    // As a spool: it sends on as long as batches are received.
    agent.open_max = BATCHES as usize;
    let sending = tokio::spawn(async move {
        let result = agent.run(|| url.clone(), Duration::from_secs(400)).await;
        (agent, result)
    });
    wait_for("the first rows to be stored", Duration::from_secs(60), async || {
        let committed = node.metric("metaflow_ingest_batches_committed_total").await?;
        ensure!(committed > 0.0, "none is");
        Ok(())
    })
    .await?;
    node.signal_engine(Signal::STOP)?;
    let end = Instant::now() + STOPPED;
    let allowed = node.metric("metaflow_memory_budget_bytes").await?;
    let mut most_rows = 0_f64;
    while Instant::now() < end {
        most_rows = most_rows.max(node.metric("metaflow_memory_used_bytes").await?);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let credit = node.metric("metaflow_ingest_credit_bytes").await?;
    let logged = node.metric("metaflow_wal_batches").await?;
    let committed = node.metric("metaflow_ingest_batches_committed_total").await?;
    let on_disk = node.metric("metaflow_wal_batches_on_disk").await?;
    node.signal_engine(Signal::CONT)?;
    ensure!(
        logged + committed == f64::from(BATCHES) && credit > 0.0,
        "the node stopped accepting: {committed} batches are stored, {logged} are in the log, credit {credit}"
    );
    ensure!(on_disk > logged / 2.0, "{on_disk} of {logged} batches left memory: too few for this test");
    ensure!(allowed > 0.0 && allowed < BUDGET as f64, "the rows' share is {allowed} of {BUDGET} bytes");
    ensure!(most_rows <= allowed, "rows took {most_rows} bytes, their share is {allowed}");
    ensure!(most_rows > allowed / 2.0, "there was no pressure: {most_rows} bytes of {allowed}");

    let (agent, result) = sending.await?;
    result?;
    let stored = stored_batches(&node, "flow_log", "l7_flow_log", "ledger").await?;
    ensure!(stored.len() == BATCHES as usize, "{} batches are stored", stored.len());
    check_ledger(&agent, &stored, u64::from(ROWS_A_BATCH))?;
    // The kernel remembers the peak: the minute, the catching up, the query.
    let peak = node.peak_bytes()?;
    eprintln!("peak: {} MiB of {} MiB", peak >> 20, BUDGET >> 20);
    ensure!(peak <= BUDGET, "the process took {peak} bytes with a budget of {BUDGET}");
    node.terminate().await
}
