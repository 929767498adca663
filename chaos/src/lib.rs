//! Faults: kill -9, stopped engines, cut networks, and the checks of what must hold afterwards.
//!
//! `run` is a whole run of a random schedule (`plan`): a cluster of processes in namespaces of its own (`network`, `world`), what goes
//! wrong in it, and what must hold all the while and at the end (`checks`). `./dev chaos` runs many. The other tests have one fault each.
//!
//! The schedule of every test comes from a printed seed (`METAFLOW_SEED` sets it), so that a failure can be run again. Leaves out how
//! processes start and talk, which is `metaflow-cluster-tests`.

pub mod agent;
pub mod checks;
pub mod disk;
pub mod network;
pub mod plan;
pub mod run;
pub mod world;

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, ensure};
use metaflow_cluster_tests::{
    ledger::LedgerAgent,
    process::{Node, number},
};

/// A small generator with a printed seed: splitmix64 (Steele, Lea, Flood 2014).
#[derive(Debug)]
pub struct Schedule {
    state: u64,
}

impl Schedule {
    /// Takes the seed from `METAFLOW_SEED`, or this one.
    pub fn new(default: u64) -> Self {
        let seed = std::env::var("METAFLOW_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(default);
        eprintln!("seed {seed}: METAFLOW_SEED={seed} runs this schedule again");
        Self::of(seed)
    }

    /// That of a seed, and no other.
    pub fn of(seed: u64) -> Self {
        Self { state: seed }
    }

    /// One of so many.
    pub fn index(&mut self, count: usize) -> usize {
        usize::try_from(self.between(0..count as u64)).unwrap_or(0)
    }

    /// A number in `range`.
    pub fn between(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        range.start + (mixed ^ (mixed >> 31)) % (range.end - range.start)
    }
}

/// The time that rows carry: they must be younger than their table's TTL.
#[expect(clippy::disallowed_methods, reason = "a test has no clock of a process")]
pub fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970").as_secs()
}

/// Rows of each batch that the store holds for an agent, from a table's own ledger columns.
pub async fn stored_batches(
    node: &Node,
    database: &str,
    table: &str,
    agent: &str,
) -> Result<BTreeMap<u64, u64>> {
    let sql = format!(
        "SELECT batch_seq, Count(row) AS stored FROM `{table}` WHERE agent = '{agent}' GROUP BY batch_seq LIMIT 1000000"
    );
    let rows = node.sql(database, &sql).await?;
    let cell = |row: &Vec<_>, at: usize| number(row.get(at)).unwrap_or(0.0) as u64;
    // Batch numbers are beyond 2^53: they come as text or as exact integers, never through a float.
    Ok(rows.iter().map(|row| (exact(&row[0]), cell(row, 1))).collect())
}

fn exact(cell: &metaflow_cluster_tests::Value) -> u64 {
    cell.as_u64().or_else(|| cell.as_str().and_then(|text| text.parse().ok())).unwrap_or(0)
}

/// Every batch that was acknowledged is in the store, and every batch in the store is there once.
pub fn check_ledger(agent: &LedgerAgent, stored: &BTreeMap<u64, u64>, rows_a_batch: u64) -> Result<()> {
    for seq in &agent.received {
        let rows = stored.get(seq).copied().unwrap_or(0);
        ensure!(
            rows == rows_a_batch,
            "batch {seq:#x} was acknowledged; the store has {rows} of its {rows_a_batch} rows"
        );
    }
    for (seq, rows) in stored {
        ensure!(*rows == rows_a_batch, "batch {seq:#x}: the store has {rows} rows instead of {rows_a_batch}");
    }
    Ok(())
}
