//! What other nodes ask: ids for names that this node owns, what it knows of partitions of the dictionary, and what an operator asked
//! them that concerns this one.
//!
//! Bound: a message's size, names and entries of one call. What is malformed is refused or counted, and changes nothing.

use axum::Router;
use metaflow_actors::dictionary::{self, Dictionary, Unnamed};
use metaflow_wire::{
    CompareRequest, CompareResponse, DictionaryEntry, FindBatchesRequest, FindBatchesResponse,
    ForwardRequest, ForwardResponse, InspectRequest, InspectResponse, LearnRequest, LearnResponse,
    NameIdsRequest, NameIdsResponse, PingRequest, PingResponse, ReachStoreRequest, ReachStoreResponse,
    StoreBytes, node_service_server::NodeService,
};
use tonic::{Request, Response, Status, Streaming};

use super::Trust;
use crate::{
    doubts::Copies,
    http,
    inspect::{self, Arguments, Failure, Topic},
    node::Parts,
    shards::{Chunks, Engine},
};

/// Serves other nodes.
pub(crate) struct Nodes {
    pub(crate) dictionary: Dictionary,
    /// None: the socket is of this machine alone.
    pub(crate) trust: Trust,
    /// What else is known of this node; none where there is a dictionary alone.
    pub(crate) parts: Option<Parts>,
    /// None: rows are in a store that nodes share.
    pub(crate) engine: Option<Engine>,
    /// The same.
    pub(crate) copies: Option<Copies>,
    /// What this node answers over HTTP.
    pub(crate) pages: Router,
}

#[tonic::async_trait]
impl NodeService for Nodes {
    type StoreStream = Chunks;

    async fn name_ids(&self, request: Request<NameIdsRequest>) -> Result<Response<NameIdsResponse>, Status> {
        self.let_in(&request)?;
        let request = request.into_inner();
        self.work(move |dictionary| name_ids(dictionary, &request)).await.map(Response::new)
    }

    async fn compare(&self, request: Request<CompareRequest>) -> Result<Response<CompareResponse>, Status> {
        self.let_in(&request)?;
        let request = request.into_inner();
        self.work(move |dictionary| dictionary.compare(&request).map_err(unavailable))
            .await
            .map(Response::new)
    }

    async fn learn(&self, request: Request<LearnRequest>) -> Result<Response<LearnResponse>, Status> {
        self.let_in(&request)?;
        let LearnRequest { entries } = request.into_inner();
        self.work(move |dictionary| learn(dictionary, entries)).await?;
        Ok(Response::new(LearnResponse {}))
    }

    async fn inspect(&self, request: Request<InspectRequest>) -> Result<Response<InspectResponse>, Status> {
        self.let_in(&request)?;
        let InspectRequest { topic, arguments } = request.into_inner();
        let parts = self.parts.as_ref().ok_or_else(|| Status::unavailable("nothing is known here"))?;
        let topic = Topic::from_name(&topic).ok_or_else(|| Status::unimplemented("no such question"))?;
        let arguments = Arguments::new(arguments);
        let answer = inspect::answer(parts, topic, &arguments).await.map_err(|failure| match failure {
            Failure::Wrong(reason) => Status::invalid_argument(reason),
            Failure::Unavailable(reason) => Status::unavailable(reason),
        })?;
        let json = serde_json::to_vec(&answer).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(InspectResponse { json }))
    }

    async fn reach_store(
        &self,
        request: Request<ReachStoreRequest>,
    ) -> Result<Response<ReachStoreResponse>, Status> {
        self.let_in(&request)?;
        self.engine()?;
        Ok(Response::new(ReachStoreResponse {}))
    }

    async fn store(&self, request: Request<Streaming<StoreBytes>>) -> Result<Response<Chunks>, Status> {
        self.let_in(&request)?;
        self.engine()?.serve(request.into_inner()).await.map(Response::new)
    }

    async fn find_batches(
        &self,
        request: Request<FindBatchesRequest>,
    ) -> Result<Response<FindBatchesResponse>, Status> {
        self.let_in(&request)?;
        let copies = self.copies.as_ref().ok_or_else(shared)?;
        copies.find(request.into_inner()).await.map(Response::new)
    }

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PingResponse>, Status> {
        self.let_in(&request)?;
        let node_id = self.parts.as_ref().map_or(0, |parts| parts.config().node_id);
        Ok(Response::new(PingResponse { node_id: node_id.into() }))
    }

    async fn forward(&self, request: Request<ForwardRequest>) -> Result<Response<ForwardResponse>, Status> {
        self.let_in(&request)?;
        let answer = http::answer_forwarded(self.pages.clone(), request.into_inner()).await;
        answer.map(Response::new).map_err(Status::out_of_range)
    }
}

impl Nodes {
    fn let_in<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.trust.check(request.metadata())
    }

    fn engine(&self) -> Result<&Engine, Status> {
        self.engine.as_ref().ok_or_else(shared)
    }

    /// Runs what blocks for the disk.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Dictionary) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let dictionary = self.dictionary.clone();
        tokio::task::spawn_blocking(move || work(&dictionary))
            .await
            .map_err(|error| Status::internal(error.to_string()))?
    }
}

fn shared() -> Status {
    Status::failed_precondition("the rows of this node are in a store that nodes share")
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unavailable(error: dictionary::Error) -> Status {
    Status::unavailable(error.to_string())
}

fn name_ids(dictionary: &Dictionary, request: &NameIdsRequest) -> Result<NameIdsResponse, Status> {
    dictionary.name(request).map_err(|unnamed| match unnamed {
        Unnamed::Many | Unnamed::Kind => Status::invalid_argument(unnamed.to_string()),
        Unnamed::Dictionary(error) => unavailable(error),
    })
}

fn learn(dictionary: &Dictionary, entries: Vec<DictionaryEntry>) -> Result<(), Status> {
    let learned = dictionary.take(entries).map_err(unavailable)?;
    if learned.conflicts > 0 || learned.malformed > 0 {
        tracing::warn!(?learned, "another node told entries that cannot be right");
    }
    Ok(())
}
