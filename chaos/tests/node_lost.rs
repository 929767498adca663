//! Two nodes, one store: kill -9 of the node that an agent is with, again and again. The agent goes to the other one and sends again what
//! it does not know to be stored, while the killed node comes back with the same batches in its log.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use metaflow_chaos::{Schedule, check_ledger, now_seconds, stored_batches};
use metaflow_cluster_tests::{
    cluster,
    ledger::LedgerAgent,
    process::{Node, free_port, number},
    server::StoreServer,
    wait_for,
};

const PATIENCE: Duration = Duration::from_secs(60);
const KILLS: u32 = 6;
const BATCHES: u32 = 1_200;
const ROWS_A_BATCH: u32 = 100;

async fn wait_for_two_members(node: &Node) -> Result<()> {
    wait_for("the nodes to see each other", PATIENCE, async || {
        let url = format!("{}/v1/cluster/members", node.http_url());
        let text = reqwest::get(url).await?.text().await?;
        ensure!(text.matches("\"state\":\"ready\"").count() == 2, "{text}");
        anyhow::Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_die_in_turn_cost_no_row_and_double_none() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = StoreServer::configure(&folder.path().join("server"))?;
    server.start().await?;
    let gossip = [free_port(), free_port()];
    let mut nodes = Vec::new();
    for (index, port) in gossip.iter().enumerate() {
        let table = cluster::table(folder.path(), *port, &gossip)?;
        let configuration = format!("{}\n{table}", server.node_configuration());
        let name = format!("node-{index}");
        let mut node =
            Node::configure_member(&folder.path().join(name), u16::try_from(index + 1)?, &configuration)?;
        node.restart().await?;
        nodes.push(node);
    }
    wait_for_two_members(&nodes[0]).await?;

    let urls: Vec<String> = nodes.iter().map(Node::grpc_url).collect();
    let at = Arc::new(AtomicUsize::new(0));
    let mut agent = LedgerAgent::new("ledger", 3, BATCHES, ROWS_A_BATCH, now_seconds());
    let seen = Arc::clone(&at);
    let sending = tokio::spawn(async move {
        let result = agent.run(|| urls[seen.load(Ordering::Relaxed)].clone(), PATIENCE * 3).await;
        (agent, result)
    });
    let mut schedule = Schedule::new(11);
    for kill in 1..=KILLS {
        let (victim, other) = if at.load(Ordering::Relaxed) == 0 { (0, 1) } else { (1, 0) };
        // Spread over the batches, with some left for after the last kill.
        let share = f64::from(BATCHES * ROWS_A_BATCH * kill / (KILLS + 1));
        wait_for("a share of the rows to be stored", PATIENCE, async || {
            let stored = nodes[other].sql("flow_log", "SELECT Count(row) FROM l7_flow_log").await?;
            let rows = number(stored.first().and_then(|row| row.first())).unwrap_or(0.0);
            ensure!(rows >= share, "{rows} of {share} rows are");
            anyhow::Ok(())
        })
        .await?;
        tokio::time::sleep(Duration::from_millis(schedule.between(0..200))).await;
        at.store(other, Ordering::Relaxed);
        nodes[victim].kill().await?;
        ensure!(!sending.is_finished(), "kill {kill} came too late");
        nodes[victim].restart().await?;
    }
    let (agent, result) = sending.await?;
    result?;
    ensure!(agent.breaks >= KILLS, "the agent noticed {} of {KILLS} kills", agent.breaks);
    // What the killed nodes still had in their logs is looked up, or stored, before they end.
    for node in &mut nodes[1..] {
        node.terminate().await?;
    }
    wait_for("the logs to be empty", PATIENCE, async || {
        let left = nodes[0].metric("metaflow_wal_batches").await?;
        ensure!(left == 0.0, "{left} batches are in the log");
        anyhow::Ok(())
    })
    .await?;
    let stored = stored_batches(&nodes[0], "flow_log", "l7_flow_log", "ledger").await?;
    ensure!(stored.len() == BATCHES as usize, "{} batches are stored", stored.len());
    check_ledger(&agent, &stored, u64::from(ROWS_A_BATCH))?;
    let names =
        nodes[0].sql("flow_log", "SELECT request_domain FROM l7_flow_log GROUP BY request_domain").await?;
    ensure!(names.len() == 20, "names of both nodes are one name each: {names:?}");
    nodes[0].terminate().await
}
