//! Ingester, log and writer together, with the simplest labeler that there can be: runs that end at any point, agents that send again.

use std::{collections::BTreeMap, path::Path, time::Duration};

use metaflow_actors::{
    disk::Disk,
    ingester::{self, Acks, Answers, Config, Ingester, Running},
    memory::Memory,
    rows::{Accepted, Labelled},
    store::Store,
    writer::{self, Writer, nothing_before_insert},
};
use metaflow_schema::tables::NETWORK_1S;
use metaflow_wire as wire;
use rustix::process::Signal;
use tokio::{sync::mpsc, task::JoinHandle};

use crate::kit::{self, Dice, NEW_YEAR};

/// One run of a node.
struct Run {
    running: Running,
    memory: Memory,
    labeler: JoinHandle<()>,
    /// Has no writer when the run is to end with everything in its log.
    writer: Option<Writer>,
}

impl Run {
    async fn start(folder: &Path, store: Option<&Store>, wal_bytes_max: u64) -> Self {
        Self::start_within(folder, store, wal_bytes_max, 4 << 20).await
    }

    async fn start_within(
        folder: &Path,
        store: Option<&Store>,
        wal_bytes_max: u64,
        memory_bytes: usize,
    ) -> Self {
        // A read of the previous run may still hold it.
        let disk = kit::eventually(|| async { Disk::open(folder).ok() }).await;
        let memory = Memory::new(memory_bytes);
        let config = Config { wal_bytes_max, ..Config::default() };
        let (sender, accepted) = mpsc::channel(1000);
        let running = Ingester::start(disk, config, memory.clone(), sender).await.unwrap();
        let report = running.ingester().report();
        let writer = match store {
            Some(store) => {
                let config = writer::Config {
                    rows_max: 500,
                    age_max: Duration::from_millis(10),
                    ..writer::Config::default()
                };
                Some(Writer::start(store.clone(), config, nothing_before_insert(), report).await)
            }
            None => None,
        };
        let labeler = tokio::spawn(label(accepted, writer.as_ref().map(Writer::handle)));
        Self { running, memory, labeler, writer }
    }

    async fn send(&self, batch: wire::Batch, reply: &ingester::Reply) {
        let permit = self.memory.intake.acquire(ingester::intake(batch.payload.len())).await;
        self.running.ingester().submit(batch, permit, reply.clone());
    }

    /// Ends like a process that is killed: nothing is waited for but the disk's lock.
    async fn kill(self) {
        let Self { running, labeler, writer, .. } = self;
        labeler.abort();
        drop(labeler.await);
        drop(writer);
        running.stop().await;
    }
}

async fn label(mut accepted: mpsc::Receiver<Accepted>, writer: Option<writer::Handle>) {
    let mut kept = Vec::new();
    while let Some(Accepted { id, batch, uncertain, permit }) = accepted.recv().await {
        match &writer {
            Some(writer) => {
                let rows = kit::network(id.seq, &vec![NEW_YEAR; batch.rows as usize]);
                writer.write(Labelled { id, rows, uncertain, permit }).await.unwrap();
            }
            None => kept.push(permit),
        }
    }
}

fn batch(seq: u64, resent: bool) -> wire::Batch {
    wire::Batch {
        protocol_version: wire::PROTOCOL_VERSION,
        agent_id: 7,
        seq,
        table: wire::Table::Network1s.into(),
        rows: 20,
        uncompressed_bytes: 100,
        payload: vec![1; 100].into(),
        resent,
        ..Default::default()
    }
}

/// Reads acks until there were as many of one kind as asked for.
async fn wait_for(answers: &mut Answers, many: u64, how_many: impl Fn(&Acks) -> u64) {
    let mut seen = 0;
    while seen < many {
        let acks = tokio::time::timeout(kit::PATIENCE, answers.next()).await.unwrap().unwrap();
        seen += how_many(&acks);
    }
}

/// What the next acks say to be in the store.
async fn committed(answers: &mut Answers) -> Vec<(u64, u64)> {
    answers.next().await.unwrap().committed.iter().collect()
}

async fn stored(store: &Store) -> BTreeMap<u64, u64> {
    kit::ledger(store, &NETWORK_1S).await
}

fn expected(batches: u64) -> BTreeMap<u64, u64> {
    (0..batches).map(|seq| (seq, 20)).collect()
}

#[tokio::test]
async fn received_batches_survive_their_run_and_are_stored_by_the_next() {
    let (data, log) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (engine, store) = kit::engine(data.path()).await;
    let run = Run::start(log.path(), None, 1 << 30).await;
    let (reply, mut answers) = ingester::acks();
    for seq in 0..50 {
        run.send(batch(seq, false), &reply).await;
    }
    wait_for(&mut answers, 50, |acks| acks.received.count()).await;
    run.kill().await;

    let run = Run::start(log.path(), Some(&store), 1 << 30).await;
    run.running.ingester().wal().emptied().await;
    assert_eq!(stored(&store).await, expected(50));
    run.send(batch(3, true), &reply).await;
    assert_eq!(committed(&mut answers).await, [(3, 3)], "answered from memory");
    run.kill().await;

    let run = Run::start(log.path(), Some(&store), 1 << 30).await;
    run.send(batch(4, true), &reply).await;
    assert_eq!(committed(&mut answers).await, [(4, 4)], "known after a start");
    run.kill().await;
    assert_eq!(stored(&store).await, expected(50));
    engine.stop().await;
}

