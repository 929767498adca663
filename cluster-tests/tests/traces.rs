//! A trace through the whole of MetaFlow: rows over the wire, stored in the engine, looked up and put together, over both interfaces and
//! the command line.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use metaflow_cluster_tests::{
    Value,
    process::{Node, binary},
    traces,
};
use serde_json::json;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SERVICES: u32 = 30;

#[expect(clippy::disallowed_methods, reason = "rows must be younger than the table's TTL")]
fn now_micros() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?)
}

#[tokio::test]
async fn a_trace_is_found_by_its_id_and_by_any_of_its_rows() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut node = Node::start(&folder.path().join("node")).await?;
    let start = now_micros()? - 2_000_000;
    traces::deliver(&node.grpc_url(), "one", |agent, seq| traces::batch(agent, seq, TRACE, SERVICES, start))
        .await?;
    // Another one at the same time and between the same addresses, of another agent.
    traces::deliver(&node.grpc_url(), "two", |agent, seq| {
        traces::batch(agent, seq, "ffffffffffffffffffffffffffffffff", SERVICES, start + 11)
    })
    .await?;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let url = format!("{}/v1/stats/querier/L7FlowTracing", node.http_url());
    let find = async |asked: Value| -> Result<Vec<Value>> {
        let answer = http.post(&url).json(&asked).send().await?;
        ensure!(answer.status().is_success(), "{}", answer.text().await?);
        let answer: Value = answer.json().await?;
        Ok(answer["DATA"]["tracing"].as_array().context("no spans")?.clone())
    };
    let spans = find(json!({ "trace_id": TRACE })).await?;
    check(&spans)?;
    // From a row in the depth of it, which carries no trace id.
    let deep = spans.iter().find(|span| span["request_resource"] == "/data/17").context("no such span")?;
    ensure!(find(json!({ "_id": deep["_id"] })).await? == spans, "another trace from {}", deep["_id"]);

    // SQL shows the same ids.
    let id = deep["_id"].as_str().context("no id")?;
    let sql = format!("SELECT Count(row) FROM l7_flow_log WHERE _id = '{id}'");
    ensure!(node.number("flow_log", &sql).await? == 1.0, "{sql}");

    let url_of_tempo = format!("{}/api/traces/{TRACE}", node.http_url());
    let answer = http.get(&url_of_tempo).header("Accept", "application/protobuf").send().await?;
    ensure!(answer.headers()["content-type"] == "application/protobuf", "{answer:?}");
    let body = answer.bytes().await?;
    ensure!(body.windows(8).any(|part| part == b"/data/17"), "{} bytes", body.len());

    let answer = http.get(&url_of_tempo).send().await?;
    let answer: Value = answer.json().await?;
    let batches = answer["batches"].as_array().context("no batches")?;
    let count: usize =
        batches.iter().filter_map(|batch| batch["scopeSpans"][0]["spans"].as_array()).map(Vec::len).sum();
    ensure!(count == spans.len(), "{count} spans");
    let none = http.get(format!("{}/api/traces/abc", node.http_url())).send().await?;
    ensure!(none.status() == 404, "{}", none.status());
    let nonsense = http.post(&url).json(&json!({ "trace_id": "it's" })).send().await?;
    ensure!(nonsense.status() == 400, "{}", nonsense.status());

    let shown = tokio::process::Command::new(binary("metaflow"))
        .args(["ctl", "--url", &node.http_url(), "trace", TRACE])
        .output()
        .await?;
    let text = String::from_utf8_lossy(&shown.stdout);
    ensure!(shown.status.success(), "{}{text}", String::from_utf8_lossy(&shown.stderr));
    ensure!(text.contains(&format!("{} spans in", spans.len())), "{text}");
    ensure!(text.contains("HTTP GET /data/17") && text.contains("syscall"), "{text}");
    node.terminate().await
}

/// Every row of the trace, each service below the front, each database's row below its service.
fn check(spans: &[Value]) -> Result<()> {
    ensure!(spans.len() == traces::rows(SERVICES) as usize, "{} spans", spans.len());
    let path = |span: &Value| span["request_resource"].as_str().unwrap_or_default().to_owned();
    for span in spans {
        let above = usize::try_from(span["parent_id"].as_i64().unwrap_or(-1)).ok().map(|at| path(&spans[at]));
        let own = path(span);
        let expected = match (span["reason"].as_str(), own.strip_prefix("/data/")) {
            (None, _) => None,
            (Some("tcp_seq"), _) => Some(own.clone()),
            (Some("syscall"), Some(nth)) => Some(format!("/service/{nth}")),
            (Some("syscall"), None) => Some("/front".to_owned()),
            (Some(other), _) => anyhow::bail!("{other} below {above:?}"),
        };
        ensure!(above == expected, "{own} is below {above:?}: {span}");
    }
    ensure!(spans.iter().filter(|span| span["parent_id"] == -1).count() == 1, "one root");
    Ok(())
}
