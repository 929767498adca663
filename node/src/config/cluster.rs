//! Settings of the cluster: who this node is in it, and where it finds the others.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::ensure;
use serde::Deserialize;

use super::loopback;
use crate::membership::{
    Facts, Transport,
    member::{LABEL_BYTES_MAX, WEIGHTS, is_label},
};

/// How often nodes may gossip: more often is work without end, less often leaves the dead among the living.
const INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(10);
const SEEDS_MAX: usize = 64;

/// Other nodes, and this one among them.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// The same on all nodes of a cluster; others are not listened to.
    pub name: String,
    /// `host:port` of some nodes. Without any, the node is a cluster of one and opens no gossip socket.
    pub seeds: Vec<String>,
    /// Where this node gossips (UDP).
    pub listen: SocketAddr,
    /// Where others reach it, when that is another address.
    pub advertise: Option<SocketAddr>,
    /// What people call this node. Default: n and its `node_id`.
    pub node_name: Option<String>,
    /// Nodes of one zone may fail together: copies are kept in several.
    pub zone: String,
    /// Agents stay with the nodes of their region.
    pub region: String,
    /// Share of the work, relative to other nodes: 1 to 16.
    pub weight: u8,
    /// Between two rounds of gossip. Default: 200 ms, from 100 nodes on 500 ms.
    #[serde(with = "humantime_serde")]
    pub gossip_interval: Option<Duration>,
    /// Silence after which a node counts as dead, in mean times between its signs of life.
    pub phi_threshold: f64,
    /// What the nodes of a cluster share, so that only they call each other.
    pub secret_file: Option<PathBuf>,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            name: "metaflow".to_owned(),
            seeds: vec![],
            listen: loopback(20037),
            advertise: None,
            node_name: None,
            zone: String::new(),
            region: String::new(),
            weight: 1,
            gossip_interval: None,
            phi_threshold: 5.0,
            secret_file: None,
        }
    }
}

impl Cluster {
    /// Whether there are to be other nodes.
    pub(crate) fn is_several(&self) -> bool {
        !self.seeds.is_empty()
    }

    pub(super) fn check(&self) -> anyhow::Result<()> {
        let Self {
            name,
            seeds,
            listen,
            advertise,
            node_name,
            zone,
            region,
            weight,
            gossip_interval,
            phi_threshold,
            secret_file: _,
        } = self;
        ensure!(!name.is_empty(), "cluster.name is empty");
        let labels = [("name", name), ("zone", zone), ("region", region)];
        let labels = labels.into_iter().chain(node_name.iter().map(|name| ("node_name", name)));
        for (setting, label) in labels {
            let is_short = label.len() <= LABEL_BYTES_MAX;
            ensure!(
                is_short && is_label(label),
                "cluster.{setting} = {label:?}: letters, digits and ._-+:/, at most {LABEL_BYTES_MAX} bytes"
            );
        }
        ensure!(seeds.len() <= SEEDS_MAX, "cluster.seeds has more than {SEEDS_MAX} entries");
        for seed in seeds {
            let port = seed.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
            let is_seed = port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port != 0));
            ensure!(is_seed, "cluster.seeds: {seed:?} is not host:port");
        }
        if !seeds.is_empty() {
            let others = advertise.unwrap_or(*listen);
            ensure!(
                !others.ip().is_unspecified(),
                "cluster.advertise is missing: others cannot reach {others}, so say at which address they reach this node"
            );
        }
        ensure!(WEIGHTS.contains(weight), "cluster.weight must be {} to {}", WEIGHTS.start(), WEIGHTS.end());
        if let Some(interval) = gossip_interval {
            ensure!(INTERVALS.contains(interval), "cluster.gossip_interval must be 50ms to 10s");
        }
        ensure!((1.0..=100.0).contains(phi_threshold), "cluster.phi_threshold must be 1 to 100");
        Ok(())
    }

    /// How this node reaches the others.
    pub(crate) fn transport(&self) -> Transport {
        if self.seeds.is_empty() {
            return Transport::Alone;
        }
        Transport::Udp { listen: self.listen, advertise: self.advertise }
    }

    /// What this node says of itself; `grpc` and `http` are where it listens.
    pub(crate) fn facts(&self, node_id: u16, grpc: SocketAddr, http: SocketAddr) -> Facts {
        let ip = self.advertise.unwrap_or(self.listen).ip();
        // Who listens everywhere is reached where its gossip is.
        let reached = |address: SocketAddr| {
            let ip = if address.ip().is_unspecified() { ip } else { address.ip() };
            Some(SocketAddr::new(ip, address.port()))
        };
        Facts {
            name: self.node_name.clone().unwrap_or_else(|| format!("n{node_id}")),
            zone: self.zone.clone(),
            region: self.region.clone(),
            weight: self.weight,
            grpc: reached(grpc),
            http: reached(http),
            protocol: (metaflow_wire::PROTOCOL_VERSION_OLDEST, metaflow_wire::PROTOCOL_VERSION),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Facts::default()
        }
    }
}
