//! What travels between the row path's actors: batches on their way from socket to store.

use std::sync::Arc;

use metaflow_schema::{
    Block, Table, UnevenColumns,
    block::Group,
    encode_native,
    tables::{
        Application, ApplicationMap, FILE_EVENT, FileEvent, IN_PROCESS, InProcess, L4_FLOW_LOG, L4FlowLog,
        L7_FLOW_LOG, L7FlowLog, Network, NetworkMap, PROCESS_EVENT, ProcessEvent,
    },
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
    InProcess(Box<InProcess>),
    FileEvent(Box<FileEvent>),
    ProcessEvent(Box<ProcessEvent>),
}

/// What became of a batch; flows back to the ingester, and from it to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// In the store.
    Committed(BatchId),
    /// Malformed: it will never be stored. The rows are lost and counted.
    Rejected(BatchId, String),
}

/// How whoever is done with a batch says so. Never blocks.
pub type Report = Arc<dyn Fn(Outcome) + Send + Sync>;

/// Rows of two tables do not go into one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("rows of {0} cannot follow rows of {1}")]
pub struct OtherTable(&'static str, &'static str);

/// One expression for the block of whichever table.
macro_rules! each {
    ($rows:expr, $block:ident => $result:expr) => {
        match $rows {
            Rows::L4FlowLog($block) => $result,
            Rows::L7FlowLog($block) => $result,
            Rows::Network(_, $block) => $result,
            Rows::NetworkMap(_, $block) => $result,
            Rows::Application(_, $block) => $result,
            Rows::ApplicationMap(_, $block) => $result,
            Rows::InProcess($block) => $result,
            Rows::FileEvent($block) => $result,
            Rows::ProcessEvent($block) => $result,
        }
    };
}

impl Rows {
    pub fn table(&self) -> &'static Table {
        match self {
            Self::L4FlowLog(_) => &L4_FLOW_LOG,
            Self::L7FlowLog(_) => &L7_FLOW_LOG,
            Self::Network(table, _)
            | Self::NetworkMap(table, _)
            | Self::Application(table, _)
            | Self::ApplicationMap(table, _) => table,
            Self::InProcess(_) => &IN_PROCESS,
            Self::FileEvent(_) => &FILE_EVENT,
            Self::ProcessEvent(_) => &PROCESS_EVENT,
        }
    }

    pub fn len(&self) -> usize {
        each!(self, block => block.rows())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        each!(self, block => block.bytes())
    }

    /// Finds columns of different lengths; the methods below expect that there are none.
    pub fn check(&self) -> Result<(), UnevenColumns> {
        each!(self, block => block.check("", block.rows()))
    }

    /// The partition of a row's time.
    pub fn partition(&self, row: usize) -> u32 {
        let partition = self.table().partition;
        each!(self, block => partition.of(block.second(row)))
    }

    /// The rows at these indices, in that order.
    pub fn select(&self, rows: &[u32]) -> Self {
        match self {
            Self::L4FlowLog(block) => Self::L4FlowLog(Box::new(block.select(rows))),
            Self::L7FlowLog(block) => Self::L7FlowLog(Box::new(block.select(rows))),
            Self::Network(table, block) => Self::Network(table, Box::new(block.select(rows))),
            Self::NetworkMap(table, block) => Self::NetworkMap(table, Box::new(block.select(rows))),
            Self::Application(table, block) => Self::Application(table, Box::new(block.select(rows))),
            Self::ApplicationMap(table, block) => Self::ApplicationMap(table, Box::new(block.select(rows))),
            Self::InProcess(block) => Self::InProcess(Box::new(block.select(rows))),
            Self::FileEvent(block) => Self::FileEvent(Box::new(block.select(rows))),
            Self::ProcessEvent(block) => Self::ProcessEvent(Box::new(block.select(rows))),
        }
    }

    /// Moves all rows of `other` behind these.
    pub fn append(&mut self, other: Self) -> Result<(), OtherTable> {
        let (mine, others) = (self.table(), other.table());
        if !std::ptr::eq(mine, others) {
            return Err(OtherTable(others.name, mine.name));
        }
        match (self, other) {
            (Self::L4FlowLog(block), Self::L4FlowLog(more)) => block.append(*more),
            (Self::L7FlowLog(block), Self::L7FlowLog(more)) => block.append(*more),
            (Self::Network(_, block), Self::Network(_, more)) => block.append(*more),
            (Self::NetworkMap(_, block), Self::NetworkMap(_, more)) => block.append(*more),
            (Self::Application(_, block), Self::Application(_, more)) => block.append(*more),
            (Self::ApplicationMap(_, block), Self::ApplicationMap(_, more)) => block.append(*more),
            (Self::InProcess(block), Self::InProcess(more)) => block.append(*more),
            (Self::FileEvent(block), Self::FileEvent(more)) => block.append(*more),
            (Self::ProcessEvent(block), Self::ProcessEvent(more)) => block.append(*more),
            _ => return Err(OtherTable(others.name, mine.name)),
        }
        Ok(())
    }

    /// The body of an insert.
    pub fn encode_native(&self) -> Result<Vec<u8>, UnevenColumns> {
        each!(self, block => encode_native(&**block, block.rows()))
    }
}
