//! The store: ClickHouse, embedded or on servers, behind one client.
//!
//! Makes the tables, takes column blocks, answers which batches are stored, runs compiled queries. Both kinds of store speak HTTP, so
//! there is one code path. Leaves out: what to insert and when to try again (`writer`), what to ask (`querier`).

mod client;
pub mod embedded;
mod fence;
mod migrate;
mod ranges;

use std::{
    collections::HashSet,
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use metaflow_schema::{Partition, Table};
use tokio::sync::watch;

use crate::rows::BatchId;
use client::Client;

pub use fence::Guard;
pub use migrate::Migration;
pub use ranges::IdRanges;

/// Ids in one ledger query: 30 bytes each stay far below the engine's limit of 256 KiB for a query.
const LEDGER_IDS_MAX: usize = 4_000;
/// Answers to our own questions are lists of ids and columns; one that is larger is not an answer to them.
const OWN_ANSWER_BYTES_MAX: usize = 16 << 20;
/// Two computations of a server's start may differ by rounding; a server does not restart within this time.
const START_TOLERANCE_SECONDS: i64 = 2;

/// How to reach a store.
#[derive(Clone, PartialEq, Eq)]
pub struct Servers {
    /// HTTP addresses of one and the same store, tried in turn when one is unreachable.
    pub urls: Vec<String>,
    pub user: String,
    pub password: String,
    /// LZ4 on inserts and answers: worth it across a network, not on loopback.
    pub compress: bool,
}

impl std::fmt::Debug for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Servers").field("urls", &self.urls).field("user", &self.user).finish_non_exhaustive()
    }
}

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Nothing works until somebody changes something.
    #[error("{0}")]
    Setup(String),
    /// It said no for a reason of its own (too busy, no memory, no space, no table): the same request may work later. Nothing was done.
    #[error("the store cannot do it now: {message}")]
    Transient { code: u32, message: String },
    /// No answer: it may have been done.
    #[error("the store gave no answer: {0}")]
    Unknown(String),
    /// The request itself is wrong; it will never work.
    #[error("the store refused it: {message}")]
    Refused { code: u32, message: String },
    /// The guard of an insert did not let it through. Nothing was done.
    #[error("the store does not take it from this node: {0}")]
    Fenced(String),
    /// The answer is larger than allowed.
    #[error("the answer exceeds {0} bytes")]
    TooLarge(usize),
}

/// One `INSERT`.
#[derive(Debug, Clone)]
pub struct Insert {
    pub table: &'static Table,
    /// One Native block, of one partition: it is stored whole or not at all.
    pub block: Bytes,
    /// Equal tokens are stored once.
    pub token: String,
    pub guard: Guard,
    /// Unique for each try; begins with this node's prefix, see [`Store::query_id`].
    pub query_id: String,
}

/// The client; clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    /// Names this node's queries: `metaflow-<node>-`.
    prefix: String,
    /// Tells this process's queries from those of every other life of the node.
    life: u64,
    queries: AtomicU64,
    /// Of the embedded engine.
    process: Option<watch::Receiver<Option<u32>>>,
    start: std::sync::Mutex<Option<i64>>,
}

impl Store {
    /// A client of ClickHouse servers. Nothing is sent yet.
    pub fn servers(servers: Servers, node_id: u32) -> Self {
        Self::servers_over(None, servers, node_id)
    }

    /// The same over encrypted connections, where there is something to make them with.
    pub fn servers_over(tls: Option<&metaflow_tls::Client>, servers: Servers, node_id: u32) -> Self {
        // The sender is dropped: the addresses never change.
        Self::new(Client::new(watch::channel(servers).1, tls), node_id, None)
    }

    /// A client of the embedded engine; it follows the engine through restarts.
    pub fn embedded(engine: &embedded::Engine, node_id: u32) -> Self {
        Self::new(Client::new(engine.servers(), None), node_id, Some(engine.process()))
    }

