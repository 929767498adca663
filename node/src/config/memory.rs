//! One number for the memory of the whole process, and how it is split.
//!
//! The engine is a process of its own with limits of its own; results of queries come on top, at most 64 MiB for each that runs.

use anyhow::ensure;
use serde::Deserialize;

use super::{GIB, MIB, Size};

/// The program itself: code, runtime, connections, names and facts of a small cluster, and what the allocator keeps. Measured: 50 MiB
/// resident after the start, everything else included.
const PROGRAM: u64 = 64 * MIB;
/// Largest share of the node's database: more than this is faster than any disk takes it away.
const DATABASE_MAX: u64 = 128 * MIB;
/// Least share of the node's database: a group commit and the buffer that it goes to.
const DATABASE_MIN: u64 = 32 * MIB;
/// Two of the largest batches decompressed: with less, one agent could stop all others.
const ROWS_MIN: u64 = 64 * MIB;
const BUDGET_MIN: u64 = PROGRAM + DATABASE_MIN + ROWS_MIN;

/// Memory of the node's process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// All that the process may use: rows on their way from socket to store, the node's database, the program. Default: a quarter of the
    /// machine's memory, at most 1 GiB.
    pub budget: Option<Size>,
}

/// Shares of the budget, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Split {
    pub(crate) total: usize,
    /// Row data, from socket to store.
    pub(crate) rows: usize,
    /// The node's database: buffers and cache.
    pub(crate) database: usize,
}

impl Memory {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.budget.is_none_or(|budget| budget.0 >= BUDGET_MIN),
            "memory.budget is below {}MiB: one full batch could not be taken",
            BUDGET_MIN / MIB
        );
        Ok(())
    }

    /// The shares on this machine.
    pub(crate) fn split(&self) -> Split {
        split(self.budget.map_or_else(default_budget, |size| size.0))
    }
}

fn split(total: u64) -> Split {
    let database = (total / 8).clamp(DATABASE_MIN, DATABASE_MAX);
    let rows = total.saturating_sub(PROGRAM + database).max(ROWS_MIN);
    let bytes = |size| usize::try_from(size).unwrap_or(usize::MAX);
    Split { total: bytes(total), rows: bytes(rows), database: bytes(database) }
}

fn default_budget() -> u64 {
    let info = rustix::system::sysinfo();
    let memory = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit));
    (memory / 4).clamp(BUDGET_MIN, GIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_make_up_the_budget_and_rows_get_the_most() {
        let mib = |size: u64| usize::try_from(size * MIB).unwrap();
        for (total, rows, database) in [(160, 64, 32), (192, 96, 32), (1024, 832, 128), (65_536, 65_344, 128)]
        {
            let expected = Split { total: mib(total), rows: mib(rows), database: mib(database) };
            assert_eq!(split(total * MIB), expected);
        }
    }
}
