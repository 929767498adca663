//! The tables: their blocks, and what DDL and queries must know of each.

mod application;
mod dictionary;
mod network;
mod process;

pub use application::{
    Application, ApplicationInterval, ApplicationIntervalRow, ApplicationMap, ApplicationMapRow,
    ApplicationRow, L7FlowLog, L7FlowLogRow,
};
pub use dictionary::{Dictionary, DictionaryRow};
pub use network::{
    L4FlowLog, L4FlowLogRow, Network, NetworkFigures, NetworkFiguresRow, NetworkInterval, NetworkIntervalRow,
    NetworkMap, NetworkMapRow, NetworkRow,
};
pub use process::{FileEvent, FileEventRow, InProcess, InProcessRow, ProcessEvent, ProcessEventRow};

use crate::{
    block::{Block, Column, Group},
    metrics::{self, Metric},
};

macro_rules! log_block {
    ($block:ident) => {
        impl Block for $block {
            fn rows(&self) -> usize {
                self.time.len()
            }
            fn second(&self, row: usize) -> u32 {
                u32::try_from(self.time[row] / 1_000_000).unwrap_or(0)
            }
        }
    };
}

macro_rules! metrics_block {
    ($block:ident) => {
        impl Block for $block {
            fn rows(&self) -> usize {
                self.interval.time.len()
            }
            fn second(&self, row: usize) -> u32 {
                self.interval.time[row]
            }
        }
    };
}

log_block!(L4FlowLog);
log_block!(L7FlowLog);
log_block!(InProcess);
log_block!(FileEvent);
log_block!(ProcessEvent);
metrics_block!(Network);
metrics_block!(NetworkMap);
metrics_block!(Application);
metrics_block!(ApplicationMap);

impl Block for Dictionary {
    fn rows(&self) -> usize {
        self.id.len()
    }
    fn second(&self, _row: usize) -> u32 {
        0
    }
}

/// Time span of one partition; a table is emptied by dropping partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partition {
    Hour,
    Day,
    None,
}

impl Partition {
    /// The partition that a second belongs to.
    pub const fn of(self, second: u32) -> u32 {
        match self {
            Self::Hour => second / 3_600,
            Self::Day => second / 86_400,
            Self::None => 0,
        }
    }
}

/// A skip index: what it says of a block of rows spares reading those in which nothing can match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Index {
    pub name: &'static str,
    pub column: &'static str,
    /// ClickHouse's type of the index.
    pub kind: &'static str,
}

/// Some columns once more, in another order: a query that needs no others reads them instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Projection {
    pub name: &'static str,
    pub columns: &'static [&'static str],
    pub order_by: &'static str,
}

/// Rows of a trace are looked up by its id, and then by what they share, around the time of those that are known. The sort key says nothing
/// of either: services come before time in it.
const TRACE_INDEXES: &[Index] = &[
    Index { name: "by_time", column: "time", kind: "minmax" },
    Index { name: "by_trace_id", column: "trace_id", kind: "bloom_filter(0.01)" },
];

/// What rows of a trace share, by time. Numbers that are looked for by the hundred are in every block of rows, so no skip index helps; of
/// 6 million rows of an hour one look-up took 450 ms of CPU time without this and 20 ms with it. It costs a quarter of an insert's CPU time
/// in the engine, and half as much disk again.
const TRACE_PROJECTIONS: &[Projection] = &[Projection {
    name: "by_time_shared",
    columns: &[
        "start_time",
        "time",
        "agent_id",
        "observation_point",
        "req_tcp_seq",
        "resp_tcp_seq",
        "syscall_trace_id_request",
        "trace_id",
        "x_request_id_0",
        "x_request_id_1",
        "auto_service_type_1",
        "auto_service_id_1",
        "l7_protocol",
    ],
    order_by: "time",
}];

/// What is asked of one process or event is asked of some minutes.
const TIME_INDEX: &[Index] = &[Index { name: "by_time", column: "time", kind: "minmax" }];

/// A table's declaration.
#[derive(Debug)]
pub struct Table {
    pub database: &'static str,
    pub name: &'static str,
    /// Name in queries, without the interval: `application` for `application.1s`.
    pub family: &'static str,
    /// Seconds that a row sums up; none for logs.
    pub interval: Option<u32>,
    pub doc: &'static str,
    pub partition: Partition,
    pub ttl_days: Option<u32>,
    /// Entity first: equal integers stand together and compress; time last.
    pub order_by: &'static [&'static str],
    pub columns: fn() -> Vec<Column>,
    pub indexes: &'static [Index],
    pub projections: &'static [Projection],
    pub metrics: &'static [Metric],
}

fn columns_of<G: Group>() -> Vec<Column> {
    let mut columns = Vec::with_capacity(G::width());
    G::columns("", &mut columns);
    columns
}

