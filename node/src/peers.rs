//! What this node asks and tells other nodes about names: ids from their owners, what it named itself, and, round by round, what either
//! does not know.
//!
//! Nothing waits for others for long: an owner that does not answer within a moment is left alone for a while. Then those who stand in
//! for it are asked, and names of that moment get an id of this node, an alias, which all hear of. What is asked and told is decided in
//! `metaflow_actors::dictionary`; this file performs it.

mod calls;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use metaflow_actors::{
    dictionary::{Comparison, Dictionary, NAMES_MAX, NodeId, Owners, Silent, comparisons},
    placement::PartitionId,
};
use metaflow_schema::enums::Kind;
use metaflow_wire::{
    InspectRequest, LearnRequest, MESSAGE_BYTES_MAX, Name, NameIdsRequest,
    fleet_service_client::FleetServiceClient, node_service_client::NodeServiceClient,
};
use serde_json::Value;
use tonic::{
    Code, Request, Status,
    metadata::MetadataMap,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use crate::{
    Outside, Route,
    grpc::Secret,
    node::{Guide, Guides},
};

/// Time for an owner to answer; labelling waits for it.
const ASK_WITHIN: Duration = Duration::from_millis(300);
/// Time for the answers that nothing waits for.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Time to hear of news.
const TELL_WITHIN: Duration = Duration::from_secs(2);
/// Between two rounds of comparing.
const ROUND: Duration = Duration::from_secs(1);
/// The pause grows with what a round took, up to this.
const ROUND_REST: u32 = 4;
const ROUND_MAX: Duration = Duration::from_secs(15);
/// News wait so long for others to go with them.
const GATHER: Duration = Duration::from_millis(20);

/// The way to another node, which shows the secret.
pub(crate) type Way = InterceptedService<Channel, Shown>;
pub(crate) type Client = NodeServiceClient<Way>;
type FleetClient = FleetServiceClient<Way>;

/// The other nodes; clones share connections.
#[derive(Clone)]
pub(crate) struct Peers {
    inner: Arc<Inner>,
}

struct Inner {
    own: NodeId,
    guides: Guides,
    secret: Option<Secret>,
    tls: Option<metaflow_tls::Client>,
    route: Route,
    runtime: tokio::runtime::Handle,
    links: Mutex<HashMap<SocketAddr, Way>>,
    silent: Mutex<Silent>,
}

/// Shows the secret where there is one.
#[derive(Clone)]
pub(crate) struct Shown(Option<Secret>);

impl Interceptor for Shown {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        match &mut self.0 {
            Some(secret) => secret.call(request),
            None => {
                let (_, extensions, ()) = request.into_parts();
                Ok(Request::from_parts(MetadataMap::new(), extensions, ()))
            }
        }
    }
}

impl Peers {
    /// To be called within the runtime that calls are made in.
    pub(crate) fn new(
        own: NodeId,
        guides: Guides,
        secret: Option<Secret>,
        tls: Option<metaflow_tls::Client>,
    ) -> Self {
        let inner = Inner {
            own,
            guides,
            secret,
            tls,
            route: Outside::default().route,
            runtime: tokio::runtime::Handle::current(),
            links: Mutex::default(),
            silent: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The same over other ways; to be called before the first use.
    pub(crate) fn over(mut self, route: Route) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.route = route;
        }
        self
    }

    fn guide(&self) -> Arc<Guide> {
        self.inner.guides.borrow().clone()
    }

    /// The other nodes that can be called, by their ids.
    pub(crate) fn others(&self) -> Vec<(NodeId, SocketAddr)> {
        self.guide().nodes().filter(|(node, _)| *node != self.inner.own).collect()
    }

    /// Asks a node about agents.
    pub(crate) fn fleet(&self, address: SocketAddr) -> Result<FleetClient, Status> {
        Ok(fleet_client(self.any_way(address).ok_or_else(not_an_address)?))
    }

    /// The same over a connection of its own, for streams that last.
    pub(crate) fn fleet_of_its_own(&self, address: SocketAddr) -> Result<FleetClient, Status> {
        Ok(fleet_client(self.new_way(address).ok_or_else(not_an_address)?))
    }

