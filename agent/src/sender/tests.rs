//! The sender against a real server whose node misbehaves on purpose.

use std::{collections::BTreeMap, pin::Pin};

use metaflow_wire::{
    Batch, Config as ConfigMessage, Facts, Heartbeat, HeartbeatReply, IngestAck, Process, Rejection,
    ResendFacts, SeqRange, SyncRequest, SyncResponse, Table, Welcome,
    agent_service_server::{AgentService, AgentServiceServer},
    sync_request, sync_response,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::spool;

/// What the node does with batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Commit,
    /// Says `received` and never `committed`.
    ReceiveOnly,
    /// Breaks the stream after so many batches.
    BreakAfter(usize),
    Reject,
    /// Takes one batch at a time.
    NoCredit,
    /// Takes connections and says nothing after the welcome.
    Silent,
}

#[derive(Debug)]
struct Seen {
    batches: Vec<Batch>,
    facts: Vec<Facts>,
    heartbeats: Vec<Heartbeat>,
    hellos: usize,
}

struct Peer {
    manner: Mutex<Manner>,
    seen: Mutex<Seen>,
    changed: Notify,
    servers: Vec<String>,
}

impl Peer {
    fn new(manner: Manner) -> Arc<Self> {
        let seen = Seen { batches: vec![], facts: vec![], heartbeats: vec![], hellos: 0 };
        Arc::new(Self {
            manner: Mutex::new(manner),
            seen: Mutex::new(seen),
            changed: Notify::new(),
            servers: vec![],
        })
    }

    fn see<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        let result = look(&mut self.seen.lock().unwrap());
        self.changed.notify_waiters();
        result
    }

    fn manner(&self) -> Manner {
        *self.manner.lock().unwrap()
    }

    async fn serve(self: &Arc<Self>) -> (String, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap().to_string();
        let service = AgentServiceServer::new(Service(Arc::clone(self)));
        let incoming = TcpListenerStream::new(listener);
        let task = tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        (server, task)
    }

    fn ack(&self, batch: Batch) -> Option<IngestAck> {
        let seq = batch.seq;
        let count = self.see(|seen| {
            seen.batches.push(batch);
            seen.batches.len()
        });
        let range = vec![SeqRange { first: seq, last: seq }];
        let ack = IngestAck { credit_bytes: 1 << 20, ..Default::default() };
        match self.manner() {
            Manner::Commit => Some(IngestAck { received: range.clone(), committed: range, ..ack }),
            Manner::ReceiveOnly => Some(IngestAck { received: range, ..ack }),
            Manner::BreakAfter(limit) if count >= limit => None,
            Manner::BreakAfter(_) | Manner::Silent => Some(IngestAck { received: range, ..ack }),
            Manner::Reject => {
                Some(IngestAck { rejected: vec![Rejection { seq, reason: "malformed".into() }], ..ack })
            }
            Manner::NoCredit => Some(IngestAck { credit_bytes: 0, ..ack }),
        }
    }
}

