//! The register of ranges of ids ([`Register`]): a table, of which a row is a claim.

use std::{collections::HashSet, ops::Range};

use metaflow_schema::ddl::ID_RANGES;

use super::{Error, Store};
use crate::dictionary::{NodeId, Register};

/// The claims of one node id.
#[derive(Debug)]
pub struct IdRanges {
    store: Store,
    node: NodeId,
}

impl Store {
    pub fn id_ranges(&self, node: NodeId) -> IdRanges {
        IdRanges { store: self.clone(), node }
    }
}

impl IdRanges {
    async fn numbers<T: std::str::FromStr>(&self, sql: &str) -> Result<Vec<T>, Error> {
        let cells = self.store.rows(sql).await?.into_iter().flatten();
        let read = |cell: String| {
            cell.parse().map_err(|_| Error::Unknown(format!("the register of id ranges says {cell:?}")))
        };
        cells.map(read).collect()
    }
}

impl Register for IdRanges {
    type Error = Error;

    async fn highest(&self) -> Result<Option<u32>, Error> {
        let node = self.node.get();
        let sql = format!("SELECT number FROM {ID_RANGES} WHERE node = {node} ORDER BY number DESC LIMIT 1");
        Ok(self.numbers(&sql).await?.first().copied())
    }

    async fn note(&self, ranges: Range<u32>, holder: u64) -> Result<(), Error> {
        let rows: Vec<_> = ranges.map(|number| format!("({},{number},{holder})", self.node.get())).collect();
        let sql = format!("INSERT INTO {ID_RANGES} (node, number, holder) VALUES {}", rows.join(","));
        self.store.shared.client.execute(&sql, &[("async_insert", "0".to_owned())]).await
    }

    async fn holders(&self, ranges: Range<u32>) -> Result<HashSet<u64>, Error> {
        let sql = format!(
            "SELECT DISTINCT holder FROM {ID_RANGES} WHERE node = {} AND number >= {} AND number < {}",
            self.node.get(),
            ranges.start,
            ranges.end
        );
        Ok(self.numbers(&sql).await?.into_iter().collect())
    }
}
