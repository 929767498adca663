//! A connection between client and engine that loses answers, and what the writer makes of it.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering::SeqCst},
};

use metaflow_actors::{
    memory::Budget,
    rows::Outcome,
    store::{Servers, Store},
    writer::{Config, Writer, nothing_before_insert},
};
use metaflow_schema::tables::NETWORK_1S;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::kit::{self, NEW_YEAR};

#[derive(Default)]
struct Faults {
    /// Of this many inserts to come, the answer is cut after the engine gave it.
    cut: AtomicU32,
    cuts: AtomicU64,
}

/// Listens, and passes everything on to `target`, but for the faults.
async fn start(target: String, faults: Arc<Faults>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(serve(client, target.clone(), Arc::clone(&faults)));
        }
    });
    url
}

async fn serve(mut client: TcpStream, target: String, faults: Arc<Faults>) {
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    let (mut up, mut down) = ([0; 65_536], [0; 65_536]);
    let mut inserting = false;
    loop {
        tokio::select! {
            read = client.read(&mut up) => match read {
                Ok(length) if length > 0 => {
                    inserting |= String::from_utf8_lossy(&up[..length]).contains("INSERT+INTO");
                    if server.write_all(&up[..length]).await.is_err() { return }
                }
                _ => return,
            },
            read = server.read(&mut down) => match read {
                Ok(length) if length > 0 => {
                    let cut = inserting
                        && faults.cut.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
                    inserting = false;
                    if cut {
                        faults.cuts.fetch_add(1, SeqCst);
                        return;
                    }
                    if client.write_all(&down[..length]).await.is_err() { return }
                }
                _ => return,
            },
        }
    }
}

#[tokio::test]
async fn rows_are_stored_once_when_the_answer_of_their_insert_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, direct) = kit::engine(folder.path()).await;
    let servers = engine.servers().borrow().clone();
    let faults = Arc::new(Faults::default());
    let target = servers.urls[0].trim_start_matches("http://").to_owned();
    let url = start(target, Arc::clone(&faults)).await;
    let store = Store::servers(Servers { urls: vec![url], compress: true, ..servers }, 1);

    let (report, mut outcomes) = kit::reports();
    let config = Config { rows_max: 10, ..Config::default() };
    let writer = Writer::start(store, config, nothing_before_insert(), report).await;
    let budget = Budget::new(64 << 20);
    faults.cut.store(5, SeqCst);
    for seq in 0..30 {
        let batch = kit::labelled(&budget, seq, &[NEW_YEAR, NEW_YEAR + 1], false).await;
        writer.handle().write(batch).await.unwrap();
    }
    for _ in 0..30 {
        assert!(matches!(outcomes.recv().await.unwrap(), Outcome::Committed(_)));
    }
    assert_eq!(faults.cuts.load(SeqCst), 5, "the answers were cut");
    let expected: Vec<_> = (0..30).map(|seq| (seq, 2)).collect();
    assert_eq!(kit::ledger(&direct, &NETWORK_1S).await.into_iter().collect::<Vec<_>>(), expected);
    assert_eq!(budget.available(), budget.capacity(), "every permit came back");
    writer.stop().await;
    engine.stop().await;
}
