//! What other nodes ask: ids for names that this node owns, what it knows of partitions of the dictionary, and what an operator asked
//! them that concerns this one.
//!
//! Bound: a message's size, names and entries of one call. What is malformed is refused or counted, and changes nothing.

use axum::Router;
use metaflow_actors::{
    dictionary::{Dictionary, Digest, Entry},
    placement::PartitionId,
};
use metaflow_schema::enums::Kind;
use metaflow_wire::{
    CompareRequest, CompareResponse, DictionaryEntry, ForwardRequest, ForwardResponse, InspectRequest,
    InspectResponse, LearnRequest, LearnResponse, Name, NameIdsRequest, NameIdsResponse, PingRequest,
    PingResponse, ReachStoreRequest, ReachStoreResponse, StoreBytes, node_service_server::NodeService,
};
use tonic::{Request, Response, Status, Streaming};

use super::Secret;
use crate::{
    http,
    inspect::{self, Arguments, Failure, Topic},
    node::Parts,
    shards::{Chunks, Engine},
};

/// Names of one question; a batch brings fewer.
pub(crate) const NAMES_MAX: usize = 20_000;
/// Entries of one answer: 256 bytes each at most, so they fit in one message.
pub(crate) const ENTRIES_MAX: u32 = 10_000;

/// Serves other nodes.
pub(crate) struct Nodes {
    pub(crate) dictionary: Dictionary,
    /// None: the socket is of this machine alone.
    pub(crate) secret: Option<Secret>,
    /// What else is known of this node; none where there is a dictionary alone.
    pub(crate) parts: Option<Parts>,
    /// None: rows are in a store that nodes share.
    pub(crate) engine: Option<Engine>,
    /// What this node answers over HTTP.
    pub(crate) pages: Router,
}

#[tonic::async_trait]
impl NodeService for Nodes {
    type StoreStream = Chunks;

    async fn name_ids(&self, request: Request<NameIdsRequest>) -> Result<Response<NameIdsResponse>, Status> {
        self.let_in(&request)?;
        let names = request.into_inner().names;
        if names.len() > NAMES_MAX {
            return Err(Status::invalid_argument(format!("more than {NAMES_MAX} names")));
        }
        let ids = self.work(move |dictionary| name_ids(dictionary, &names)).await?;
        Ok(Response::new(NameIdsResponse { ids }))
    }

    async fn compare(&self, request: Request<CompareRequest>) -> Result<Response<CompareResponse>, Status> {
        self.let_in(&request)?;
        let CompareRequest { partitions } = request.into_inner();
        self.work(move |dictionary| compare(dictionary, &partitions)).await.map(Response::new)
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
        self.secret.as_ref().map_or(Ok(()), |secret| secret.check(request.metadata()))
    }

    fn engine(&self) -> Result<&Engine, Status> {
        let shared = || Status::failed_precondition("the rows of this node are in a store that nodes share");
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

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unavailable(error: metaflow_actors::dictionary::Error) -> Status {
    Status::unavailable(error.to_string())
}

fn kind(number: u32) -> Option<Kind> {
    u8::try_from(number).ok().and_then(Kind::from_number)
}

fn name_ids(dictionary: &Dictionary, names: &[Name]) -> Result<Vec<u32>, Status> {
    let known: Vec<Entry> = names
        .iter()
        .filter(|name| name.id != 0)
        .filter_map(|name| Some(Entry { kind: kind(name.kind)?, id: name.id, name: name.name.clone() }))
        .collect();
    dictionary.learn(&known, false).map_err(unavailable)?;
    let wanted: Vec<(Kind, &str)> = names
        .iter()
        .map(|name| Some((kind(name.kind)?, name.name.as_str())))
        .collect::<Option<_>>()
        .ok_or_else(|| Status::invalid_argument("a kind of name is not known in this release"))?;
    dictionary.own_ids(&wanted).map_err(unavailable)
}

fn compare(
    dictionary: &Dictionary,
    theirs: &[metaflow_wire::PartitionDigest],
) -> Result<CompareResponse, Status> {
    let differing: Vec<PartitionId> = theirs
        .iter()
        .filter_map(|their| {
            let partition = PartitionId::new(u16::try_from(their.partition).ok()?)?;
            let digest = Digest { entries: their.entries, hash: their.hash };
            (dictionary.digest(partition) != digest).then_some(partition)
        })
        .collect();
    let some = dictionary.some_of(&differing, ENTRIES_MAX);
    if some.is_empty() {
        return Ok(CompareResponse::default());
    }
    let entries = dictionary.entries(&some).map_err(unavailable)?;
    Ok(CompareResponse {
        partitions: some.iter().map(|partition| partition.get().into()).collect(),
        entries: entries.into_iter().map(to_wire).collect(),
    })
}

/// An entry as nodes tell it.
pub(crate) fn to_wire((entry, is_stored): (Entry, bool)) -> DictionaryEntry {
    let Entry { kind, id, name } = entry;
    DictionaryEntry { kind: kind as u32, id, name, is_stored }
}

/// Takes entries of another node. A kind that this release does not know is left out.
pub(crate) fn learn(dictionary: &Dictionary, entries: Vec<DictionaryEntry>) -> Result<(), Status> {
    let (stored, fresh): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.is_stored);
    for (entries, is_stored) in [(stored, true), (fresh, false)] {
        let entries: Vec<Entry> = entries
            .into_iter()
            .filter_map(|DictionaryEntry { kind: number, id, name, .. }| {
                Some(Entry { kind: kind(number)?, id, name })
            })
            .collect();
        let learned = dictionary.learn(&entries, is_stored).map_err(unavailable)?;
        if learned.conflicts > 0 || learned.malformed > 0 {
            tracing::warn!(?learned, "another node told entries that cannot be right");
        }
    }
    Ok(())
}
