//! Sealing and opening of row batches: protobuf columns, zstd, CRC, and the checks that make an opened batch safe to use.
//!
//! Leaves out columns that are too short and index bounds: whoever maps columns to rows checks those against `rows`.

use std::cell::RefCell;

use prost::Message;
use zstd::bulk::{Compressor, Decompressor};

use crate::{
    BATCH_BYTES_MAX, BATCH_ROWS_MAX, Batch, COLUMNS_BYTES_MAX, Columns, PROTOCOL_VERSION,
    PROTOCOL_VERSION_OLDEST, Table,
    columns::Rows,
    is_spoken,
    measure::{Entries, measure},
};

/// zstd level 1: on row columns it is within 8 % of level 3's size at about half of its CPU.
const COMPRESSION_LEVEL: i32 = 1;

// A new context asks the processor what it can do, and a virtual one asks its host: that was half of the CPU of an agent with few rows.
thread_local! {
    static COMPRESSOR: RefCell<Compressor<'static>> =
        RefCell::new(Compressor::new(COMPRESSION_LEVEL).expect("zstd has this level"));
    static DECOMPRESSOR: RefCell<Decompressor<'static>> = RefCell::default();
}

/// Why a batch cannot be read. The sender is at fault: sending it again will not help.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MalformedBatch {
    #[error(
        "protocol version {0} is not supported, this release speaks {PROTOCOL_VERSION_OLDEST} to {PROTOCOL_VERSION}: update nodes \
         before agents, and by one release at a time"
    )]
    Version(u32),
    #[error("payload of {0} bytes exceeds the limit of {BATCH_BYTES_MAX}")]
    PayloadSize(usize),
    #[error("{0} rows exceed the limit of {BATCH_ROWS_MAX}")]
    Rows(u32),
    #[error("uncompressed size of {0} bytes exceeds the limit of {COLUMNS_BYTES_MAX}")]
    UncompressedSize(u32),
    #[error("checksum of the payload is {actual:#010x}, the batch says {expected:#010x}")]
    Checksum { expected: u32, actual: u32 },
    #[error("payload is not valid zstd of {0} bytes")]
    Compression(u32),
    #[error("payload is not a valid Columns message: {0}")]
    Encoding(String),
    #[error("{listed} {what} are listed, more than {rows} rows can refer to")]
    Entries { what: &'static str, listed: usize, rows: u32 },
    #[error("a column has {cells} cells, the batch has {rows} rows")]
    Cells { cells: usize, rows: u32 },
    #[error("columns do not belong to table {0}")]
    Table(String),
}

impl MalformedBatch {
    pub(crate) fn encoding(error: impl ToString) -> Self {
        Self::Encoding(error.to_string())
    }
}

/// The number of a batch: spool generation above, counter below.
pub fn seq(generation: u32, counter: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(counter)
}

/// Packs columns for the wire and the spool.
pub fn seal(agent_id: u32, seq: u64, table: Table, rows: u32, columns: &Columns) -> Batch {
    let plain = columns.encode_to_vec();
    let payload = compress(&plain);
    Batch {
        protocol_version: PROTOCOL_VERSION,
        agent_id,
        seq,
        table: table.into(),
        rows,
        uncompressed_bytes: u32::try_from(plain.len()).unwrap_or(u32::MAX),
        crc: crc32fast::hash(&payload),
        payload: payload.into(),
        resent: false,
    }
}

fn compress(plain: &[u8]) -> Vec<u8> {
    COMPRESSOR.with_borrow_mut(|compressor| compressor.compress(plain)).expect("zstd compresses any bytes")
}

fn decompress(payload: &[u8], bytes_max: usize) -> Option<Vec<u8>> {
    DECOMPRESSOR.with_borrow_mut(|decompressor| decompressor.decompress(payload, bytes_max)).ok()
}

