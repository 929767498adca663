//! Inserts that come late: what another node has claimed is not stored by who does not know it.

use bytes::Bytes;
use metaflow_actors::{
    memory::Budget,
    rows::Outcome,
    store::{Error, Guard, Insert, Store},
    writer::{Config, Shelf, Writer, nothing_before_insert},
};
use metaflow_schema::tables::NETWORK_1S;

use crate::kit::{self, NEW_YEAR};

const HOUR: u32 = NEW_YEAR / 3600;

fn insert(store: &Store, seq: u64, rows: usize, guard: Guard, token: &str) -> Insert {
    let block = Bytes::from(kit::network(seq, &vec![NEW_YEAR; rows]).encode_native().unwrap());
    Insert { table: &NETWORK_1S, block, token: token.to_owned(), guard, query_id: store.query_id() }
}

#[tokio::test]
async fn a_guarded_insert_is_one_part_once_per_token_and_fails_when_its_batch_is_claimed() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, store) = kit::engine(folder.path()).await;
    store.rows("SYSTEM STOP MERGES").await.unwrap();
    let unclaimed = Guard::Unclaimed { partition: HOUR };
    let in_time = Guard::Before(store.now().await.unwrap() + 60);
    store.claim(&NETWORK_1S, HOUR, &[kit::id(9)]).await.unwrap();
    // Another partition and another table have claims of their own.
    store.claim(&NETWORK_1S, HOUR + 1, &[kit::id(1)]).await.unwrap();
    store.claim(&metaflow_schema::tables::NETWORK_1M, HOUR, &[kit::id(1)]).await.unwrap();
    for token in ["a", "a", "b"] {
        store.insert(&insert(&store, 1, 100_000, unclaimed, token)).await.unwrap();
    }
    store.insert(&insert(&store, 2, 5, in_time, "c")).await.unwrap();
    let parts = "SELECT rows FROM system.parts WHERE active AND table = 'network.1s' ORDER BY name";
    assert_eq!(store.rows(parts).await.unwrap(), [["100000"], ["100000"], ["5"]]);

    for guard in [unclaimed, Guard::Before(store.now().await.unwrap())] {
        let fenced = store.insert(&insert(&store, 9, 5, guard, "d")).await;
        assert!(matches!(fenced, Err(Error::Fenced(_))), "{fenced:?}");
    }
    let asked = [kit::id(1), kit::id(9)];
    let claimed = store.claimed(&NETWORK_1S, HOUR, &asked).await.unwrap();
    assert_eq!(claimed.into_iter().collect::<Vec<_>>(), [kit::id(9)]);
    let stored = kit::ledger(&store, &NETWORK_1S).await;
    assert_eq!(stored.into_iter().collect::<Vec<_>>(), [(1, 200_000), (2, 5)]);
    engine.stop().await;
}

#[tokio::test]
async fn who_finds_its_batches_claimed_stores_those_that_are_not_there_yet() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, store) = kit::engine(folder.path()).await;
    // Another node has claimed two and stored one of them.
    let others = [kit::id(1), kit::id(3)];
    store.claim(&NETWORK_1S, HOUR, &others).await.unwrap();
    let until = Guard::Before(store.now().await.unwrap() + 60);
    store.insert(&insert(&store, 1, 4, until, "batch.7.1.x")).await.unwrap();

    let (report, mut outcomes) = kit::reports();
    let config = Config { is_shared: true, ..Config::default() };
    let writer = Writer::start(store.clone(), config, nothing_before_insert(), report).await;
    let budget = Budget::new(64 << 20);
    for seq in 0..5 {
        // Batch 4 is known to be in doubt from the start.
        writer.handle().write(kit::labelled(&budget, seq, &[NEW_YEAR; 4], seq == 4).await).await.unwrap();
    }
    writer.stop().await;
    for _ in 0..5 {
        assert!(matches!(outcomes.recv().await.unwrap(), Outcome::Committed(_)));
    }
    let expected: Vec<_> = (0..5).map(|seq| (seq, 4)).collect();
    assert_eq!(kit::ledger(&store, &NETWORK_1S).await.into_iter().collect::<Vec<_>>(), expected);
    engine.stop().await;
}
