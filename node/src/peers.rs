//! What this node asks other nodes about names: ids from their owners, and, round by round, what it and they do not know of the
//! partitions that both hold.
//!
//! Nothing waits for others for long: an owner that does not answer within a moment is left alone for a while, and names get an id of
//! this node, an alias, which its owner hears of later.

mod calls;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use metaflow_actors::{
    dictionary::{Dictionary, Entry, NodeId, Owners},
    placement::{PartitionId, partition_of},
};
use metaflow_schema::enums::Kind;
use metaflow_wire::{
    CompareRequest, InspectRequest, LearnRequest, MESSAGE_BYTES_MAX, Name, NameIdsRequest, PartitionDigest,
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
    grpc::{Secret, nodes},
    node::{Guide, Guides},
};

/// Time for an owner to answer; labelling waits for it.
const ASK_WITHIN: Duration = Duration::from_millis(300);
/// Time for the answers that nothing waits for.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Who did not answer is left alone for so long.
const LEAVE_ALONE: Duration = Duration::from_secs(1);
/// Between two rounds of comparing.
const ROUND: Duration = Duration::from_secs(1);
/// The pause grows with what a round took, up to this.
const ROUND_REST: u32 = 4;
const ROUND_MAX: Duration = Duration::from_secs(15);
/// Names whose owners did not hear of them yet. What is forgotten beyond this comes to them when a node compares or asks again.
const STRAYS_MAX: usize = 100_000;

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
    runtime: tokio::runtime::Handle,
    links: Mutex<HashMap<SocketAddr, Link>>,
    strays: Mutex<HashSet<(Kind, String)>>,
}

struct Link {
    way: Way,
    alone_until: Option<Instant>,
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
            runtime: tokio::runtime::Handle::current(),
            links: Mutex::default(),
            strays: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
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

    /// A client of a node; none while it is left alone.
    fn client(&self, address: SocketAddr) -> Option<Client> {
        Some(node_client(self.way(address)?))
    }

    /// A client of a node, whether it is left alone or not.
    pub(crate) fn any_client(&self, address: SocketAddr) -> Option<Client> {
        Some(node_client(self.any_way(address)?))
    }

    /// A client with a connection of its own, for a call that lasts: the shared one takes few calls at a time.
    pub(crate) fn client_of_its_own(&self, address: SocketAddr) -> Option<Client> {
        Some(node_client(self.new_way(address)?))
    }

    fn way(&self, address: SocketAddr) -> Option<Way> {
        let links = self.inner.links.lock().unwrap_or_else(PoisonError::into_inner);
        let is_alone = |link: &Link| link.alone_until.is_some_and(|until| Instant::now() < until);
        if links.get(&address).is_some_and(is_alone) {
            return None;
        }
        drop(links);
        self.any_way(address)
    }

    fn any_way(&self, address: SocketAddr) -> Option<Way> {
        let mut links = self.inner.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(&address) {
            return Some(link.way.clone());
        }
        let way = self.new_way(address)?;
        links.insert(address, Link { way: way.clone(), alone_until: None });
        Some(way)
    }

    fn new_way(&self, address: SocketAddr) -> Option<Way> {
        let scheme = if self.inner.tls.is_some() { "https" } else { "http" };
        let endpoint =
            Endpoint::from_shared(format!("{scheme}://{address}")).ok()?.connect_timeout(ASK_WITHIN);
        let channel = match &self.inner.tls {
            Some(tls) => endpoint.connect_with_connector_lazy(tls.connector()),
            None => endpoint.connect_lazy(),
        };
        Some(InterceptedService::new(channel, Shown(self.inner.secret.clone())))
    }

    fn note(&self, address: SocketAddr, has_answered: bool) {
        let mut links = self.inner.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get_mut(&address) {
            link.alone_until = (!has_answered).then(|| Instant::now() + LEAVE_ALONE);
        }
    }

