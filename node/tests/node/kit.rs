//! A node of one's own for a test, and the small agent that speaks to it.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use metaflow_wire::{
    Batch, Columns, Endpoints, Hello, IngestAck, L7FlowLog, PROTOCOL_VERSION, SyncRequest, Table, Welcome,
    agent_service_client::AgentServiceClient, columns::Rows, seal, sync_request, sync_response,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    process::{Child, Command},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

/// Starts are slow on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running node; dropping it kills it.
pub(crate) struct Node {
    pub(crate) child: Child,
    pub(crate) url: String,
    pub(crate) grpc: String,
    pub(crate) http: reqwest::Client,
}

/// An answer of the HTTP interface.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn description(&self) -> &str {
        self.body["DESCRIPTION"].as_str().unwrap_or_default()
    }

    pub(crate) fn rows(&self) -> Vec<Vec<Value>> {
        serde_json::from_value(self.body["result"]["values"].clone()).unwrap_or_default()
    }
}

pub(crate) fn program() -> &'static str {
    env!("CARGO_BIN_EXE_metaflow")
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Ports for the gossip of two nodes.
pub(crate) fn free_udp_ports() -> [u16; 2] {
    let bind = || std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    [bind(), bind()].map(|socket| socket.local_addr().unwrap().port())
}

/// Writes a configuration with free ports; gives its path and both addresses.
pub(crate) fn configure(folder: &Path) -> (PathBuf, String, String) {
    configure_with(folder, "", "")
}

/// The same with more lines, before the sections and after them.
fn configure_with(folder: &Path, before: &str, after: &str) -> (PathBuf, String, String) {
    let (http, grpc) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let file = folder.join("node.toml");
    let data = folder.join("data");
    let text = format!(
        "{before}data_dir = {:?}\n[grpc]\nlisten = \"{grpc}\"\n[http]\nlisten = \"{http}\"\n{after}",
        data.to_str().unwrap()
    );
    std::fs::write(&file, text).unwrap();
    (file, format!("http://{http}"), format!("http://{grpc}"))
}

impl Node {
    /// A node on `folder` that is ready.
    pub(crate) async fn start(folder: &Path) -> Self {
        Self::start_with(folder, "", "").await
    }

    /// The same with more lines of configuration, before the sections and after them.
    pub(crate) async fn start_with(folder: &Path, before: &str, after: &str) -> Self {
        Self::start_until(folder, before, after, "/health/ready").await
    }

    /// A node that answers, and may wait for something.
    pub(crate) async fn spawn_with(folder: &Path, before: &str, after: &str) -> Self {
        Self::start_until(folder, before, after, "/health/live").await
    }

    async fn start_until(folder: &Path, before: &str, after: &str, page: &str) -> Self {
        let (file, url, grpc) = configure_with(folder, before, after);
        let child = Command::new(program())
            .args(["node", "--config"])
            .arg(&file)
            .stderr(Stdio::from(std::fs::File::create(folder.join("log")).unwrap()))
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let mut node = Self { child, url, grpc, http };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(answer) = node.http.get(format!("{}{page}", node.url)).send().await
                && answer.status().is_success()
            {
                return node;
            }
            let log = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
            assert!(node.child.try_wait().unwrap().is_none(), "the node ended: {}", log());
            assert!(Instant::now() < deadline, "the node is not ready: {}", log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Signals the engine, which is the node's child.
    pub(crate) fn signal_engine(&self, signal: Signal) {
        let node = self.child.id().unwrap();
        let threads = std::fs::read_dir(format!("/proc/{node}/task")).unwrap().flatten();
        let children =
            threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
        let pids: Vec<i32> = children
            .flat_map(|pids| pids.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
            .collect();
        assert_eq!(pids.len(), 1, "the engine is the only child");
        kill_process(Pid::from_raw(pids[0]).unwrap(), signal).unwrap();
    }

    /// SIGTERM; the exit code.
    pub(crate) async fn terminate(mut self) -> Option<i32> {
        let pid = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).unwrap())).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap().code()
    }

    pub(crate) async fn sql(&self, database: &str, sql: &str) -> Answer {
        let form = [("db", database), ("sql", sql)];
        let answer = self.http.post(format!("{}/v1/query/", self.url)).form(&form).send().await.unwrap();
        let status = answer.status().as_u16();
        Answer { status, body: answer.json().await.unwrap() }
    }

