//! The gRPC server: agents say who they are (`Sync`) and send rows (`Ingest`).
//!
//! Bound: connections, streams of a connection and of an agent, bytes of a message; messages wait at the socket until the memory budget has
//! room for them (`admission`). A hostile frame ends its stream with a status. On a stop, streams take nothing new and end when what they brought is
//! acknowledged.

mod admission;
mod connection;
pub(crate) mod fleet;
mod ingest;
pub(crate) mod nodes;
mod proofs;
mod secret;
mod sessions;
mod sync;

use std::{sync::Arc, time::Duration};

use metaflow_actors::{
    controller::Controller, dictionary::Dictionary, groups::Registry, ingester::Ingester, memory::Memory,
};
use metaflow_wire::{
    Batch, MESSAGE_BYTES_MAX, SyncRequest,
    agent_service_server::{AgentService, AgentServiceServer},
    fleet_service_server::FleetServiceServer,
    node_service_server::NodeServiceServer,
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use crate::{fleet::Fleet, metrics::Ingest, node::Guides};
use admission::{Admitted, Gated};
pub(crate) use connection::Door;
pub(crate) use ingest::Streams;
pub(crate) use proofs::Proofs;
pub(crate) use secret::{Secret, Trust};
pub(crate) use sessions::{Moves, Named, Sessions};

/// Streams of one connection; an agent needs two.
const STREAMS_MAX: u32 = 8;
/// What a stream may send before it is read; it lies in memory that nobody was asked for. Enough for 6 MB/s at 10 ms.
const WINDOW_BYTES: u32 = 64 << 10;
/// More than all streams together: one that has to wait must not stop the heartbeats beside it.
const CONNECTION_WINDOW_BYTES: u32 = 2 * STREAMS_MAX * WINDOW_BYTES;
/// Largest head of a request.
const HEAD_BYTES_MAX: u32 = 16 << 10;
/// A connection that is dead without a word is noticed after these two.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the services call; all streams share it.
pub(crate) struct Agents {
    pub(crate) controller: Controller,
    pub(crate) dictionary: Dictionary,
    pub(crate) ingester: Ingester,
    pub(crate) memory: Memory,
    pub(crate) metrics: Ingest,
    pub(crate) stop: Stop,
    pub(crate) streams: Arc<Streams>,
    pub(crate) sessions: Sessions,
    pub(crate) guides: Guides,
    pub(crate) registry: Registry,
    pub(crate) proofs: Proofs,
}

/// The two steps of a stop.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop {
    /// Nothing new is taken.
    pub(crate) taking: CancellationToken,
    /// Streams end; acknowledgements that are there are sent.
    pub(crate) serving: CancellationToken,
}

/// Serves until `stop.serving`, then until every stream has ended.
pub(crate) async fn serve(
    listener: TcpListener,
    agents: Agents,
    fleet: Fleet,
    nodes: nodes::Nodes,
    door: Door,
) -> Result<(), tonic::transport::Error> {
    let stop = agents.stop.serving.clone();
    let _credit =
        AbortOnDropHandle::new(tokio::spawn(Arc::clone(&agents.streams).share(agents.ingester.clone())));
    let trust = nodes.trust.clone();
    let fleet = FleetServiceServer::new(fleet::Service { fleet, trust, stop: stop.clone() })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let nodes = NodeServiceServer::new(nodes)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let intake = agents.memory.intake.clone();
    let service = AgentServiceServer::new(Service(Arc::new(agents)))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let service = Gated::new(service, intake);
    Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_header_list_size(HEAD_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(service)
        .add_service(nodes)
        .add_service(fleet)
        .serve_with_incoming_shutdown(connection::incoming(listener, door), stop.cancelled_owned())
        .await
}

struct Service(Arc<Agents>);

#[tonic::async_trait]
impl AgentService for Service {
    type SyncStream = sync::Answers;
    type IngestStream = ingest::Answers;

    async fn sync(
        &self,
        request: Request<Streaming<SyncRequest>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        self.0.refuse_when_stopping()?;
        let admitted = admitted(&request)?;
        Ok(Response::new(sync::answers(Arc::clone(&self.0), request.into_inner(), admitted)))
    }

    async fn ingest(
        &self,
        request: Request<Streaming<Batch>>,
    ) -> Result<Response<Self::IngestStream>, Status> {
        self.0.refuse_when_stopping()?;
        let admitted = admitted(&request)?;
        Ok(Response::new(ingest::answers(Arc::clone(&self.0), request.into_inner(), admitted)))
    }
}

fn admitted<T>(request: &Request<T>) -> Result<Admitted, Status> {
    let admitted = request.extensions().get().cloned();
    admitted.ok_or_else(|| Status::internal("the stream did not pass the gate"))
}

impl Agents {
    fn refuse_when_stopping(&self) -> Result<(), Status> {
        if self.stop.taking.is_cancelled() {
            return Err(Status::unavailable("the node is stopping"));
        }
        Ok(())
    }
}
