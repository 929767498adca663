//! Full disks: what is not durable is never acknowledged, what is acknowledged is never lost, and work goes on when space is back.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use metaflow_agent::spool::{Config, Spool};
use metaflow_chaos::{check_ledger, disk::SmallDisk, now_seconds, stored_batches};
use metaflow_cluster_tests::{
    corpus,
    ledger::{LedgerAgent, request_batch},
    process::{Node, Replay, tail},
    wait_for,
};

const PATIENCE: Duration = Duration::from_secs(120);
const AGENT_DISK: u64 = 4 << 20;
const ROWS_A_BATCH: u32 = 1_000;

/// Which disk of a node is small, and how the node shows that it is full.
struct Case {
    /// Where it is mounted, below the test's folder.
    place: &'static str,
    bytes: u64,
    /// What the log leaves free.
    keep_free: &'static str,
    /// A counter that rises, where the disk refuses a write.
    trouble: Option<&'static str>,
    /// What the node's health says.
    health: &'static str,
}

/// Fills the disk while rows come, until the node takes no more; the node must say so and go on serving.
async fn fill_until_refused(node: &Node, disk: &SmallDisk, case: &Case) -> Result<()> {
    wait_for("rows to be stored", PATIENCE, async || {
        let committed = node.metric("metaflow_ingest_batches_committed_total").await?;
        ensure!(committed >= 20.0, "only {committed} batches are");
        Ok(())
    })
    .await?;
    let before = match case.trouble {
        Some(counter) => node.metric(counter).await?,
        None => 0.0,
    };
    wait_for("the node to notice that its disk is full", PATIENCE, async || {
        disk.fill(0)?;
        let trouble = match case.trouble {
            Some(counter) => node.metric(counter).await? - before,
            None => 1.0,
        };
        let credit = node.metric("metaflow_ingest_credit_bytes").await?;
        ensure!(trouble > 0.0 && credit == 0.0, "{:?} rose by {trouble}, credit {credit}", case.trouble);
        Ok(())
    })
    .await?;
    let (status, text) = node.health().await?;
    ensure!(status == 503 && text.contains(case.health), "health: {status} {text}");
    let (status, answer) = node.ask("flow_log", "SELECT Count(row) FROM l7_flow_log").await?;
    ensure!(status == 200, "a query: {status} {answer}");
    Ok(())
}

