//! What a batch from outside takes in memory when it is opened, and when its rows are made for the store, whatever it says: no more than it
//! was admitted with.
//!
//! A test of its own program, because the allocator that counts is the whole program's.

use std::sync::{Mutex, MutexGuard, PoisonError};

use metaflow_actors::{
    ingester,
    labeler::{Error, Input, Names, Snapshot},
    rows::BatchId,
};
use metaflow_schema::enums::Kind;
use metaflow_wire::{
    BATCH_ROWS_MAX, Batch, COLUMNS_BYTES_MAX, Columns, L7FlowLog, MalformedBatch, PROTOCOL_VERSION, Table,
    columns::Rows, open, seal,
};
use peak_alloc::PeakAlloc;
use proptest::prelude::*;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// One at a time, or one test would count what another takes.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a batch; the answer comes with the most memory that this took.
fn opened(batch: &Batch) -> (Result<(), MalformedBatch>, usize) {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let result = open(batch);
    let peak = MEMORY.peak_usage().saturating_sub(before);
    (result.map(drop), peak)
}

fn varint(mut value: usize, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A field that holds bytes.
fn field(number: usize, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 8);
    varint(number << 3 | 2, &mut out);
    varint(content.len(), &mut out);
    out.extend_from_slice(content);
    out
}

fn batch(table: Table, rows: u32, message: &[u8]) -> Batch {
    let payload = zstd::bulk::compress(message, 1).expect("zstd compresses any bytes");
    Batch {
        protocol_version: PROTOCOL_VERSION,
        table: table.into(),
        rows,
        uncompressed_bytes: message.len().try_into().expect("cut to what is allowed"),
        crc: crc32fast::hash(&payload),
        payload: payload.into(),
        ..Batch::default()
    }
}

/// Tables, and the field of each that holds its rows.
const TABLES: [(Table, usize); 4] =
    [(Table::L4FlowLog, 3), (Table::L7FlowLog, 4), (Table::NetworkMap1s, 5), (Table::ApplicationMap1m, 6)];

/// A part of a message that is larger in memory than on the wire.
#[derive(Debug, Clone)]
enum Bomb {
    Strings {
        count: usize,
        bytes: usize,
    },
    Addresses {
        count: usize,
        bytes: usize,
    },
    /// Numbers of one byte in a column of the rows, of their ends or of whatever else has this number.
    Packed {
        nested: Option<usize>,
        column: usize,
        cells: usize,
    },
    /// The same, each as a field of its own.
    Single {
        nested: Option<usize>,
        column: usize,
        cells: usize,
    },
    Noise(Vec<u8>),
}

impl Bomb {
    fn write(&self, rows_field: usize, out: &mut Vec<u8>) {
        let nest = |nested: &Option<usize>, content: Vec<u8>| {
            let content = nested.map_or_else(|| content.clone(), |number| field(number, &content));
            field(rows_field, &content)
        };
        match self {
            Self::Strings { count, bytes } => out.extend(field(1, &vec![b'x'; *bytes]).repeat(*count)),
            Self::Addresses { count, bytes } => out.extend(field(2, &vec![7; *bytes]).repeat(*count)),
            Self::Packed { nested, column, cells } => {
                out.extend(nest(nested, field(*column, &vec![1; *cells])));
            }
            Self::Single { nested, column, cells } => {
                let mut cell = Vec::new();
                varint(column << 3, &mut cell);
                cell.push(1);
                out.extend(nest(nested, cell.repeat(*cells)));
            }
            Self::Noise(bytes) => out.extend(bytes),
        }
    }
}

fn bombs() -> impl Strategy<Value = Vec<Bomb>> {
    let count = prop_oneof![0..20_usize, 900..3_000_usize, Just(400_000_usize)];
    let nested = prop_oneof![Just(None), Just(Some(1_usize)), Just(Some(12)), Just(Some(27))];
    let column = 1..40_usize;
    let bomb = prop_oneof![
        (count.clone(), 0..9_usize).prop_map(|(count, bytes)| Bomb::Strings { count, bytes }),
        (count.clone(), 0..17_usize).prop_map(|(count, bytes)| Bomb::Addresses { count, bytes }),
        (nested.clone(), column.clone(), count.clone()).prop_map(|(nested, column, cells)| Bomb::Packed {
            nested,
            column,
            cells
        }),
        (nested, column, count).prop_map(|(nested, column, cells)| Bomb::Single { nested, column, cells }),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bomb::Noise),
    ];
    proptest::collection::vec(bomb, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn opening_takes_no_more_memory_than_the_batch_was_admitted_with(
        bombs in bombs(),
        table in 0..TABLES.len(),
        rows in prop_oneof![Just(0_u32), Just(1), 2..5_000_u32, Just(BATCH_ROWS_MAX)],
    ) {
        let _alone = alone();
        let (table, rows_field) = TABLES[table];
        let mut message = Vec::new();
        for bomb in &bombs {
            bomb.write(rows_field, &mut message);
        }
        message.truncate(COLUMNS_BYTES_MAX);
        let batch = batch(table, rows, &message);
        let (result, peak) = opened(&batch);
        // What the library that decompresses takes for itself is not the batch's.
        let admitted = ingester::cost(&batch) + DECOMPRESSOR;
        prop_assert!(peak <= admitted, "{peak} bytes, {admitted} are admitted: {result:?}");
    }
}

/// The state of zstd, and the text of an error.
const DECOMPRESSOR: usize = 256 << 10;

