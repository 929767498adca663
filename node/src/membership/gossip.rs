//! The gossip library: the only file that knows it.
//!
//! It gives what the library knows in our own types, and stands between the library and the network: every datagram is screened
//! first. The library can only decode what its own socket receives, so a datagram that passed goes to that socket through a pair
//! of sockets on loopback, and what the library sends takes the same way out.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use chitchat::{
    ChitchatConfig, ChitchatEnvelope, ChitchatHandle, ChitchatId, FailureDetectorConfig, NodeState,
    ProtocolVersion, spawn_chitchat,
    transport::{ChannelTransport, RecvOutcome, SendOutcome, Socket, Transport, UdpSocket as Codec},
};
use tokio::{net::UdpSocket, sync::watch, time::Instant};

use super::{
    pace::Pace,
    screen::{Identity, Refusal, Screen},
    stats::{Stats, add, raise},
};

/// Largest payload of a UDP datagram.
const DATAGRAM_BYTES_MAX: usize = 65_507;
/// Loopback delivers at once; what has not come by then was thrown away.
const LOOPBACK_WITHIN: Duration = Duration::from_millis(100);
/// A socket that fails at once each time must not keep a core busy.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// A network in memory, to look at many nodes in one process.
#[derive(Clone, Default)]
pub struct Network(ChannelTransport);

impl Network {
    /// Bytes and datagrams sent so far by all.
    pub fn sent(&self) -> (u64, u64) {
        let statistics = self.0.statistics();
        (statistics.num_bytes_total, statistics.num_messages_total)
    }
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Network")
    }
}

/// How datagrams travel.
#[derive(Debug, Clone)]
pub(super) enum Wire {
    /// The bound socket outlives a restart of gossip.
    Udp(Arc<UdpSocket>),
    Memory(Network),
}

/// What one start of gossip needs.
pub(super) struct Settings {
    pub(super) cluster: String,
    pub(super) own: Identity,
    pub(super) pace: Pace,
    pub(super) phi_threshold: f64,
    pub(super) dead_grace: Duration,
}

/// A running gossip; dropping it ends it without a word.
pub(super) struct Gossip {
    handle: ChitchatHandle,
    changes: watch::Receiver<BTreeMap<ChitchatId, NodeState>>,
}

/// One member as gossip sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) identity: Identity,
    /// Grows while the member runs.
    pub(super) heartbeat: u64,
    /// Grows with each change of its values.
    pub(super) version: u64,
    pub(super) live: bool,
    /// Only where the version is not the one that is known.
    pub(super) values: Option<Vec<(String, String)>>,
}

impl Gossip {
    pub(super) async fn start(
        settings: Settings,
        wire: &Wire,
        screen: Arc<Mutex<Screen>>,
        stats: Arc<Stats>,
        values: Vec<(String, String)>,
    ) -> anyhow::Result<Self> {
        let Settings { cluster, own, pace, phi_threshold, dead_grace } = settings;
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(&*own.node, own.generation, own.address),
            cluster_id: cluster,
            gossip_interval: pace.interval,
            listen_addr: own.address,
            // Names are resolved by `seeds`, more often and without holding up the start.
            seed_nodes: vec![],
            failure_detector_config: FailureDetectorConfig {
                phi_threshold,
                sampling_window_size: pace.samples,
                max_interval: pace.sample_max,
                initial_interval: pace.expected,
                dead_node_grace_period: dead_grace,
            },
            // No key is ever deleted.
            marked_for_deletion_grace_period: dead_grace,
            catchup_callback: None,
            extra_liveness_predicate: None,
            protocol_version: ProtocolVersion::V1,
        };
        let handle = match wire {
            Wire::Udp(outside) => {
                let door = Doors { outside: Arc::clone(outside), screen, stats };
                spawn_chitchat(config, values, &door).await?
            }
            Wire::Memory(network) => spawn_chitchat(config, values, &network.0).await?,
        };
        let changes = handle.chitchat().lock().await.live_nodes_watcher();
        Ok(Self { handle, changes })
    }

    /// Speaks to whoever is at the address; a failure shows in the missing answer.
    pub(super) fn greet(&self, address: SocketAddr) {
        if self.handle.gossip(address).is_err() {
            tracing::debug!(%address, "gossip has ended");
        }
    }

    /// Sets values of this node; those that are the same cost nothing.
    pub(super) async fn publish(&self, values: Vec<(String, String)>) {
        let chitchat = self.handle.chitchat();
        let mut chitchat = chitchat.lock().await;
        for (key, value) in values {
            chitchat.self_node_state().set(key, value);
        }
    }

    /// Everyone who is known, this node among them. `known` gives the version whose values need not be read again.
    pub(super) async fn observe(&self, known: impl Fn(&Identity) -> Option<u64>) -> Vec<Seen> {
        let chitchat = self.handle.chitchat();
        let chitchat = chitchat.lock().await;
        let live: std::collections::HashSet<&ChitchatId> = chitchat.live_nodes().collect();
        let states = chitchat.node_states().iter();
        states
            .map(|(id, state)| {
                let identity = Identity {
                    node: (*id.node_id).into(),
                    generation: id.generation_id,
                    address: id.gossip_advertise_addr,
                };
                let version = state.max_version();
                let is_known = known(&identity) == Some(version);
                let values = || state.key_values().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
                Seen {
                    heartbeat: state.heartbeat().into(),
                    version,
                    live: live.contains(id),
                    values: (!is_known).then(values),
                    identity,
                }
            })
            .collect()
    }

    /// Waits until someone joined, died or said something new. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The task has ended, and `ended` says so.
            std::future::pending::<()>().await;
        }
    }

    /// Resolves at an end that nobody asked for.
    pub(super) fn ended(&self) -> impl Future<Output = anyhow::Result<()>> + use<> {
        self.handle.termination_watcher()
    }
}

