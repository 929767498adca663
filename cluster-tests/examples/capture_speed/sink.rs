//! A node that takes all batches and says at once that they are stored.

use std::pin::Pin;

use anyhow::Result;
use metaflow_wire::{
    Batch, HeartbeatReply, IngestAck, SeqRange, SyncRequest, SyncResponse, Welcome,
    agent_service_server::{AgentService, AgentServiceServer},
    sync_request, sync_response,
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming};

/// Bytes that the agent may have under way.
const CREDIT: u64 = 64 << 20;
const QUEUE: usize = 16;

/// Serves until the process ends; gives the address.
pub(crate) async fn start() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let service = AgentServiceServer::new(Sink).max_decoding_message_size(64 << 20);
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    Ok(address)
}

struct Sink;

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AgentService for Sink {
    type SyncStream = Replies<SyncResponse>;
    type IngestStream = Replies<IngestAck>;

    async fn sync(
        &self,
        request: Request<Streaming<SyncRequest>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let answers = request.into_inner().filter_map(|request| {
            let body = match request.ok()?.body? {
                sync_request::Body::Hello(_) => {
                    sync_response::Body::Welcome(Welcome { agent_id: 1, ..Default::default() })
                }
                sync_request::Body::Heartbeat(_) => {
                    sync_response::Body::Heartbeat(HeartbeatReply { spread_ms: 0 })
                }
                sync_request::Body::Facts(_) => return None,
            };
            Some(Ok(SyncResponse { body: Some(body) }))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn ingest(
        &self,
        request: Request<Streaming<Batch>>,
    ) -> Result<Response<Self::IngestStream>, Status> {
        let mut batches = request.into_inner();
        let (acks, queue) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            while let Some(Ok(batch)) = batches.next().await {
                let range = vec![SeqRange { first: batch.seq, last: batch.seq }];
                let ack = IngestAck {
                    received: range.clone(),
                    committed: range,
                    credit_bytes: CREDIT,
                    ..Default::default()
                };
                if acks.send(Ok(ack)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }
}