#[test]
fn sixteen_million_empty_strings_are_refused_before_they_are_made() {
    let _alone = alone();
    let message = field(1, b"").repeat(COLUMNS_BYTES_MAX / 2);
    for rows in [1, BATCH_ROWS_MAX] {
        let (result, peak) = opened(&batch(Table::L7FlowLog, rows, &message));
        let error = result.unwrap_err().to_string();
        assert!(error.contains(&format!("16777216 strings are listed, more than {rows} rows")), "{error}");
        assert!(peak < COLUMNS_BYTES_MAX + DECOMPRESSOR, "{peak} bytes");
    }
}

#[test]
fn a_column_is_no_longer_than_the_batch() {
    let _alone = alone();
    let ends = |cells: usize| field(1, &field(2, &vec![1; cells]));
    for (rows, expected) in [(3, None), (2, Some("a column has 3 cells, the batch has 2 rows"))] {
        for (table, rows_field) in TABLES {
            let result = opened(&batch(table, rows, &field(rows_field, &ends(3)))).0;
            assert_eq!(result.err().map(|error| error.to_string()).as_deref(), expected, "{table:?}");
        }
    }
    // In pieces.
    let pieces = field(4, &field(2, &[1, 1])).repeat(2);
    opened(&batch(Table::L7FlowLog, 4, &pieces)).0.unwrap();
    opened(&batch(Table::L7FlowLog, 3, &pieces)).0.unwrap_err();
}

#[test]
fn a_batch_whose_every_text_and_address_is_another_is_opened() {
    let _alone = alone();
    let rows = 2_000;
    let texts = |column: u32| (0..rows).map(|row| 1 + column * rows + row).collect::<Vec<u32>>();
    let columns = Columns {
        strings: std::iter::once(String::new()).chain((0..15 * rows).map(|n| n.to_string())).collect(),
        addresses: (0..2 * rows).map(|n| n.to_be_bytes().to_vec()).collect(),
        rows: Some(Rows::L7FlowLog(L7FlowLog {
            version: texts(0),
            request_type: texts(1),
            http_proxy_client: texts(14),
            ..L7FlowLog::default()
        })),
    };
    let batch = seal(1, 1, Table::L7FlowLog, rows, &columns);
    let (result, peak) = opened(&batch);
    result.unwrap();
    assert!(peak <= ingester::cost(&batch) + DECOMPRESSOR, "{peak} of {}", ingester::cost(&batch));
}

/// Gives every name one id.
struct OneId;

impl Names for OneId {
    type Error = std::convert::Infallible;

    fn ids(&self, wanted: &[(Kind, &str)]) -> Result<Vec<u32>, Self::Error> {
        Ok(wanted.iter().map(|(_, name)| u32::from(!name.is_empty())).collect())
    }

    fn may_exist(&self, _: Kind, _: u32) -> bool {
        true
    }
}

/// Makes rows of a batch and encodes them for the store; the answer comes with the most memory that this took.
fn encoded(batch: &Batch) -> (Result<usize, String>, usize) {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let input = Input { snapshot: &Snapshot::default(), names: &OneId, id: BatchId { agent_id: 1, seq: 1 } };
    let result = match input.label(batch) {
        Ok(rows) => rows.encode_native().map(|body| body.len()).map_err(|error| error.to_string()),
        Err(Error::Malformed(malformed)) => Err(malformed.to_string()),
    };
    (result, MEMORY.peak_usage().saturating_sub(before))
}

/// Requests that share one text in some of their columns.
fn sharing(rows: u32, text_bytes: usize, columns: usize) -> Batch {
    let texts = |column: usize| if column < columns { vec![1; rows as usize] } else { vec![] };
    let message = Columns {
        strings: vec![String::new(), "x".repeat(text_bytes)],
        rows: Some(Rows::L7FlowLog(L7FlowLog {
            request_resource: texts(0),
            response_result: texts(1),
            trace_id: texts(2),
            referer: texts(3),
            http_proxy_client: texts(4),
            endpoint: texts(5),
            ..L7FlowLog::default()
        })),
        ..Columns::default()
    };
    seal(1, 1, Table::L7FlowLog, rows, &message)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn rows_take_no_more_memory_than_their_batch_was_admitted_with(
        rows in prop_oneof![1..20_u32, 1_000..9_000_u32],
        text_bytes in prop_oneof![0..20_usize, 200..800_usize, 10_000..200_000_usize],
        columns in 0..7_usize,
    ) {
        let _alone = alone();
        let batch = sharing(rows, text_bytes, columns);
        let (result, peak) = encoded(&batch);
        let admitted = ingester::cost(&batch) + DECOMPRESSOR;
        prop_assert!(peak <= admitted, "{peak} bytes, {admitted} are admitted: {result:?}");
    }
}

#[test]
fn texts_that_rows_share_are_no_way_around_the_limit() {
    let _alone = alone();
    // As an agent makes them: a statement of 400 bytes in each of 8,192 rows.
    encoded(&sharing(8_192, 400, 1)).0.unwrap();
    // Half a kilobyte on the wire, sixteen megabytes in the store.
    let batch = sharing(1_000, 16 << 10, 1);
    assert!(batch.payload.len() < 512, "{}", batch.payload.len());
    let (result, peak) = encoded(&batch);
    let error = result.unwrap_err();
    assert!(error.contains("request_resource") && error.contains("the limit of "), "{error}");
    assert!(peak < 4 << 20, "{peak} bytes");
}
