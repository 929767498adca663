//! kill -9 of the node, again and again, under load: what was acknowledged is stored, once.

use std::time::Duration;

use anyhow::{Result, ensure};
use metaflow_chaos::{Schedule, check_ledger, now_seconds, stored_batches};
use metaflow_cluster_tests::{
    ledger::LedgerAgent,
    process::Node,
    proxy::{Hold, Proxy},
    server::StoreServer,
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Of each of the two tests: twenty in all.
const KILLS: u32 = 10;
const ROWS_A_BATCH: u32 = 200;
const BATCHES: u32 = 3_000;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_ten_kills_of_the_node_exactly_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut node = Node::start(folder.path()).await?;
    let url = node.grpc_url();
    // More batches than the kills leave time for: the agent is still sending when the last kill comes.
    let mut agent = LedgerAgent::new("ledger", 7, BATCHES, ROWS_A_BATCH, now_seconds());
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
    ensure!(stored.len() == BATCHES as usize, "{} batches are stored", stored.len());
    check_ledger(&agent, &stored, u64::from(ROWS_A_BATCH))?;
    node.terminate().await
}

/// The worst moment: the store has the rows, and the node dies before it knows. Its log has them still.
#[tokio::test(flavor = "multi_thread")]
async fn ten_kills_between_an_insert_and_its_note_in_the_log_double_no_row() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = StoreServer::configure(&folder.path().join("server"))?;
    server.start().await?;
    let proxy = Proxy::start(&server.address(), "l7_flow_log").await?;
    let mut node =
        Node::configure(&folder.path().join("node"), &server.node_configuration_through(proxy.url()))?;
    node.restart().await?;
    let url = node.grpc_url();
    let mut agent = LedgerAgent::new("ledger", 7, 1_000_000, ROWS_A_BATCH, now_seconds());
    let killing = async {
        for _ in 0..KILLS {
            proxy.hold(Hold::Answer, PATIENCE).await?;
            node.kill().await?;
            proxy.release();
            node.restart().await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        ended = agent.run(|| url.clone(), PATIENCE * 4) => ended?,
        killed = killing => killed?,
    }
    agent.send_no_more_than(0);
    agent.run(|| url.clone(), PATIENCE).await?;
    ensure!(agent.breaks >= KILLS, "the agent noticed {} of {KILLS} kills", agent.breaks);
    let stored = stored_batches(&node, "flow_log", "l7_flow_log", "ledger").await?;
    ensure!(stored.len() == agent.committed.len(), "{} batches are stored", stored.len());
    check_ledger(&agent, &stored, u64::from(ROWS_A_BATCH))?;
    node.terminate().await
}
