//! Capture files through the whole process to a node.

use metaflow_wire::{Table, columns::Rows, open};
use tempfile::TempDir;

use super::*;
use crate::sender::peer::{Manner, Peer};

/// The third-party captures; see the README beside them.
fn corpus(file: &str) -> PathBuf {
    let root = std::env::var("METAFLOW_CORPUS").unwrap_or_else(|_| "../shared/corpus".to_owned());
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(root).join("packets").join(file);
    assert!(path.exists(), "{} is missing: set METAFLOW_CORPUS", path.display());
    path
}

fn config(directory: &TempDir, server: String) -> Config {
    Config { servers: vec![server], data_dir: directory.path().to_owned(), ..Config::default() }
}

fn once(files: Vec<PathBuf>) -> Replay {
    Replay {
        files,
        times: 1,
        pace: None,
        at_now: false,
        patience: Duration::from_secs(20),
        data_dir: None,
        machine_id: None,
    }
}

/// Sum of a figure over all rows of a table.
fn sum(peer: &Peer, table: Table, figure: impl Fn(&Rows, usize) -> u64) -> u64 {
    peer.see(|seen| {
        seen.batches
            .iter()
            .filter(|batch| batch.table() == table)
            .map(|batch| {
                let (_, columns) = open(batch).unwrap();
                figure(columns.rows.as_ref().unwrap(), batch.rows as usize)
            })
            .sum()
    })
}

fn requests(rows: &Rows, count: usize) -> u64 {
    match rows {
        Rows::L7FlowLog(_) => count as u64,
        Rows::Application(rows) => rows.request.iter().map(|request| u64::from(*request)).sum(),
        _ => 0,
    }
}

fn bytes(rows: &Rows, _count: usize) -> u64 {
    match rows {
        Rows::L4FlowLog(rows) => rows.byte_tx.iter().chain(&rows.byte_rx).sum(),
        Rows::Network(rows) => rows.byte_tx.iter().chain(&rows.byte_rx).sum(),
        _ => 0,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_ends_when_all_is_committed_and_every_table_says_the_same() {
    let peer = Peer::new(Manner::Commit);
    let (server, _task) = peer.serve().await;
    let directory = TempDir::new().unwrap();
    let files = vec![corpus("http/httpv1.pcap"), corpus("dns/dns.pcap")];
    let stop = CancellationToken::new();
    let (status, result) = replay(config(&directory, server), once(files), stop).await.unwrap();
    result.unwrap();
    assert!(status.packets > 0 && status.sessions > 0 && status.flows > 0, "{status:?}");
    assert_eq!((status.batches_pending, status.batches_committed), (0, status.batches_sealed));
    assert_eq!(status.rows.values().sum::<u64>(), status.rows_committed);
    assert_eq!(sum(&peer, Table::L7FlowLog, |_, count| count as u64), status.sessions);
    let counted = sum(&peer, Table::Application1s, requests);
    assert!(counted > 0);
    for table in [Table::Application1m, Table::ApplicationMap1s, Table::ApplicationMap1m] {
        assert_eq!(sum(&peer, table, requests), counted, "{table:?}");
    }
    let transferred = sum(&peer, Table::L4FlowLog, bytes);
    for table in [Table::Network1s, Table::Network1m, Table::NetworkMap1s, Table::NetworkMap1m] {
        assert_eq!(sum(&peer, table, bytes), transferred, "{table:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_did_not_take_is_said_and_goes_with_the_next_replay() {
    let peer = Peer::new(Manner::ReceiveOnly);
    let (server, task) = peer.serve().await;
    let directory = TempDir::new().unwrap();
    let impatient = Replay { patience: Duration::from_millis(300), ..once(vec![corpus("http/httpv1.pcap")]) };
    let (first, result) =
        replay(config(&directory, server), impatient, CancellationToken::new()).await.unwrap();
    let error = result.unwrap_err().to_string();
    assert!(error.contains("not committed") && first.batches_pending > 0, "{error} {first:?}");
    task.abort();

    let good = Peer::new(Manner::Commit);
    let (server, _task) = good.serve().await;
    let (second, result) =
        replay(config(&directory, server), once(vec![]), CancellationToken::new()).await.unwrap();
    result.unwrap();
    assert_eq!(second.rows_committed, first.rows.values().sum::<u64>());
    assert!(good.see(|seen| seen.batches.iter().all(|batch| batch.resent)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_named_and_what_came_before_counts() {
    let peer = Peer::new(Manner::Commit);
    let (server, _task) = peer.serve().await;
    let directory = TempDir::new().unwrap();
    let whole = std::fs::read(corpus("http/httpv1.pcap")).unwrap();
    let damaged = directory.path().join("damaged.pcap");
    std::fs::write(&damaged, &whole[..whole.len() - 5]).unwrap();
    let (status, result) =
        replay(config(&directory, server), once(vec![damaged]), CancellationToken::new()).await.unwrap();
    let error = format!("{:#}", result.unwrap_err());
    assert!(error.contains("damaged.pcap"), "{error}");
    assert!(status.rows_committed > 0, "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_told_to_stop_ends_soon_and_keeps_what_it_has() {
    let directory = TempDir::new().unwrap();
    // Nothing listens there, and the pace would take hours.
    let slow = Replay { pace: Some(0.000_01), ..once(vec![corpus("http/httpv1.pcap")]) };
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    let spooled = directory.path().join("replay/spool");
    let stopper = tokio::spawn(async move {
        crate::sender::peer::until("spool", || spooled.exists()).await;
        stopping.cancel();
    });
    let (status, result) = replay(config(&directory, "127.0.0.1:1".to_owned()), slow, stop).await.unwrap();
    stopper.await.unwrap();
    assert!(result.is_err() == (status.batches_pending > 0), "{status:?}");
    assert_eq!(status.losses.total(), 0);
}
