//! The fence against late inserts, where nodes share a store.
//!
//! A node may be stopped at any moment and go on hours later, in the middle of an insert. Meanwhile the agent has sent the same batches to
//! another node, which found that the store has them not. Whoever holds such a batch claims it: a row in `flow_tag.claims`, then a wait
//! for inserts that began before. An insert of batches that nobody else should have is checked against the claims by the store itself, so
//! it either began before the claim and has ended, or it sees the claim and fails.
//!
//! Two nodes that both claim a batch insert it with one token ([`Insert::token`]). The store remembers tokens for a while only, so such
//! an insert must begin soon after its batch was looked up, by the store's clock.

use std::{collections::HashSet, fmt::Write};

use metaflow_schema::{Table, ddl::CLAIMS};

use super::{Error, Insert, LEDGER_IDS_MAX, Store};
use crate::rows::BatchId;

/// What the store checks before it takes a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Nothing: nobody else has these rows.
    Open,
    /// None of the batches is claimed. Of which partition the block is.
    Unclaimed { partition: u32 },
    /// The insert begins before this second of the store's clock.
    Before(u32),
}

impl Store {
    /// Writes that these batches are claimed. What began before does not know: see [`Shelf::claim`](crate::writer::Shelf::claim).
    pub async fn note_claims(&self, table: &Table, partition: u32, ids: &[BatchId]) -> Result<(), Error> {
        for ids in ids.chunks(LEDGER_IDS_MAX) {
            let sql = claim_sql(table, partition, ids);
            self.shared.client.execute(&sql, &[("async_insert", "0".to_owned())]).await?;
        }
        Ok(())
    }

    /// The inserts into a table, of any node, that run now.
    pub async fn running_inserts(&self, table: &Table) -> Result<HashSet<String>, Error> {
        let running = format!(
            "SELECT query_id FROM system.processes WHERE query_kind = 'Insert' AND startsWith(query_id, 'metaflow-') \
             AND startsWith(query, 'INSERT INTO {}.`{}`')",
            table.database, table.name
        );
        self.column(&running).await
    }

    /// Tells a query of any node to end; it has ended once it does not run any more.
    pub async fn end(&self, query_id: &str) -> Result<(), Error> {
        let sql = format!("KILL QUERY WHERE query_id = '{query_id}' ASYNC");
        self.shared.client.execute(&sql, &[]).await
    }

    /// Which of these batches somebody has claimed.
    pub async fn claimed(
        &self,
        table: &Table,
        partition: u32,
        ids: &[BatchId],
    ) -> Result<HashSet<BatchId>, Error> {
        let from = format!(
            "SELECT DISTINCT agent_id, batch_seq FROM {CLAIMS} WHERE {} AND (agent_id, batch_seq) IN ",
            of(table, partition)
        );
        self.batches(ids, |ids| format!("{from}({})", super::tuples(ids))).await
    }

    /// The store's clock, in seconds.
    pub async fn now(&self) -> Result<u32, Error> {
        let now = self.column("SELECT toUnixTimestamp(now())").await?;
        let now = now.iter().next().and_then(|text| text.parse().ok());
        now.ok_or_else(|| Error::Unknown("the store does not say what time it is".to_owned()))
    }

    async fn column(&self, sql: &str) -> Result<HashSet<String>, Error> {
        Ok(self.rows(sql).await?.into_iter().filter_map(|row| row.into_iter().next()).collect())
    }
}

/// The statement of an insert, up to its data.
pub(super) fn insert_sql(insert: &Insert) -> String {
    let Insert { table, guard, .. } = insert;
    let name = format!("{}.`{}`", table.database, table.name);
    let condition = match guard {
        Guard::Open => return format!("INSERT INTO {name} FORMAT Native"),
        Guard::Unclaimed { partition } => format!(
            "(agent_id, batch_seq) IN (SELECT agent_id, batch_seq FROM {CLAIMS} WHERE {})",
            of(table, *partition)
        ),
        Guard::Before(second) => format!("now() >= toDateTime({second})"),
    };
    let (mut columns, mut structure) = (String::new(), String::new());
    for (index, column) in (table.columns)().iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        // Writing to a String does not fail.
        let _infallible = write!(columns, "{comma}`{}`", column.name);
        let kind = column.clickhouse.replace('\'', "\\'");
        let _infallible = write!(structure, "{comma}`{}` {kind}", column.name);
    }
    format!(
        "INSERT INTO {name} ({columns}) SELECT {columns} FROM input('{structure}') WHERE NOT throwIf({condition}, 'fenced') FORMAT Native"
    )
}

fn claim_sql(table: &Table, partition: u32, ids: &[BatchId]) -> String {
    let mut sql = format!("INSERT INTO {CLAIMS} (`table`, `partition`, agent_id, batch_seq) VALUES ");
    for (index, id) in ids.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let BatchId { agent_id, seq } = id;
        let _infallible =
            write!(sql, "{comma}('{}.{}',{partition},{agent_id},{seq})", table.database, table.name);
    }
    sql
}

/// The claims of one partition of a table.
fn of(table: &Table, partition: u32) -> String {
    format!("`table` = '{}.{}' AND `partition` = {partition}", table.database, table.name)
}
