//! An agent that keeps a ledger: it sends request rows whose number it knows and remembers what the node acknowledged.
//!
//! It speaks the wire contract like a real agent: numbers batches, resends what is not committed after a broken stream, marks it
//! as resent. What it leaves out is capture: its rows are made up, so that the truth is known.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use metaflow_wire::{
    Batch, Columns, Endpoints, Hello, IngestAck, L7FlowLog, PROTOCOL_VERSION, SyncRequest, SyncResponse,
    Table, agent_service_client::AgentServiceClient, columns::Rows, seal, seq, sync_request, sync_response,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

/// Batches on their way at one time, and that wait in a stream.
const WINDOW: usize = 128;
const ANSWER_WITHIN: Duration = Duration::from_secs(12);

/// What the agent knows of its batches.
#[derive(Debug)]
pub struct LedgerAgent {
    pub agent_id: u32,
    machine_id: String,
    generation: u32,
    rows_a_batch: u32,
    /// Seconds since 1970 that all rows carry.
    second: u64,
    next: u32,
    last: u32,
    /// Sent or to be sent, not committed. True once it was handed to a stream.
    open: BTreeMap<u64, bool>,
    pub received: BTreeSet<u64>,
    pub committed: BTreeSet<u64>,
    /// Streams that broke.
    pub breaks: u32,
    /// None: plain text.
    pub tls: Option<metaflow_tls::Client>,
    /// How long it waits for an answer before it leaves a node.
    pub answer_within: Duration,
    /// Batches that are sent and not committed, at most.
    pub open_max: usize,
    protocol_version: u32,
    /// What came with the id.
    proof: Vec<u8>,
}

impl LedgerAgent {
    /// An agent that will send `batches` batches.
    pub fn new(machine_id: &str, generation: u32, batches: u32, rows_a_batch: u32, second: u64) -> Self {
        Self {
            agent_id: 0,
            machine_id: machine_id.to_owned(),
            generation,
            rows_a_batch,
            second,
            next: 0,
            last: batches,
            open: BTreeMap::new(),
            received: BTreeSet::new(),
            committed: BTreeSet::new(),
            breaks: 0,
            tls: None,
            answer_within: ANSWER_WITHIN,
            open_max: WINDOW,
            protocol_version: PROTOCOL_VERSION,
            proof: Vec::new(),
        }
    }

    /// What nodes and rows call it.
    pub fn machine_id(&self) -> &str {
        &self.machine_id
    }

    /// Says that it speaks another version, as an agent of another release does.
    pub fn speak_version(&mut self, version: u32) {
        self.protocol_version = version;
    }

    /// Only says who it is.
    pub async fn greet(&mut self, server: &str) -> Result<()> {
        let mut client = self.connect(server).await?;
        let (hello_sender, hellos) = mpsc::channel(1);
        self.hello(&mut client, &hello_sender, hellos).await.map(drop)
    }

    pub fn is_done(&self) -> bool {
        self.next == self.last && self.open.is_empty()
    }

    /// Begins no batch beyond so many, or beyond those that it has begun.
    pub fn send_no_more_than(&mut self, batches: u32) {
        self.last = self.next.max(batches.min(self.last));
    }

    /// Sends everything again, as if no answer had ever come.
    pub fn repeat(&mut self) {
        self.open.extend(std::mem::take(&mut self.committed).into_iter().map(|seq| (seq, true)));
    }

