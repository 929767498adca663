//! What travels between the row path's actors: batches on their way from socket to store.

use metaflow_schema::{
    Table,
    tables::{Application, ApplicationMap, L4FlowLog, L7FlowLog, Network, NetworkMap},
};
use metaflow_wire as wire;

use crate::memory::Permit;

/// Names a batch for ever; stands on every row that it brought, so that the tables are the ledger of what was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId {
    pub agent_id: u32,
    pub seq: u64,
}

/// A batch that is durable in the write-ahead log.
#[derive(Debug)]
pub struct Accepted {
    pub id: BatchId,
    pub batch: wire::Batch,
    /// It may have been inserted before (sent again, or replayed after a start): the writer asks the store first.
    pub uncertain: bool,
    pub permit: Permit,
}

/// A batch with every column of its table filled.
#[derive(Debug)]
pub struct Labelled {
    pub id: BatchId,
    pub rows: Rows,
    pub uncertain: bool,
    pub permit: Permit,
}

/// Rows of one table. The `&'static Table` says which interval.
#[derive(Debug, Clone)]
pub enum Rows {
    L4FlowLog(Box<L4FlowLog>),
    L7FlowLog(Box<L7FlowLog>),
    Network(&'static Table, Box<Network>),
    NetworkMap(&'static Table, Box<NetworkMap>),
    Application(&'static Table, Box<Application>),
    ApplicationMap(&'static Table, Box<ApplicationMap>),
}

/// What became of a batch; flows back to the ingester, and from it to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// In the store.
    Committed(BatchId),
    /// Malformed: it will never be stored. The rows are lost and counted.
    Rejected(BatchId, String),
}
