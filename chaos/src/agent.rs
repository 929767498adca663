//! An agent without capture: its real sender and its real spool, fed with rows that are known.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use anyhow::{Result, ensure};
use metaflow_agent::{
    config::Config,
    control::Control,
    facts::Snapshot,
    sender::{self, Sender, SharedSpool},
    spool::{self, Spool},
};
use metaflow_cluster_tests::ledger::{domains, request_batch_of};
use metaflow_wire::{Hello, PROTOCOL_VERSION, seq};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::now_seconds;

const SPOOL_BYTES: u64 = 64 << 20;
const GENERATION: u32 = 1;

pub struct Agent {
    pub name: String,
    pub spool: SharedSpool,
    state: Arc<sender::State>,
    stop: CancellationToken,
    _facts: watch::Sender<Arc<Snapshot>>,
    /// What it has made so far.
    pub batches: u32,
    /// Requests of it, by the domain that they ask for.
    pub domains: BTreeMap<String, u64>,
}

impl Agent {
    /// Starts its sender, within a runtime.
    pub fn start(folder: &Path, number: u32, mut config: sender::Config) -> Result<Self> {
        let name = format!("agent-{number}");
        let spool_config = spool::Config::new(folder.join(&name), SPOOL_BYTES);
        let spool = SharedSpool::new(Spool::open(spool_config, GENERATION)?.0);
        let (facts, snapshots) = watch::channel(Arc::new(Snapshot::default()));
        let data_dir = folder.join(format!("control-{number}"));
        let control = Control::open(Config { data_dir, ..Config::default() });
        let hello = Hello {
            protocol_version: PROTOCOL_VERSION,
            machine_id: name.clone(),
            hostname: name.clone(),
            ..Hello::default()
        };
        // Their configurations name the nodes in differing orders.
        let turns = number as usize % config.servers.len().max(1);
        config.servers.rotate_left(turns);
        let sender = Sender::new(config, hello, spool.clone(), snapshots, control, Arc::default());
        let (state, stop) = (sender.state(), CancellationToken::new());
        tokio::spawn(sender.run(stop.clone()));
        Ok(Self { name, spool, state, stop, _facts: facts, batches: 0, domains: BTreeMap::new() })
    }

    pub fn is_connected(&self) -> bool {
        self.state.connected.load(Ordering::Relaxed)
    }

    /// Connections that it has had.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// A batch of requests to the services of a shop, durable in the spool.
    pub fn append(&mut self, rows: u32, shop: &str) -> Result<()> {
        // The spool gives agent and number.
        let batch = request_batch_of(0, u64::from(self.batches), rows, now_seconds(), shop);
        ensure!(self.spool.lock().append(batch, 1).is_some(), "the spool takes no batch");
        for domain in domains(u64::from(self.batches), rows, shop) {
            *self.domains.entry(domain).or_default() += 1;
        }
        self.batches += 1;
        Ok(self.spool.flush()?)
    }

    /// The numbers of its batches.
    pub fn seqs(&self) -> impl Iterator<Item = u64> {
        (0..self.batches).map(|counter| seq(GENERATION, counter))
    }

    /// Whether everything is stored.
    pub fn is_done(&self) -> bool {
        self.spool.lock().is_empty()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
