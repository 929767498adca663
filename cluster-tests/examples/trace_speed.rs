//! What it takes to find and assemble a trace of 1,000 spans in a store with many rows: a real node with its engine.
//!
//! The argument is the number of rows in millions (10 without it). They are spread over the hour before; the trace is in the middle of one of
//! their bursts. Prints the time of the first answer, which finds nothing in memory, and the best and the median of the next ones; and the
//! same for a row in the depth of the trace.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use metaflow_cluster_tests::{Value, ledger::LedgerAgent, process::Node, traces};
use serde_json::json;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
/// Two rows of the front and four of each service: 1,002 spans.
const SERVICES: u32 = 250;
const ROWS_A_BATCH: u32 = 5_000;
const BURSTS: u32 = 50;
const TRIES: usize = 20;

#[tokio::main]
async fn main() -> Result<()> {
    let millions: u32 =
        std::env::args().nth(1).map_or(Ok(10), |text| text.parse()).context("not a number")?;
    let folder = tempfile::tempdir()?;
    let mut node = Node::start(&folder.path().join("node")).await?;
    let now = now_seconds();
    let batches = millions * 1_000_000 / ROWS_A_BATCH / BURSTS;
    for burst in 0..BURSTS {
        let second = now - 3_500 + u64::from(burst) * 3_400 / u64::from(BURSTS);
        let url = node.grpc_url();
        LedgerAgent::new(&format!("burst-{burst}"), 1, batches, ROWS_A_BATCH, second)
            .run(|| url.clone(), Duration::from_secs(600))
            .await?;
    }
    let start = (now - 3_500 + 25 * 3_400 / u64::from(BURSTS)) * 1_000_000;
    traces::deliver(&node.grpc_url(), "trace", |agent, seq| {
        traces::batch(agent, seq, TRACE, SERVICES, start)
    })
    .await?;
    let rows = node.number("flow_log", "SELECT Count(row) FROM l7_flow_log").await?;
    let (by_id, spans) = measure(&node, json!({ "trace_id": TRACE })).await?;
    let deep = spans.iter().find(|span| span["request_resource"] == "/data/100").context("no such span")?;
    let (by_row, _) = measure(&node, json!({ "_id": deep["_id"] })).await?;
    let text = format!(
        "rows in the store: {rows}\nspans: {}\nby trace id: {by_id}\nby a row: {by_row}\n",
        spans.len()
    );
    #[expect(clippy::print_stdout, reason = "a benchmark prints its result")]
    {
        print!("{text}");
    }
    node.terminate().await
}

async fn measure(node: &Node, asked: Value) -> Result<(String, Vec<Value>)> {
    let http = reqwest::Client::builder().no_proxy().build()?;
    let url = format!("{}/v1/stats/querier/L7FlowTracing", node.http_url());
    let (mut times, mut spans, mut rounds) = (Vec::new(), Vec::new(), Value::Null);
    for _ in 0..=TRIES {
        let begin = Instant::now();
        let answer: Value = http.post(&url).json(&asked).send().await?.json().await?;
        times.push(begin.elapsed().as_millis());
        spans = answer["DATA"]["tracing"].as_array().with_context(|| format!("{answer}"))?.clone();
        rounds = answer["DATA"]["rounds"].clone();
    }
    ensure!(spans.len() == traces::rows(SERVICES) as usize, "{} spans", spans.len());
    let first = times.remove(0);
    times.sort_unstable();
    Ok((
        format!("first {first} ms, best {} ms, median {} ms, {rounds} rounds", times[0], times[TRIES / 2]),
        spans,
    ))
}

#[expect(clippy::disallowed_methods, reason = "rows must be younger than the table's TTL")]
fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}
