//! What the tests share: an engine, batches with numbered rows, and the ledger that the tables hold.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use metaflow_actors::{
    memory::Budget,
    rows::{BatchId, Labelled, Outcome, Report, Rows},
    store::{
        Store,
        embedded::{Config, Engine, Limits, find_library},
    },
};
use metaflow_schema::{
    Table,
    block::Group,
    tables::{NETWORK_1S, Network, NetworkRow},
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;

/// Long enough for a machine that compiles at the same time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// 2040-01-01 00:00 UTC: no table's TTL is over.
pub(crate) const NEW_YEAR: u32 = 2_208_988_800;

/// The program with the engine's verb: this crate's example, which is built with the tests.
pub(crate) fn executable() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let folder = tests.parent().and_then(Path::parent).unwrap();
    let path = folder.join("examples/store_engine");
    assert!(path.is_file(), "{} is missing: build with --examples", path.display());
    path
}

pub(crate) fn config(folder: &Path) -> Config {
    let limits = Limits { memory_bytes: 1 << 30, ..Limits::default() };
    Config {
        limits,
        ready_within: PATIENCE,
        ..Config::new(executable(), find_library(None).unwrap(), folder.to_owned())
    }
}

pub(crate) async fn engine(folder: &Path) -> (Engine, Store) {
    let engine = Engine::start(config(folder)).await.unwrap();
    let store = Store::embedded(&engine, 1);
    store.migrate().await.unwrap();
    (engine, store)
}

/// The engine's process, when there is one.
pub(crate) async fn process(engine: &Engine) -> u32 {
    let mut process = engine.process();
    let id = process.wait_for(Option::is_some).await.unwrap();
    id.unwrap()
}

/// Sends a signal to one process.
pub(crate) fn signal(signal: Signal, process: u32) {
    let pid = Pid::from_raw(process.try_into().unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

pub(crate) fn id(seq: u64) -> BatchId {
    BatchId { agent_id: 7, seq }
}

/// A batch with a row at each of these seconds.
pub(crate) fn network(seq: u64, seconds: &[u32]) -> Rows {
    let mut block = Network::default();
    for &second in seconds {
        let mut row = NetworkRow::default();
        row.interval.time = second;
        row.interval.agent_id = 7;
        row.interval.batch_seq = seq;
        block.push(&row);
    }
    Rows::Network(&NETWORK_1S, Box::new(block))
}

pub(crate) async fn labelled(budget: &Budget, seq: u64, seconds: &[u32], uncertain: bool) -> Labelled {
    let rows = network(seq, seconds);
    let permit = budget.acquire(rows.bytes()).await;
    Labelled { id: id(seq), rows, uncertain, permit }
}

/// Outcomes, as they come.
pub(crate) fn reports() -> (Report, mpsc::Receiver<Outcome>) {
    let (sender, receiver) = mpsc::channel(100_000);
    (Arc::new(move |outcome| sender.try_send(outcome).unwrap()), receiver)
}

/// Rows of each batch in a table.
pub(crate) async fn ledger(store: &Store, table: &Table) -> BTreeMap<u64, u64> {
    let sql =
        format!("SELECT batch_seq, count() FROM {}.`{}` GROUP BY batch_seq", table.database, table.name);
    eventually(|| async {
        let rows = store.rows(&sql).await.ok()?;
        Some(rows.iter().map(|row| (row[0].parse().unwrap(), row[1].parse().unwrap())).collect())
    })
    .await
}

/// Asks until there is an answer.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(mut ask: impl FnMut() -> F) -> T {
    let asking = async {
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        loop {
            pause.tick().await;
            if let Some(answer) = ask().await {
                return answer;
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("it happens in time")
}

/// Numbers that look random and are the same in each run.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}
