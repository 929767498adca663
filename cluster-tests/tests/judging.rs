//! Traces of real programs against the truth, seen by the eBPF programs in this machine's kernel: the tests need root and BPF, so their names
//! have `as_root` in them. `./dev bench traces` asks for more traces, and faster.

use anyhow::{Result, ensure};
use metaflow_cluster_tests::judging::{Case, Load};

/// One at a time, and 50.
#[expect(clippy::print_stdout, reason = "figures for who runs a test by itself")]
fn meets_its_marks(name: &str) -> Result<()> {
    for (connections, rate) in [(1, 150), (50, 250)] {
        let case = Case::named(name)?;
        let verdict = case.run(Load { traces: 300, connections, rate })?;
        println!("{verdict}");
        ensure!(verdict.dropped == 0 && case.is_met(&verdict, connections), "{verdict}");
    }
    Ok(())
}

#[test]
fn traces_through_two_proxies_to_threads_and_two_stores_as_root() -> Result<()> {
    meets_its_marks("nginx, haproxy, Python (threads), Redis + MariaDB")
}

#[test]
fn traces_inside_tls_through_a_proxy_to_threads_as_root() -> Result<()> {
    meets_its_marks("TLS: nginx, Python (threads), Redis")
}

#[test]
fn traces_of_goroutines_as_root() -> Result<()> {
    meets_its_marks("Go (goroutines), PostgreSQL")
}

#[test]
fn traces_of_goroutines_inside_tls_as_root() -> Result<()> {
    meets_its_marks("TLS: Go (goroutines), PostgreSQL")
}

#[test]
fn traces_of_an_event_loop_as_root() -> Result<()> {
    meets_its_marks("Node, Redis")
}

#[test]
fn traces_of_a_pool_of_threads_in_java_as_root() -> Result<()> {
    meets_its_marks("Java (pool of threads), HTTP")
}

/// Tasks of tokio ask over one connection of all.
#[test]
fn traces_of_tasks_as_root() -> Result<()> {
    meets_its_marks("tokio: axum, tonic (gRPC)")
}
