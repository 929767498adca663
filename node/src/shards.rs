//! The stores of all nodes, read as one: where each node has an embedded engine, any node still answers for the whole cluster.
//!
//! ```text
//! own engine --native protocol--> door on loopback, one a node --gRPC Store--> that node --> its engine
//! ```
//!
//! An engine reads others as shards of a statement: it connects to a door that this node keeps for each of them, and the door's connection
//! goes on through an authenticated call to the node, which connects it to its own engine. So no engine listens beyond loopback, and
//! no password leaves its node: the door asks for one that only this process's engine is told, and the other end puts its own engine's
//! reader in its place.
//!
//! Who cannot be reached is left out and named in the answer. Bound: connections of a door and of a node, bytes of a hello, chunks on
//! the way. Leaves out: the statements (`crates/query`) and who is in the cluster (`membership`).

mod door;
mod hello;
mod pump;
mod serve;

use std::{
    collections::HashMap,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use metaflow_actors::{
    querier::{Missing, Reached, Stores},
    store::embedded::Native,
};
use metaflow_query::Shards as Addresses;
use tokio::sync::watch;
use tonic::Code;

use crate::{
    membership::{State, View},
    peers::Peers,
};
use door::{Door, Target};
pub(crate) use serve::{Chunks, Engine};

/// Time for a node to say that its store can be read; the answer waits for it.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// What the own engine reads with: its user's name for the doors, and a password of this process.
const USER: &str = "reader";

/// The doors to all stores.
pub(crate) struct Shards {
    view: watch::Receiver<Arc<View>>,
    peers: Peers,
    native: watch::Receiver<Native>,
    password: Arc<str>,
    doors: Mutex<HashMap<u16, Door>>,
}

impl Shards {
    pub(crate) fn new(
        view: watch::Receiver<Arc<View>>,
        peers: Peers,
        native: watch::Receiver<Native>,
    ) -> anyhow::Result<Self> {
        let password = door::password()?;
        Ok(Self { view, peers, native, password, doors: Mutex::default() })
    }

    /// What the node says of its store: whether it can be read, or none when its rows are in a store that all share.
    async fn ask(&self, address: SocketAddr) -> Result<bool, String> {
        let Some(mut client) = self.peers.client(address) else {
            return Err(format!("{address} is no address"));
        };
        let asked = client.reach_store(metaflow_wire::ReachStoreRequest {});
        match tokio::time::timeout(ANSWER_WITHIN, asked).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(status)) if status.code() == Code::FailedPrecondition => Ok(false),
            Ok(Err(status)) => Err(status.message().to_owned()),
            Err(_) => Err(format!("it did not answer within {ANSWER_WITHIN:?}")),
        }
    }

    /// The door to a node's store.
    async fn door(&self, node_id: u16, target: Target) -> std::io::Result<SocketAddr> {
        let known = self.lock().get(&node_id).filter(|door| door.leads_to(&target)).map(Door::address);
        if let Some(address) = known {
            return Ok(address);
        }
        let door = Door::open(target, self.password.clone(), self.native.clone(), self.peers.clone()).await?;
        let address = door.address();
        self.lock().insert(node_id, door);
        Ok(address)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u16, Door>> {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn all(&self) -> Reached {
        let view = self.view.borrow().clone();
        self.lock().retain(|node_id, _| view.member(*node_id).is_some());
        // Who has left had nothing more to say: what it stored went with it.
        let others = view.members.iter().filter(|member| {
            member.node_id != view.own && (member.live || member.facts.state != State::Drained)
        });
        let asked = others.map(async |member| {
            let reached = match member.facts.grpc {
                _ if !member.live => Err("it is dead".to_owned()),
                None => Err("it does not say where it can be asked".to_owned()),
                Some(address) => self.ask(address).await.map(|has_store| has_store.then_some(address)),
            };
            (member.node_id, member.facts.name.clone(), reached)
        });
        let mut addresses = vec![];
        let mut missing = vec![];
        for (node_id, name, reached) in futures::future::join_all(asked).await {
            let opened = match reached {
                Ok(None) => continue,
                Ok(Some(address)) => {
                    let door = self.door(node_id, Target::Node(address)).await;
                    door.map_err(|error| format!("failed to open a door to it: {error}"))
                }
                Err(reason) => Err(reason),
            };
            match opened {
                Ok(address) => addresses.push(address),
                Err(reason) => missing.push(Missing { node_id, name, reason }),
            }
        }
        if addresses.is_empty() {
            return Reached { shards: None, missing };
        }
        match self.door(view.own, Target::Own).await {
            Ok(own) => addresses.insert(0, own),
            Err(error) => {
                let name = view.member(view.own).map(|own| own.facts.name.clone()).unwrap_or_default();
                missing.push(Missing { node_id: view.own, name, reason: error.to_string() });
            }
        }
        Reached { shards: Addresses::new(&addresses, USER, &self.password), missing }
    }
}

impl Stores for Shards {
    fn reach(&self) -> Pin<Box<dyn Future<Output = Reached> + Send + '_>> {
        Box::pin(self.all())
    }
}
