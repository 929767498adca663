//! Live requests of the whole cluster, with names, for who watches.
//!
//! The asked node opens its own tap and asks the others for theirs, over connections of their own, since a stream that lasts must not take the
//! place of short questions. What a watcher does not read in time is dropped where it piles up, and counted.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use metaflow_actors::{
    dictionary::{Dictionary, NodeId},
    tap::{self, Observer},
};
use metaflow_schema::enums::{Kind, L7Protocol, ObservationPoint, ResponseStatus};
use metaflow_wire::{Call, ObserveRequest, ObserveResponse};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tonic::Status;

use crate::{fleet::Fleet, peers::Peers};

/// Names that a watcher remembers.
const NAMES_MAX: usize = 50_000;
/// Parts of the stream that wait for a watcher.
const PARTS_MAX: usize = 64;
/// A node that went away is asked again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Which calls a watcher wants; all of what is given must fit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Filter {
    /// Name or address of the server.
    pub(crate) to: Option<String>,
    /// Of the client.
    pub(crate) from: Option<String>,
    pub(crate) protocol: Option<String>,
    /// ok, error, timeout, or a status by its name.
    pub(crate) status: Option<String>,
    /// By its number.
    pub(crate) agent: Option<u32>,
}

/// A part of the merged stream.
#[derive(Debug)]
pub(crate) enum Part {
    Calls {
        node: NodeId,
        calls: Vec<Call>,
        dropped: u64,
    },
    /// A node that cannot be heard now.
    Missing {
        node: NodeId,
        address: SocketAddr,
        reason: String,
    },
}

impl Filter {
    /// The part of it that is numbers; wrong values are refused with what is allowed.
    pub(crate) fn wish(&self) -> Result<tap::Wish, String> {
        let protocols = self.protocol.as_deref().map(|wanted| {
            let is_meant = |protocol: &&L7Protocol| {
                let name = protocol.name().to_lowercase();
                name == wanted.to_lowercase()
                    || (wanted.eq_ignore_ascii_case("http") && name.starts_with("http"))
            };
            let found: Vec<u8> =
                L7Protocol::ALL.iter().filter(is_meant).map(|protocol| *protocol as u8).collect();
            let known =
                || L7Protocol::ALL.iter().map(|protocol| protocol.name()).collect::<Vec<_>>().join(", ");
            if found.is_empty() {
                Err(format!("no protocol {wanted:?}; there are: {}", known()))
            } else {
                Ok(found)
            }
        });
        let statuses = self.status.as_deref().map(|wanted| match wanted.to_lowercase().as_str() {
            "ok" => Ok(vec![ResponseStatus::Normal as u8]),
            "error" => {
                Ok([ResponseStatus::ClientError, ResponseStatus::ServerError, ResponseStatus::Timeout]
                    .map(|status| status as u8)
                    .to_vec())
            }
            name => {
                let wanted = name.replace(['_', '-'], " ");
                let found = ResponseStatus::ALL.iter().find(|status| status.name() == wanted);
                let known =
                    || ResponseStatus::ALL.iter().map(|status| status.name()).collect::<Vec<_>>().join(", ");
                found
                    .map(|status| vec![*status as u8])
                    .ok_or_else(|| format!("no status {name:?}; there are: ok, error, {}", known()))
            }
        });
        Ok(tap::Wish {
            agent_id: self.agent,
            protocols: protocols.transpose()?,
            statuses: statuses.transpose()?,
        })
    }

    /// The part of it that is names.
    fn fits(&self, call: &Call) -> bool {
        let is = |wanted: &Option<String>, service: &str, address: &str| {
            wanted.as_deref().is_none_or(|wanted| {
                service.eq_ignore_ascii_case(wanted)
                    || address.rsplit_once(':').is_some_and(|(ip, _)| ip == wanted)
            })
        };
        is(&self.to, &call.server, &call.server_address) && is(&self.from, &call.client, &call.client_address)
    }

