//! Traces of real programs against the truth: how many requests are seen, and how many traces are complete and right. Needs root and BPF, and
//! the programs: nginx, haproxy, Python with redis and pymysql, Redis, MariaDB, Go, PostgreSQL, Node, a JDK, and the example `tokio_peer`.
//!
//! Arguments: a part of a chain's name (all without it), and the number of traces of the long runs (10,000 without it).

use anyhow::{Context as _, Result};
use metaflow_cluster_tests::judging::{CASES, Load};

/// Connections at a time and requests a second; with more traces where the last is true.
const LOADS: [(usize, usize, bool); 3] = [(1, 100, false), (50, 200, false), (50, 300, true)];

fn main() -> Result<()> {
    let part = std::env::args().nth(1).unwrap_or_default();
    let long: usize =
        std::env::args().nth(2).map_or(Ok(10_000), |text| text.parse()).context("not a number")?;
    for case in CASES.iter().filter(|case| case.name.contains(&part)) {
        for (connections, rate, is_long) in LOADS {
            let traces = if is_long { long } else { 1_000 };
            let verdict = case.run(Load { traces, connections, rate })?;
            let met = case.is_met(&verdict, connections);
            print(&format!("{verdict}\n    {}", if met { "as it must be" } else { "NOT as it must be" }));
        }
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its result")]
fn print(text: &str) {
    println!("{text}");
}
