//! Traces of real programs against the truth: how many requests are seen, and how many traces are complete and right. Needs root and BPF, and
//! the programs: nginx, haproxy, Python with redis and pymysql, Redis, MariaDB, Go, PostgreSQL, Node, a JDK, and the example `tokio_peer`.
//!
//! Arguments: a part of a chain's name (all without it), and the number of traces of the long runs (10,000 without it).

use anyhow::{Context as _, Result};
use metaflow_cluster_tests::{
    judging::{Chain, Load, Observer, Verdict, drive, judge},
    process::free_port,
};

/// A chain with what it must reach: hundredths of traces that are complete and right.
struct Case {
    name: &'static str,
    build: fn(&mut Chain) -> Result<u16>,
    /// Connections at a time, requests a second, least share; with more traces where the last is true.
    loads: &'static [(usize, usize, f64, bool)],
}

const CASES: &[Case] = &[
    Case {
        name: "nginx, haproxy, Python (threads), Redis + MariaDB",
        build: |chain| {
            let (proxy, server) = (free_port(), free_port());
            let front = chain.nginx(proxy, None)?;
            let (redis, sql) = (chain.redis(server, 2)?, chain.mariadb(server, 1)?);
            chain.threads(server, Some(proxy), redis, Some(sql))?;
            chain.haproxy(proxy, server, Some(front))?;
            Ok(front)
        },
        loads: &[(1, 50, 100.0, false), (50, 100, 95.0, false)],
    },
    Case {
        name: "Python (threads), Redis",
        build: |chain| {
            let port = free_port();
            let redis = chain.redis(port, 2)?;
            chain.threads(port, None, redis, None)?;
            Ok(port)
        },
        loads: &[(1, 100, 100.0, false), (50, 0, 100.0, true)],
    },
    Case {
        name: "Go (goroutines), PostgreSQL",
        build: |chain| {
            let port = free_port();
            let database = chain.postgresql(port, 3)?;
            chain.go(port, database)?;
            Ok(port)
        },
        loads: &[(1, 100, 100.0, false), (50, 200, 100.0, true)],
    },
    Case {
        name: "Node, Redis",
        build: |chain| {
            let port = free_port();
            let redis = chain.redis(port, 2)?;
            chain.node(port, redis)?;
            Ok(port)
        },
        loads: &[(1, 200, 100.0, false), (50, 400, 95.0, false), (50, 0, 95.0, true)],
    },
    Case {
        name: "Java (pool of threads), HTTP",
        build: |chain| {
            let port = free_port();
            let backend = chain.leaf(port, 1)?;
            chain.java(port, backend)?;
            Ok(port)
        },
        loads: &[(1, 100, 100.0, false), (50, 200, 100.0, true)],
    },
    Case {
        name: "tokio: axum, tonic (gRPC)",
        build: |chain| {
            let port = free_port();
            chain.tokio(port)?;
            Ok(port)
        },
        // What is on its way when the probes come is not linked.
        loads: &[(1, 200, 99.0, false), (4, 400, 95.0, false), (50, 400, 95.0, true)],
    },
];

fn main() -> Result<()> {
    let part = std::env::args().nth(1).unwrap_or_default();
    let long: usize =
        std::env::args().nth(2).map_or(Ok(10_000), |text| text.parse()).context("not a number")?;
    for case in CASES.iter().filter(|case| case.name.contains(&part)) {
        for (connections, rate, least, is_long) in case.loads {
            let traces = if *is_long { long } else { 1_000 };
            let verdict = run(case, Load { traces, connections: *connections, rate: *rate })?;
            let met = verdict.share() >= *least && verdict.recall() >= 100.0 && verdict.false_certain == 0;
            print(&format!("{verdict}\n    {}", if met { "as it must be" } else { "NOT as it must be" }));
        }
    }
    Ok(())
}

fn run(case: &Case, load: Load) -> Result<Verdict> {
    let folder = tempfile::tempdir()?;
    let mut chain = Chain::new(folder.path());
    let port = (case.build)(&mut chain)?;
    let observer = Observer::start(&chain)?;
    drive(port, load)?;
    let views = load.traces * chain.parts.iter().map(|part| part.asked * 2).sum::<usize>();
    let seen = observer.finish(|calls| calls.len() >= views)?;
    let name = format!("{}; {} at a time", case.name, load.connections);
    Ok(judge(&name, &chain, load.traces, seen))
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its result")]
fn print(text: &str) {
    println!("{text}");
}