/// Opens doors on a socket that is bound already.
struct Doors {
    outside: Arc<UdpSocket>,
    screen: Arc<Mutex<Screen>>,
    stats: Arc<Stats>,
}

#[tonic::async_trait]
impl Transport for Doors {
    async fn open(&self, _: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let codec = Codec::open(loopback).await?;
        let pipe = UdpSocket::bind(loopback).await.context("failed to open a socket on loopback")?;
        // Connected: the kernel keeps away what others on this machine send.
        pipe.connect(codec.local_addr()?).await.context("failed to connect on loopback")?;
        Ok(Box::new(Door {
            pipe_address: pipe.local_addr()?,
            codec,
            pipe,
            outside: Arc::clone(&self.outside),
            screen: Arc::clone(&self.screen),
            stats: Arc::clone(&self.stats),
            passed: None,
            buffer: vec![0; DATAGRAM_BYTES_MAX],
        }))
    }
}

/// The way between the network and the library.
struct Door {
    outside: Arc<UdpSocket>,
    /// The library's own socket; it sees loopback only.
    codec: Codec,
    /// Its other end.
    pipe: UdpSocket,
    pipe_address: SocketAddr,
    screen: Arc<Mutex<Screen>>,
    stats: Arc<Stats>,
    /// The sender of the datagram that is on its way through the pipe, and until when that is believed.
    passed: Option<(SocketAddr, Instant)>,
    buffer: Vec<u8>,
}

#[tonic::async_trait]
impl Socket for Door {
    fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.outside.local_addr()?)
    }

    /// A datagram that cannot be sent is one that was lost: never an error.
    async fn send(&mut self, to: SocketAddr, envelope: ChitchatEnvelope) -> anyhow::Result<SendOutcome> {
        while self.pipe.try_recv(&mut self.buffer).is_ok() {
            // A datagram that came too late for its turn.
        }
        let encoded = async {
            self.codec.send(self.pipe_address, envelope).await?;
            anyhow::Ok(self.pipe.recv(&mut self.buffer).await?)
        };
        let sent = match tokio::time::timeout(LOOPBACK_WITHIN, encoded).await {
            Ok(Ok(length)) => self.outside.send_to(&self.buffer[..length], to).await.map_err(Into::into),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(anyhow::anyhow!("nothing came through loopback")),
        };
        match sent {
            Ok(num_bytes_sent) => {
                add(&self.stats.datagrams_out, 1);
                add(&self.stats.bytes_out, num_bytes_sent as u64);
                raise(&self.stats.largest_out, num_bytes_sent as u64);
                Ok(SendOutcome { num_bytes_sent })
            }
            Err(error) => {
                add(&self.stats.socket_errors, 1);
                tracing::debug!(%error, %to, "a gossip datagram was not sent");
                Ok(SendOutcome { num_bytes_sent: 0 })
            }
        }
    }

    /// Cancel-safe: what is on its way is remembered in `passed`.
    async fn recv(&mut self) -> anyhow::Result<RecvOutcome> {
        loop {
            if let Some((from, until)) = self.passed {
                match tokio::time::timeout_at(until, self.codec.recv()).await {
                    Ok(Ok(outcome)) if outcome.from_addr == self.pipe_address => {
                        self.passed = None;
                        return Ok(RecvOutcome { from_addr: from, ..outcome });
                    }
                    // Somebody else on this machine: not screened.
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return Err(error),
                    Err(_) => {
                        self.passed = None;
                        self.stats.refuse(Refusal::Undecodable);
                    }
                }
            } else {
                self.admit().await;
            }
        }
    }
}

impl Door {
    /// Takes one datagram from the network and, when it may pass, hands it to the codec.
    async fn admit(&mut self) {
        let (length, from) = match self.outside.recv_from(&mut self.buffer).await {
            Ok(received) => received,
            Err(error) => {
                add(&self.stats.socket_errors, 1);
                tracing::debug!(%error, "a gossip datagram was not received");
                return tokio::time::sleep(ERROR_PAUSE).await;
            }
        };
        add(&self.stats.datagrams_in, 1);
        add(&self.stats.bytes_in, length as u64);
        let datagram = &self.buffer[..length];
        let verdict = lock(&self.screen).look(datagram);
        if let Err(refusal) = verdict {
            tracing::debug!(%from, reason = refusal.name(), "a gossip datagram was refused");
            return self.stats.refuse(refusal);
        }
        match self.pipe.send(datagram).await {
            Ok(_) => self.passed = Some((from, Instant::now() + LOOPBACK_WITHIN)),
            Err(error) => {
                add(&self.stats.socket_errors, 1);
                tracing::debug!(%error, "loopback did not take a gossip datagram");
            }
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
