//! Measures how long a translation takes: each statement many times, all in turn, CPU caches warm as on a busy node.
//!
//! `cargo run --release -p metaflow-query --example translation_speed [file of statements]`

use std::{hint::black_box, time::Instant};

use metaflow_query::{Request, compile};

/// What dashboards and people ask.
const STATEMENTS: &str = "\
SELECT auto_service_1, Sum(request) AS requests, Avg(rrt) FROM application WHERE time > now() - 300 GROUP BY auto_service_1 ORDER BY requests DESC
SELECT time(time, 60) AS t, host_1, Max(byte), Avg(rtt), Percentile(rtt, 0.95) FROM network_map WHERE time >= 1699990000 AND time <= 1700000000 GROUP BY t, host_1 ORDER BY t
SELECT start_time, ip_0, auto_service_0, auto_service_1, endpoint, Enum(response_status), response_duration FROM l7_flow_log WHERE auto_service_1 = 'nginx' AND response_code >= 500 ORDER BY start_time DESC LIMIT 100
SELECT auto_service_0, auto_service_1, Enum(l7_protocol), Sum(request), Avg(error_ratio), Max(rrt) FROM application_map WHERE (pod_ns_1 IN ('a', 'b', 'c') OR pod_1 LIKE 'x*') AND NOT exist(pod_0) GROUP BY auto_service_0, auto_service_1, Enum(l7_protocol) HAVING Sum(request) > 10 LIMIT 50
select TopK(ip_0, pod_0, 10), Uniq(pod) from l4_flow_log where ip_0 = '10.0.0.0/8' limit 1
SHOW TAG host VALUES FROM network WHERE host LIKE 'web*' LIMIT 20
SHOW TAGS FROM l7_flow_log
";
const ROUNDS: usize = 2_000;

fn main() -> std::io::Result<()> {
    let text = match std::env::args().nth(1) {
        Some(path) => std::fs::read_to_string(path)?,
        None => STATEMENTS.to_owned(),
    };
    let statements: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let request = Request { database: None, now_seconds: 1_700_000_000, shards: None };
    let mut micros = Vec::with_capacity(statements.len() * ROUNDS);
    let mut refused = 0;
    for statement in statements.iter().cycle().take(statements.len() * ROUNDS) {
        let start = Instant::now();
        let result = black_box(compile(black_box(statement), &request));
        let took = start.elapsed().as_secs_f64() * 1e6;
        if result.is_ok() {
            micros.push(took);
        } else {
            refused += 1;
        }
    }
    micros.sort_by(f64::total_cmp);
    let quantile = |level: f64| micros.get((micros.len() as f64 * level) as usize).copied().unwrap_or(0.0);
    let line = format!(
        "translation: p50 {:.1} us, p99 {:.1} us, max {:.1} us ({} statements, {} translations, {} refused)\n",
        quantile(0.5),
        quantile(0.99),
        micros.last().copied().unwrap_or(0.0),
        statements.len(),
        micros.len(),
        refused / ROUNDS,
    );
    std::io::Write::write_all(&mut std::io::stdout(), line.as_bytes())
}
