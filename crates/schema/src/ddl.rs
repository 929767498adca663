//! DDL: the statements that make the store's databases, tables and dictionary.

use crate::{
    block::Column,
    tables::{DICTIONARY, Index, Partition, Projection, TABLES, Table},
};

/// Inserts that a table remembers by their `insert_deduplication_token`: at 50 inserts a second a retry may come 200 s late.
pub const DEDUPLICATION_WINDOW: u32 = 10_000;

/// `flow_tag.names` answers `dictGet` at query time; DIRECT reads the table, so it is never stale and holds no memory.
const NAMES_DICTIONARY: &str = "CREATE DICTIONARY IF NOT EXISTS flow_tag.names\n(\n    `kind` UInt8,\n    `id` UInt64,\n    `name` \
    String\n)\nPRIMARY KEY kind, id\nSOURCE(CLICKHOUSE(HOST '127.0.0.1' DB 'flow_tag' TABLE 'dictionary'))\nLAYOUT(COMPLEX_KEY_DIRECT())";

/// Batches that a node claims before it inserts what another node may have, too; inserts of others are checked against it.
pub const CLAIMS: &str = "flow_tag.claims";
/// A claim stands for longer than a stopped node may be expected to go on. One partition's claims lie together.
const CLAIMS_TABLE: &str = "CREATE TABLE IF NOT EXISTS flow_tag.claims\n(\n    `table` LowCardinality(String),\n    `partition` UInt32,\n    \
    `agent_id` UInt32,\n    `batch_seq` UInt64,\n    `time` DateTime('UTC') DEFAULT now()\n)\nENGINE = ReplacingMergeTree\nORDER BY \
    (table, partition, agent_id, batch_seq)\nTTL time + INTERVAL 30 DAY\nCOMMENT 'Batches that may be in the logs of two nodes'";

/// Which ranges of its ids a node has claimed, each life of it for itself.
pub const ID_RANGES: &str = "flow_tag.id_ranges";
/// Claims are for good: what was given up by one is never taken by another.
const ID_RANGES_TABLE: &str = "CREATE TABLE IF NOT EXISTS flow_tag.id_ranges\n(\n    `node` UInt16,\n    `number` UInt32,\n    `holder` \
    UInt64,\n    `time` DateTime('UTC') DEFAULT now()\n)\nENGINE = MergeTree\nORDER BY (node, number)\nCOMMENT 'Ranges of ids that a life \
    of a node has for itself'";

/// Every statement, in the order in which they must run.
pub fn statements() -> Vec<String> {
    let mut databases: Vec<_> = TABLES.iter().map(|table| table.database).collect();
    databases.sort_unstable();
    databases.dedup();
    let mut statements: Vec<_> =
        databases.iter().map(|database| format!("CREATE DATABASE IF NOT EXISTS {database}")).collect();
    statements.extend(TABLES.iter().map(|table| create_table(table)));
    statements.push(CLAIMS_TABLE.to_owned());
    statements.push(ID_RANGES_TABLE.to_owned());
    statements.push(NAMES_DICTIONARY.to_owned());
    statements
}

/// Whether a column that has this type in the store was made by an earlier release and is to become what it is now: its values stay.
///
/// VPC ids were signed, so those that the upper half of all nodes give came out negative.
pub fn is_outdated(column: &Column, stored: &str) -> bool {
    stored == "Int32" && column.clickhouse == "UInt32" && column.name.starts_with("l3_epc_id")
}

/// A column as `CREATE TABLE` and `ALTER TABLE` have it.
pub fn declare_column(column: &Column) -> String {
    format!(
        "`{}` {} COMMENT '{}' CODEC({})",
        column.name,
        column.clickhouse,
        column.doc.replace('\'', "\\'"),
        column.codec
    )
}

/// An index as `CREATE TABLE` and `ALTER TABLE ... ADD` have it.
pub fn declare_index(Index { name, column, kind }: &Index) -> String {
    format!("INDEX {name} `{column}` TYPE {kind} GRANULARITY 1")
}

/// The same of a projection.
pub fn declare_projection(Projection { name, columns, order_by }: &Projection) -> String {
    format!("PROJECTION {name} (SELECT {} ORDER BY {order_by})", columns.join(", "))
}

/// `CREATE TABLE` of one table.
pub fn create_table(table: &Table) -> String {
    let mut columns: Vec<_> =
        (table.columns)().iter().map(|column| format!("    {}", declare_column(column))).collect();
    columns.extend(table.indexes.iter().map(|index| format!("    {}", declare_index(index))));
    columns
        .extend(table.projections.iter().map(|projection| format!("    {}", declare_projection(projection))));
    let engine = if std::ptr::eq(table, &DICTIONARY) { "ReplacingMergeTree" } else { "MergeTree" };
    let partition = match table.partition {
        Partition::Hour => "\nPARTITION BY toStartOfHour(time)",
        Partition::Day => "\nPARTITION BY toStartOfDay(time)",
        Partition::None => "",
    };
    let ttl = table
        .ttl_days
        .map(|days| format!("\nTTL toDateTime(time) + INTERVAL {days} DAY"))
        .unwrap_or_default();
    format!(
        "CREATE TABLE IF NOT EXISTS {}.`{}`\n(\n{}\n)\nENGINE = {engine}{partition}\nORDER BY ({}){ttl}\nSETTINGS \
         non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}, ttl_only_drop_parts = 1, index_granularity = 8192\n\
         COMMENT '{}'",
        table.database,
        table.name,
        columns.join(",\n"),
        table.order_by.join(", "),
        table.doc.replace('\'', "\\'"),
    )
}