    /// Forgets the connections of nodes that are gone.
    fn forget(&self, guide: &Guide) {
        let known: HashSet<SocketAddr> = guide.nodes().map(|(_, address)| address).collect();
        let mut links = self.inner.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|address, _| known.contains(address));
    }

    /// Asks one owner; none when it does not answer as it should.
    async fn name_ids(&self, address: SocketAddr, names: Vec<Name>, within: Duration) -> Option<Vec<u32>> {
        let mut client = self.client(address)?;
        let count = names.len();
        let answer = tokio::time::timeout(within, client.name_ids(NameIdsRequest { names })).await;
        let ids = match answer {
            Ok(Ok(answer)) => Some(answer.into_inner().ids).filter(|ids| ids.len() == count),
            Ok(Err(status)) => {
                tracing::debug!(%address, %status, "the owner of names did not name them");
                None
            }
            Err(_) => None,
        };
        self.note(address, ids.is_some());
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
        let mut client = self.any_client(address).ok_or("its address cannot be used")?;
        let request = InspectRequest {
            topic: topic.to_owned(),
            arguments: arguments.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        };
        let answer = match tokio::time::timeout(within, client.inspect(request)).await {
            Ok(Ok(answer)) => answer.into_inner().json,
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                return Err("its release does not know this question".to_owned());
            }
            Ok(Err(status)) => return Err(status.message().to_owned()),
            Err(_) => return Err(format!("no answer came within {} s", within.as_secs())),
        };
        serde_json::from_slice(&answer).map_err(|error| format!("its answer is not readable: {error}"))
    }

    fn add_strays(&self, names: impl Iterator<Item = (Kind, String)>) {
        let mut strays = self.inner.strays.lock().unwrap_or_else(PoisonError::into_inner);
        let room = STRAYS_MAX.saturating_sub(strays.len());
        strays.extend(names.take(room));
    }

    /// Compares what is held and tells strays, until it is aborted.
    pub(crate) async fn keep_alike(self, dictionary: Dictionary) {
        let mut pause = ROUND;
        for round in 0_usize.. {
            tokio::time::sleep(pause).await;
            let begin = Instant::now();
            let guide = self.guide();
            self.forget(&guide);
            self.tell_strays(&guide, &dictionary).await;
            let others: Vec<_> = guide.nodes().filter(|(node, _)| *node != self.inner.own).collect();
            let Some((node, address)) = others.get(round % others.len().max(1)) else { continue };
            let shared = guide.shared(self.inner.own, *node);
            if let Err(status) = self.compare(*address, &shared, &dictionary).await {
                tracing::debug!(%address, %status, "names could not be compared");
                self.note(*address, false);
            }
            // While thousands of names are new, every round reads the whole dictionary: agents come first.
            pause = ROUND.max(begin.elapsed() * ROUND_REST).min(ROUND_MAX);
        }
    }

    /// Makes both ends know what either knew of some partitions. Ends when they are alike.
    async fn compare(
        &self,
        address: SocketAddr,
        shared: &[PartitionId],
        dictionary: &Dictionary,
    ) -> Result<(), Status> {
        let mut left: Vec<PartitionId> = shared.to_vec();
        while !left.is_empty() {
            let Some(mut client) = self.client(address) else { return Ok(()) };
            let digests = left.iter().map(|partition| {
                let digest = dictionary.digest(*partition);
                PartitionDigest {
                    partition: partition.get().into(),
                    entries: digest.entries,
                    hash: digest.hash,
                }
            });
            let request = CompareRequest { partitions: digests.collect() };
            let answer = timely(client.compare(request)).await?.into_inner();
            let some: Vec<PartitionId> = answer
                .partitions
                .iter()
                .filter_map(|number| PartitionId::new(u16::try_from(*number).ok()?))
                .collect();
            // Who names a partition that was not asked for would make this go on for ever.
            let before = left.len();
            left.retain(|partition| !some.contains(partition));
            if some.is_empty() || left.len() == before {
                return Ok(());
            }
            let theirs: HashSet<(u32, u32)> =
                answer.entries.iter().map(|entry| (entry.kind, entry.id)).collect();
            let names = dictionary.clone();
            let ours = tokio::task::spawn_blocking(move || {
                nodes::learn(&names, answer.entries)?;
                names.entries(&some).map_err(|error| Status::unavailable(error.to_string()))
            })
            .await
            .map_err(|error| Status::internal(error.to_string()))??;
            let lacking: Vec<_> = ours
                .into_iter()
                .map(nodes::to_wire)
                .filter(|entry| !theirs.contains(&(entry.kind, entry.id)))
                .collect();
            for entries in lacking.chunks(nodes::ENTRIES_MAX as usize) {
                timely(client.learn(LearnRequest { entries: entries.to_vec() })).await?;
            }
        }
        Ok(())
    }

    /// Tells owners of names that were named here in their absence; learns what they call them.
    async fn tell_strays(&self, guide: &Guide, dictionary: &Dictionary) {
        let strays = std::mem::take(&mut *self.inner.strays.lock().unwrap_or_else(PoisonError::into_inner));
        let mut by_owner: HashMap<SocketAddr, Vec<(Kind, String)>> = HashMap::new();
        for (kind, name) in strays {
            if let Some((node, address)) = guide.owner(partition_of(kind, &name))
                && node != self.inner.own
            {
                by_owner.entry(address).or_default().push((kind, name));
            }
        }
        for (address, strays) in by_owner {
            for strays in strays.chunks(nodes::NAMES_MAX) {
                let names = strays
                    .iter()
                    .map(|(kind, name)| Name {
                        kind: *kind as u32,
                        name: name.clone(),
                        id: dictionary.lookup(*kind, name).unwrap_or(0),
                    })
                    .collect();
                let Some(ids) = self.name_ids(address, names, ANSWER_WITHIN).await else {
                    self.add_strays(strays.iter().cloned());
                    continue;
                };
                let entries: Vec<Entry> = strays
                    .iter()
                    .zip(ids)
                    .map(|((kind, name), id)| Entry { kind: *kind, id, name: name.clone() })
                    .collect();
                let names = dictionary.clone();
                let learnt = tokio::task::spawn_blocking(move || names.learn(&entries, false)).await;
                if !matches!(learnt, Ok(Ok(_))) {
                    self.add_strays(strays.iter().cloned());
                }
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
        let mut by_owner: HashMap<SocketAddr, Vec<usize>> = HashMap::new();
        for (at, (kind, name)) in names.iter().enumerate() {
            if let Some((node, address)) = guide.owner(partition_of(*kind, name))
                && node != self.inner.own
            {
                by_owner.entry(address).or_default().push(at);
            }
        }
        let questions = by_owner.into_iter().map(async |(address, places)| {
            let asked = places.iter().take(nodes::NAMES_MAX);
            let asked = asked.map(|at| (names[*at].0, names[*at].1.to_owned()));
            let wanted = asked.map(|(kind, name)| Name { kind: kind as u32, name, id: 0 }).collect();
            (self.name_ids(address, wanted, ASK_WITHIN).await, places)
        });
        for (ids, places) in self.inner.runtime.block_on(futures::future::join_all(questions)) {
            let ids = ids.unwrap_or_default();
            for (at, id) in places.iter().zip(&ids) {
                told[*at] = Some(*id).filter(|id| *id != 0);
            }
            // What was not answered, or was more than one question holds.
            let left = places.iter().skip(ids.len());
            self.add_strays(left.map(|at| (names[*at].0, names[*at].1.to_owned())));
        }
        told
    }
}
