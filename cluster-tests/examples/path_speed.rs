//! What the whole path costs: a real node with its engine, fed with request rows of 100+ columns; a real agent, replaying captures.
//!
//! Prints rows for each CPU second (of the node alone, and of node and engine with its merges), bytes a stored row, and the agent's
//! CPU a request. CPU time, not wall time: figures hold on a busy machine. Run by `./dev bench`; the agent's part needs the corpus.

use std::{
    fmt::Write as _,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use metaflow_cluster_tests::{
    ledger::LedgerAgent,
    process::{Node, Replay},
    wait_for,
};
use rustix::process::Pid;

const ROWS_A_BATCH: u32 = 5_000;
const BATCHES: u32 = 600;
/// Kernel clock ticks a second (`getconf CLK_TCK`).
const TICKS: f64 = 100.0;
const LOOPS: u32 = 2_000;

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut text = String::new();
    ingest(&folder.path().join("node"), &mut text).await?;
    agent(folder.path(), &mut text).await?;
    #[expect(clippy::print_stdout, reason = "a benchmark prints its result")]
    {
        print!("{text}");
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "rows must be younger than the table's TTL")]
fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

async fn ingest(folder: &Path, text: &mut String) -> Result<()> {
    let mut node = Node::start(folder).await?;
    let (process, engine) = (node.pid().context("no node")?, node.engine().context("no engine")?);
    let url = node.grpc_url();
    // Names are learned and caches are warm before anything counts.
    LedgerAgent::new("warm", 1, 20, ROWS_A_BATCH, now_seconds())
        .run(|| url.clone(), Duration::from_secs(60))
        .await?;
    let (node_before, engine_before) = (cpu(process)?, cpu(engine)?);
    let bytes_before = folder_bytes(&folder.join("data"))?;
    let mut agent = LedgerAgent::new("bench", 1, BATCHES, ROWS_A_BATCH, now_seconds());
    agent.run(|| url.clone(), Duration::from_secs(600)).await?;
    let node_cpu = cpu(process)? - node_before;
    // Merges go on after the last insert: they belong to it.
    let mut engine_cpu = cpu(engine)? - engine_before;
    wait_for("the engine's merges to end", Duration::from_secs(120), async || {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = cpu(engine)? - engine_before;
        let is_quiet = now - engine_cpu < 0.1;
        engine_cpu = now;
        ensure!(is_quiet, "it is still busy");
        Ok(())
    })
    .await?;
    let rows = f64::from(ROWS_A_BATCH) * f64::from(BATCHES);
    let bytes = folder_bytes(&folder.join("data"))?.saturating_sub(bytes_before) as f64;
    writeln!(text, "| from wire frame to | rows for a CPU second | us a row |\n|---|---|---|")?;
    writeln!(text, "| engine's door (node alone) | {:.0} | {:.2} |", rows / node_cpu, node_cpu * 1e6 / rows)?;
    let both = node_cpu + engine_cpu;
    writeln!(
        text,
        "| stored and merged row (node and engine) | {:.0} | {:.2} |",
        rows / both,
        both * 1e6 / rows
    )?;
    writeln!(
        text,
        "\nBytes a row on disk, write-ahead log and database of the node included: {:.0}",
        bytes / rows
    )?;
    node.terminate().await
}

async fn agent(folder: &Path, text: &mut String) -> Result<()> {
    let corpus =
        std::env::var_os("METAFLOW_CORPUS").map(std::path::PathBuf::from).filter(|path| path.is_dir());
    let Some(corpus) = corpus else {
        writeln!(text, "\nThe agent's part needs the corpus: METAFLOW_CORPUS is not set.")?;
        return Ok(());
    };
    let mut node = Node::start(&folder.join("node-for-agent")).await?;
    writeln!(text, "\n| capture replayed | requests | agent's CPU a request, us |\n|---|---|---|")?;
    for (capture, requests) in
        [("http/httpv1.pcap", 1), ("redis/redis.pcap", 10), ("mysql/171-mysql.pcap", 390)]
    {
        let loops = (LOOPS / requests).max(50) * 10;
        let machine_id = capture.replace(['/', '.'], "-");
        let replay = Replay {
            folder: &folder.join(&machine_id),
            server: node.grpc_address(),
            machine_id: &machine_id,
            captures: vec![corpus.join("packets").join(capture)],
            more_arguments: vec!["--at".into(), "now".into(), "--loop".into(), loops.to_string()],
        };
        let before = children_cpu()?;
        replay.run(Duration::from_secs(300)).await?;
        let requests = f64::from(requests) * f64::from(loops);
        writeln!(text, "| {capture} | {requests} | {:.1} |", (children_cpu()? - before) * 1e6 / requests)?;
    }
    node.terminate().await
}

/// User and system time of a process, in seconds.
fn cpu(pid: Pid) -> Result<f64> {
    fields(&format!("/proc/{}/stat", pid.as_raw_nonzero()), 11)
}

/// The same for the children that ended and were waited for.
fn children_cpu() -> Result<f64> {
    fields("/proc/self/stat", 13)
}

fn fields(path: &str, first: usize) -> Result<f64> {
    let stat = std::fs::read_to_string(path)?;
    let after_name = stat.rsplit_once(')').context("no process name")?.1;
    let fields: Vec<_> = after_name.split_whitespace().collect();
    Ok((fields[first].parse::<f64>()? + fields[first + 1].parse::<f64>()?) / TICKS)
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let output = std::process::Command::new("du").args(["-sb"]).arg(folder).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).context("du says nothing")
}