    pub(crate) fn to_wire(&self) -> ObserveRequest {
        let Self { to, from, protocol, status, agent } = self.clone();
        ObserveRequest { to, from, protocol, status, agent }
    }

    pub(crate) fn from_wire(request: ObserveRequest) -> Self {
        let ObserveRequest { to, from, protocol, status, agent } = request;
        Self { to, from, protocol, status, agent }
    }
}

impl Fleet {
    /// The calls of this node, until the receiver is dropped.
    pub(crate) fn own_calls(&self, filter: Filter) -> Result<mpsc::Receiver<ObserveResponse>, Status> {
        let wish = filter.wish().map_err(Status::invalid_argument)?;
        let observer = self.tap.observe(wish).ok_or_else(|| {
            Status::resource_exhausted(format!(
                "{} watch this node already, which is the limit",
                tap::OBSERVERS_MAX
            ))
        })?;
        let (sender, calls) = mpsc::channel(PARTS_MAX);
        tokio::spawn(tell(observer, filter, Named::new(self.dictionary.clone()), sender));
        Ok(calls)
    }

    /// The calls of all nodes, until the receiver is dropped. Nodes that come later are heard, too.
    pub(crate) fn calls(&self, filter: Filter) -> Result<mpsc::Receiver<Part>, Status> {
        let mut own = self.own_calls(filter.clone())?;
        let (sender, parts) = mpsc::channel(PARTS_MAX);
        let (node, forward) = (self.own, sender.clone());
        tokio::spawn(async move {
            loop {
                let response = tokio::select! {
                    response = own.recv() => response,
                    () = forward.closed() => return,
                };
                let Some(ObserveResponse { calls, dropped }) = response else { return };
                if forward.send(Part::Calls { node, calls, dropped }).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(hear_others(self.peers.clone(), filter, sender));
        Ok(parts)
    }
}

/// One task a node that there is.
async fn hear_others(peers: Peers, filter: Filter, sender: mpsc::Sender<Part>) {
    let mut hearing: HashMap<SocketAddr, tokio::task::JoinHandle<()>> = HashMap::new();
    let mut look = tokio::time::interval(AGAIN_AFTER);
    loop {
        tokio::select! {
            () = sender.closed() => break,
            _ = look.tick() => {}
        }
        let others = peers.others();
        hearing.retain(|address, task| {
            let is_there = others.iter().any(|(_, known)| known == address);
            if !is_there {
                task.abort();
            }
            is_there && !task.is_finished()
        });
        for (node, address) in others {
            hearing.entry(address).or_insert_with(|| {
                tokio::spawn(hear(peers.clone(), node, address, filter.clone(), sender.clone()))
            });
        }
    }
    hearing.into_values().for_each(|task| task.abort());
}

/// What one node tells, until it ends; then the watcher is told why.
async fn hear(peers: Peers, node: NodeId, address: SocketAddr, filter: Filter, sender: mpsc::Sender<Part>) {
    let listen = async {
        let mut client = peers.fleet_of_its_own(address)?;
        let mut stream = client.observe(filter.to_wire()).await?.into_inner();
        while let Some(ObserveResponse { calls, dropped }) = stream.message().await? {
            if sender.send(Part::Calls { node, calls, dropped }).await.is_err() {
                return Ok(());
            }
        }
        Err(Status::unavailable("the node ended the stream"))
    };
    if let Err::<(), Status>(status) = listen.await {
        let reason = status.message().to_owned();
        // Nobody listens any more: nobody needs the reason.
        sender.send(Part::Missing { node, address, reason }).await.ok();
    }
}

/// From the tap to the watcher, with names.
async fn tell(
    mut observer: Observer,
    filter: Filter,
    mut named: Named,
    sender: mpsc::Sender<ObserveResponse>,
) {
    loop {
        let (calls, dropped) = tokio::select! {
            next = observer.next() => match next {
                Some(next) => next,
                None => return,
            },
            () = sender.closed() => return,
        };
        let naming = tokio::task::spawn_blocking(move || {
            let calls: Vec<Call> = calls.iter().map(|call| named.call(call)).collect();
            (named, calls)
        });
        let Ok((back, calls)) = naming.await else { return };
        named = back;
        let calls: Vec<Call> = calls.into_iter().filter(|call| filter.fits(call)).collect();
        if (!calls.is_empty() || dropped > 0)
            && sender.send(ObserveResponse { calls, dropped }).await.is_err()
        {
            return;
        }
    }
}

/// The dictionary, with what was asked before.
struct Named {
    dictionary: Dictionary,
    known: HashMap<(Kind, u32), String>,
}

impl Named {
    fn new(dictionary: Dictionary) -> Self {
        Self { dictionary, known: HashMap::new() }
    }

    /// Empty where there is none.
    fn name(&mut self, kind: Kind, id: u32) -> String {
        if id == 0 {
            return String::new();
        }
        if let Some(name) = self.known.get(&(kind, id)) {
            return name.clone();
        }
        let name = self.dictionary.resolve(kind, id).ok().flatten().unwrap_or_default();
        if self.known.len() >= NAMES_MAX {
            self.known.clear();
        }
        // A name that is not known yet may come from another node.
        if !name.is_empty() {
            self.known.insert((kind, id), name.clone());
        }
        name
    }

    fn service(&mut self, end: &tap::End) -> String {
        let kind =
            Kind::from_number(end.service_type).filter(|kind| !matches!(kind, Kind::Ip | Kind::Internet));
        let name = kind.map_or_else(String::new, |kind| self.name(kind, end.service_id));
        if name.is_empty() { address(end.ip).to_string() } else { name }
    }

    fn call(&mut self, call: &tap::Call) -> Call {
        Call {
            agent_id: call.agent_id,
            time: call.time,
            duration_us: call.duration_us,
            client: self.service(&call.client),
            server: self.service(&call.server),
            client_address: SocketAddr::new(address(call.client.ip), call.client.port).to_string(),
            server_address: SocketAddr::new(address(call.server.ip), call.server.port).to_string(),
            observation_point: call.observation_point.into(),
            l7_protocol: call.l7_protocol.into(),
            status: call.status.into(),
            code: call.code,
            request_type: self.name(Kind::RequestType, call.request_type_id),
            request_domain: self.name(Kind::RequestDomain, call.request_domain_id),
            endpoint: self.name(Kind::Endpoint, call.endpoint_id),
            resource: call.resource.clone(),
            exception: call.exception.clone(),
            trace_id: call.trace_id.clone(),
        }
    }
}

fn address(ip: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(ip).to_canonical()
}

/// A call as JSON: one line.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    /// Microseconds since 1970.
    time: u64,
    node_id: u16,
    agent_id: u32,
    from: String,
    to: String,
    client: String,
    server: String,
    observation_point: &'static str,
    protocol: &'static str,
    request_type: String,
    request_domain: String,
    endpoint: String,
    resource: String,
    status: &'static str,
    code: i32,
    exception: String,
    duration_us: u64,
    trace_id: String,
}

impl Line {
    pub(crate) fn new(node: NodeId, call: Call) -> Self {
        let number = |value: u32| u8::try_from(value).unwrap_or(u8::MAX);
        Self {
            time: call.time,
            node_id: node.get(),
            agent_id: call.agent_id,
            from: call.client,
            to: call.server,
            client: call.client_address,
            server: call.server_address,
            observation_point: ObservationPoint::from_number(number(call.observation_point))
                .map_or("", |point| point.name()),
            protocol: L7Protocol::from_number(number(call.l7_protocol))
                .map_or("", |protocol| protocol.name()),
            request_type: call.request_type,
            request_domain: call.request_domain,
            endpoint: call.endpoint,
            resource: call.resource,
            status: ResponseStatus::from_number(number(call.status)).map_or("", |status| status.name()),
            code: call.code,
            exception: call.exception,
            duration_us: call.duration_us,
            trace_id: call.trace_id,
        }
    }
}
