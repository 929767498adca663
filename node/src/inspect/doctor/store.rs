//! The store and its tables, and what the node itself says is wrong.

use std::collections::{BTreeSet, HashMap};

use metaflow_actors::store::embedded;
use metaflow_schema::TABLES;

use super::{Check, judge};
use crate::{config, inspect::ask_store, node::Parts};

/// Whether the store answers, and its tables are as exactly-once storing needs them.
pub(super) async fn store(parts: &Parts) -> Vec<Check> {
    let mut checks = Vec::new();
    let advice = match &parts.config().store {
        config::Store::Embedded { library } => {
            checks.push(engine(library.as_deref()));
            "the engine is started again by itself; if it is not, its log is below data_dir/store"
        }
        config::Store::Server { .. } => "see that the servers of store.urls run and are reached from here",
    };
    let running = match parts.started() {
        Ok(running) => running,
        Err(stage) => {
            checks.push(Check::fail("store", stage, "wait, or look at the log of the node"));
            return checks;
        }
    };
    match ask_store(&running.store, "SELECT version()").await {
        Ok(rows) => {
            let version = rows.first().and_then(|row| row.first()).map_or("?", String::as_str);
            checks.push(Check::ok("store", format!("ClickHouse {version} answers")));
        }
        Err(error) => {
            checks.push(Check::fail("store", format!("it does not answer: {error}"), advice));
            return checks;
        }
    }
    let databases: BTreeSet<String> = TABLES.iter().map(|table| format!("'{}'", table.database)).collect();
    let databases = databases.into_iter().collect::<Vec<_>>().join(", ");
    let sql =
        format!("SELECT database, name, engine_full FROM system.tables WHERE database IN ({databases})");
    match ask_store(&running.store, &sql).await {
        Ok(rows) => {
            let engines: HashMap<(&str, &str), &str> = rows
                .iter()
                .filter_map(|row| match row.as_slice() {
                    [database, name, engine] => Some(((database.as_str(), name.as_str()), engine.as_str())),
                    _ => None,
                })
                .collect();
            let judged = TABLES
                .iter()
                .map(|table| judge::table(table, engines.get(&(table.database, table.name)).copied()));
            checks.extend(judge::tables(judged.collect()));
        }
        Err(error) => {
            let found = format!("the store does not show its tables: {error}");
            checks.push(Check::fail("table", found, "give store.user the right to read system.tables"));
        }
    }
    checks
}

fn engine(library: Option<&std::path::Path>) -> Check {
    match embedded::find_library(library) {
        Ok(path) => Check::ok("engine", format!("{}", path.display())),
        Err(error) => Check::fail(
            "engine",
            format!("it runs, but would not start again: {error}"),
            "put libchdb.so back, beside the program or where store.library says",
        ),
    }
}

/// What the node's own parts say.
pub(super) fn state(parts: &Parts) -> Vec<Check> {
    let Ok(running) = parts.started() else { return vec![] };
    let wal = running.ingester.wal();
    let mut checks = vec![match () {
        () if wal.is_failing() => Check::fail(
            "write-ahead log",
            "it cannot be written: nothing is taken from agents",
            "make room on the disk of data_dir; it goes on by itself then",
        ),
        () if wal.is_disk_nearly_full() => Check::fail(
            "write-ahead log",
            "the disk is nearly full: nothing is taken from agents",
            "make room on the disk of data_dir, or lower wal.keep_free; it goes on by itself then",
        ),
        () if wal.room() == 0 => Check::warn(
            "write-ahead log",
            "it is full: agents keep their rows until the store has caught up",
            "find out why the store is slow (metaflow ctl wal status), or raise wal.size_max",
        ),
        () => Check::ok("write-ahead log", "it is written and has room"),
    }];
    if running.dictionary.conflicts() > 0 {
        checks.push(Check::fail(
            "dictionary",
            format!("{} entries of others contradict this node's", running.dictionary.conflicts()),
            "two nodes had one node_id: give each its own, and see metaflow ctl dict verify",
        ));
    }
    for stats in running.dictionary.stats() {
        if stats.used_share() >= 0.5 {
            checks.push(Check::warn(
                "dictionary",
                format!(
                    "{:.0} % of the ids of {} are used up",
                    stats.used_share() * 100.0,
                    stats.kind.name()
                ),
                "plan another node_id for this node: its names stay, and new ones come from a fresh range",
            ));
        }
    }
    checks
}