    /// A client of a node; none when its address makes no sense.
    pub(crate) fn client(&self, address: SocketAddr) -> Option<Client> {
        Some(node_client(self.any_way(address)?))
    }

    /// A client with a connection of its own, for a call that lasts: the shared one takes few calls at a time.
    pub(crate) fn client_of_its_own(&self, address: SocketAddr) -> Option<Client> {
        Some(node_client(self.new_way(address)?))
    }

    fn any_way(&self, address: SocketAddr) -> Option<Way> {
        let mut links = self.inner.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(way) = links.get(&address) {
            return Some(way.clone());
        }
        let way = self.new_way(address)?;
        links.insert(address, way.clone());
        Some(way)
    }

    fn new_way(&self, address: SocketAddr) -> Option<Way> {
        let scheme = if self.inner.tls.is_some() { "https" } else { "http" };
        let address = (self.inner.route)(address);
        let endpoint =
            Endpoint::from_shared(format!("{scheme}://{address}")).ok()?.connect_timeout(ASK_WITHIN);
        let channel = match &self.inner.tls {
            Some(tls) => endpoint.connect_with_connector_lazy(tls.connector()),
            None => endpoint.connect_lazy(),
        };
        Some(InterceptedService::new(channel, Shown(self.inner.secret.clone())))
    }

    fn silent(&self) -> MutexGuard<'_, Silent> {
        self.inner.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the connections of nodes that are gone.
    fn forget(&self, guide: &Guide) {
        let known: HashSet<SocketAddr> = guide.nodes().map(|(_, address)| address).collect();
        let mut links = self.inner.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|address, _| known.contains(address));
    }

    /// Asks one owner; none when it does not answer as it should.
    async fn name_ids(&self, node: NodeId, address: SocketAddr, names: Vec<Name>) -> Option<Vec<u32>> {
        let mut client = self.client(address)?;
        let count = names.len();
        let answer = tokio::time::timeout(ASK_WITHIN, client.name_ids(NameIdsRequest { names })).await;
        let ids = match answer {
            Ok(Ok(answer)) => Some(answer.into_inner().ids).filter(|ids| ids.len() == count),
            Ok(Err(status)) => {
                tracing::debug!(%address, %status, "the owner of names did not name them");
                None
            }
            Err(_) => None,
        };
        self.silent().note(node, ids.is_some(), Instant::now());
        ids
    }

    /// Asks a node about itself; says why there is no answer.
    pub(crate) async fn inspect(
        &self,
        address: SocketAddr,
        topic: &str,
        arguments: &BTreeMap<String, String>,
        within: Duration,
    ) -> Result<Value, String> {
        let mut client = self.client(address).ok_or("its address cannot be used")?;
        let request = InspectRequest {
            topic: topic.to_owned(),
            arguments: arguments.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        };
        let answer = match tokio::time::timeout(within, client.inspect(request)).await {
            Ok(Ok(answer)) => answer.into_inner().json,
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                return Err("its release does not know this question".to_owned());
            }
            Ok(Err(status)) => return Err(calls::reason(&status)),
            Err(_) => return Err(format!("no answer came within {} s", within.as_secs())),
        };
        serde_json::from_slice(&answer).map_err(|error| format!("its answer is not readable: {error}"))
    }

    /// Tells news and compares what is known, until it is aborted.
    pub(crate) async fn keep_alike(self, dictionary: Dictionary) {
        let mut next = tokio::time::Instant::now() + ROUND;
        let mut round = 0_usize;
        let mut met = HashSet::new();
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next) => {
                    let begin = Instant::now();
                    self.round(round, &mut met, &dictionary).await;
                    round += 1;
                    // While thousands of names are new, every round reads the whole dictionary: agents come first.
                    let pause = ROUND.max(begin.elapsed() * ROUND_REST).min(ROUND_MAX);
                    next = tokio::time::Instant::now() + pause;
                }
                () = dictionary.news() => {
                    tokio::time::sleep(GATHER).await;
                    self.tell_news(&dictionary).await;
                }
            }
        }
    }

    /// Compares with one of the others; `met` are those with whom that was done to the end.
    async fn round(&self, round: usize, met: &mut HashSet<NodeId>, dictionary: &Dictionary) {
        let guide = self.guide();
        self.forget(&guide);
        let others: Vec<_> = guide.nodes().filter(|(node, _)| *node != self.inner.own).collect();
        let Some((node, address)) = others.get(round % others.len().max(1)) else { return };
        let owners = |partition: PartitionId| guide.owners(partition);
        for comparison in comparisons(self.inner.own, *node, owners, !met.contains(node)) {
            if let Err(status) = self.compare(*address, comparison, dictionary).await {
                tracing::debug!(%address, %status, "names could not be compared");
                self.silent().note(*node, false, Instant::now());
                return;
            }
        }
        met.insert(*node);
    }

    /// Makes both ends know what either knew.
    async fn compare(
        &self,
        address: SocketAddr,
        mut comparison: Comparison,
        dictionary: &Dictionary,
    ) -> Result<(), Status> {
        while let Some(request) = comparison.request(dictionary) {
            let Some(mut client) = self.client(address) else { return Ok(()) };
            let answer = timely(client.compare(request)).await?.into_inner();
            let names = dictionary.clone();
            let learning = tokio::task::spawn_blocking(move || {
                let lacking = comparison.answered(&names, answer);
                (comparison, lacking)
            });
            let (next, lacking) = learning.await.map_err(|error| Status::internal(error.to_string()))?;
            comparison = next;
            for learn in lacking.map_err(|error| Status::unavailable(error.to_string()))? {
                timely(client.learn(learn)).await?;
            }
        }
        Ok(())
    }

    /// Tells all at a time who is to hear of something. Who does not answer hears of it in a round.
    async fn tell_news(&self, dictionary: &Dictionary) {
        let guide = self.guide();
        let addresses: BTreeMap<NodeId, SocketAddr> =
            guide.nodes().filter(|(node, _)| *node != self.inner.own).collect();
        let now = Instant::now();
        let others: Vec<NodeId> =
            addresses.keys().copied().filter(|node| !self.silent().is_left_alone(*node, now)).collect();
        let news = dictionary.take_news(&others, |partition| guide.owners(partition));
        let telling = news.into_iter().filter_map(|(node, requests)| {
            let address = *addresses.get(&node)?;
            Some(self.tell(node, address, requests))
        });
        futures::future::join_all(telling).await;
    }

    async fn tell(&self, node: NodeId, address: SocketAddr, requests: Vec<LearnRequest>) {
        let Some(mut client) = self.client(address) else { return };
        for request in requests {
            let told = tokio::time::timeout(TELL_WITHIN, client.learn(request)).await;
            if !matches!(told, Ok(Ok(_))) {
                tracing::debug!(%address, "a node did not hear of new names now");
                self.silent().note(node, false, Instant::now());
                return;
            }
        }
    }
}