#[tokio::test]
async fn the_log_takes_more_than_memory_has_room_for_and_every_batch_finds_its_way_to_the_store() {
    const BATCHES: u64 = 200;
    let (data, log) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (engine, store) = kit::engine(data.path()).await;
    let process = kit::process(&engine).await;
    let run = Run::start_within(log.path(), Some(&store), 1 << 30, 256 << 10).await;
    let (reply, mut answers) = ingester::acks();
    kit::signal(Signal::STOP, process);
    for seq in 0..BATCHES {
        run.send(batch(seq, false), &reply).await;
    }
    wait_for(&mut answers, BATCHES, |acks| acks.received.count()).await;
    let ingester = run.running.ingester();
    assert!(ingester.waiting() > 150, "{} batches left memory", ingester.waiting());
    assert!(run.memory.path.available() < 32 << 10, "what memory has room for is on its way");
    kit::signal(Signal::CONT, process);
    wait_for(&mut answers, BATCHES, |acks| acks.committed.count()).await;
    assert_eq!(stored(&store).await, expected(BATCHES));
    assert_eq!((ingester.waiting(), run.memory.used()), (0, 0));
    drop(ingester);
    run.kill().await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_are_stored_once_however_often_runs_end_and_agents_send_again() {
    const BATCHES: u64 = 300;
    let (data, log) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (engine, store) = kit::engine(data.path()).await;
    let mut dice = Dice(42);
    let (reply, mut answers) = ingester::acks();
    let mut resent = false;
    for _ in 0..8 {
        let run = Run::start(log.path(), Some(&store), 1 << 30).await;
        for seq in 0..BATCHES {
            run.send(batch(seq, resent), &reply).await;
            if dice.roll(200) == 0 {
                break;
            }
        }
        if dice.roll(2) == 0 {
            kit::signal(Signal::KILL, kit::process(&engine).await);
        }
        resent = true;
        run.kill().await;
    }
    answers.take();
    let run = Run::start(log.path(), Some(&store), 1 << 30).await;
    for seq in 0..BATCHES {
        run.send(batch(seq, true), &reply).await;
    }
    wait_for(&mut answers, BATCHES, |acks| acks.committed.count()).await;
    assert_eq!(stored(&store).await, expected(BATCHES));
    run.kill().await;
    engine.stop().await;
}

#[tokio::test]
async fn a_full_log_takes_the_credit_away_and_gives_it_back() {
    let (data, log) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (engine, store) = kit::engine(data.path()).await;
    let run = Run::start(log.path(), None, 400).await;
    let (reply, mut answers) = ingester::acks();
    for seq in 0..4 {
        run.send(batch(seq, false), &reply).await;
    }
    wait_for(&mut answers, 2, |acks| acks.received.count()).await;
    let ingester = run.running.ingester();
    let dropped = || ingester.metrics().batches_dropped[0].load(std::sync::atomic::Ordering::Relaxed);
    kit::eventually(|| async { (dropped() == 2).then_some(()) }).await;
    assert!(ingester.credit() < 164, "no room for one more");
    drop(ingester);
    run.kill().await;

    let run = Run::start(log.path(), Some(&store), 400).await;
    run.running.ingester().wal().emptied().await;
    assert_eq!(run.running.ingester().credit(), 400);
    assert_eq!(stored(&store).await, expected(2));
    run.kill().await;
    engine.stop().await;
}

#[tokio::test]
async fn an_envelope_that_cannot_be_right_is_rejected_at_once() {
    let log = tempfile::tempdir().unwrap();
    let run = Run::start(log.path(), None, 1 << 30).await;
    let (reply, mut answers) = ingester::acks();
    type Change = fn(&mut wire::Batch);
    let changes: [(Change, &str); 4] = [
        (|batch| batch.protocol_version = 99, "version"),
        (|batch| batch.rows = u32::MAX, "rows"),
        (|batch| batch.uncompressed_bytes = u32::MAX, "size"),
        (|batch| batch.table = 0, "table"),
    ];
    for (seq, (change, expected)) in changes.into_iter().enumerate() {
        let mut batch = batch(seq as u64, false);
        change(&mut batch);
        run.send(batch, &reply).await;
        let acks = answers.next().await.unwrap();
        let [(rejected, reason)] = &acks.rejected[..] else { panic!("{acks:?}") };
        assert!(*rejected == seq as u64 && reason.contains(expected), "{acks:?}");
    }
    run.kill().await;
}
