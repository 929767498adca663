//! The agent's configuration: a TOML file, each key with a default, and the part of it that nodes may set.
//!
//! A crate of its own because both ends read it: the agent runs with it, and a node refuses what no agent would take. Leaves out: what
//! the settings do (`agent`), and which agent gets which (`actors`).

mod ebpf;
mod host;
mod remote;
mod session;
mod size;
#[cfg(test)]
mod tests;
mod tls;

use std::{
    collections::BTreeMap,
    net::ToSocketAddrs as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

pub use ebpf::{Ebpf, Enabled};
pub use host::{Events, Profile};
pub use remote::{HOT, LOCAL, Problem, Remote, TEXT_BYTES_MAX, take_hot};
pub use session::Session;
pub use size::Size;
pub use tls::Tls;

/// Labels of one host, and bytes of each text that says where it is: nodes keep them for every agent.
const LABELS_MAX: usize = 16;
const PLACE_BYTES_MAX: usize = 128;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Nodes as `host:port`, the preferred first; nodes name more when they are reached.
    pub servers: Vec<String>,
    /// Identity of this host. Empty: that of `/etc/machine-id`.
    pub machine_id: String,
    /// Where this host is. Nodes of the region are preferred, and groups of agents can be made of it. Empty: where its node is.
    pub region: String,
    /// Part of the region.
    pub zone: String,
    /// What else groups of agents can be made of, e.g. `team = "shop"`.
    pub labels: BTreeMap<String, String>,
    /// Directory of the spool. Two agents cannot share one.
    pub data_dir: PathBuf,
    /// The kill switch: `false` captures nothing, and still sends what is spooled.
    pub enabled: bool,
    /// `true` sends to nodes beyond this host in plain text where `[tls]` names no authority.
    pub insecure: bool,
    pub tls: Tls,
    pub capture: Capture,
    pub ebpf: Ebpf,
    pub profile: Profile,
    pub events: Events,
    pub session: Session,
    pub spool: Spool,
    pub guard: Guard,
    pub log: Log,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Capture {
    /// Names of network interfaces; empty: all.
    pub interfaces: Vec<String>,
    /// Traffic from or to these ports is not looked at. The ports of `servers` are always left out.
    pub excluded_ports: Vec<u16>,
    /// Bytes of a packet that are looked at.
    pub snaplen: Size,
    /// Memory for packets that wait for the agent.
    pub ring: Size,
    /// Flows followed at one time; about 1.2 KB each.
    pub flows_max: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Spool {
    /// Cap of the files; beyond it the oldest rows are dropped and counted.
    pub bytes_max: Size,
    /// How often what is new is made durable; it is sent after that.
    #[serde(with = "humantime_serde")]
    pub flush_interval: Duration,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guard {
    /// CPU time that the agent may use, in hundredths of one CPU; beyond it the agent looks at less.
    pub cpu_percent_max: u32,
    /// Memory that the agent may use; beyond it the agent looks at less.
    pub memory_max: Size,
    /// Free space that the agent leaves on the disk of its spool.
    pub disk_free_min: Size,
    /// Requests a second that become rows of the log; beyond it a sample of them does, and metrics count all. 0: no bound.
    pub request_rows_max: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    pub format: LogFormat,
    /// A level or a filter, e.g. `info` or `metaflow_agent=debug`. The environment variable `RUST_LOG` comes first.
    pub filter: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            servers: vec!["127.0.0.1:20035".to_owned()],
            machine_id: String::new(),
            region: String::new(),
            zone: String::new(),
            labels: BTreeMap::new(),
            data_dir: PathBuf::from("/var/lib/metaflow-agent"),
            enabled: true,
            insecure: false,
            tls: Tls::default(),
            capture: Capture::default(),
            ebpf: Ebpf::default(),
            profile: Profile::default(),
            events: Events::default(),
            session: Session::default(),
            spool: Spool::default(),
            guard: Guard::default(),
            log: Log::default(),
        }
    }
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            // gRPC, HTTP and gossip of nodes; HTTP and TCP of the store's engine.
            excluded_ports: vec![20030, 20035, 20416, 8123, 9000],
            snaplen: Size(2 << 10),
            ring: Size(16 << 20),
            flows_max: 65_536,
        }
    }
}

impl Default for Spool {
    fn default() -> Self {
        Self { bytes_max: Size(1 << 30), flush_interval: Duration::from_millis(200) }
    }
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            cpu_percent_max: 100,
            memory_max: Size(512 << 20),
            disk_free_min: Size(512 << 20),
            request_rows_max: 50_000,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".to_owned() }
    }
}

impl Config {
    /// Reads a file and checks what it says.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("failed to read configuration {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("configuration {} is not valid", path.display()))
    }

    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    pub fn check(&self) -> anyhow::Result<()> {
        for server in &self.servers {
            ensure!(port_of(server).is_some(), "server {server:?} is not host:port");
            ensure!(
                self.insecure || self.tls.authority.is_some() || is_local(server),
                "server {server:?} is beyond this host and [tls] names no authority: name it (`metaflow ctl cert bootstrap` makes \
                 certificates), or write insecure = true to send in plain text"
            );
        }
        self.tls.check()?;
        ensure!(self.labels.len() <= LABELS_MAX, "labels: more than {LABELS_MAX}");
        let labels = self.labels.iter().flat_map(|(name, value)| [("labels", name), ("labels", value)]);
        for (key, text) in [("region", &self.region), ("zone", &self.zone)].into_iter().chain(labels) {
            ensure!(text.len() <= PLACE_BYTES_MAX, "{key}: {text:?} is longer than {PLACE_BYTES_MAX} bytes");
        }
        ensure!(self.capture.snaplen.0 >= 96, "capture.snaplen is below 96 bytes, which hold the headers");
        ensure!(self.capture.snaplen.0 <= 65_535, "capture.snaplen is above 64 KiB, the longest packet");
        ensure!(self.capture.ring.0 >= 1 << 20, "capture.ring is below 1 MiB");
        ensure!(self.capture.flows_max > 0, "capture.flows_max is 0");
        self.ebpf.check()?;
        self.session.check()?;
        self.profile.check()?;
        self.events.check()?;
        ensure!(
            self.spool.bytes_max.0 >= 8 << 20,
            "spool.bytes_max is below 8 MiB, two of the largest batches"
        );
        ensure!(!self.spool.flush_interval.is_zero(), "spool.flush_interval is 0");
        ensure!(self.guard.cpu_percent_max > 0, "guard.cpu_percent_max is 0");
        ensure!(self.guard.memory_max.0 >= 64 << 20, "guard.memory_max is below 64 MiB");
        Ok(())
    }

    /// Ports that are not captured: as configured, and those of the nodes.
    pub fn excluded_ports(&self) -> Vec<u16> {
        let mut ports = self.capture.excluded_ports.clone();
        ports.extend(self.servers.iter().filter_map(|server| port_of(server)));
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

fn port_of(server: &str) -> Option<u16> {
    let (host, port) = server.rsplit_once(':')?;
    // An address is checked as one; a name is resolved when it is used.
    let is_name = !host.is_empty() && !host.contains([':', '/', ' ', '@']);
    (is_name || (host.starts_with('[') && server.to_socket_addrs().is_ok())).then(|| port.parse().ok())?
}

/// Whether `host:port` is on this host.
pub fn is_local(server: &str) -> bool {
    server.rsplit_once(':').is_some_and(|(host, _)| metaflow_tls::is_local(host))
}
