//! Nodes with a store each: any of them answers for all, and says whose rows are missing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use metaflow_cluster_tests::{
    cluster,
    ledger::LedgerAgent,
    process::{Node, free_port, number},
    wait_for,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const ROWS_A_BATCH: u32 = 50;
const BATCHES: [u32; 2] = [4, 6];

/// All rows, and the rows of one name, by the names of the callees' domains.
const BY_NAME: &str =
    "SELECT request_domain, Count(row) AS n FROM l7_flow_log GROUP BY request_domain ORDER BY request_domain";
const ONE_NAME: &str = "SELECT Count(row) FROM l7_flow_log WHERE request_domain = 'service-1'";

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs())
}

fn rows_of(counts: &[Vec<Value>]) -> f64 {
    counts.iter().filter_map(|row| number(row.get(1))).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_answers_for_the_stores_of_all_and_names_the_missing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let gossip = [free_port(), free_port()];
    let mut nodes = Vec::new();
    for (index, port) in gossip.iter().enumerate() {
        let configuration = cluster::table(folder.path(), *port, &gossip)?;
        let node_id = u16::try_from(index + 1)?;
        let mut node =
            Node::configure_member(&folder.path().join(format!("n{node_id}")), node_id, &configuration)?;
        node.restart().await?;
        nodes.push(node);
    }
    for (index, node) in nodes.iter().enumerate() {
        let url = node.grpc_url();
        let name = format!("ledger-{index}");
        let mut agent = LedgerAgent::new(&name, 3, BATCHES[index], ROWS_A_BATCH, now());
        agent.run(|| url.clone(), PATIENCE).await?;
        // No answer came out of that node, so the batches are stored by the other one, too: one copy of each stays.
        agent.repeat();
        let url = nodes[1 - index].grpc_url();
        agent.run(|| url.clone(), PATIENCE).await?;
    }
    let all = f64::from(BATCHES.iter().sum::<u32>() * ROWS_A_BATCH);
    let mut answers = Vec::new();
    for node in &nodes {
        wait_for("a node to answer for both", PATIENCE, async || {
            let (status, body) = node.ask("flow_log", BY_NAME).await?;
            ensure!(status == 200 && body.get("missing").is_none(), "{status}: {body}");
            let counts = node.sql("flow_log", BY_NAME).await?;
            ensure!(rows_of(&counts) == all, "{counts:?}");
            anyhow::Ok(())
        })
        .await?;
        let counts = node.sql("flow_log", BY_NAME).await?;
        ensure!(counts.iter().all(|row| row[0].as_str().is_some_and(|name| !name.is_empty())), "{counts:?}");
        let domain = counts[1][0].as_str().context("a name")?;
        let one = node.number("flow_log", &ONE_NAME.replace("service-1", domain)).await?;
        ensure!(number(counts[1].get(1)) == Some(one), "{one} of {counts:?}");
        answers.push(counts);
    }
    ensure!(answers[0] == answers[1], "the nodes answer alike: {answers:?}");
    let mut removed = 0.0;
    for node in &nodes {
        removed += node.metric("metaflow_doubted_batches_removed_total").await?;
        ensure!(node.metric("metaflow_doubted_batches").await? == 0.0, "no doubt is left");
    }
    ensure!(removed == f64::from(BATCHES.iter().sum::<u32>()), "{removed} batches were removed");

    nodes[1].kill().await?;
    let (status, body) = nodes[0].ask("flow_log", BY_NAME).await?;
    ensure!(status == 200 && body["OPT_STATUS"] == "SUCCESS", "{status}: {body}");
    ensure!(body["missing"][0]["node_id"] == 2 && body["missing"][0]["name"] == "n2", "{body}");
    ensure!(
        body["DESCRIPTION"].as_str().is_some_and(|text| text.contains("rows of n2 are missing")),
        "{body}"
    );
    let counts = nodes[0].sql("flow_log", BY_NAME).await?;
    ensure!(rows_of(&counts) == f64::from(BATCHES[0] * ROWS_A_BATCH), "{counts:?}");
    nodes[1].restart().await?;
    wait_for("the rows to be back", PATIENCE, async || {
        let counts = nodes[0].sql("flow_log", BY_NAME).await?;
        ensure!(rows_of(&counts) == all, "{counts:?}");
        anyhow::Ok(())
    })
    .await?;
    for node in &mut nodes {
        node.terminate().await?;
    }
    Ok(())
}
