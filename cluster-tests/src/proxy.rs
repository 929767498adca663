//! A connection between a node and its store that can be held: the answer of an insert, or the insert itself, does not arrive.
//!
//! Bytes pass as they are. A client sends its next request only when the one before was answered, so the first bytes after an answer are
//! the head of a request, and that says what is inserted.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// What becomes of an insert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// The store has done it and its answer is lost.
    Answer,
    /// The store does not hear of it.
    All,
    /// The store has a part of it and waits for the rest, before it begins: a block comes in one piece.
    Rest,
}

/// So much passes before the rest is held: the head of the request, and the beginning of its body.
const BEGUN_BYTES: usize = 512 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Pass,
    /// The next insert is held.
    Armed(Hold),
    Held,
}

/// Runs until the test ends.
#[derive(Debug)]
pub struct Proxy {
    url: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: String,
    /// What stands in the head of an insert that can be held.
    table: String,
    stage: watch::Sender<Stage>,
    /// Answers of inserts that never arrive: the connection ends instead.
    cuts: AtomicU32,
    trouble: Mutex<Option<String>>,
}

impl Proxy {
    /// Listens, and passes everything on to the store at `target`; inserts into `table` can be held.
    pub async fn start(target: &str, table: &str) -> Result<Self> {
        Self::start_on("127.0.0.1:0", target, table).await
    }

    /// The same, on an address of the caller's.
    pub async fn start_on(address: &str, target: &str, table: &str) -> Result<Self> {
        let listener = TcpListener::bind(address).await.context("failed to listen")?;
        let url = format!("http://{}", listener.local_addr()?);
        let shared = Arc::new(Shared {
            target: target.to_owned(),
            table: table.to_owned(),
            stage: watch::channel(Stage::Pass).0,
            cuts: AtomicU32::new(0),
            trouble: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, Arc::clone(&serving)));
            }
        });
        Ok(Self { url, shared })
    }

    /// Where the node finds the store.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Holds the next insert, and waits until one is.
    pub async fn hold(&self, hold: Hold, deadline: Duration) -> Result<()> {
        self.shared.stage.send_replace(Stage::Armed(hold));
        let mut stage = self.shared.stage.subscribe();
        let held = stage.wait_for(|stage| *stage == Stage::Held);
        tokio::time::timeout(deadline, held).await.with_context(|| {
            let trouble = self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            format!("no insert into {} came within {deadline:?}; {trouble:?}", self.shared.table)
        })??;
        Ok(())
    }

    /// Cuts the connection of so many inserts after the store has done them, before its answer arrives.
    pub fn cut_answers(&self, inserts: u32) {
        self.shared.cuts.store(inserts, Ordering::Relaxed);
    }

    /// An insert that was held goes on, where both ends still want it; an answer is never given.
    pub fn release(&self) {
        self.shared.stage.send_replace(Stage::Pass);
    }
}

impl Shared {
    /// Takes the order to hold, if there is one and it is for this moment.
    fn take(&self, wanted: impl Fn(Hold) -> bool) -> Option<Hold> {
        let mut taken = None;
        self.stage.send_if_modified(|stage| match *stage {
            Stage::Armed(hold) if wanted(hold) => {
                taken = Some(hold);
                *stage = Stage::Held;
                true
            }
            _ => false,
        });
        taken
    }

    fn cuts(&self) -> bool {
        let less = |cuts: u32| cuts.checked_sub(1);
        self.cuts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    async fn released(&self) {
        // The sender lives as long as this does.
        self.stage.subscribe().wait_for(|stage| *stage != Stage::Held).await.ok();
    }
}

async fn serve(mut client: TcpStream, shared: Arc<Shared>) {
    let mut server = match TcpStream::connect(&shared.target).await {
        Ok(server) => server,
        Err(error) => {
            *shared.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
            return;
        }
    };
    let (mut up, mut down) = ([0; 65_536], [0; 65_536]);
    let (mut is_head, mut is_insert) = (true, false);
    let mut passed = 0;
    loop {
        tokio::select! {
            read = client.read(&mut up) => match read {
                Ok(length) if length > 0 => {
                    if is_head {
                        let head = String::from_utf8_lossy(&up[..length]);
                        is_insert = head.contains("INSERT") && head.contains(&shared.table);
                        passed = 0;
                        is_head = false;
                    }
                    if is_insert {
                        let held = |hold| hold == Hold::All || hold == Hold::Rest && passed >= BEGUN_BYTES;
                        if shared.take(held).is_some() {
                            shared.released().await;
                        }
                    }
                    passed += length;
                    if server.write_all(&up[..length]).await.is_err() { return }
                }
                _ => return,
            },
            read = server.read(&mut down) => match read {
                Ok(length) if length > 0 => {
                    is_head = true;
                    if is_insert && shared.cuts() {
                        return;
                    }
                    if is_insert && shared.take(|hold| hold == Hold::Answer).is_some() {
                        shared.released().await;
                        return;
                    }
                    if client.write_all(&down[..length]).await.is_err() { return }
                }
                _ => return,
            },
        }
    }
}