    /// A page of JSON.
    pub(crate) async fn page(&self, path: &str) -> Answer {
        let answer = self.http.get(format!("{}{path}", self.url)).send().await.unwrap();
        let status = answer.status().as_u16();
        Answer { status, body: answer.json().await.unwrap() }
    }

    /// Exit code of a command of `metaflow ctl`, and what it printed.
    pub(crate) async fn ctl(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let command =
            Command::new(program()).arg("ctl").args(arguments).env("METAFLOW_URL", &self.url).output();
        let output = command.await.unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }

    /// One figure of /metrics.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.http.get(format!("{}/metrics", self.url)).send().await.unwrap().text().await.unwrap();
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
            .unwrap_or_else(|| panic!("{name} is not in\n{text}"))
    }

    pub(crate) async fn agent(&self) -> AgentServiceClient<Channel> {
        AgentServiceClient::connect(self.grpc.clone()).await.unwrap()
    }

    /// Says Hello; gives the id. The stream ends with the call.
    pub(crate) async fn agent_id(&self, machine_id: &str) -> u32 {
        self.welcome(machine_id, &Welcome::default()).await.agent_id
    }

    /// The same for an agent that was welcome somewhere before; gives all of the answer.
    pub(crate) async fn welcome(&self, machine_id: &str, before: &Welcome) -> Welcome {
        let hello = Hello {
            protocol_version: PROTOCOL_VERSION,
            machine_id: machine_id.to_owned(),
            hostname: format!("{machine_id}-host"),
            agent_version: "0.0.0".to_owned(),
            agent_id: before.agent_id,
            agent_id_proof: before.agent_id_proof.clone(),
            ..Default::default()
        };
        let request = SyncRequest { body: Some(sync_request::Body::Hello(hello)) };
        let mut answers = self.agent().await.sync(tokio_stream::once(request)).await.unwrap().into_inner();
        match answers.message().await.unwrap().unwrap().body {
            Some(sync_response::Body::Welcome(welcome)) => welcome,
            other => panic!("{other:?}"),
        }
    }

    /// A stream of batches.
    pub(crate) async fn ingest(&self) -> (mpsc::Sender<Batch>, Streaming<IngestAck>) {
        let (sender, batches) = mpsc::channel(16);
        let acks = self.agent().await.ingest(ReceiverStream::new(batches)).await.unwrap().into_inner();
        (sender, acks)
    }
}

/// Reads acks until `done` says so.
pub(crate) async fn acks_until(
    acks: &mut Streaming<IngestAck>,
    done: impl Fn(&IngestAck) -> bool,
) -> IngestAck {
    let reading = async {
        loop {
            let ack = acks.message().await.expect("the stream lives").expect("the stream goes on");
            if done(&ack) {
                return ack;
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the ack comes")
}

pub(crate) fn covers(ranges: &[metaflow_wire::SeqRange], seq: u64) -> bool {
    ranges.iter().any(|range| (range.first..=range.last).contains(&seq))
}

/// `rows` answered requests to shop.example/cart that ended at `second`.
pub(crate) fn requests(agent_id: u32, seq: u64, rows: u32, second: u64) -> Batch {
    let all = |value: u32| vec![value; rows as usize];
    let columns = Columns {
        strings: ["", "GET", "shop.example", "/cart"].map(str::to_owned).to_vec(),
        addresses: vec![vec![10, 0, 0, 1], vec![10, 0, 0, 2]],
        rows: Some(Rows::L7FlowLog(L7FlowLog {
            endpoints: Some(Endpoints {
                client_ip: all(0),
                server_ip: all(1),
                server_port: all(80),
                ip_protocol: all(6),
                observation_point: all(2),
                ..Default::default()
            }),
            start_time: vec![second * 1_000_000; rows as usize],
            end_time: vec![second * 1_000_000 + 500; rows as usize],
            response_duration: vec![500; rows as usize],
            l7_protocol: all(20),
            l7_type: all(2),
            request_type: all(1),
            request_domain: all(2),
            endpoint: all(3),
            response_code: vec![200; rows as usize],
            ..Default::default()
        })),
    };
    seal(agent_id, seq, Table::L7FlowLog, rows, &columns)
}