    /// Sends until everything is committed, over as many streams as it takes; `server` is asked anew for each.
    pub async fn run(&mut self, server: impl Fn() -> String, deadline: Duration) -> Result<()> {
        let sending = async {
            while !self.is_done() {
                if self.session(&server()).await.is_err() {
                    self.breaks += 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
        timeout(deadline, sending).await.context("not everything was committed in time")
    }

    /// One connection, until it breaks or all is committed.
    async fn session(&mut self, server: &str) -> Result<()> {
        let mut client = self.connect(server).await?;
        let (hello_sender, hellos) = mpsc::channel(1);
        let _answers = self.hello(&mut client, &hello_sender, hellos).await?;
        let (sender, batches) = mpsc::channel(WINDOW);
        let mut acks =
            timeout(self.answer_within, client.ingest(ReceiverStream::new(batches))).await??.into_inner();
        let resend: Vec<u64> = self.open.keys().copied().collect();
        for seq in resend {
            self.send(&sender, seq).await?;
        }
        while !self.is_done() {
            while self.next < self.last && self.open.len() < self.open_max {
                let seq = seq(self.generation, self.next);
                self.next += 1;
                self.open.insert(seq, false);
                self.send(&sender, seq).await?;
            }
            let ack =
                timeout(self.answer_within, acks.message()).await??.context("the Ingest stream ended")?;
            self.note(&ack)?;
        }
        Ok(())
    }

    async fn connect(&self, server: &str) -> Result<AgentServiceClient<Channel>> {
        let endpoint = Endpoint::from_shared(server.to_owned())?;
        let channel = match &self.tls {
            Some(tls) => timeout(self.answer_within, endpoint.connect_with_connector(tls.connector())).await,
            None => timeout(self.answer_within, endpoint.connect()).await,
        };
        Ok(AgentServiceClient::new(channel??))
    }

    /// Opens a control stream, which lives as long as the sender and the answer.
    async fn hello(
        &mut self,
        client: &mut AgentServiceClient<Channel>,
        hello_sender: &mpsc::Sender<SyncRequest>,
        hellos: mpsc::Receiver<SyncRequest>,
    ) -> Result<Streaming<SyncResponse>> {
        let hello = Hello {
            protocol_version: self.protocol_version,
            machine_id: self.machine_id.clone(),
            hostname: self.machine_id.clone(),
            agent_id: self.agent_id,
            agent_id_proof: self.proof.clone(),
            ..Default::default()
        };
        hello_sender.send(SyncRequest { body: Some(sync_request::Body::Hello(hello)) }).await?;
        let mut answers =
            timeout(self.answer_within, client.sync(ReceiverStream::new(hellos))).await??.into_inner();
        let answer =
            timeout(self.answer_within, answers.message()).await??.context("the Sync stream ended")?;
        let Some(sync_response::Body::Welcome(welcome)) = answer.body else {
            anyhow::bail!("the first answer is not a Welcome")
        };
        ensure!(self.agent_id == 0 || self.agent_id == welcome.agent_id, "the agent id changed");
        self.agent_id = welcome.agent_id;
        self.proof = welcome.agent_id_proof;
        Ok(answers)
    }

    async fn send(&mut self, sender: &mpsc::Sender<Batch>, seq: u64) -> Result<()> {
        let mut batch = request_batch(self.agent_id, seq, self.rows_a_batch, self.second);
        batch.resent = self.open.insert(seq, true).unwrap_or(false);
        batch.protocol_version = self.protocol_version;
        timeout(self.answer_within, sender.send(batch)).await??;
        Ok(())
    }

    fn note(&mut self, ack: &IngestAck) -> Result<()> {
        let each = |ranges: &[metaflow_wire::SeqRange]| {
            ranges.iter().flat_map(|range| range.first..=range.last).collect::<Vec<_>>()
        };
        self.received.extend(each(&ack.received));
        for seq in each(&ack.committed) {
            self.open.remove(&seq);
            self.committed.insert(seq);
        }
        ensure!(ack.rejected.is_empty(), "rejected: {:?}", ack.rejected);
        Ok(())
    }
}

/// A batch of requests as a busy host sees them: 200 clients, 20 services, 50 endpoints, differing targets and delays.
pub fn request_batch(agent_id: u32, seq: u64, rows: u32, second: u64) -> Batch {
    request_batch_of(agent_id, seq, rows, second, "shop.example")
}

/// The domain that each row of such a batch asks for.
pub fn domains(seq: u64, rows: u32, shop: &str) -> impl Iterator<Item = String> {
    (0..u64::from(rows)).map(move |row| domain(pick(seq, row, 2, 20), shop))
}

fn domain(service: u64, shop: &str) -> String {
    format!("service-{service}.{shop}")
}

fn pick(seq: u64, row: u64, salt: u64, among: u64) -> u64 {
    mix(seq ^ row << 20 ^ salt << 56) % among
}

/// The same, of services with names of their own.
pub fn request_batch_of(agent_id: u32, seq: u64, rows: u32, second: u64, shop: &str) -> Batch {
    let start = second * 1_000_000;
    let each = |value: &dyn Fn(u64) -> u64| (0..u64::from(rows)).map(value).collect::<Vec<u64>>();
    let small =
        |value: &dyn Fn(u64) -> u64| each(value).into_iter().map(|value| value as u32).collect::<Vec<u32>>();
    let all = |value: u32| vec![value; rows as usize];
    let pick = |row: u64, salt: u64, among: u64| pick(seq, row, salt, among);
    let mut strings = vec![String::new(), "1.1".to_owned(), "GET".to_owned(), "POST".to_owned()];
    let hosts = strings.len() as u64;
    strings.extend((0..20).map(|service| domain(service, shop)));
    let endpoints = strings.len() as u64;
    strings.extend((0..50).map(|path| format!("/api/v1/resource-{path}/{{}}")));
    let targets = strings.len() as u64;
    strings
        .extend((0..500).map(|target| {
            format!("/api/v1/resource-{}/{}?page={}", target % 50, mix(seq) % 100_000, target)
        }));
    let columns = Columns {
        addresses: (0..220_u8).map(|host| vec![10, 0, host / 200, host % 200]).collect(),
        strings,
        rows: Some(Rows::L7FlowLog(L7FlowLog {
            endpoints: Some(Endpoints {
                client_ip: small(&|row| pick(row, 1, 200)),
                server_ip: small(&|row| 200 + pick(row, 2, 20)),
                server_port: all(80),
                ip_protocol: all(6),
                observation_point: all(2),
                ..Default::default()
            }),
            client_port: small(&|row| 1_024 + pick(row, 3, 60_000)),
            flow_id: each(&|row| row / 10),
            start_time: each(&|row| start + row),
            end_time: each(&|row| start + row + 200 + pick(row, 4, 5_000)),
            response_duration: each(&|row| 200 + pick(row, 4, 5_000)),
            l7_protocol: all(20),
            l7_type: all(2),
            version: all(1),
            request_type: small(&|row| 2 + pick(row, 5, 2)),
            request_domain: small(&|row| hosts + pick(row, 2, 20)),
            endpoint: small(&|row| endpoints + pick(row, 6, 50)),
            request_resource: small(&|row| targets + pick(row, 7, 500)),
            response_code: vec![200; rows as usize],
            request_length: each(&|row| 300 + pick(row, 8, 200)),
            response_length: each(&|row| 500 + pick(row, 9, 20_000)),
            req_tcp_seq: small(&|row| pick(row, 10, 1 << 32)),
            resp_tcp_seq: small(&|row| pick(row, 11, 1 << 32)),
            ..Default::default()
        })),
    };
    seal(agent_id, seq, Table::L7FlowLog, rows, &columns)
}

/// Spreads a number over all bits (splitmix64's finaliser).
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
