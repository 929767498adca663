//! What the engine refuses for its content, and queries whose caller goes away.

use std::time::Duration;

use metaflow_actors::{
    memory::Budget,
    rows::{Labelled, Outcome, Rows},
    store::Store,
    writer::{Config, Writer, nothing_before_insert},
};
use metaflow_schema::{
    block::Group,
    tables::{L7_FLOW_LOG, L7FlowLog, L7FlowLogRow},
};

use crate::kit::{self, NEW_YEAR};

/// Texts of this size are refused: see `forbid_long_texts`.
const LONG: &str = "a resource that is longer than the column";

/// `rows` requests for one resource.
async fn requests(budget: &Budget, seq: u64, rows: u64, resource: &str) -> Labelled {
    let mut block = L7FlowLog::default();
    for _ in 0..rows {
        block.push(&L7FlowLogRow {
            time: i64::from(NEW_YEAR) * 1_000_000,
            agent_id: 7,
            batch_seq: seq,
            request_resource: resource.to_owned(),
            ..Default::default()
        });
    }
    let rows = Rows::L7FlowLog(Box::new(block));
    let permit = budget.acquire(rows.bytes()).await;
    Labelled { id: kit::id(seq), rows, uncertain: false, permit }
}

/// Somebody has altered the table: it takes texts of 16 bytes.
async fn forbid_long_texts(store: &Store) {
    store
        .rows("ALTER TABLE flow_log.l7_flow_log MODIFY COLUMN request_resource FixedString(16)")
        .await
        .unwrap();
}

#[tokio::test]
async fn a_batch_that_the_engine_refuses_costs_no_other_batch_of_its_block() {
    const BATCHES: u64 = 40;
    const POISONOUS: [u64; 3] = [0, 17, 18];
    let folder = tempfile::tempdir().unwrap();
    let (engine, store) = kit::engine(folder.path()).await;
    forbid_long_texts(&store).await;
    let (report, mut outcomes) = kit::reports();
    // All batches make one block.
    let config = Config { age_max: Duration::from_secs(3600), ..Config::default() };
    let writer = Writer::start(store.clone(), config, nothing_before_insert(), report).await;
    let metrics = std::sync::Arc::clone(writer.handle().metrics());
    let budget = Budget::new(64 << 20);
    for seq in 0..BATCHES {
        let resource = if POISONOUS.contains(&seq) { LONG } else { "/cart" };
        writer.handle().write(requests(&budget, seq, seq + 1, resource).await).await.unwrap();
    }
    writer.stop().await;
    let mut rejected = Vec::new();
    for _ in 0..BATCHES {
        match tokio::time::timeout(kit::PATIENCE, outcomes.recv()).await.unwrap().unwrap() {
            Outcome::Committed(id) => assert!(!POISONOUS.contains(&id.seq), "{id:?}"),
            Outcome::Rejected(id, reason) => {
                assert!(reason.contains("FixedString"), "{reason}");
                rejected.push(id.seq);
            }
        }
    }
    rejected.sort_unstable();
    assert_eq!(rejected, POISONOUS);
    let expected: Vec<_> =
        (0..BATCHES).filter(|seq| !POISONOUS.contains(seq)).map(|seq| (seq, seq + 1)).collect();
    assert_eq!(kit::ledger(&store, &L7_FLOW_LOG).await.into_iter().collect::<Vec<_>>(), expected);
    let table = metaflow_schema::TABLES.iter().position(|table| table.name == L7_FLOW_LOG.name).unwrap();
    let lost = metrics.tables[table].rows_rejected.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(lost, POISONOUS.iter().map(|seq| seq + 1).sum::<u64>());
    assert_eq!(budget.available(), budget.capacity());
    engine.stop().await;
}

#[tokio::test]
async fn a_query_ends_in_the_engine_when_its_caller_goes() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, store) = kit::engine(folder.path()).await;
    let count = "SELECT count() FROM system.processes WHERE query LIKE 'SELECT sum(number)%'";
    let running = async |expected: &str| {
        kit::eventually(|| async {
            let rows = store.rows(count).await.ok()?;
            (rows[0][0] == expected).then_some(())
        })
        .await;
    };
    let endless = tokio::spawn({
        let store = store.clone();
        let settings = [("wait_end_of_query", "1".to_owned())];
        async move { store.query("SELECT sum(number) FROM numbers(1000000000000)", &settings, 1000).await }
    });
    running("1").await;
    endless.abort();
    running("0").await;
    engine.stop().await;
}
