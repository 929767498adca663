//! Short runs of random faults in a network of their own, from seeds that stay; `./dev chaos` runs many more and longer ones. A seed that
//! ever failed stays here, or the fault that it showed has a test of its own.

use anyhow::{Context as _, Result};
use metaflow_chaos::{
    plan::{Size, Stores, plan},
    run::run,
};

/// `METAFLOW_CHAOS_SEED` runs another seed.
fn check(seed: u64, stores: Stores) -> Result<()> {
    let seed = std::env::var("METAFLOW_CHAOS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(seed);
    let plan = plan(seed, stores, Size::SMALL);
    eprintln!("{plan}");
    let report = run(&plan)
        .with_context(|| format!("METAFLOW_CHAOS_SEED={seed} runs it again; this was done:\n{plan}"))?;
    eprintln!("{report}");
    Ok(())
}

#[test]
fn nodes_with_a_shared_store_keep_what_must_hold_under_random_faults_as_root() -> Result<()> {
    check(1, Stores::Shared)
}

#[test]
fn nodes_with_a_store_each_keep_what_must_hold_under_random_faults_as_root() -> Result<()> {
    check(1, Stores::Embedded)
}
