//! The actor: what goes in comes out labelled or with a reason, and its end is clean.

use std::collections::HashMap;

use tokio::sync::mpsc;
use wire::Table;

use super::*;
use crate::{
    dictionary::{Config, NodeId},
    disk::Disk,
    memory::Budget,
};

fn accepted(budget: &Budget, id: BatchId, edit: fn(&mut wire::Batch)) -> Accepted {
    let rows = wire::Application { endpoint: vec![1, 1], request: vec![2, 3], ..Default::default() };
    let columns = Columns {
        strings: vec![String::new(), "/pay".into()],
        rows: Some(WireRows::Application(rows)),
        ..Default::default()
    };
    let mut batch = wire::seal(id.agent_id, id.seq, Table::Application1s, 2, &columns);
    edit(&mut batch);
    Accepted { id, batch, uncertain: true, permit: budget.try_acquire(1_000).unwrap() }
}

#[tokio::test]
async fn sound_batches_are_labelled_and_malformed_ones_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::open(folder.path()).unwrap();
    let dictionary = Dictionary::open(disk, Config::new(NodeId::new(1).unwrap()), &HashMap::new()).unwrap();
    let agent_id = dictionary.id(Kind::Agent, "machine").unwrap();
    let labeler = Labeler::new(super::super::Config { workers: 2 }, dictionary.clone(), Published::default());
    let counters = labeler.counters();
    let budget = Budget::new(1 << 20);
    let (input, input_end) = mpsc::channel(8);
    let (output, mut labelled) = mpsc::channel(8);
    let (outcomes, mut refused) = mpsc::channel(8);
    let sound = BatchId { agent_id, seq: 1 };
    let damaged = BatchId { agent_id, seq: 2 };
    let stranger = BatchId { agent_id: agent_id + 1, seq: 3 };
    input.send(accepted(&budget, sound, |_| ())).await.unwrap();
    input.send(accepted(&budget, damaged, |batch| batch.crc ^= 1)).await.unwrap();
    input.send(accepted(&budget, stranger, |_| ())).await.unwrap();
    drop(input);
    labeler.run(input_end, output, outcomes).await;

    let Labelled { id, rows, uncertain, permit } = labelled.recv().await.unwrap();
    assert_eq!((id, uncertain, permit.bytes()), (sound, true, 1_024));
    let Rows::Application(_, block) = rows else { panic!("{rows:?}") };
    let endpoint = dictionary.lookup(Kind::Endpoint, "/pay").unwrap();
    assert_eq!((block.interval.endpoint_id, block.interval.request), (vec![endpoint; 2], vec![2, 3]));
    let mut reasons = HashMap::new();
    while let Some(Outcome::Rejected(id, reason)) = refused.recv().await {
        reasons.insert(id, reason);
    }
    assert!(reasons[&damaged].contains("checksum"), "{reasons:?}");
    assert!(reasons[&stranger].contains("no node gave the agent id"), "{reasons:?}");
    assert_eq!(counters.rows.load(Ordering::Relaxed), 2);
    assert_eq!(counters.rejected_batches.load(Ordering::Relaxed), 2);
    assert!(labelled.recv().await.is_none());
    drop(permit);
    assert_eq!(budget.available(), budget.capacity(), "refused batches give their memory back");
}
