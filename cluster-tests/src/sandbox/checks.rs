//! What must hold of the cluster, before the faults and after them.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};

use super::{BUDGET_MIB, HERD, PATIENCE, QUIET, ROWS_A_BATCH, Sandbox};
use crate::{herd::Herd, ledger::LedgerAgent, wait_for};

impl Sandbox {
    pub(super) fn check_served(&self, herd: &Herd) -> Result<()> {
        let count = herd.count();
        ensure!(count.total() == HERD && count.lost == 0, "{count:?}");
        Ok(())
    }

    /// I8: served, and by a node of the agent's own list.
    pub(super) fn check_at_home(&self, herd: &Herd) -> Result<()> {
        self.check_served(herd)?;
        let count = herd.count();
        ensure!(count.away == 0, "agents stayed with nodes off their lists: {count:?}");
        Ok(())
    }

    /// I9: answers the most that the process ever used.
    pub(super) async fn check_memory(&self) -> Result<u64> {
        wait_for("I9: nodes to give all memory back", PATIENCE, async || {
            let (_, status) = self.ask(&self.members[0], &["status", "-o", "json"]).await?;
            let status = status?;
            let nodes = status["nodes"].as_array().context("nodes")?;
            for node in nodes {
                let own = &node["own"];
                ensure!(own["memory_used_bytes"] == 0 && own["wal_bytes"] == 0, "{node}");
            }
            ensure!(nodes.len() == self.members.len(), "{status}");
            anyhow::Ok(())
        })
        .await?;
        // All nodes are in this process, and so is what tests them.
        let peak = peak_mib()?;
        let may = BUDGET_MIB * self.members.len() as u64;
        ensure!(peak <= may, "I9: {peak} MiB were used, and the nodes may use {may}");
        Ok(peak)
    }

    /// I10: once all are where they belong, nothing moves.
    pub(super) async fn check_quiet(&self, herd: &Herd) -> Result<()> {
        let mut before = herd.count().served;
        wait_for("I10: nothing to move", PATIENCE, async || {
            tokio::time::sleep(QUIET).await;
            let now = herd.count().served;
            ensure!(std::mem::replace(&mut before, now.clone()) == now, "{now:?}");
            Ok(())
        })
        .await
    }

    /// Answers how many names were compared.
    pub(super) async fn check_end(&self, agents: &[LedgerAgent]) -> Result<u64> {
        self.check_rows(agents).await?;
        // The one that is asked compares all of them.
        let verified = wait_for("I1, I2, I3: names to agree", PATIENCE / 2, async || {
            self.ctl(&self.members[0], &["dict", "verify", "-o", "json"]).await
        })
        .await?;
        let entries = verified["nodes"].as_array().into_iter().flatten();
        let names =
            entries.filter_map(|node| node["store"]["compared"]["entries"].as_u64()).max().unwrap_or(0);
        ensure!(names > 0, "no names were compared: {verified}");
        for agent in agents {
            wait_for("I7: nodes to say alike where an agent belongs", PATIENCE, async || {
                self.check_place(agent.agent_id).await
            })
            .await?;
        }
        Ok(names)
    }

    async fn check_place(&self, agent_id: u32) -> Result<()> {
        let mut said = Vec::new();
        for member in &self.members {
            let id = agent_id.to_string();
            let place = self.ctl(member, &["shard", "explain", &id, "-o", "json"]).await?;
            let candidates = place["candidates"].as_array().context("candidates")?.iter();
            let each =
                candidates.map(|candidate| (candidate["node_id"].clone(), candidate["verdict"].clone()));
            said.push(each.collect::<Vec<_>>());
        }
        ensure!(said.windows(2).all(|pair| pair[0] == pair[1] && !pair[0].is_empty()), "{said:?}");
        Ok(())
    }

    /// I5, I6, I11: the store has the batches of the ledgers, each once.
    async fn check_rows(&self, agents: &[LedgerAgent]) -> Result<()> {
        let sql = "SELECT agent_id, batch_seq, count() FROM flow_log.l7_flow_log GROUP BY agent_id, batch_seq FORMAT TSV";
        let mut stored: BTreeMap<(u32, u64), u32> = BTreeMap::new();
        for line in self.store.sql(sql).await? {
            let mut cells = line.split('\t');
            let mut cell = || cells.next().and_then(|cell| cell.parse::<u64>().ok()).context("a cell");
            stored.insert((u32::try_from(cell()?)?, cell()?), u32::try_from(cell()?)?);
        }
        for agent in agents {
            for seq in &agent.committed {
                let rows = stored.remove(&(agent.agent_id, *seq)).unwrap_or(0);
                let what = if rows < ROWS_A_BATCH { "I5" } else { "I6" };
                ensure!(
                    rows == ROWS_A_BATCH,
                    "{what}: batch {seq:x} of agent {} has {rows} of {ROWS_A_BATCH} rows",
                    agent.agent_id
                );
            }
        }
        ensure!(stored.is_empty(), "I11: the store has batches that no ledger knows: {stored:?}");
        Ok(())
    }
}

/// The most memory that this process ever had resident.
fn peak_mib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
    Ok(kib / 1024)
}
