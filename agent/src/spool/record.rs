//! The spool's files as bytes: segment header, batch records, marks. Pure: encoding, and reading of files that a crash or a bad disk
//! left behind.

use bytes::Bytes;
use metaflow_wire::{BATCH_BYTES_MAX, Batch, PROTOCOL_VERSION};

const SEGMENT_MAGIC: &[u8; 8] = b"MFSPOOL\x01";
const RECORD_MAGIC: &[u8; 4] = b"MFR\x01";
pub(super) const SEGMENT_HEADER: usize = 24;
pub(super) const RECORD_HEADER: usize = 40;
pub(super) const MARK: usize = 16;

/// What a segment's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub ordinal: u32,
    /// First number that this segment may hold: no number from here on was used when it was made.
    pub first_seq: u64,
}

pub(super) fn encode_segment_header(header: SegmentHeader) -> [u8; SEGMENT_HEADER] {
    let mut bytes = [0; SEGMENT_HEADER];
    bytes[..8].copy_from_slice(SEGMENT_MAGIC);
    bytes[8..12].copy_from_slice(&header.ordinal.to_le_bytes());
    bytes[12..20].copy_from_slice(&header.first_seq.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..20]);
    bytes[20..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

pub(super) fn decode_segment_header(bytes: &[u8]) -> Option<SegmentHeader> {
    let bytes = bytes.first_chunk::<SEGMENT_HEADER>()?;
    let valid = &bytes[..8] == SEGMENT_MAGIC && read_u32(bytes, 20)? == crc32fast::hash(&bytes[..20]);
    valid.then_some(SegmentHeader { ordinal: read_u32(bytes, 8)?, first_seq: read_u64(bytes, 12)? })
}

/// A record without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub seq: u64,
    pub agent_id: u32,
    pub table: i32,
    pub rows: u32,
    pub uncompressed_bytes: u32,
    pub payload_crc: u32,
    pub payload_bytes: u32,
}

impl RecordHeader {
    pub(super) fn record_bytes(&self) -> usize {
        RECORD_HEADER + self.payload_bytes as usize
    }
}

pub(super) fn record_bytes(batch: &Batch) -> usize {
    RECORD_HEADER + batch.payload.len()
}

pub(super) fn encode_record(batch: &Batch, buffer: &mut Vec<u8>) {
    // The version is that of the release that reads; `resent` is decided when the batch is sent.
    let Batch {
        protocol_version: _,
        agent_id,
        seq,
        table,
        rows,
        uncompressed_bytes,
        crc,
        payload,
        resent: _,
    } = batch;
    let begin = buffer.len();
    buffer.extend_from_slice(RECORD_MAGIC);
    buffer.extend_from_slice(&seq.to_le_bytes());
    buffer.extend_from_slice(&agent_id.to_le_bytes());
    buffer.extend_from_slice(&table.to_le_bytes());
    buffer.extend_from_slice(&rows.to_le_bytes());
    buffer.extend_from_slice(&uncompressed_bytes.to_le_bytes());
    buffer.extend_from_slice(&crc.to_le_bytes());
    buffer.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    let header_crc = crc32fast::hash(&buffer[begin..]);
    buffer.extend_from_slice(&header_crc.to_le_bytes());
    buffer.extend_from_slice(payload);
}

pub(super) fn decode_record_header(bytes: &[u8]) -> Option<RecordHeader> {
    let bytes = bytes.first_chunk::<RECORD_HEADER>()?;
    if &bytes[..4] != RECORD_MAGIC || read_u32(bytes, 36)? != crc32fast::hash(&bytes[..36]) {
        return None;
    }
    let header = RecordHeader {
        seq: read_u64(bytes, 4)?,
        agent_id: read_u32(bytes, 12)?,
        table: read_u32(bytes, 16)?.cast_signed(),
        rows: read_u32(bytes, 20)?,
        uncompressed_bytes: read_u32(bytes, 24)?,
        payload_crc: read_u32(bytes, 28)?,
        payload_bytes: read_u32(bytes, 32)?,
    };
    (header.payload_bytes as usize <= BATCH_BYTES_MAX).then_some(header)
}

