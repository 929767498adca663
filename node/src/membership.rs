//! Who is in the cluster: every node tells every other about itself by gossip over UDP, and sees the others as a [`View`].
//!
//! Membership is a hint. A node may see others that are gone, or miss some that are there; nothing that must be right rests on it.
//! Without seeds a node is a cluster of one and opens no socket.
//!
//! In reading order: `member` is what a node says of itself; `book` makes the view of what gossip shows; `server` keeps gossip
//! running; `screen` looks at datagrams before the library does; `gossip` is the one file that knows the library.
//!
//! Leaves out: what is done with the view. Gossip is not authenticated; its port belongs on a private network.

mod book;
#[cfg(test)]
mod forge;
mod generation;
mod gossip;
pub(crate) mod member;
mod pace;
mod screen;
mod seeds;
mod server;
mod stats;
#[cfg(test)]
mod tests;
mod view;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use tokio::{net::UdpSocket, sync::watch, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{clock, metrics::Reading};
use book::Book;
use gossip::{Wire, lock};
use pace::Pace;
use server::Server;

pub use gossip::Network;
pub use member::{Facts, Load, State};
pub use view::{Duplicate, Member, View};

/// Intervals of gossip that a node waits after its last word, so that it arrives.
const LAST_WORD_INTERVALS: u32 = 2;
/// Time for gossip to end once it was told to.
const END_WITHIN: Duration = Duration::from_secs(1);

/// What a member needs to take part.
#[derive(Debug, Clone)]
pub struct Config {
    /// Nodes of another cluster are not listened to.
    pub cluster: String,
    pub node_id: u16,
    /// What the node says of itself; `start` and `clock_ms` are filled in.
    pub facts: Facts,
    /// `host:port` of some members; this node may be among them.
    pub seeds: Vec<String>,
    /// Between two rounds of gossip. None: as the size of the cluster asks for.
    pub interval: Option<Duration>,
    /// Silence, in mean times between two signs of life, after which a member counts as dead.
    pub phi_threshold: f64,
    /// Where the last generation is kept.
    pub generation_file: PathBuf,
}

/// How a member reaches the others.
#[derive(Debug)]
pub enum Transport {
    /// Not at all: a cluster of one.
    Alone,
    Udp {
        listen: SocketAddr,
        advertise: Option<SocketAddr>,
    },
    /// At this address of a network in memory.
    Memory(Network, SocketAddr),
}

/// This node's part in the cluster. Dropping it is a death: the others notice by themselves.
#[derive(Debug)]
pub struct Membership {
    server: Arc<Server>,
    /// None: a cluster of one, or it has left.
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Membership {
    /// Takes part from now on; the others come into the view by and by.
    pub async fn start(config: Config, transport: Transport) -> anyhow::Result<Self> {
        let Config { cluster, node_id, mut facts, seeds, interval, phi_threshold, generation_file } = config;
        facts.clock_ms = clock::milliseconds();
        let (wire, own_address) = match transport {
            Transport::Alone => (None, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))),
            Transport::Udp { listen, advertise } => {
                let socket = UdpSocket::bind(listen).await.with_context(|| {
                    format!("failed to listen on cluster.listen = {listen} (UDP); is another node running?")
                })?;
                let own_address = advertise.map_or_else(|| socket.local_addr(), Ok)?;
                (Some(Wire::Udp(Arc::new(socket))), own_address)
            }
            Transport::Memory(network, address) => (Some(Wire::Memory(network)), address),
        };
        let view = View { cluster: cluster.clone(), own: node_id, members: vec![], duplicates: vec![] };
        let server = Arc::new(Server {
            book: Mutex::new(Book::new(cluster.clone(), node_id)),
            cluster,
            node_id,
            own_address,
            seeds,
            interval,
            phi_threshold,
            generation_file,
            facts: watch::channel(facts).0,
            view: watch::channel(Arc::new(view)).0,
            stats: Arc::default(),
            leave: CancellationToken::new(),
            crashes: AtomicUsize::new(0),
            pace: Mutex::new(Pace::of_members(1, None)),
        });
        server.see_only_oneself();
        let task = wire.map(|wire| tokio::spawn(server::supervise(Arc::clone(&server), wire)));
        Ok(Self { server, task: Mutex::new(task) })
    }

