//! Whole MetaFlow under test: real processes, a real engine, and agents that keep a ledger.
//!
//! The processes are the binaries of this workspace, found beside the test that runs. Every node and agent lives in a folder of its
//! own with ports of its own, and ends with the test. Leaves out: faults, which `metaflow-chaos` adds.

pub mod cluster;
pub mod fixture;
pub mod herd;
pub mod judging;
pub mod ledger;
pub mod process;
pub mod proxy;
pub mod sandbox;
pub mod server;
pub mod simulation;
pub mod traces;

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, bail};
pub use serde_json::Value;

/// Polls until `check` gives a value; fails after `deadline` and says what was waited for and what was last seen.
pub async fn wait_for<T, E: std::fmt::Display>(
    what: &str,
    deadline: Duration,
    mut check: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T> {
    let end = tokio::time::Instant::now() + deadline;
    loop {
        match check().await {
            Ok(value) => return Ok(value),
            Err(error) if tokio::time::Instant::now() >= end => {
                bail!("waited {deadline:?} for {what}: {error}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// The third-party captures; `METAFLOW_CORPUS` says where they are.
pub fn corpus() -> PathBuf {
    let default = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    let path = std::env::var_os("METAFLOW_CORPUS").map_or(default, PathBuf::from);
    assert!(path.is_dir(), "no corpus at {}: set METAFLOW_CORPUS to its folder", path.display());
    path
}