/// A whole record, if nothing in it was changed.
pub(super) fn decode_record(bytes: Bytes) -> Option<Batch> {
    let header = decode_record_header(&bytes)?;
    let payload = (bytes.len() == header.record_bytes()).then(|| bytes.slice(RECORD_HEADER..))?;
    (crc32fast::hash(&payload) == header.payload_crc).then(|| Batch {
        protocol_version: PROTOCOL_VERSION,
        agent_id: header.agent_id,
        seq: header.seq,
        table: header.table,
        rows: header.rows,
        uncompressed_bytes: header.uncompressed_bytes,
        crc: header.payload_crc,
        payload,
        resent: false,
    })
}

/// What a segment file holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Scan {
    pub header: Option<SegmentHeader>,
    /// Offset and header of each sound record, numbers rising.
    pub records: Vec<(usize, RecordHeader)>,
    /// Highest number seen, damaged payload or not.
    pub last_seq: Option<u64>,
    /// Rows of damaged records whose header is sound.
    pub corrupt_rows: u64,
    /// Damaged places: at least as many records are lost.
    pub corrupt_records: u64,
    /// End of the last record; what follows was never completed.
    pub length: usize,
    pub torn_bytes: usize,
}

/// Reads a segment file to its end, past damaged records.
pub(super) fn scan(bytes: &[u8]) -> Scan {
    let mut scan = Scan { header: decode_segment_header(bytes), ..Scan::default() };
    let mut at = SEGMENT_HEADER.min(bytes.len());
    scan.length = at;
    while at < bytes.len() {
        let header = decode_record_header(&bytes[at..])
            .filter(|header| scan.last_seq.is_none_or(|last| header.seq > last))
            .filter(|header| at + header.record_bytes() <= bytes.len());
        let Some(header) = header else {
            let Some(next) = next_record(bytes, at + 1, scan.last_seq) else { break };
            scan.corrupt_records += 1;
            at = next;
            continue;
        };
        let end = at + header.record_bytes();
        if crc32fast::hash(&bytes[at + RECORD_HEADER..end]) == header.payload_crc {
            scan.records.push((at, header));
        } else {
            scan.corrupt_records += 1;
            scan.corrupt_rows += u64::from(header.rows);
        }
        scan.last_seq = Some(header.seq);
        at = end;
        scan.length = end;
    }
    scan.torn_bytes = bytes.len() - scan.length;
    scan
}

/// Finds the next whole and sound record behind a damaged place.
fn next_record(bytes: &[u8], from: usize, last_seq: Option<u64>) -> Option<usize> {
    (from..bytes.len().saturating_sub(RECORD_HEADER - 1)).find(|at| {
        bytes[*at..].starts_with(RECORD_MAGIC)
            && decode_record_header(&bytes[*at..]).is_some_and(|header| {
                let end = at + header.record_bytes();
                last_seq.is_none_or(|last| header.seq > last)
                    && end <= bytes.len()
                    && crc32fast::hash(&bytes[at + RECORD_HEADER..end]) == header.payload_crc
            })
    })
}

/// A mark: these numbers are done with.
pub(super) fn encode_mark(first_seq: u64, count: u32) -> [u8; MARK] {
    let mut bytes = [0; MARK];
    bytes[..8].copy_from_slice(&first_seq.to_le_bytes());
    bytes[8..12].copy_from_slice(&count.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..12]);
    bytes[12..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The marks of a file: damaged ones are passed over, their batches are sent again.
pub(super) fn decode_marks(bytes: &[u8]) -> impl Iterator<Item = (u64, u32)> {
    bytes.as_chunks::<MARK>().0.iter().filter_map(|mark| {
        (read_u32(mark, 12)? == crc32fast::hash(&mark[..12]))
            .then_some((read_u64(mark, 0)?, read_u32(mark, 8)?))
    })
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
