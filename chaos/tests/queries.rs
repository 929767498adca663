//! Queries when the engine hangs, when there are too many, when their client goes; and the engine when its node is killed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use metaflow_cluster_tests::{process::Node, wait_for};
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
fn ask(node: &Node) -> tokio::task::JoinHandle<Result<u16>> {
    let url = format!("{}/v1/query/", node.http_url());
    tokio::spawn(async move {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let answer = client.post(url).form(&[("db", "flow_log"), ("sql", SQL)]).send().await?;
        Ok(answer.status().as_u16())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_too_many_is_refused_and_a_client_that_goes_frees_its_place() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut node = Node::start_with(folder.path(), "[query]\nrunning_max = 1\nwaiting_max = 0").await?;
    ensure!(ask(&node).await?? == 200, "a first query");
    node.signal_engine(Signal::STOP)?;
    let gone = ask(&node);
    running(&node, 1.0).await?;
    let (status, answer) = node.ask("flow_log", SQL).await?;
    let reason = answer["DESCRIPTION"].as_str().unwrap_or_default();
    ensure!(status == 503 && reason.contains("too many queries: 1 run and 0 wait"), "{status} {answer}");
    ensure!(node.metric("metaflow_queries_total{outcome=\"Busy\"}").await? == 1.0, "it is counted");

    gone.abort();
    running(&node, 0.0).await?;
    let waits = ask(&node);
    running(&node, 1.0).await?;
    node.signal_engine(Signal::CONT)?;
    ensure!(waits.await?? == 200, "the place of the one that went is taken, and answered");
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
