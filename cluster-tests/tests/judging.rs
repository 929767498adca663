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
    let observer = Observer::start(&chain.ports())?;
    drive(front, load)?;
    let seen = observer.finish(|calls| calls.len() >= load.traces * 8)?;
    let name = format!("nginx, Python (threads), Redis; {} at a time", load.connections);
    Ok(judge(&name, &chain, load.traces, seen))
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