async fn survives(case: &Case) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = SmallDisk::mount(&folder.path().join(case.place), case.bytes)?;
    let configuration = format!("[memory]\nbudget = \"192MiB\"\n[wal]\nkeep_free = {:?}", case.keep_free);
    let mut node = Node::start_with(folder.path(), &configuration).await?;
    let url = node.grpc_url();

    // Killed while the disk is full: what was acknowledged must be there without the agent's help.
    let mut killed = LedgerAgent::new("killed", 1, 1_000_000, ROWS_A_BATCH, now_seconds());
    tokio::select! {
        ended = killed.run(|| url.clone(), PATIENCE * 2) => ended.context("the agent ended early")?,
        refused = fill_until_refused(&node, &disk, case) => refused?,
    }
    node.kill().await?;
    disk.empty()?;
    node.restart().await?;
    wait_for("the log to be replayed", PATIENCE, async || {
        let left = node.metric("metaflow_wal_batches").await?;
        ensure!(left == 0.0, "{left} batches are left");
        Ok(())
    })
    .await?;
    ensure!(killed.received.len() > 20, "only {} batches were acknowledged", killed.received.len());
    let stored = stored_batches(&node, "flow_log", "l7_flow_log", "killed").await?;
    check_ledger(&killed, &stored, u64::from(ROWS_A_BATCH))?;

    // Not killed: it goes on by itself.
    let mut patient = LedgerAgent::new("patient", 1, 1_000_000, ROWS_A_BATCH, now_seconds());
    tokio::select! {
        ended = patient.run(|| url.clone(), PATIENCE * 2) => ended.context("the agent ended early")?,
        refused = fill_until_refused(&node, &disk, case) => refused?,
    }
    patient.send_no_more_than(0);
    disk.empty()?;
    let result = patient.run(|| url.clone(), PATIENCE).await;
    result.with_context(|| format!("the node's log ends with:\n{}", tail(&node.log())))?;
    let stored = stored_batches(&node, "flow_log", "l7_flow_log", "patient").await?;
    ensure!(stored.len() == patient.committed.len(), "{} batches are stored", stored.len());
    check_ledger(&patient, &stored, u64::from(ROWS_A_BATCH))?;
    ensure!(node.health().await?.0 == 200, "it is well again");
    node.terminate().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_write_ahead_log_costs_no_acknowledged_row_as_root() -> Result<()> {
    survives(&Case {
        place: "data/state",
        // A few files of the log, which are allocated before they are written.
        bytes: 64 << 20,
        keep_free: "0B",
        trouble: Some("metaflow_wal_write_errors_total"),
        health: "write-ahead log cannot be written",
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_node_and_engine_costs_no_acknowledged_row_as_root() -> Result<()> {
    survives(&Case {
        place: "data",
        bytes: 256 << 20,
        // The engine has acknowledged parts with empty files when the last page was taken from under it.
        keep_free: "64MiB",
        trouble: None,
        health: "is nearly full",
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_agent_makes_it_wait_and_loses_nothing_with_the_corpus_as_root() -> Result<()> {
    const LOOPS: u64 = 20;
    const REQUESTS: u64 = 390;
    let folder = tempfile::tempdir()?;
    let mut node = Node::start(&folder.path().join("node")).await?;
    let agent_folder = folder.path().join("agent");
    let disk = SmallDisk::mount(&agent_folder.join("data"), AGENT_DISK)?;
    let replay = |capture: &str, times: u64| Replay {
        folder: &agent_folder,
        server: node.grpc_address(),
        machine_id: "full",
        captures: vec![corpus().join("packets").join(capture)],
        more_arguments: ["--at", "now", "--loop", &times.to_string()].map(String::from).to_vec(),
    };
    replay("redis/redis.pcap", 1).run(PATIENCE).await?;
    disk.fill(0)?;
    let busy = replay("mysql/171-mysql.pcap", LOOPS);
    let mut child = busy.spawn()?;
    wait_for("the agent to say that its disk is full", PATIENCE, async || {
        let text = std::fs::read_to_string(busy.log())?;
        ensure!(text.contains("No space left on device"), "it says:\n{text}");
        anyhow::Ok(())
    })
    .await?;
    ensure!(child.try_wait()?.is_none(), "the agent ended:\n{}", tail(&busy.log()));
    disk.empty()?;
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.context("the agent did not end")??;
    ensure!(status.success(), "the agent ended with {status}:\n{}", tail(&busy.log()));
    let sql = "SELECT Sum(request) FROM l7_flow_log WHERE agent = 'full' AND l7_protocol = 60";
    let requests = node.number("flow_log", sql).await? as u64;
    ensure!(requests == LOOPS * REQUESTS, "{requests} requests are stored, {} were seen", LOOPS * REQUESTS);
    node.terminate().await
}

#[test]
fn a_spool_on_a_full_disk_counts_what_it_drops_and_keeps_the_rest_as_root() -> Result<()> {
    const BATCHES: u32 = 200;
    let folder = tempfile::tempdir()?;
    let disk = SmallDisk::mount(folder.path(), AGENT_DISK)?;
    let config =
        |path: &Path| Config { memory_bytes_max: 256 << 10, ..Config::new(path.to_owned(), 1 << 30) };
    let (mut spool, _) = Spool::open(config(folder.path()), 1)?;
    let mut durable = Vec::new();
    let mut appended = 0;
    for counter in 0..BATCHES {
        if counter == BATCHES / 4 {
            disk.fill(0)?;
        }
        let batch = request_batch(1, 0, 200 + counter, now_seconds());
        appended += u64::from(batch.rows);
        let seq = spool.append(batch, 1).context("a number")?;
        if spool.flush().is_ok() {
            durable.push(seq);
        }
    }
    let lost = spool.losses().get("disk_full");
    ensure!(lost > 0 && spool.losses().total() == lost, "lost: {lost} of {}", spool.losses().total());
    disk.empty()?;
    spool.flush()?;
    drop(spool);
    let (mut spool, recovery) = Spool::open(config(folder.path()), 1)?;
    ensure!(recovery.corrupt_records == 0, "{recovery:?}");
    let (mut kept, mut after, mut found) = (0, None, Vec::new());
    while let Some((seq, _)) = spool.next_after(after) {
        kept += u64::from(spool.read(seq)?.context("it can be read")?.rows);
        found.push(seq);
        after = Some(seq);
    }
    ensure!(durable.iter().all(|seq| found.contains(seq)), "a batch that was durable is gone");
    ensure!(kept + lost == appended, "{appended} rows: {kept} are kept, {lost} counted as lost");
    Ok(())
}