/// Unpacks a batch that came from outside.
pub fn open(batch: &Batch) -> Result<(Table, Columns), MalformedBatch> {
    if !is_spoken(batch.protocol_version) {
        return Err(MalformedBatch::Version(batch.protocol_version));
    }
    if batch.payload.len() > BATCH_BYTES_MAX {
        return Err(MalformedBatch::PayloadSize(batch.payload.len()));
    }
    if batch.rows > BATCH_ROWS_MAX {
        return Err(MalformedBatch::Rows(batch.rows));
    }
    if batch.uncompressed_bytes as usize > COLUMNS_BYTES_MAX {
        return Err(MalformedBatch::UncompressedSize(batch.uncompressed_bytes));
    }
    let actual = crc32fast::hash(&batch.payload);
    if actual != batch.crc {
        return Err(MalformedBatch::Checksum { expected: batch.crc, actual });
    }
    let plain = decompress(&batch.payload, batch.uncompressed_bytes as usize)
        .filter(|plain| plain.len() == batch.uncompressed_bytes as usize)
        .ok_or(MalformedBatch::Compression(batch.uncompressed_bytes))?;
    let Entries { strings, addresses } = measure(&plain, batch.rows)?;
    let mut columns = Columns {
        strings: Vec::with_capacity(strings),
        addresses: Vec::with_capacity(addresses),
        ..Columns::default()
    };
    columns.merge(plain.as_slice()).map_err(MalformedBatch::encoding)?;
    let table = batch.table();
    match (table, &columns.rows) {
        (Table::L4FlowLog, Some(Rows::L4FlowLog(_)))
        | (Table::L7FlowLog, Some(Rows::L7FlowLog(_)))
        | (
            Table::Network1s | Table::Network1m | Table::NetworkMap1s | Table::NetworkMap1m,
            Some(Rows::Network(_)),
        )
        | (
            Table::Application1s | Table::Application1m | Table::ApplicationMap1s | Table::ApplicationMap1m,
            Some(Rows::Application(_)),
        )
        | (Table::InProcess, Some(Rows::InProcess(_)))
        | (Table::FileEvent, Some(Rows::FileEvent(_)))
        | (Table::ProcessEvent, Some(Rows::ProcessEvent(_))) => Ok((table, columns)),
        _ => Err(MalformedBatch::Table(table.as_str_name().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::L7FlowLog;

    fn sealed() -> Batch {
        let columns = Columns {
            strings: vec![String::new(), "GET".into()],
            rows: Some(Rows::L7FlowLog(L7FlowLog { request_type: vec![1, 0], ..Default::default() })),
            ..Default::default()
        };
        seal(7, seq(3, 9), Table::L7FlowLog, 2, &columns)
    }

    #[test]
    fn a_sealed_batch_opens_to_the_same_columns() {
        let batch = sealed();
        let (table, columns) = open(&batch).unwrap();
        assert_eq!(table, Table::L7FlowLog);
        assert_eq!(columns.strings[1], "GET");
        assert_eq!(batch.seq, (3 << 32) + 9);
    }

    #[test]
    fn batches_of_the_previous_release_are_read() {
        let batch = Batch { protocol_version: PROTOCOL_VERSION_OLDEST, ..sealed() };
        assert_eq!(open(&batch).unwrap().0, Table::L7FlowLog);
        for version in [0, PROTOCOL_VERSION + 1] {
            let refused = open(&Batch { protocol_version: version, ..sealed() }).unwrap_err().to_string();
            assert!(refused.contains("update nodes before agents"), "{refused}");
        }
    }

    #[test]
    fn every_damage_is_named() {
        let change = |edit: fn(&mut Batch)| {
            let mut batch = sealed();
            edit(&mut batch);
            open(&batch).unwrap_err().to_string()
        };
        assert!(change(|batch| batch.protocol_version = 9).contains("version 9"));
        assert!(change(|batch| batch.rows = u32::MAX).contains("rows"));
        assert!(change(|batch| batch.uncompressed_bytes = u32::MAX).contains("uncompressed"));
        assert!(change(|batch| batch.uncompressed_bytes += 1).contains("zstd"));
        assert!(change(|batch| batch.crc ^= 1).contains("checksum"));
        assert!(change(|batch| batch.table = Table::L4FlowLog.into()).contains("L4_FLOW_LOG"));
        assert!(change(|batch| batch.payload = vec![0; BATCH_BYTES_MAX + 1].into()).contains("limit"));
    }
}
