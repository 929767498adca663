//! A cluster in one process under faults on its lines, in plain text and with certificates on both sides of every connection.
//! `METAFLOW_SEEDS=7,8,9` runs these seeds instead.

use std::time::Duration;

use anyhow::{Context as _, Result};
use metaflow_cluster_tests::sandbox::{self, Options};

async fn check(seeds: &[u64], options: Options) -> Result<()> {
    let named = std::env::var("METAFLOW_SEEDS").ok();
    let named: Option<Vec<u64>> =
        named.map(|text| text.split(',').map(|seed| seed.parse().expect("a number")).collect());
    for seed in named.as_deref().unwrap_or(seeds) {
        let folder = tempfile::tempdir()?;
        let report = sandbox::run(*seed, options, folder.path())
            .await
            .with_context(|| format!("seed {seed}: METAFLOW_SEEDS={seed} runs it again"))?;
        eprintln!("seed {seed}: {report:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_when_lines_fail_and_nodes_die() -> Result<()> {
    check(&[1], Options { nodes: 4, faults: Duration::from_secs(7), mutual_tls: false }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_with_certificates_on_both_sides() -> Result<()> {
    check(&[2], Options { nodes: 2, faults: Duration::from_secs(4), mutual_tls: true }).await
}
