//! The writer while its engine is killed and stopped.

use std::{sync::Arc, time::Duration};

use metaflow_actors::{
    memory::Budget,
    rows::{Labelled, Outcome, Rows},
    writer::{Config, Writer, nothing_before_insert},
};
use metaflow_schema::tables::NETWORK_1S;
use rustix::process::Signal;

use crate::kit::{self, Dice, NEW_YEAR};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_batch_is_stored_once_while_the_engine_is_killed_again_and_again() {
    const BATCHES: u64 = 600;
    const KILLS: u64 = 8;
    let folder = tempfile::tempdir().unwrap();
    let (engine, store) = kit::engine(folder.path()).await;
    let (report, mut outcomes) = kit::reports();
    let config = Config { rows_max: 2_000, age_max: Duration::from_millis(5), ..Config::default() };
    let writer = Writer::start(store.clone(), config, nothing_before_insert(), report).await;
    let budget = Budget::new(8 << 20);
    let handle = writer.handle();
    let feeding = tokio::spawn({
        let budget = budget.clone();
        async move {
            for seq in 0..BATCHES {
                // Every tenth lies in two partitions.
                let second = if seq % 10 == 0 { NEW_YEAR + 3599 } else { NEW_YEAR };
                let seconds: Vec<_> = (0..200).map(|row| second + row % 2).collect();
                handle.write(kit::labelled(&budget, seq, &seconds, seq % 7 == 0).await).await.unwrap();
                if seq % 4 == 0 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    });
    let mut dice = Dice(20_260_101);
    for _ in 0..KILLS {
        // Somewhere within a few inserts after the engine is back: before, inside or between them.
        tokio::time::sleep(Duration::from_micros(dice.roll(400_000))).await;
        let victim = kit::process(&engine).await;
        kit::signal(Signal::KILL, victim);
        engine.process().wait_for(|now| *now != Some(victim)).await.unwrap();
    }
    feeding.await.unwrap();
    for _ in 0..BATCHES {
        let outcome = tokio::time::timeout(kit::PATIENCE, outcomes.recv()).await.unwrap().unwrap();
        assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
    }
    let expected: Vec<_> = (0..BATCHES).map(|seq| (seq, 200)).collect();
    assert_eq!(kit::ledger(&store, &NETWORK_1S).await.into_iter().collect::<Vec<_>>(), expected);
    writer.stop().await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_engine_costs_the_budget_and_no_more_and_is_caught_up_with() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, store) = kit::engine(folder.path()).await;
    let (report, mut outcomes) = kit::reports();
    let config = Config { age_max: Duration::from_millis(5), ..Config::default() };
    let writer = Writer::start(store.clone(), config, nothing_before_insert(), report).await;
    let budget = Budget::new(1 << 20);
    let process = kit::process(&engine).await;
    kit::signal(Signal::STOP, process);
    let seconds = vec![NEW_YEAR; 100];
    let bytes = kit::network(0, &seconds).bytes();
    let mut written = 0;
    while let Some(permit) = budget.try_acquire(bytes) {
        let rows = kit::network(written, &seconds);
        writer
            .handle()
            .write(Labelled { id: kit::id(written), rows, uncertain: false, permit })
            .await
            .unwrap();
        written += 1;
    }
    assert!(written >= 10, "{written} batches fit");
    let starved = tokio::time::timeout(Duration::from_millis(300), budget.acquire(bytes)).await;
    assert!(starved.is_err(), "nothing is given back while nothing is stored");
    kit::signal(Signal::CONT, process);
    for _ in 0..written {
        assert!(matches!(outcomes.recv().await.unwrap(), Outcome::Committed(_)));
    }
    assert_eq!(budget.available(), budget.capacity());
    let expected: Vec<_> = (0..written).map(|seq| (seq, 100)).collect();
    assert_eq!(kit::ledger(&store, &NETWORK_1S).await.into_iter().collect::<Vec<_>>(), expected);
    writer.stop().await;
    engine.stop().await;
}

#[tokio::test]
async fn what_a_previous_run_stored_is_found_in_both_partitions() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, store) = kit::engine(folder.path()).await;
    let budget = Budget::new(64 << 20);
    for _run in 0..2 {
        let (report, mut outcomes) = kit::reports();
        let writer = Writer::start(store.clone(), Config::default(), nothing_before_insert(), report).await;
        for seq in 0..3 {
            let batch = kit::labelled(&budget, seq, &[NEW_YEAR, NEW_YEAR + 3600], true).await;
            writer.handle().write(batch).await.unwrap();
        }
        writer.stop().await;
        for _ in 0..3 {
            assert!(matches!(outcomes.recv().await.unwrap(), Outcome::Committed(_)));
        }
    }
    let stored = kit::ledger(&store, &NETWORK_1S).await;
    assert_eq!(stored.into_iter().collect::<Vec<_>>(), [(0, 2), (1, 2), (2, 2)]);
    engine.stop().await;
}

#[tokio::test]
async fn uneven_columns_are_rejected_and_the_others_are_stored() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, store) = kit::engine(folder.path()).await;
    let (report, mut outcomes) = kit::reports();
    let dictionary = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let flushes = Arc::clone(&dictionary);
    let before: metaflow_actors::writer::BeforeInsert = Arc::new(move || {
        // The first try fails: rows wait for it.
        let first = flushes.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
        Box::pin(std::future::ready(if first { Err("not yet".to_owned()) } else { Ok(()) }))
    });
    let writer = Writer::start(store.clone(), Config::default(), before, report).await;
    let budget = Budget::new(64 << 20);
    for seq in 0..3 {
        let mut batch = kit::labelled(&budget, seq, &[NEW_YEAR; 5], false).await;
        if seq == 1 {
            let Rows::Network(_, block) = &mut batch.rows else { panic!("another table") };
            block.interval.batch_seq.pop();
        }
        writer.handle().write(batch).await.unwrap();
    }
    writer.stop().await;
    let mut seen = Vec::new();
    while let Some(outcome) = outcomes.recv().await {
        seen.push(outcome);
    }
    assert_eq!(seen.iter().filter(|outcome| matches!(outcome, Outcome::Committed(_))).count(), 2);
    assert!(seen.iter().any(
        |outcome| matches!(outcome, Outcome::Rejected(id, why) if id.seq == 1 && why.contains("batch_seq"))
    ));
    assert_eq!(kit::ledger(&store, &NETWORK_1S).await.into_iter().collect::<Vec<_>>(), [(0, 5), (2, 5)]);
    assert_eq!(dictionary.load(std::sync::atomic::Ordering::SeqCst), 2);
    engine.stop().await;
}