    fn new(client: Client, node_id: u32, process: Option<watch::Receiver<Option<u32>>>) -> Self {
        Self {
            shared: Arc::new(Shared {
                client,
                prefix: format!("metaflow-{node_id}-"),
                // Tokens are remembered by the tables across all restarts: a name that came twice would cost the rows of a block.
                life: std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), node_id),
                queries: AtomicU64::new(0),
                process,
                start: std::sync::Mutex::new(None),
            }),
        }
    }

    /// Creates what is missing of databases, tables, columns and dictionary.
    pub async fn migrate(&self) -> Result<Migration, Error> {
        migrate::migrate(&self.shared.client).await
    }

    /// Stores one block.
    pub async fn insert(&self, insert: &Insert) -> Result<(), Error> {
        self.shared.client.insert(insert).await
    }

    /// Runs a statement that only reads and gives the body of the answer, at most `bytes_max` long. Dropping the future ends the query.
    pub async fn query(
        &self,
        sql: &str,
        settings: &[(&'static str, String)],
        bytes_max: usize,
    ) -> Result<Vec<u8>, Error> {
        self.shared.client.query(sql, settings, bytes_max).await
    }

    /// Rows of text of a statement of our own.
    pub async fn rows(&self, sql: &str) -> Result<Vec<Vec<String>>, Error> {
        self.shared.client.rows(sql, OWN_ANSWER_BYTES_MAX).await
    }

    /// Which of these batches have rows in this partition of the table. Only certain when no insert of them is running.
    pub async fn stored_batches(
        &self,
        table: &Table,
        partition: u32,
        ids: &[BatchId],
    ) -> Result<HashSet<BatchId>, Error> {
        self.batches(ids, |ids| ledger_sql(table, partition, ids)).await
    }

    /// Takes the rows of these batches out of a partition; they are gone when this returns. What it costs is a rewrite of the parts that
    /// have them.
    pub async fn remove_batches(&self, table: &Table, partition: u32, ids: &[BatchId]) -> Result<(), Error> {
        for ids in ids.chunks(LEDGER_IDS_MAX) {
            let Table { database, name, .. } = table;
            let sql =
                format!("ALTER TABLE {database}.`{name}` DELETE WHERE {}", of_batches(table, partition, ids));
            self.shared.client.execute(&sql, &[("mutations_sync", "1".to_owned())]).await?;
        }
        Ok(())
    }

    /// The answers to a question about batches.
    async fn batches(
        &self,
        ids: &[BatchId],
        sql: impl Fn(&[BatchId]) -> String,
    ) -> Result<HashSet<BatchId>, Error> {
        let mut found = HashSet::new();
        for ids in ids.chunks(LEDGER_IDS_MAX) {
            for row in self.rows(&sql(ids)).await? {
                let [agent_id, seq] = row.as_slice() else {
                    return Err(Error::Unknown("the ledger's answer has other columns".to_owned()));
                };
                let (Ok(agent_id), Ok(seq)) = (agent_id.parse(), seq.parse()) else {
                    return Err(Error::Unknown("the ledger's answer has other types".to_owned()));
                };
                found.insert(BatchId { agent_id, seq });
            }
        }
        Ok(found)
    }

    /// Ends every query of this node that still runs, and waits until it has ended. To be called before the first lookup after a start.
    pub async fn kill_own_inserts(&self) -> Result<(), Error> {
        let prefix = &self.shared.prefix;
        self.shared
            .client
            .execute(&format!("KILL QUERY WHERE startsWith(query_id, '{prefix}') SYNC"), &[])
            .await
    }

    /// Ends one query and waits until it has ended.
    pub async fn kill(&self, query_id: &str) -> Result<(), Error> {
        if !query_id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(Error::Refused {
                code: 0,
                message: "a query id consists of letters, digits and -".to_owned(),
            });
        }
        self.shared.client.execute(&format!("KILL QUERY WHERE query_id = '{query_id}' SYNC"), &[]).await
    }

    /// A new name for a query of this node, which it never had and never will have again.
    pub fn query_id(&self) -> String {
        let number = self.shared.queries.fetch_add(1, Ordering::Relaxed);
        let Shared { prefix, life, .. } = &*self.shared;
        format!("{prefix}{life:016x}-{number}")
    }

    /// Names the run of the store: another name after each of its restarts. A crash may leave a token without its block, so a token is
    /// not used beyond it.
    pub async fn run(&self) -> Result<String, Error> {
        if let Some(process) = &self.shared.process {
            return Ok(process.borrow().unwrap_or(0).to_string());
        }
        let rows = self.rows("SELECT toInt64(toUnixTimestamp(now())) - toInt64(uptime())").await?;
        let start = rows
            .first()
            .and_then(|row| row.first())
            .and_then(|text| text.parse::<i64>().ok())
            .ok_or_else(|| Error::Unknown("the store does not say when it started".to_owned()))?;
        let mut known = self.shared.start.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let start = match *known {
            Some(known) if (known - start).abs() <= START_TOLERANCE_SECONDS => known,
            _ => start,
        };
        *known = Some(start);
        Ok(start.to_string())
    }

    /// True when the store answers.
    pub async fn ping(&self) -> bool {
        let ask = self.rows("SELECT 1");
        tokio::time::timeout(Duration::from_secs(2), ask).await.is_ok_and(|answer| answer.is_ok())
    }
}

