//! Traces of real programs against the truth, seen by the eBPF programs in this machine's kernel: the tests need root and BPF, so their names
//! have `as_root` in them. `./dev bench traces` has more programs and more traces.

use anyhow::{Result, ensure};
use metaflow_cluster_tests::{
    judging::{Chain, Load, Observer, Verdict, drive, judge},
    process::free_port,
};

/// nginx in front of a server with threads, which asks Redis.
fn nginx_threads_redis(load: Load) -> Result<Verdict> {
    let folder = tempfile::tempdir()?;
    let mut chain = Chain::new(folder.path());
    let port = free_port();
    let front = chain.nginx(port, None)?;
    let redis = chain.redis(port, 2)?;
    chain.threads(port, Some(front), redis, None)?;
    let observer = Observer::start(&chain)?;
    drive(front, load)?;
    let seen = observer.finish(|calls| calls.len() >= load.traces * 8)?;
    let name = format!("nginx, Python (threads), Redis; {} at a time", load.connections);
    Ok(judge(&name, &chain, load.traces, seen))
}

/// A server with goroutines, which asks PostgreSQL.
fn go_postgresql(load: Load) -> Result<Verdict> {
    let folder = tempfile::tempdir()?;
    let mut chain = Chain::new(folder.path());
    let port = free_port();
    let database = chain.postgresql(port, 3)?;
    chain.go(port, database)?;
    let observer = Observer::start(&chain)?;
    drive(port, load)?;
    let seen = observer.finish(|calls| calls.len() >= load.traces * 8)?;
    Ok(judge(&format!("Go, PostgreSQL; {} at a time", load.connections), &chain, load.traces, seen))
}

#[test]
fn traces_of_goroutines_are_complete_and_right_as_root() -> Result<()> {
    for connections in [1, 20] {
        let verdict = go_postgresql(Load { traces: 300, connections, rate: 150 })?;
        println!("{verdict}");
        ensure!(verdict.dropped == 0 && verdict.recall() == 100.0, "{verdict}");
        ensure!(verdict.false_links == 0 && verdict.share() == 100.0, "{verdict}");
    }
    Ok(())
}

/// Tasks of tokio: axum, which asks a server of gRPC over one connection of all.
fn axum_tonic(load: Load) -> Result<Verdict> {
    let folder = tempfile::tempdir()?;
    let mut chain = Chain::new(folder.path());
    let port = free_port();
    chain.tokio(port)?;
    let observer = Observer::start(&chain)?;
    drive(port, load)?;
    let seen = observer.finish(|calls| calls.len() >= load.traces * 4)?;
    Ok(judge(&format!("axum, tonic; {} at a time", load.connections), &chain, load.traces, seen))
}

#[test]
fn traces_of_tasks_are_complete_and_right_as_root() -> Result<()> {
    for (connections, least) in [(1, 99.0), (20, 95.0)] {
        let verdict = axum_tonic(Load { traces: 300, connections, rate: 150 })?;
        println!("{verdict}");
        ensure!(verdict.dropped == 0 && verdict.recall() == 100.0, "{verdict}");
        ensure!(verdict.false_certain == 0, "{verdict}");
        ensure!(verdict.share() >= least, "{verdict}");
    }
    Ok(())
}

#[test]
fn traces_of_threads_behind_a_proxy_are_complete_and_right_as_root() -> Result<()> {
    for (connections, least) in [(1, 100.0), (20, 95.0)] {
        let verdict = nginx_threads_redis(Load { traces: 300, connections, rate: 150 })?;
        println!("{verdict}");
        ensure!(verdict.dropped == 0 && verdict.recall() == 100.0, "{verdict}");
        ensure!(verdict.false_certain == 0, "{verdict}");
        ensure!(verdict.share() >= least, "{verdict}");
    }
    Ok(())
}
