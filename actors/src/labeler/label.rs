//! Labelling of one batch: columns of the wire, a snapshot and the dictionary in, a block with every tag out.

use metaflow_schema::{
    Block, Group,
    enums::Kind,
    tables::{
        APPLICATION_1M, APPLICATION_1S, APPLICATION_MAP_1M, APPLICATION_MAP_1S, NETWORK_1M, NETWORK_1S,
        NETWORK_MAP_1M, NETWORK_MAP_1S,
    },
};
use metaflow_wire::{self as wire, columns::Rows as WireRows};

use super::{cells::Cells, l4, l7, process, snapshot::Snapshot};
use crate::rows::{BatchId, Rows};

/// Where ids of names come from.
pub trait Names {
    type Error;

    /// One id for each name, in order; 0 for the empty name. Ids are durable when this returns.
    fn ids(&self, wanted: &[(Kind, &str)]) -> Result<Vec<u32>, Self::Error>;

    /// Whether some node may have given this id. Rows carry the id of their agent as the agent says it; one that no node gave
    /// would never resolve.
    fn may_exist(&self, kind: Kind, id: u32) -> bool;
}

/// Why columns cannot be rows. The sender is at fault: the batch will never be stored.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error(transparent)]
    Batch(#[from] wire::MalformedBatch),
    #[error("no node gave the agent id {0}")]
    Agent(u32),
    #[error("column {column} has {cells} cells, the batch has {rows} rows")]
    Length { column: &'static str, cells: usize, rows: usize },
    #[error("column {column} holds {value}, which is out of its range")]
    Value { column: &'static str, value: u64 },
    #[error("with column {column} the texts of the rows exceed the limit of {limit} bytes for such a batch")]
    TextBytes { column: &'static str, limit: usize },
    #[error("the first string of the batch is not empty")]
    FirstString,
    #[error("an address of the batch has {0} bytes")]
    Address(usize),
    #[error("columns do not belong to table {0}")]
    Table(&'static str),
}

#[derive(Debug, thiserror::Error)]
pub enum Error<E> {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The batch is sound; it can be labelled later.
    #[error("failed to find the ids of names")]
    Names(#[source] E),
}

/// What a batch is labelled with.
#[derive(Debug)]
pub struct Input<'a, N> {
    pub snapshot: &'a Snapshot,
    pub names: &'a N,
    pub id: BatchId,
}

impl<N: Names> Input<'_, N> {
    /// Opens a batch and fills every column of its table.
    pub fn label(&self, batch: &wire::Batch) -> Result<Rows, Error<N::Error>> {
        let (table, columns) = wire::open(batch).map_err(Malformed::Batch)?;
        let text_bytes = wire::text_bytes_max(batch.rows, batch.uncompressed_bytes);
        self.fill(table, batch.rows as usize, columns, text_bytes)
    }

    /// Fills every column of a table. `rows` is bounded by who opened the batch.
    pub fn label_columns(
        &self,
        table: wire::Table,
        rows: usize,
        columns: wire::Columns,
    ) -> Result<Rows, Error<N::Error>> {
        self.fill(table, rows, columns, wire::TEXT_BYTES_MAX)
    }

    fn fill(
        &self,
        table: wire::Table,
        rows: usize,
        columns: wire::Columns,
        text_bytes: usize,
    ) -> Result<Rows, Error<N::Error>> {
        use wire::Table as T;
        if !self.names.may_exist(Kind::Agent, self.id.agent_id) {
            return Err(Malformed::Agent(self.id.agent_id).into());
        }
        let wire::Columns { strings, addresses, rows: columns } = columns;
        let cells = &mut Cells::new(rows, &strings, text_bytes)?;
        let labelled = match (table, columns) {
            (T::L4FlowLog, Some(WireRows::L4FlowLog(columns))) => {
                Rows::L4FlowLog(Box::new(l4::flow_log(self, cells, &addresses, columns)?))
            }
            (T::L7FlowLog, Some(WireRows::L7FlowLog(columns))) => {
                Rows::L7FlowLog(Box::new(l7::request_log(self, cells, &addresses, columns)?))
            }
            (T::Network1s | T::Network1m, Some(WireRows::Network(columns))) => {
                let table = if table == T::Network1s { &NETWORK_1S } else { &NETWORK_1M };
                Rows::Network(table, Box::new(l4::network(self, cells, &addresses, columns)?))
            }
            (T::NetworkMap1s | T::NetworkMap1m, Some(WireRows::Network(columns))) => {
                let table = if table == T::NetworkMap1s { &NETWORK_MAP_1S } else { &NETWORK_MAP_1M };
                Rows::NetworkMap(table, Box::new(l4::network_map(self, cells, &addresses, columns)?))
            }
            (T::Application1s | T::Application1m, Some(WireRows::Application(columns))) => {
                let table = if table == T::Application1s { &APPLICATION_1S } else { &APPLICATION_1M };
                Rows::Application(table, Box::new(l7::application(self, cells, &addresses, columns)?))
            }
            (T::ApplicationMap1s | T::ApplicationMap1m, Some(WireRows::Application(columns))) => {
                let table =
                    if table == T::ApplicationMap1s { &APPLICATION_MAP_1S } else { &APPLICATION_MAP_1M };
                Rows::ApplicationMap(table, Box::new(l7::application_map(self, cells, &addresses, columns)?))
            }
            (T::InProcess, Some(WireRows::InProcess(columns))) => {
                Rows::InProcess(Box::new(process::profile(self, cells, columns)?))
            }
            (T::FileEvent, Some(WireRows::FileEvent(columns))) => {
                Rows::FileEvent(Box::new(process::files(self, cells, columns)?))
            }
            (T::ProcessEvent, Some(WireRows::ProcessEvent(columns))) => {
                Rows::ProcessEvent(Box::new(process::lives(self, cells, columns)?))
            }
            _ => return Err(Malformed::Table(table.as_str_name()).into()),
        };
        debug_assert!(is_even(&labelled, rows), "a mapping left a column with another length");
        Ok(labelled)
    }
}

fn is_even(rows: &Rows, expected: usize) -> bool {
    fn check<B: Block + Group>(block: &B, expected: usize) -> bool {
        block.rows() == expected && block.check("", expected).is_ok()
    }
    match rows {
        Rows::L4FlowLog(block) => check(block.as_ref(), expected),
        Rows::L7FlowLog(block) => check(block.as_ref(), expected),
        Rows::Network(_, block) => check(block.as_ref(), expected),
        Rows::NetworkMap(_, block) => check(block.as_ref(), expected),
        Rows::Application(_, block) => check(block.as_ref(), expected),
        Rows::ApplicationMap(_, block) => check(block.as_ref(), expected),
        Rows::InProcess(block) => check(block.as_ref(), expected),
        Rows::FileEvent(block) => check(block.as_ref(), expected),
        Rows::ProcessEvent(block) => check(block.as_ref(), expected),
    }
}