const MAP_ORDER: &[&str] = &[
    "auto_service_type_1",
    "auto_service_id_1",
    "auto_service_type_0",
    "auto_service_id_0",
    "l7_protocol",
    "time",
];
const ONE_SIDED_ORDER: &[&str] = &["auto_service_type", "auto_service_id", "l7_protocol", "time"];
const LOG_ORDER: &[&str] = &["auto_service_type_1", "auto_service_id_1", "l7_protocol", "time"];

macro_rules! metrics_table {
    ($ident:ident, $group:ident, $family:literal, $name:literal, $interval:literal, $partition:ident, $ttl:literal,
     $order:ident, $metrics:expr, $doc:literal) => {
        #[doc = $doc]
        pub static $ident: Table = Table {
            database: "flow_metrics",
            name: $name,
            family: $family,
            interval: Some($interval),
            doc: $doc,
            partition: Partition::$partition,
            ttl_days: Some($ttl),
            order_by: $order,
            columns: columns_of::<$group>,
            indexes: &[],
            projections: &[],
            metrics: $metrics,
        };
    };
}

/// Flows.
pub static L4_FLOW_LOG: Table = Table {
    database: "flow_log",
    name: "l4_flow_log",
    family: "l4_flow_log",
    interval: None,
    doc: "Flows: a row for each minute of a flow and for its end.",
    partition: Partition::Hour,
    ttl_days: Some(3),
    order_by: LOG_ORDER,
    columns: columns_of::<L4FlowLog>,
    indexes: &[],
    projections: &[],
    metrics: metrics::L4_FLOW_LOG,
};

/// Requests.
pub static L7_FLOW_LOG: Table = Table {
    database: "flow_log",
    name: "l7_flow_log",
    family: "l7_flow_log",
    interval: None,
    doc: "Requests: a row for each request with its response.",
    partition: Partition::Hour,
    ttl_days: Some(3),
    order_by: LOG_ORDER,
    columns: columns_of::<L7FlowLog>,
    indexes: TRACE_INDEXES,
    projections: TRACE_PROJECTIONS,
    metrics: metrics::L7_FLOW_LOG,
};

/// Time of processes.
pub static IN_PROCESS: Table = Table {
    database: "profile",
    name: "in_process",
    family: "in_process",
    interval: None,
    doc: "Profiles: time that a process spent in a stack of functions, every few seconds.",
    partition: Partition::Day,
    ttl_days: Some(3),
    order_by: &["app_service_id", "profile_event_type", "time"],
    columns: columns_of::<InProcess>,
    indexes: TIME_INDEX,
    projections: &[],
    metrics: metrics::IN_PROCESS,
};

/// Slow reads and writes.
pub static FILE_EVENT: Table = Table {
    database: "event",
    name: "file_event",
    family: "file_event",
    interval: None,
    doc: "Files: a row for each slow read, write or sync.",
    partition: Partition::Day,
    ttl_days: Some(7),
    order_by: &["auto_service_type", "auto_service_id", "time"],
    columns: columns_of::<FileEvent>,
    indexes: TIME_INDEX,
    projections: &[],
    metrics: metrics::FILE_EVENT,
};

/// Lives of processes.
pub static PROCESS_EVENT: Table = Table {
    database: "event",
    name: "process_event",
    family: "process_event",
    interval: None,
    doc: "Processes: a row for each start, program, deadly signal, lack of memory and exit.",
    partition: Partition::Day,
    ttl_days: Some(7),
    order_by: &["auto_service_type", "auto_service_id", "time"],
    columns: columns_of::<ProcessEvent>,
    indexes: TIME_INDEX,
    projections: &[],
    metrics: metrics::PROCESS_EVENT,
};

/// Names of tag ids.
pub static DICTIONARY: Table = Table {
    database: "flow_tag",
    name: "dictionary",
    family: "dictionary",
    interval: None,
    doc: "Names of tag ids: a row for each id.",
    partition: Partition::None,
    ttl_days: None,
    order_by: &["kind", "id"],
    columns: columns_of::<Dictionary>,
    indexes: &[],
    projections: &[],
    metrics: &[],
};