fn ledger_sql(table: &Table, partition: u32, ids: &[BatchId]) -> String {
    let Table { database, name, .. } = table;
    let of_batches = of_batches(table, partition, ids);
    format!("SELECT DISTINCT agent_id, batch_seq FROM {database}.`{name}` WHERE {of_batches}")
}

/// The rows of these batches in a partition, as a condition.
fn of_batches(table: &Table, partition: u32, ids: &[BatchId]) -> String {
    let mut sql = format!("(agent_id, batch_seq) IN ({})", tuples(ids));
    let seconds = match table.partition {
        Partition::Hour => Some(3_600_u64),
        Partition::Day => Some(86_400),
        Partition::None => None,
    };
    if let Some(seconds) = seconds {
        let from = u64::from(partition) * seconds;
        // Writing to a String does not fail.
        let _infallible = write!(
            sql,
            " AND time >= toDateTime({from}, 'UTC') AND time < toDateTime({}, 'UTC')",
            from + seconds
        );
    }
    sql
}

/// Batches as a list of SQL.
fn tuples(ids: &[BatchId]) -> String {
    let tuples: Vec<_> = ids.iter().map(|id| format!("({},{})", id.agent_id, id.seq)).collect();
    tuples.join(",")
}

#[cfg(test)]
mod tests {
    use metaflow_schema::tables::{L7_FLOW_LOG, NETWORK_1M};

    use super::*;

    #[test]
    fn no_two_lives_of_a_node_name_a_query_alike() {
        let store = || {
            let servers =
                Servers { urls: vec![], user: String::new(), password: String::new(), compress: false };
            Store::servers(servers, 1)
        };
        let (one, other) = (store(), store());
        let names: HashSet<_> = (0..50).flat_map(|_| [one.query_id(), other.query_id()]).collect();
        assert_eq!(names.len(), 100);
        assert!(names.iter().all(|name| name.starts_with("metaflow-1-")), "or they could not be ended");
    }

    #[test]
    fn the_ledger_is_asked_for_one_partition() {
        let ids = [BatchId { agent_id: 1, seq: 2 }, BatchId { agent_id: 3, seq: 4 }];
        assert_eq!(
            ledger_sql(&L7_FLOW_LOG, 2, &ids),
            "SELECT DISTINCT agent_id, batch_seq FROM flow_log.`l7_flow_log` WHERE (agent_id, batch_seq) IN ((1,2),(3,4)) \
             AND time >= toDateTime(7200, 'UTC') AND time < toDateTime(10800, 'UTC')"
        );
        assert!(ledger_sql(&NETWORK_1M, 1, &ids).contains("time < toDateTime(172800, 'UTC')"));
    }
}
