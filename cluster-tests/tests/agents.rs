//! Agents by the hundreds at a cluster, the small brother of `./dev bench agents`: all are served, evenly; when a node dies the others
//! serve its agents, evenly again.

use std::time::Duration;

use anyhow::{Result, ensure};
use metaflow_cluster_tests::{
    cluster::Cluster,
    herd::{Config, Herd},
    wait_for,
};

const PATIENCE: Duration = Duration::from_secs(60);
const AGENTS: u32 = 300;
/// Placement evens out shards, 1.05 at most; 300 agents fall on them by chance.
const SPREAD_MAX: f64 = 1.35;

#[tokio::test(flavor = "multi_thread")]
async fn agents_of_a_killed_node_are_served_by_the_others() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = Cluster::start(folder.path(), 3, "").await?;
    let servers = cluster.servers();
    let config = Config { starts_a_second: 1_000, ..Config::new(AGENTS, servers.clone()) };
    let herd = Herd::start(config);
    let evenly_served_by = async |servers: &[String]| {
        wait_for("all agents to be served evenly", PATIENCE, async || {
            let count = herd.count();
            ensure!(count.total() == AGENTS && count.lost == 0, "{count:?}");
            ensure!(count.spread(servers) <= SPREAD_MAX, "{count:?}");
            Ok(count)
        })
        .await
    };
    evenly_served_by(&servers).await?;

    cluster.nodes[0].kill().await?;
    wait_for("agents to lose their node", PATIENCE, async || {
        let count = herd.count();
        ensure!(count.served[&servers[0]] == 0, "{count:?}");
        Ok(())
    })
    .await?;
    let then = evenly_served_by(&servers[1..]).await?;
    ensure!(then.breaks > 0, "nobody noticed the death: {then:?}");
    wait_for("heartbeats to be answered", PATIENCE, async || {
        let answered = herd.count().replies - then.replies;
        ensure!(answered >= u64::from(AGENTS), "{answered}");
        Ok(())
    })
    .await
}
