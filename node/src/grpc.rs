//! The gRPC server: agents say who they are (`Sync`) and send rows (`Ingest`).
//!
//! Bound: connections, streams of a connection and of an agent, bytes of a message; messages wait at the socket until the memory budget has
//! room for them (`admission`). A hostile frame ends its stream with a status. On a stop, streams take nothing new and end when what they brought is
//! acknowledged.

mod admission;
mod connection;
mod deadline;
pub(crate) mod fleet;
mod ingest;
pub(crate) mod nodes;
mod proofs;
mod secret;
mod services;
mod sessions;
mod sync;

use std::sync::Arc;

use metaflow_actors::{
    controller::Controller, dictionary::Dictionary, groups::Registry, ingester::Ingester, memory::Memory,
};
use metaflow_wire::{Batch, SyncRequest, agent_service_server::AgentService};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Request, Response, Status, Streaming};

use crate::{fleet::Fleet, metrics::Ingest, node::Guides};
use admission::Admitted;
pub(crate) use connection::Door;
pub(crate) use ingest::Streams;
pub(crate) use proofs::Proofs;
pub(crate) use secret::{Secret, Trust};
use services::Services;
pub(crate) use sessions::{Moves, Named, Sessions};

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
) {
    let stop = agents.stop.serving.clone();
    let _credit =
        AbortOnDropHandle::new(tokio::spawn(Arc::clone(&agents.streams).share(agents.ingester.clone())));
    let services = Services::new(agents, fleet, nodes);
    connection::serve(listener, services, door, stop).await;
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