fn not_an_address() -> Status {
    Status::internal("the node's address cannot be used")
}

fn node_client(way: Way) -> Client {
    NodeServiceClient::new(way)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

fn fleet_client(way: Way) -> FleetClient {
    FleetServiceClient::new(way)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

async fn timely<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(ANSWER_WITHIN, call)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer came in time")))
}

impl Owners for Peers {
    fn ask(&self, names: &[(Kind, &str)]) -> Vec<Option<u32>> {
        let mut told = vec![None; names.len()];
        let guide = self.guide();
        let addresses: HashMap<NodeId, SocketAddr> = guide.nodes().collect();
        let owners = |partition: PartitionId| guide.owners(partition);
        let asked = self.silent().questions(self.inner.own, names, owners, Instant::now());
        let questions = asked.into_iter().map(async |(node, mut places)| {
            places.truncate(NAMES_MAX);
            let wanted = places.iter().map(|at| {
                let (kind, name) = names[*at];
                Name { kind: kind as u32, name: name.to_owned(), id: 0 }
            });
            let ids = match addresses.get(&node) {
                Some(address) => self.name_ids(node, *address, wanted.collect()).await,
                None => None,
            };
            (ids.unwrap_or_default(), places)
        });
        for (ids, places) in self.inner.runtime.block_on(futures::future::join_all(questions)) {
            for (at, id) in places.iter().zip(ids) {
                told[*at] = Some(id).filter(|id| *id != 0);
            }
        }
        told
    }
}
