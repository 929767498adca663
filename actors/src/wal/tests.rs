//! The log on a real disk state: order, groups, torn and damaged entries.

use super::*;
use crate::memory::Budget;

fn entry(wal: &Wal, seq: u64) -> Entry {
    let key = wal.key(BatchId { agent_id: 7, seq });
    let batch = wire::Batch { agent_id: 7, seq, payload: vec![9; 1000].into(), ..Default::default() };
    let permit = Budget::new(1 << 20).try_acquire(1).unwrap();
    Entry { key, batch, uncertain: false, permit }
}

fn seqs(left: &[Left]) -> Vec<u64> {
    left.iter().map(|left| left.key.id().seq).collect()
}

async fn opened(disk: &Disk) -> (Wal, Vec<Left>) {
    let disk = disk.clone();
    tokio::task::spawn_blocking(move || Wal::open(disk, 1 << 20, 0).unwrap()).await.unwrap()
}

#[tokio::test]
async fn entries_come_back_in_the_order_of_arrival_until_they_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::open(folder.path()).unwrap();
    let (wal, left) = opened(&disk).await;
    assert!(left.is_empty());
    let (sender, mut durable) = mpsc::channel(8);
    let writing = tokio::spawn(wal.clone().run(sender));
    for seq in [5, 1, 3] {
        wal.append(entry(&wal, seq));
    }
    assert_eq!(wal.room(), (1 << 20) - 3 * 1064);
    let mut logged = Vec::new();
    while logged.len() < 3 {
        logged.extend(durable.recv().await.unwrap().into_iter().map(|entry| entry.key));
    }
    wal.forget(Left { key: logged[1], bytes: 1064 }, Some((vec![1], vec![2])));
    wal.close();
    writing.await.unwrap();

    let (wal, left) = opened(&disk).await;
    assert_eq!(seqs(&left), [5, 3]);
    assert!(wal.metrics().bytes.load(Relaxed) >= 2 * 1064);
    assert_eq!(wal.read(left[1]).await.unwrap().unwrap().seq, 3);
    assert_eq!(disk.get(Family::Committed, &[1]).unwrap(), Some(vec![2]));
    let next = wal.key(BatchId { agent_id: 7, seq: 9 });
    assert!(next > left[1].key, "new entries follow old ones");
}

#[tokio::test]
async fn many_entries_share_a_sync() {
    let folder = tempfile::tempdir().unwrap();
    let (wal, _) = opened(&Disk::open(folder.path()).unwrap()).await;
    for seq in 0..100 {
        wal.append(entry(&wal, seq));
    }
    let (sender, mut durable) = mpsc::channel(8);
    wal.close();
    wal.clone().run(sender).await;
    let mut logged = 0;
    while let Some(entries) = durable.recv().await {
        logged += entries.len();
    }
    assert_eq!(logged, 100);
    assert_eq!(wal.metrics().syncs.load(Relaxed), 1);
}

#[tokio::test]
async fn damaged_entries_are_counted_and_the_others_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::open(folder.path()).unwrap();
    let (wal, _) = opened(&disk).await;
    let mut changes = Changes::default();
    changes.put(Family::Wal, wal.key(BatchId { agent_id: 1, seq: 1 }).encode(), *b"\xff\xff\xff");
    changes.put(Family::Wal, *b"short", *b"");
    let good = entry(&wal, 2);
    changes.put(Family::Wal, good.key.encode(), good.batch.encode_to_vec());
    disk.write(changes, Durability::Synced).unwrap();

    let (wal, left) = opened(&disk).await;
    assert_eq!(seqs(&left), [1, 2]);
    assert_eq!(wal.read(left[0]).await.unwrap(), None);
    assert_eq!(wal.read(left[1]).await.unwrap().unwrap().seq, 2);
    assert_eq!(wal.metrics().damaged.load(Relaxed), 2);
}

/// The end of a process that dies inside a write: RocksDB's own log is cut at every place of its tail.
#[tokio::test]
async fn a_torn_tail_costs_only_what_was_not_synced() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::open(folder.path()).unwrap();
    let (wal, _) = opened(&disk).await;
    for seq in 0..3 {
        let entry = entry(&wal, seq);
        let mut changes = Changes::default();
        changes.put(Family::Wal, entry.key.encode(), entry.batch.encode_to_vec());
        disk.write(changes, Durability::Synced).unwrap();
    }
    drop((wal, disk));
    let log = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap();
    let length = log.metadata().unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(length - 10).unwrap();
    let (_, left) = opened(&Disk::open(folder.path()).unwrap()).await;
    assert_eq!(seqs(&left), [0, 1]);
}