    /// The view now and every later one. Load and clocks are part of it, so it changes often; who only needs some of it compares.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.server.view.subscribe()
    }

    /// Where this node gossips; the port is the kernel's choice when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.server.own_address
    }

    /// Tells the others where this node is in its life.
    pub fn set_state(&self, state: State) {
        self.say(|facts| {
            facts.state = state;
            facts.eligible &= state == State::Ready;
        });
    }

    /// How often this node's process has lately ended without leaving: what others would call its flaps.
    pub fn crashes(&self) -> usize {
        self.server.crashes.load(Ordering::Relaxed)
    }

    /// Tells the others whether this node has been ready for long enough to be given work.
    pub fn set_eligible(&self, eligible: bool) {
        if self.server.facts.borrow().eligible != eligible {
            self.say(|facts| facts.eligible = eligible);
        }
    }

    /// Tells the others how much this node has to do, and what its clock says.
    pub fn set_load(&self, load: Load) {
        self.say(|facts| facts.load = load);
    }

    /// Shows a dead node no more, up to this generation of it; false when it is not there or lives.
    pub(crate) fn forget(&self, node_id: u16, generation: u64) -> bool {
        if !lock(&self.server.book).forget(node_id, generation) {
            return false;
        }
        self.server.view.send_modify(|view| {
            let members = view.members.iter().filter(|member| member.node_id != node_id).cloned();
            *view = Arc::new(View { members: members.collect(), ..View::clone(view) });
        });
        true
    }

    fn say(&self, change: impl FnOnce(&mut Facts)) {
        self.server.facts.send_modify(|facts| {
            change(facts);
            facts.clock_ms = clock::milliseconds();
        });
        if lock(&self.task).is_none() {
            self.server.see_only_oneself();
        }
    }

    /// Says that this node has nothing any more, waits until that has arrived, and ends.
    pub async fn leave(&self) {
        self.set_state(State::Drained);
        let Some(mut task) = lock(&self.task).take() else { return };
        let interval = lock(&self.server.pace).interval;
        tokio::time::sleep(interval * LAST_WORD_INTERVALS).await;
        self.server.leave.cancel();
        if tokio::time::timeout(END_WITHIN, &mut task).await.is_err() {
            tracing::warn!("gossip did not end in time");
            task.abort();
        }
        let server = Arc::clone(&self.server);
        let marked = tokio::task::spawn_blocking(move || generation::left(&server.generation_file)).await;
        if let Ok(Err(error)) = marked {
            tracing::warn!(%error, "the next start will look like one after a crash");
        }
    }

    /// Bytes of the largest datagram that this node has sent; none in a cluster of one.
    pub(crate) fn largest_datagram(&self) -> Option<u64> {
        lock(&self.task).as_ref().map(|_| self.server.stats.largest_out.load(Ordering::Relaxed))
    }

    /// Figures of gossip and of the view.
    pub(crate) fn readings(&self, out: &mut Vec<Reading>) {
        let view = Arc::clone(&self.server.view.borrow());
        for word in ["starting", "ready", "draining", "drained", "dead", "left"] {
            let number = view.members.iter().filter(|member| member.word() == word).count();
            let reading = Reading::gauge("cluster_members", "Members by state", number as f64);
            out.push(reading.label("state", word));
        }
        let help = "Node ids that two running nodes use";
        out.push(Reading::gauge("cluster_duplicate_node_ids", help, view.duplicates.len() as f64));
        for (node_id, silence) in lock(&self.server.book).silences(Instant::now().into_std()) {
            let help = "Time since a live member was heard";
            let reading = Reading::gauge("cluster_member_silent_seconds", help, silence.as_secs_f64());
            out.push(reading.label("node_id", node_id.to_string()));
        }
        if lock(&self.task).is_some() {
            self.server.stats.read(out);
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if let Some(task) = &*lock(&self.task) {
            task.abort();
        }
    }
}
