//! Third-party captures through agent, node and store: what comes out of SQL equals what another implementation saw.
//!
//! Needs root and the embedded engine. The figures are those of the corpus' README.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use metaflow_cluster_tests::{
    corpus,
    process::{Node, Replay, number},
};

const DEADLINE: Duration = Duration::from_secs(60);

/// What another implementation counts in a capture: microseconds for times.
struct Expected {
    capture: &'static str,
    requests: u64,
    responses: u64,
    client_errors: u64,
    server_errors: u64,
    times: u64,
    sum: u64,
    max: u64,
}

const fn expected(capture: &'static str, figures: [u64; 7]) -> Expected {
    let [requests, responses, client_errors, server_errors, times, sum, max] = figures;
    Expected { capture, requests, responses, client_errors, server_errors, times, sum, max }
}

const CASES: &[Expected] = &[
    expected("dns/dns.pcap", [2, 2, 1, 0, 2, 181_558, 176_754]),
    expected("http/httpv1.pcap", [1, 1, 0, 0, 1, 84_051, 84_051]),
    expected("mysql/171-mysql.pcap", [390, 390, 0, 0, 390, 127_090, 5_355]),
    expected("redis/redis.pcap", [10, 10, 0, 0, 10, 592, 96]),
];

/// Replays one capture as an agent of its own and answers the agent's name.
async fn replay(node: &Node, folder: &std::path::Path, capture: &str) -> Result<String> {
    let machine_id = capture.replace(['/', '.'], "-");
    let agent = Replay {
        folder: &folder.join(&machine_id),
        server: node.grpc_address(),
        machine_id: &machine_id,
        captures: vec![corpus().join("packets").join(capture)],
        more_arguments: vec!["--at".into(), "now".into()],
    };
    agent.run(DEADLINE).await.with_context(|| format!("replay of {capture}"))?;
    Ok(machine_id)
}

#[tokio::test]
async fn requests_of_the_corpus_come_out_of_sql() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut node = Node::start(&folder.path().join("node")).await?;
    for case in CASES {
        let agent = replay(&node, folder.path(), case.capture).await?;
        let log = format!(
            "SELECT Sum(request), Sum(response), Sum(client_error), Sum(server_error), Sum(rrt), Max(rrt) \
             FROM l7_flow_log WHERE agent = '{agent}'"
        );
        let rows = node.sql("flow_log", &log).await?;
        let cells: Vec<u64> = rows[0].iter().map(|cell| number(Some(cell)).unwrap_or(0.0) as u64).collect();
        let wanted =
            [case.requests, case.responses, case.client_errors, case.server_errors, case.sum, case.max];
        ensure!(cells == wanted, "{}: the log has {cells:?}, expected {wanted:?}", case.capture);

        let timed = format!("SELECT Count(row) FROM l7_flow_log WHERE agent = '{agent}' AND rrt > 0");
        ensure!(
            node.number("flow_log", &timed).await? as u64 == case.times,
            "{}: number of times",
            case.capture
        );

        for table in ["application.1s", "application_map.1s", "application.1m", "application_map.1m"] {
            let sql = format!(
                "SELECT Sum(request), Sum(response), Sum(client_error), Sum(server_error), Max(rrt), Avg(rrt) \
                 FROM `{table}` WHERE agent = '{agent}'"
            );
            let rows = node.sql("flow_metrics", &sql).await?;
            let cells: Vec<f64> = rows[0].iter().map(|cell| number(Some(cell)).unwrap_or(0.0)).collect();
            let wanted = [case.requests, case.responses, case.client_errors, case.server_errors, case.max];
            ensure!(
                cells.iter().zip(wanted).all(|(cell, wanted)| *cell == wanted as f64),
                "{}: {table} has {cells:?}, expected {wanted:?}",
                case.capture
            );
            let mean = case.sum as f64 / case.times as f64;
            ensure!(
                (cells[5] - mean).abs() < 0.01,
                "{}: {table}: mean {} instead of {mean}",
                case.capture,
                cells[5]
            );
        }
    }
    node.terminate().await
}

#[tokio::test]
async fn response_times_and_ends_of_flows_of_the_corpus_come_out_of_sql() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut node = Node::start(&folder.path().join("node")).await?;
    let agent = replay(&node, folder.path(), "redis/redis-debug.pcap").await?;
    let max =
        node.number("flow_log", &format!("SELECT Max(rrt) FROM l7_flow_log WHERE agent = '{agent}'")).await?;
    ensure!(max == 1209.0, "redis-debug: response time {max}");

    for (capture, close) in [
        ("tcp/tcp-n-syn-ack.pcap", "server synack repeat"),
        ("tcp/server-reset.pcap", "server reset"),
        ("tcp/server-no-response.pcap", "client establish reset"),
        ("tcp/client-no-response.pcap", "server establish reset"),
    ] {
        let agent = replay(&node, folder.path(), capture).await?;
        let sql = format!(
            "SELECT Enum(close_type) AS close, Count(row) AS flows FROM l4_flow_log WHERE agent = '{agent}' GROUP BY close"
        );
        let rows = node.sql("flow_log", &sql).await?;
        ensure!(rows.iter().any(|row| row[0] == close), "{capture}: expected {close}, got {rows:?}");
    }
    node.terminate().await
}