metrics_table!(
    NETWORK_1S,
    Network,
    "network",
    "network.1s",
    1,
    Hour,
    1,
    ONE_SIDED_ORDER,
    metrics::NETWORK,
    "Network metrics of each service, by the second."
);
metrics_table!(
    NETWORK_1M,
    Network,
    "network",
    "network.1m",
    60,
    Day,
    30,
    ONE_SIDED_ORDER,
    metrics::NETWORK,
    "Network metrics of each service, by the minute."
);
metrics_table!(
    NETWORK_MAP_1S,
    NetworkMap,
    "network_map",
    "network_map.1s",
    1,
    Hour,
    1,
    MAP_ORDER,
    metrics::NETWORK,
    "Network metrics of each client and service, by the second."
);
metrics_table!(
    NETWORK_MAP_1M,
    NetworkMap,
    "network_map",
    "network_map.1m",
    60,
    Day,
    30,
    MAP_ORDER,
    metrics::NETWORK,
    "Network metrics of each client and service, by the minute."
);
metrics_table!(
    APPLICATION_1S,
    Application,
    "application",
    "application.1s",
    1,
    Hour,
    1,
    ONE_SIDED_ORDER,
    metrics::APPLICATION,
    "Request metrics of each service, by the second."
);
metrics_table!(
    APPLICATION_1M,
    Application,
    "application",
    "application.1m",
    60,
    Day,
    30,
    ONE_SIDED_ORDER,
    metrics::APPLICATION,
    "Request metrics of each service, by the minute."
);
metrics_table!(
    APPLICATION_MAP_1S,
    ApplicationMap,
    "application_map",
    "application_map.1s",
    1,
    Hour,
    1,
    MAP_ORDER,
    metrics::APPLICATION,
    "Request metrics of each client and service, by the second."
);
metrics_table!(
    APPLICATION_MAP_1M,
    ApplicationMap,
    "application_map",
    "application_map.1m",
    60,
    Day,
    30,
    MAP_ORDER,
    metrics::APPLICATION,
    "Request metrics of each client and service, by the minute."
);

/// Every table.
pub static TABLES: [&Table; 14] = [
    &L4_FLOW_LOG,
    &L7_FLOW_LOG,
    &NETWORK_1S,
    &NETWORK_1M,
    &NETWORK_MAP_1S,
    &NETWORK_MAP_1M,
    &APPLICATION_1S,
    &APPLICATION_1M,
    &APPLICATION_MAP_1S,
    &APPLICATION_MAP_1M,
    &IN_PROCESS,
    &FILE_EVENT,
    &PROCESS_EVENT,
    &DICTIONARY,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Role, encode_native};

    #[test]
    fn sort_keys_and_metrics_name_columns_that_exist() {
        for table in TABLES {
            let columns = (table.columns)();
            let has = |name: &str| {
                columns.iter().any(|column| column.name == name)
                    || metrics::COMPUTED
                        .iter()
                        .any(|(computed, family, _)| *computed == name && *family == table.family)
            };
            for name in table.order_by.iter().copied().chain(table.indexes.iter().map(|index| index.column)) {
                assert!(has(name), "{}: {name}", table.name);
            }
            for metric in table.metrics {
                let sources: Vec<String> = match metric.source {
                    metrics::Source::Counter(names) => names.iter().map(ToString::to_string).collect(),
                    metrics::Source::Delay { prefix } => {
                        ["sum", "count", "max"].iter().map(|part| format!("{prefix}_{part}")).collect()
                    }
                    metrics::Source::SingleDelay { column } => vec![column.to_owned()],
                    metrics::Source::Quotient { numerator, denominator, .. } => {
                        numerator.iter().chain(denominator).map(ToString::to_string).collect()
                    }
                    metrics::Source::Rows => vec![],
                };
                for source in sources {
                    assert!(has(&source), "{}: metric {} needs {source}", table.name, metric.name);
                }
            }
            let mut names: Vec<_> = columns.iter().map(|column| &column.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), columns.len(), "{} has a column twice", table.name);
        }
    }

    #[test]
    fn request_log_rows_carry_more_than_a_hundred_columns() {
        let columns = (L7_FLOW_LOG.columns)();
        let tags = columns.iter().filter(|column| !column.side.is_empty()).count();
        assert!(columns.len() >= 100 && tags >= 50, "{} columns, {tags} tags", columns.len());
        assert_eq!(columns.iter().filter(|column| column.role == Role::Ledger).count(), 1);
    }

    #[test]
    fn a_row_comes_out_of_its_block_as_native_columns() {
        let mut block = Dictionary::default();
        block.push(&DictionaryRow { kind: 3, id: 258, name: "web".into() });
        let native = encode_native(&block, 1).unwrap();
        let expected = [
            &[3, 1][..],
            b"\x04kind\x05UInt8\x03",
            b"\x02id\x06UInt64\x02\x01\0\0\0\0\0\0",
            b"\x04name\x06String\x03web",
        ];
        assert_eq!(native, expected.concat());
    }

    #[test]
    fn uneven_columns_are_refused_by_name() {
        let block = Dictionary { kind: vec![1, 2], id: vec![1], ..Default::default() };
        let error = encode_native(&block, 2).unwrap_err();
        assert_eq!(error.to_string(), "column id has 1 rows, expected 2");
    }
}
