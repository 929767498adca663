//! A node for tests: a real server that misbehaves on purpose.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
};

use metaflow_wire::{
    Batch, Config as ConfigMessage, Facts, Heartbeat, HeartbeatReply, IngestAck, Rejection, ResendFacts,
    SeqRange, SyncRequest, SyncResponse, UNKNOWN_AGENT, Welcome,
    agent_service_server::{AgentService, AgentServiceServer},
    sync_request, sync_response,
};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
    task::JoinHandle,
};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming};

/// What the node does with batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    Commit,
    /// Says `received` and never `committed`.
    ReceiveOnly,
    /// Breaks the stream after so many batches.
    BreakAfter(usize),
    Reject,
    /// Does not know the agent with this id.
    Unknown(u32),
    /// Takes one batch at a time.
    NoCredit,
    /// Takes connections and says nothing after the welcome.
    Silent,
}

#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) batches: Vec<Batch>,
    pub(crate) facts: Vec<Facts>,
    pub(crate) heartbeats: Vec<Heartbeat>,
    pub(crate) hellos: usize,
    /// Ids that agents said they have, by Hello.
    pub(crate) agent_ids: Vec<u32>,
}

pub(crate) struct Peer {
    pub(crate) manner: Mutex<Manner>,
    seen: Mutex<Seen>,
    changed: Notify,
    servers: Vec<String>,
}

impl Peer {
    pub(crate) fn new(manner: Manner) -> Arc<Self> {
        let seen = Seen { batches: vec![], facts: vec![], heartbeats: vec![], hellos: 0, agent_ids: vec![] };
        Arc::new(Self {
            manner: Mutex::new(manner),
            seen: Mutex::new(seen),
            changed: Notify::new(),
            servers: vec![],
        })
    }

    pub(crate) fn see<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        let result = look(&mut self.seen.lock().unwrap());
        self.changed.notify_waiters();
        result
    }

    /// One that names servers with its welcome.
    pub(crate) fn naming(servers: Vec<String>) -> Arc<Self> {
        let peer = Self::new(Manner::Commit);
        Arc::new(Self { servers, ..Arc::into_inner(peer).unwrap() })
    }

    fn manner(&self) -> Manner {
        *self.manner.lock().unwrap()
    }

    pub(crate) async fn serve(self: &Arc<Self>) -> (String, JoinHandle<()>) {
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

    /// None: the stream breaks.
    fn ack(&self, batch: Batch) -> Option<IngestAck> {
        let (seq, agent_id) = (batch.seq, batch.agent_id);
        let count = self.see(|seen| {
            seen.batches.push(batch);
            seen.batches.len()
        });
        let range = vec![SeqRange { first: seq, last: seq }];
        let ack = IngestAck { credit_bytes: 1 << 20, ..Default::default() };
        match self.manner() {
            Manner::Unknown(unknown) if agent_id == unknown => None,
            Manner::Commit | Manner::Unknown(_) => {
                Some(IngestAck { received: range.clone(), committed: range, ..ack })
            }
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
                    Some(sync_request::Body::Hello(hello)) => {
                        peer.see(|seen| {
                            seen.hellos += 1;
                            seen.agent_ids.push(hello.agent_id);
                        });
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
                            bodies.push(sync_response::Body::Heartbeat(HeartbeatReply { spread_ms: 0 }));
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
                        let mut status = Status::unavailable("broken on purpose");
                        if let Manner::Unknown(unknown) = peer.manner() {
                            status.metadata_mut().insert(UNKNOWN_AGENT, unknown.into());
                        }
                        let broken = acks.send(Err(status)).await;
                        assert!(broken.is_ok());
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }
}

/// Waits until a condition holds; the pause is only how often it is looked at.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), waiting)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}