struct Service(Arc<Peer>);

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AgentService for Service {
    type SyncStream = Replies<SyncResponse>;
    type IngestStream = Replies<IngestAck>;

    async fn sync(
        &self,
        request: Request<Streaming<SyncRequest>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let peer = Arc::clone(&self.0);
        let mut requests = request.into_inner();
        let (replies, queue) = mpsc::channel(8);
        tokio::spawn(async move {
            let mut asked_again = false;
            while let Some(Ok(request)) = requests.next().await {
                let mut bodies = Vec::new();
                match request.body {
                    Some(sync_request::Body::Hello(_)) => {
                        peer.see(|seen| seen.hellos += 1);
                        bodies.push(sync_response::Body::Welcome(Welcome {
                            agent_id: 5,
                            servers: peer.servers.clone(),
                            ..Default::default()
                        }));
                        let toml = "enabled = false".to_owned();
                        bodies.push(sync_response::Body::Config(ConfigMessage { version: 3, toml }));
                        bodies.push(sync_response::Body::Config(ConfigMessage {
                            version: 4,
                            toml: "no".into(),
                        }));
                    }
                    Some(sync_request::Body::Heartbeat(heartbeat)) => {
                        peer.see(|seen| seen.heartbeats.push(heartbeat));
                        if peer.manner() != Manner::Silent {
                            bodies.push(sync_response::Body::Heartbeat(HeartbeatReply {}));
                        }
                    }
                    Some(sync_request::Body::Facts(facts)) => {
                        peer.see(|seen| seen.facts.push(facts));
                        if !std::mem::replace(&mut asked_again, true) {
                            bodies.push(sync_response::Body::ResendFacts(ResendFacts {}));
                        }
                    }
                    None => {}
                }
                for body in bodies {
                    if replies.send(Ok(SyncResponse { body: Some(body) })).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }

    async fn ingest(
        &self,
        request: Request<Streaming<Batch>>,
    ) -> Result<Response<Self::IngestStream>, Status> {
        let peer = Arc::clone(&self.0);
        let mut batches = request.into_inner();
        let (acks, queue) = mpsc::channel(8);
        tokio::spawn(async move {
            while let Some(Ok(batch)) = batches.next().await {
                match peer.ack(batch) {
                    Some(ack) => {
                        if acks.send(Ok(ack)).await.is_err() {
                            return;
                        }
                    }
                    None => {
                        let broken = acks.send(Err(Status::unavailable("broken on purpose"))).await;
                        assert!(broken.is_ok());
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }
}

struct Rig {
    spool: SharedSpool,
    facts: watch::Sender<Arc<Snapshot>>,
    remote: watch::Receiver<Remote>,
    state: Arc<State>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    _directory: TempDir,
}

impl Rig {
    fn start(servers: Vec<String>) -> Self {
        let directory = TempDir::new().unwrap();
        let config = spool::Config::new(directory.path().to_owned(), 1 << 30);
        let spool = SharedSpool::new(Spool::open(config, 1).unwrap().0);
        let (facts, facts_receiver) = watch::channel(Arc::new(Snapshot::default()));
        let (remote, remote_receiver) = watch::channel(Remote::default());
        let config = Config {
            heartbeat: Duration::from_millis(20),
            silence_max: Duration::from_millis(400),
            backoff_min: Duration::from_millis(5),
            backoff_max: Duration::from_millis(20),
            ..Config::new(servers)
        };
        let sender =
            Sender::new(config, Hello::default(), spool.clone(), facts_receiver, remote, Arc::default());
        let state = sender.state();
        let stop = CancellationToken::new();
        let task = tokio::spawn(sender.run(stop.clone()));
        Self { spool, facts, remote: remote_receiver, state, stop, task, _directory: directory }
    }

    fn append(&self, count: u32) -> Vec<u64> {
        let numbers = (0..count).map(|rows| self.spool.lock().append(batch(rows), 1).unwrap()).collect();
        self.spool.flush().unwrap();
        numbers
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn batch(rows: u32) -> Batch {
    metaflow_wire::seal(0, 0, Table::L7FlowLog, rows, &metaflow_wire::Columns::default())
}

/// Waits until a condition holds; the pause is only how often it is looked at.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn batches_go_in_order_and_leave_the_spool_when_they_are_committed() {
    let peer = Peer::new(Manner::Commit);
    let (server, _task) = peer.serve().await;
    let rig = Rig::start(vec![server]);
    let early = rig.append(20);
    until("first batches", || rig.spool.lock().is_empty()).await;
    let late = rig.append(1);
    until("batch on an open connection", || rig.spool.lock().is_empty()).await;
    let seen: Vec<_> = peer.see(|seen| seen.batches.iter().map(|batch| batch.seq).collect());
    assert_eq!(seen, [early, late].concat());
    let stamps: Vec<_> =
        peer.see(|seen| seen.batches.iter().map(|batch| (batch.agent_id, batch.resent)).collect());
    assert!(stamps.iter().all(|stamp| *stamp == (5, false)), "{stamps:?}");
    assert_eq!(rig.spool.lock().stats().committed_batches, 21);
    rig.end().await;
}

#[tokio::test]
async fn after_a_broken_stream_all_that_is_not_committed_comes_again_as_resent() {
    let peer = Peer::new(Manner::BreakAfter(4));
    let (server, _task) = peer.serve().await;
    let rig = Rig::start(vec![server]);
    let numbers = rig.append(6);
    until("break", || peer.see(|seen| seen.batches.len() >= 4)).await;
    *peer.manner.lock().unwrap() = Manner::Commit;
    until("empty spool", || rig.spool.lock().is_empty()).await;
    let mut times: BTreeMap<u64, Vec<bool>> = BTreeMap::new();
    peer.see(|seen| {
        for batch in &seen.batches {
            times.entry(batch.seq).or_default().push(batch.resent);
        }
    });
    assert_eq!(times.keys().copied().collect::<Vec<_>>(), numbers);
    for (seq, resent) in times {
        assert!(!resent[0] || resent.len() == 1, "{seq}: {resent:?}");
        assert!(resent[1..].iter().all(|resent| *resent), "{seq}: {resent:?}");
    }
    rig.end().await;
}

#[tokio::test]
async fn received_batches_stay_until_they_are_committed() {
    let peer = Peer::new(Manner::ReceiveOnly);
    let (server, task) = peer.serve().await;
    let rig = Rig::start(vec![server]);
    rig.append(3);
    until("batches", || peer.see(|seen| seen.batches.len() == 3)).await;
    assert_eq!(rig.spool.lock().stats().batches, 3);
    task.abort();
    rig.end().await;
}

#[tokio::test]
async fn refused_batches_are_counted_by_reason_and_not_sent_again() {
    let peer = Peer::new(Manner::Reject);
    let (server, _task) = peer.serve().await;
    let rig = Rig::start(vec![server]);
    rig.append(4);
    until("empty spool", || rig.spool.lock().is_empty()).await;
    assert_eq!(rig.spool.lock().losses().get("rejected: malformed"), 6);
    until("heartbeat with the loss", || {
        peer.see(|seen| {
            seen.heartbeats.iter().any(|heartbeat| heartbeat.losses.iter().any(|loss| loss.rows == 6))
        })
    })
    .await;
    assert_eq!(peer.see(|seen| seen.batches.len()), 4);
    rig.end().await;
}

#[tokio::test]
async fn without_credit_nothing_more_is_sent_and_the_connection_stays() {
    let peer = Peer::new(Manner::NoCredit);
    let (server, _task) = peer.serve().await;
    let rig = Rig::start(vec![server]);
    rig.append(1);
    until("first batch", || peer.see(|seen| seen.batches.len() == 1)).await;
    let beats = peer.see(|seen| seen.heartbeats.len());
    until("ack", || peer.see(|seen| seen.heartbeats.len() > beats + 3)).await;
    rig.append(5);
    let beats = peer.see(|seen| seen.heartbeats.len());
    until("life without batches", || peer.see(|seen| seen.heartbeats.len() > beats + 10)).await;
    assert_eq!(peer.see(|seen| (seen.batches.len(), seen.hellos)), (1, 1));
    rig.end().await;
}

#[tokio::test]
async fn a_dead_and_a_silent_server_are_given_up_for_the_next() {
    let silent = Peer::new(Manner::Silent);
    let (silent_server, _silent_task) = silent.serve().await;
    let good = Peer::new(Manner::Commit);
    let (good_server, _good_task) = good.serve().await;
    // A port that was free a moment ago: nothing listens there.
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let rig = Rig::start(vec![dead, silent_server, good_server]);
    rig.append(3);
    until("empty spool", || rig.spool.lock().is_empty()).await;
    assert!(silent.see(|seen| seen.hellos) >= 1);
    assert!(rig.state.connected.load(Ordering::Relaxed));
    rig.end().await;
}

#[tokio::test]
async fn facts_go_in_full_then_as_changes_and_in_full_when_asked() {
    let peer = Peer::new(Manner::Commit);
    let (server, _task) = peer.serve().await;
    let rig = Rig::start(vec![server]);
    until("facts, asked for twice", || peer.see(|seen| seen.facts.len() == 2)).await;
    let processes = [(9, Process { pid: 9, name: "web".into(), ..Default::default() })].into();
    rig.facts.send_replace(Arc::new(Snapshot { processes, ..Snapshot::default() }));
    until("change", || peer.see(|seen| seen.facts.len() == 3)).await;
    let shapes: Vec<_> = peer.see(|seen| {
        seen.facts.iter().map(|facts| (facts.version, facts.full, facts.processes.len())).collect()
    });
    assert_eq!(shapes, [(1, true, 0), (2, true, 0), (3, false, 1)]);
    rig.end().await;
}

#[tokio::test]
async fn configuration_of_the_node_counts_when_it_is_valid() {
    let peer = Peer::new(Manner::Commit);
    let (server, _task) = peer.serve().await;
    let rig = Rig::start(vec![server]);
    until("heartbeat with the version", || {
        peer.see(|seen| seen.heartbeats.last().is_some_and(|heartbeat| heartbeat.config_version == 3))
    })
    .await;
    assert_eq!(rig.remote.borrow().enabled, Some(false));
    rig.end().await;
}

#[test]
fn servers_of_the_node_come_first_and_the_configured_ones_last() {
    let mut servers = Servers::new(vec!["a:1".into(), "b:1".into()]);
    assert_eq!(servers.current().as_deref(), Some("a:1"));
    servers.welcome("a:1", &["c:1".into(), "a:1".into()]);
    assert_eq!(servers.list, ["c:1", "a:1", "b:1"]);
    let mut order = Vec::new();
    for _ in 0..4 {
        order.extend(servers.current());
        servers.fail();
    }
    assert_eq!(order, ["a:1", "b:1", "c:1", "a:1"]);
}

#[test]
fn pauses_grow_to_their_limit_with_jitter() {
    let (min, max) = (Duration::from_millis(100), Duration::from_secs(5));
    for (failures, least, most) in
        [(0, 50, 100), (1, 100, 200), (3, 400, 800), (10, 2_500, 5_000), (60, 2_500, 5_000)]
    {
        for random in [0, 12_345_678_901, u64::MAX] {
            let pause = backoff(failures, min, max, random).as_millis();
            assert!((least..=most).contains(&pause), "{failures}: {pause}");
        }
    }
}
