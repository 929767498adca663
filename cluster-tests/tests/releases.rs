//! A node of this release on the data of each release before: nothing is lost, nothing loses its name.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use metaflow_cluster_tests::{
    fixture::{self, BATCHES, MACHINE_ID, ROWS_A_BATCH},
    ledger::LedgerAgent,
    process::Node,
    wait_for,
};

#[tokio::test]
async fn what_earlier_releases_left_behind_is_stored_and_named() -> Result<()> {
    for archive in fixture::all()? {
        check(&archive).await.with_context(|| format!("with the fixture {}", archive.display()))?;
    }
    Ok(())
}

async fn check(archive: &std::path::Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    fixture::unpack(archive, &folder.path().join("data"))?;
    let mut node = Node::start(folder.path()).await?;
    let rows = f64::from(BATCHES * ROWS_A_BATCH);
    wait_for("the log to be stored", Duration::from_secs(60), async || {
        let waiting = node.metric("metaflow_wal_batches").await?;
        ensure!(waiting == 0.0, "{waiting} batches wait");
        Ok(())
    })
    .await?;
    ensure!(node.metric("metaflow_wal_damaged_total").await? == 0.0, "entries of the log cannot be read");
    let stored = node.number("flow_log", "SELECT Count(row) FROM l7_flow_log").await?;
    ensure!(stored == rows, "{stored} of {rows} rows are stored");
    let sql = "SELECT request_domain, endpoint FROM l7_flow_log GROUP BY request_domain, endpoint LIMIT 1000";
    let names = node.sql("flow_log", sql).await?;
    ensure!(names.len() > 20, "only {} names were seen", names.len());
    for row in names {
        let is_named = |at: usize, part: &str| row[at].as_str().is_some_and(|name| name.contains(part));
        ensure!(is_named(0, ".shop.example") && is_named(1, "/api/v1/resource-"), "{row:?}");
    }
    // The agent is who it was, and its batches are known.
    let mut agent = LedgerAgent::new(MACHINE_ID, 1, BATCHES, ROWS_A_BATCH, fixture::SECOND);
    agent.run(|| node.grpc_url(), Duration::from_secs(30)).await?;
    let known = node.metric("metaflow_ingest_batches_known_total").await?;
    ensure!(known == f64::from(BATCHES), "{known} batches are known from before");
    let stored = node.number("flow_log", "SELECT Count(row) FROM l7_flow_log").await?;
    ensure!(stored == rows, "{stored} rows after they were sent again");
    node.terminate().await
}
