//! Two nodes, one store: a node is stopped in the middle of an insert, its agent goes to the other one with the same batches, and the node
//! goes on as if nothing had happened.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use metaflow_chaos::{check_ledger, now_seconds, stored_batches};
use metaflow_cluster_tests::{
    cluster,
    ledger::LedgerAgent,
    process::{Node, free_port},
    proxy::{Hold, Proxy},
    server::StoreServer,
    wait_for,
};
use rustix::process::{Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(60);
const BATCHES: u32 = 60;
/// So few that the node is not stopped for longer than its insert may take: the store gives up who sends nothing for 30 s.
const OPEN_MAX: usize = 24;
/// So many that an insert is large enough to be held in its middle.
const ROWS_A_BATCH: u32 = 1_000;

async fn log_is_empty(node: &Node) -> Result<()> {
    wait_for("the log to be empty", PATIENCE, async || {
        let left = node.metric("metaflow_wal_batches").await?;
        ensure!(left == 0.0, "{left} batches are in the log");
        Ok(())
    })
    .await
}

/// How long the store works at an insert of the first node: longer than an agent waits, and longer than a claim waits until it ends it.
const SLOW_SECONDS: u32 = 12;

/// Makes inserts of the first node slow: the store works at each, after it looked for claims.
async fn slow_down(server: &StoreServer) -> Result<()> {
    let is_slow = format!("if(startsWith(queryID(), 'metaflow-1-'), sleep({SLOW_SECONDS}) = 0, 1)");
    server.sql(format!("ALTER TABLE flow_log.l7_flow_log ADD CONSTRAINT slow CHECK {is_slow}")).await?;
    Ok(())
}

/// Waits until the store works at an insert of the first node.
async fn has_begun(server: &StoreServer) -> Result<()> {
    wait_for("the store to begin with an insert", PATIENCE, async || {
        let inserts =
            "SELECT query_id FROM system.processes WHERE query_kind = 'Insert' AND query LIKE '%l7_flow_log%'";
        let running = server.sql(inserts).await?;
        ensure!(running.iter().any(|query_id| query_id.starts_with("metaflow-1-")), "{running:?} run");
        anyhow::Ok(())
    })
    .await?;
    // Of the inserts to come none is slow; this one goes on as it began.
    server.sql("ALTER TABLE flow_log.l7_flow_log DROP CONSTRAINT slow").await?;
    Ok(())
}

/// Stops the first node in an insert until the other one has stored everything, and checks what the store has in the end.
async fn pause(
    nodes: &[Node; 2],
    proxy: &Proxy,
    name: &str,
    moment: impl Future<Output = Result<()>>,
) -> Result<()> {
    let urls = nodes.each_ref().map(Node::grpc_url);
    let at = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&at);
    let mut agent = LedgerAgent::new(name, 3, BATCHES, ROWS_A_BATCH, now_seconds());
    agent.answer_within = Duration::from_secs(3);
    agent.open_max = OPEN_MAX;
    let sending = tokio::spawn(async move {
        let result = agent.run(|| urls[seen.load(Ordering::Relaxed)].clone(), PATIENCE).await;
        (agent, result)
    });
    moment.await?;
    let stopped = nodes[0].pid().context("the node runs")?;
    kill_process(stopped, Signal::STOP)?;
    at.store(1, Ordering::Relaxed);
    let sent = sending.await;
    kill_process(stopped, Signal::CONT)?;
    proxy.release();
    let (agent, result) = sent?;
    result?;
    ensure!(agent.breaks >= 1, "the agent never left the stopped node");
    log_is_empty(&nodes[0]).await?;
    let stored = stored_batches(&nodes[1], "flow_log", "l7_flow_log", name).await?;
    ensure!(stored.len() == BATCHES as usize, "{} batches are stored", stored.len());
    check_ledger(&agent, &stored, u64::from(ROWS_A_BATCH))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_stopped_in_an_insert_and_goes_on_later_doubles_no_row() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = StoreServer::configure(&folder.path().join("server"))?;
    server.start().await?;
    let proxy = Proxy::start(&server.address(), "l7_flow_log").await?;
    let gossip = [free_port(), free_port()];
    let configure = |index: usize, url: &str| {
        let table = cluster::table(folder.path(), gossip[index], &gossip)?;
        let configuration = format!("{}\n{table}", server.node_configuration_through(url));
        let id = u16::try_from(index + 1)?;
        Node::configure_member(&folder.path().join(format!("node-{index}")), id, &configuration)
    };
    let mut nodes = [configure(0, proxy.url())?, configure(1, &format!("http://{}", server.address()))?];
    for node in &mut nodes {
        node.restart().await?;
    }
    pause(&nodes, &proxy, "unsent", proxy.hold(Hold::All, PATIENCE)).await?;
    pause(&nodes, &proxy, "half", proxy.hold(Hold::Rest, PATIENCE)).await?;
    slow_down(&server).await?;
    pause(&nodes, &proxy, "begun", has_begun(&server)).await?;
    for node in &mut nodes {
        node.terminate().await?;
    }
    Ok(())
}
