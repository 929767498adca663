//! The store as a server of its own: it may come later than the node, and go at any moment, even between an insert and its answer.

use std::time::Duration;

use anyhow::{Result, ensure};
use metaflow_chaos::{check_ledger, now_seconds, stored_batches};
use metaflow_cluster_tests::{
    ledger::LedgerAgent,
    process::Node,
    proxy::{Hold, Proxy},
    server::StoreServer,
    wait_for,
};

const PATIENCE: Duration = Duration::from_secs(60);
const KILLS: u32 = 3;
const BATCHES: u32 = 1_200;
const ROWS_A_BATCH: u32 = 200;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_late_and_is_killed_costs_no_row_and_doubles_none() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = StoreServer::configure(&folder.path().join("server"))?;
    let proxy = Proxy::start(&server.address(), "l7_flow_log").await?;
    let mut node =
        Node::configure(&folder.path().join("node"), &server.node_configuration_through(proxy.url()))?;
    node.spawn()?;
    wait_for("the node to say what it waits for", PATIENCE, async || {
        let (status, text) = node.health().await?;
        ensure!(status == 503 && text.contains("the store does not answer"), "{status} {text}");
        let (status, answer) = node.ask("flow_log", "SELECT Count(row) FROM l7_flow_log").await?;
        ensure!(status == 503 && answer["DESCRIPTION"] == "the node is starting", "{status} {answer}");
        Ok(())
    })
    .await?;
    server.start().await?;
    node.ready().await?;

    let url = node.grpc_url();
    let mut agent = LedgerAgent::new("ledger", 3, BATCHES, ROWS_A_BATCH, now_seconds());
    let sending = tokio::spawn(async move {
        let result = agent.run(|| url.clone(), PATIENCE * 3).await;
        (agent, result)
    });
    for kill in 1..=KILLS {
        // Spread over the batches: the last kill comes while the agent still has a quarter to send.
        let share = f64::from(BATCHES * kill / (KILLS + 1));
        wait_for("a share of the rows to be stored", PATIENCE, async || {
            let committed = node.metric("metaflow_ingest_batches_committed_total").await?;
            ensure!(committed >= share, "{committed} of {share} batches are");
            Ok(())
        })
        .await?;
        proxy.hold(Hold::Answer, PATIENCE).await?;
        server.kill().await?;
        proxy.release();
        ensure!(!sending.is_finished(), "kill {kill} came too late");
        let (status, answer) = node.ask("flow_log", "SELECT Count(row) FROM l7_flow_log").await?;
        let reason = answer["DESCRIPTION"].as_str().unwrap_or_default();
        ensure!(status == 503 && reason.contains("the store cannot be reached"), "{status} {answer}");
        let (status, text) = node.health().await?;
        ensure!(status == 503 && text.contains("the store does not answer"), "{status} {text}");
        // What needs no store is answered all the same.
        ensure!(node.ask("flow_log", "SHOW TABLES").await?.0 == 200, "SHOW TABLES");
        server.start().await?;
    }
    let (agent, result) = sending.await?;
    result?;
    let stored = stored_batches(&node, "flow_log", "l7_flow_log", "ledger").await?;
    ensure!(stored.len() == BATCHES as usize, "{} batches are stored", stored.len());
    check_ledger(&agent, &stored, u64::from(ROWS_A_BATCH))?;
    let rows = node.sql("flow_log", "SELECT request_domain FROM l7_flow_log GROUP BY request_domain").await?;
    ensure!(rows.len() == 20, "names come out of the server's dictionary: {rows:?}");
    node.terminate().await
}
