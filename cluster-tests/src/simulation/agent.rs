//! An agent: its spool, session and choice of servers as they are, on files below a folder of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Instant,
};

use metaflow_agent::{
    sender::{Config, Servers, Session},
    spool::{self, Spool},
};
use metaflow_wire::{Batch, Columns, IngestAck, L7FlowLog, Table, columns::Rows, seal};

use super::random::Random;

/// Names that all agents use, and so many of them.
const ENDPOINTS: u64 = 40;
const DOMAINS: u64 = 12;

pub(super) struct Agent {
    pub(super) machine: String,
    folder: PathBuf,
    /// None: the process does not run.
    pub(super) spool: Option<Spool>,
    pub(super) servers: Servers,
    pub(super) config: Config,
    pub(super) session: Option<Session>,
    /// The connection, welcomed or not, and since when.
    pub(super) connection: Option<u64>,
    pub(super) since_ms: u64,
    pub(super) beat_ms: u64,
    /// Times that it was welcome, and left for another node.
    pub(super) welcomes: u64,
    pub(super) is_welcome: bool,
    made: u64,
    /// Rows by batch, of all batches that the spool has taken in durably.
    pub(super) ledger: BTreeMap<u64, u32>,
    /// Appended, not flushed: lost when the process dies.
    unflushed: BTreeMap<u64, u32>,
    /// What each number of the spool stands for.
    truths: BTreeMap<u64, u64>,
    /// Batches that a node has acknowledged.
    received: BTreeSet<u64>,
    /// Rows of batches that went with a disk of the agent's and that no node had acknowledged: they may be stored or not.
    pub(super) lost: BTreeMap<u64, u32>,
    /// Counts tries, so that a timer of an old one is known.
    pub(super) tries: u64,
}

impl Agent {
    pub(super) fn new(number: usize, folder: PathBuf, servers: Vec<String>) -> Self {
        let config = Config::new(servers.clone());
        let mut agent = Self {
            machine: format!("machine-{number}"),
            folder,
            spool: None,
            servers: Servers::new(servers),
            config,
            session: None,
            connection: None,
            since_ms: 0,
            beat_ms: 0,
            welcomes: 0,
            is_welcome: false,
            made: (number as u64) << 32,
            ledger: BTreeMap::new(),
            unflushed: BTreeMap::new(),
            truths: BTreeMap::new(),
            received: BTreeSet::new(),
            lost: BTreeMap::new(),
            tries: 0,
        };
        agent.start(1_000);
        agent
    }

    /// A new process on the same files.
    pub(super) fn start(&mut self, generation_now: u32) {
        let config = spool::Config::new(self.folder.clone(), 4 << 20);
        let (spool, _) = Spool::open(config, generation_now).expect("the spool's folder can be used");
        self.spool = Some(spool);
        self.servers = Servers::new(self.config.servers.clone());
    }

    /// The process dies: what was not flushed is lost.
    pub(super) fn kill(&mut self) {
        self.spool = None;
        self.session = None;
        self.is_welcome = false;
        self.unflushed.clear();
    }

    /// Seals a batch of a few requests.
    pub(super) fn produce(&mut self, random: &mut Random, second: u64) {
        let Some(spool) = &mut self.spool else { return };
        self.made += 1;
        let rows = random.between(1, 3) as u32;
        let batch = batch(self.made, rows, second, random);
        if let Some(seq) = spool.append(batch, 1) {
            self.unflushed.insert(self.made, rows);
            self.truths.insert(seq, self.made);
        }
    }

    /// Its disk is replaced: only nodes have what they acknowledged.
    pub(super) fn lose_disk(&mut self) {
        self.kill();
        // It may be gone already.
        std::fs::remove_dir_all(&self.folder).ok();
        let (kept, lost) = std::mem::take(&mut self.ledger)
            .into_iter()
            .partition(|(truth, _)| self.received.contains(truth));
        self.ledger = kept;
        self.lost.extend::<BTreeMap<_, _>>(lost);
    }

    /// Its spool's folder is there.
    pub(super) fn has_disk(&self) -> bool {
        self.folder.exists()
    }

    pub(super) fn note_received(&mut self, ack: &IngestAck) {
        for range in ack.received.iter().chain(&ack.committed) {
            self.received.extend(self.truths.range(range.first..=range.last).map(|(_, truth)| *truth));
        }
    }

    pub(super) fn flush(&mut self) {
        if let Some(spool) = &mut self.spool
            && spool.flush().is_ok()
        {
            self.ledger.append(&mut self.unflushed);
        }
    }

    /// The next batch that may be sent.
    pub(super) fn next_batch(&mut self, now: Instant) -> Option<Batch> {
        let (session, spool) = (self.session.as_mut()?, self.spool.as_mut()?);
        session.next_batch(spool, now).ok().flatten()
    }
}

fn batch(truth: u64, rows: u32, second: u64, random: &mut Random) -> Batch {
    let all = |value: u64| vec![value; rows as usize];
    let strings = vec![
        String::new(),
        "GET".to_owned(),
        format!("/path/{}", random.below(ENDPOINTS)),
        format!("/path/{}", random.below(ENDPOINTS)),
        format!("host-{}", random.below(DOMAINS)),
    ];
    let endpoint = (0..rows).map(|row| 2 + row % 2).collect();
    let columns = Columns {
        strings,
        rows: Some(Rows::L7FlowLog(L7FlowLog {
            flow_id: all(truth),
            start_time: all(second * 1_000_000),
            end_time: all(second * 1_000_000),
            request_type: vec![1; rows as usize],
            request_domain: vec![4; rows as usize],
            endpoint,
            ..L7FlowLog::default()
        })),
        ..Columns::default()
    };
    seal(0, 0, Table::L7FlowLog, rows, &columns)
}
