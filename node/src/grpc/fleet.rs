//! What other nodes ask about agents: documents that operators set, the list of agents, and what they see.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use metaflow_wire::{
    CompareDocumentsRequest, CompareDocumentsResponse, ListAgentsRequest, ListAgentsResponse, ObserveRequest,
    ObserveResponse, TellDocumentsRequest, TellDocumentsResponse, fleet_service_server::FleetService,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::Trust;
use crate::{
    fleet::{AGENTS_A_MESSAGE, Fleet},
    observe::Filter,
};

/// Serves other nodes.
pub(crate) struct Service {
    pub(crate) fleet: Fleet,
    /// None: the socket is of this machine alone.
    pub(crate) trust: Trust,
    /// Ends the streams that last.
    pub(crate) stop: CancellationToken,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl FleetService for Service {
    type ListAgentsStream = Answers<ListAgentsResponse>;
    type ObserveStream = Answers<ObserveResponse>;

    async fn compare_documents(
        &self,
        request: Request<CompareDocumentsRequest>,
    ) -> Result<Response<CompareDocumentsResponse>, Status> {
        self.let_in(&request)?;
        Ok(Response::new(self.fleet.compared(&request.into_inner().digests)))
    }

    async fn tell_documents(
        &self,
        request: Request<TellDocumentsRequest>,
    ) -> Result<Response<TellDocumentsResponse>, Status> {
        self.let_in(&request)?;
        self.fleet.told(request.into_inner().documents).await?;
        Ok(Response::new(TellDocumentsResponse {}))
    }

    async fn list_agents(
        &self,
        request: Request<ListAgentsRequest>,
    ) -> Result<Response<Self::ListAgentsStream>, Status> {
        self.let_in(&request)?;
        let agents = self.fleet.own_agents().await?;
        let parts: Vec<_> = agents
            .chunks(AGENTS_A_MESSAGE)
            .map(|agents| Ok(ListAgentsResponse { agents: agents.to_vec() }))
            .collect();
        Ok(Response::new(Box::pin(futures::stream::iter(parts))))
    }

    async fn observe(
        &self,
        request: Request<ObserveRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        self.let_in(&request)?;
        let calls = self.fleet.own_calls(Filter::from_wire(request.into_inner()))?;
        let stop = self.stop.clone().cancelled_owned();
        let calls = ReceiverStream::new(calls).map(Ok).take_until(stop);
        Ok(Response::new(Box::pin(calls)))
    }
}

impl Service {
    fn let_in<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.trust.check(request.metadata())
    }
}
