//! Queries when the engine hangs, when there are too many, when their client goes; and the engine when its node is killed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use metaflow_cluster_tests::{process::Node, server::StoreServer, wait_for};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(30);
const SQL: &str = "SELECT Count(row) FROM l7_flow_log";

async fn running(node: &Node, expected: f64) -> Result<()> {
    wait_for("the number of running queries", PATIENCE, async || {
        let running = node.metric("metaflow_queries_running").await?;
        ensure!(running == expected, "{running} run, {expected} are expected");
        Ok(())
    })
    .await
}

/// A client of its own, so that ending it closes its connection.
fn ask(node: &Node, sql: &'static str) -> tokio::task::JoinHandle<Result<u16>> {
    let url = format!("{}/v1/query/", node.http_url());
    tokio::spawn(async move {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let answer = client.post(url).form(&[("db", "flow_log"), ("sql", sql)]).send().await?;
        Ok(answer.status().as_u16())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_too_many_is_refused_and_a_client_that_goes_frees_its_place() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut node = Node::start_with(folder.path(), "[query]\nrunning_max = 1\nwaiting_max = 0").await?;
    ensure!(ask(&node, SQL).await?? == 200, "a first query");
    node.signal_engine(Signal::STOP)?;
    let gone = ask(&node, SQL);
    running(&node, 1.0).await?;
    let (status, answer) = node.ask("flow_log", SQL).await?;
    let reason = answer["DESCRIPTION"].as_str().unwrap_or_default();
    ensure!(status == 503 && reason.contains("too many queries: 1 run and 0 wait"), "{status} {answer}");
    ensure!(node.metric("metaflow_queries_total{outcome=\"Busy\"}").await? == 1.0, "it is counted");

    gone.abort();
    running(&node, 0.0).await?;
    let waits = ask(&node, SQL);
    running(&node, 1.0).await?;
    node.signal_engine(Signal::CONT)?;
    ensure!(waits.await?? == 200, "the place of the one that went is taken, and answered");
    node.terminate().await
}

/// Who goes away leaves nothing behind: the store works no more for an answer that nobody reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_ends_in_the_store_when_its_client_goes() -> Result<()> {
    // A block of rows takes 2 s to read, and there are forty: much longer than a query may take to end.
    const INSERTS: u32 = 40;
    const ROWS: u32 = 50_000;
    const SECONDS_A_ROW: f64 = 0.000_04;
    const ENDS_WITHIN: Duration = Duration::from_secs(15);
    let folder = tempfile::tempdir()?;
    let mut server = StoreServer::configure(&folder.path().join("server"))?;
    server.start().await?;
    let configuration = format!("{}\n[query]\ntimeout = \"10min\"", server.node_configuration());
    let mut node = Node::start_with(folder.path(), &configuration).await?;
    for _ in 0..INSERTS {
        server
            .sql(format!("INSERT INTO flow_log.l7_flow_log (time) SELECT now() FROM numbers({ROWS})"))
            .await?;
    }
    let slow = format!("request_length UInt64 ALIAS toUInt64(sleepEachRow({SECONDS_A_ROW}))");
    for change in ["DROP COLUMN request_length".to_owned(), format!("ADD COLUMN {slow}")] {
        server.sql(format!("ALTER TABLE flow_log.l7_flow_log {change}")).await?;
    }

    let asking = ask(&node, "SELECT Max(request_length) FROM l7_flow_log");
    let running = async || {
        server.sql("SELECT query_id FROM system.processes WHERE query LIKE '%l7_flow_log%' AND query NOT LIKE '%processes%'").await
    };
    wait_for("the store to work", PATIENCE, async || {
        ensure!(!running().await?.is_empty() && !asking.is_finished(), "no query runs");
        Ok(())
    })
    .await?;
    asking.abort();
    wait_for("the store to be done with it", ENDS_WITHIN, async || {
        let running = running().await?;
        ensure!(running.is_empty(), "{running:?} run");
        Ok(())
    })
    .await?;
    node.terminate().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_does_not_outlive_its_killed_node() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut node = Node::start(folder.path()).await?;
    let engine = node.engine().context("the node has an engine")?.as_raw_nonzero();
    node.kill().await?;
    wait_for("the engine to end", PATIENCE, async || {
        // Who has ended may wait for a process that reaps it.
        let stat = std::fs::read_to_string(format!("/proc/{engine}/stat")).unwrap_or_default();
        let is_gone = stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
        ensure!(is_gone, "{stat}");
        Ok(())
    })
    .await
}
