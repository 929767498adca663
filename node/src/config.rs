//! The node's configuration: what an operator may say, its defaults, and what is refused.
//!
//! `deploy/node.toml` shows every setting with its default. An unknown or unsafe value is refused by name before anything starts.

mod cluster;
mod memory;
mod size;
#[cfg(test)]
mod tests;
mod tls;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

pub use cluster::Cluster;
pub use memory::Memory;
pub use size::Size;
pub use tls::Tls;
pub(crate) use tls::{is_local, store as store_tls};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A node's settings.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Unique in a cluster for ever, 1 to 1023: ids that this node gives begin with it.
    pub node_id: u16,
    /// Everything that must survive a restart; one node at a time.
    pub data_dir: PathBuf,
    /// How long a stop may take to hand what was accepted to the store; what is left then waits in the write-ahead log.
    #[serde(with = "humantime_serde")]
    pub stop_within: Duration,
    /// Lets sockets beyond loopback be plain text and open to everybody.
    pub insecure: bool,
    pub log: Log,
    pub tls: Tls,
    pub cluster: Cluster,
    pub grpc: Grpc,
    pub http: Http,
    pub query: Query,
    pub memory: Memory,
    pub wal: Wal,
    pub store: Store,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    pub format: LogFormat,
    pub level: LogLevel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Where agents connect.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Grpc {
    pub listen: SocketAddr,
    /// Connections at one time; one an agent.
    pub connections_max: NonZeroUsize,
}

/// Where people, dashboards and probes connect.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    pub listen: SocketAddr,
    /// Who may ask; without it everybody who can connect.
    pub tokens_file: Option<PathBuf>,
    /// Connections at one time; more wait to be accepted.
    pub connections_max: NonZeroUsize,
}

/// Limits of queries.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Query {
    /// Queries that run at one time.
    pub running_max: NonZeroUsize,
    /// Queries that wait for one to end; more are refused with status 503.
    pub waiting_max: usize,
    /// Time that a query may take.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Memory that the store may use for one query.
    pub memory: Size,
}

/// The write-ahead log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wal {
    /// Batches that wait for the store; when it is full, agents wait and spool on their own disks.
    pub size_max: Size,
    /// What the log leaves free on its disk, which an embedded engine needs to end what it has begun.
    pub keep_free: Size,
}

/// Where rows end up.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase", tag = "mode")]
pub enum Store {
    /// A ClickHouse engine that the node runs itself, with its data below `data_dir`.
    Embedded {
        /// libchdb.so; without it $METAFLOW_ENGINE, the folder of this program and the user's cache are looked through.
        #[serde(default)]
        library: Option<PathBuf>,
    },
    /// A ClickHouse server.
    Server {
        /// HTTP addresses, e.g. `https://10.0.0.1:8443`.
        urls: Vec<String>,
        /// Where they begin with https: the servers have certificates of one of these (PEM).
        #[serde(default)]
        authority: Option<PathBuf>,
        #[serde(default = "default_user")]
        user: String,
        #[serde(default)]
        password: Option<Secret>,
        /// A file that holds the password alone; it keeps the password out of the configuration.
        #[serde(default)]
        password_file: Option<PathBuf>,
    },
}

/// A password: never printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct Secret(String);

impl Secret {
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(hidden)")
    }
}

fn default_user() -> String {
    "default".to_owned()
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_id: 1,
            data_dir: PathBuf::from("/var/lib/metaflow"),
            stop_within: Duration::from_secs(30),
            insecure: false,
            log: Log::default(),
            tls: Tls::default(),
            cluster: Cluster::default(),
            grpc: Grpc::default(),
            http: Http::default(),
            query: Query::default(),
            memory: Memory::default(),
            wal: Wal::default(),
            store: Store::Embedded { library: None },
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: LogLevel::Info }
    }
}

impl LogLevel {
    /// The level of our own crates; libraries speak only of what needs a person.
    pub(crate) fn filter(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "warn,chitchat=error,metaflow=info,metaflow_node=info,metaflow_actors=info",
            Self::Debug => "info,chitchat=error,metaflow=debug,metaflow_node=debug,metaflow_actors=debug",
            Self::Trace => "trace",
        }
    }
}

/// Loopback: it is open without certificates and tokens.
fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

const fn non_zero(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).expect("a default is not zero")
}

impl Default for Grpc {
    fn default() -> Self {
        Self { listen: loopback(20035), connections_max: non_zero(65_536) }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: loopback(20416), tokens_file: None, connections_max: non_zero(512) }
    }
}

impl Default for Query {
    fn default() -> Self {
        Self {
            running_max: non_zero(8),
            waiting_max: 64,
            timeout: Duration::from_secs(30),
            memory: Size(4 * GIB),
        }
    }
}

impl Default for Wal {
    fn default() -> Self {
        Self { size_max: Size(10 * GIB), keep_free: Size(64 * MIB) }
    }
}

/// Reads the configuration file, if any, and checks all values.
pub fn load(file: Option<&Path>, data_dir: Option<PathBuf>) -> anyhow::Result<Config> {
    let mut config = match file {
        Some(file) => {
            let text = fs::read_to_string(file)
                .with_context(|| format!("failed to read the configuration {}", file.display()))?;
            parse(&text).with_context(|| format!("in the configuration {}", file.display()))?
        }
        None => Config::default(),
    };
    if let Some(data_dir) = data_dir {
        config.data_dir = data_dir;
    }
    check(&config)?;
    Ok(config)
}

fn parse(text: &str) -> anyhow::Result<Config> {
    Ok(toml::from_str(text)?)
}

/// Refuses values that would lose data or stop the node later.
fn check(config: &Config) -> anyhow::Result<()> {
    let Config {
        node_id,
        data_dir,
        stop_within,
        insecure,
        log: _,
        tls: _,
        cluster,
        grpc,
        http,
        query,
        memory,
        wal,
        store,
    } = config;
    ensure!((1..=1023).contains(node_id), "node_id = {node_id}: must be 1 to 1023");
    ensure!(!data_dir.as_os_str().is_empty(), "data_dir is empty");
    ensure!(*stop_within >= Duration::from_secs(1), "stop_within is shorter than 1s: a stop could not flush");
    ensure!(
        grpc.listen.port() == 0 || grpc.listen != http.listen,
        "grpc.listen and http.listen are both {}",
        http.listen
    );
    cluster.check()?;
    tls::check(config)?;
    let seconds = query.timeout.as_secs();
    ensure!((1..=3600).contains(&seconds), "query.timeout must be 1s to 1h");
    ensure!(query.memory.0 >= 16 * MIB, "query.memory is below 16MiB: no query would run");
    memory.check()?;
    ensure!(wal.size_max.0 >= 64 * MIB, "wal.size_max is below 64MiB");
    check_store(store, *insecure)
}

fn check_store(store: &Store, insecure: bool) -> anyhow::Result<()> {
    let Store::Server { urls, authority, user, password, password_file } = store else { return Ok(()) };
    ensure!(!urls.is_empty(), "store.urls is empty: name the HTTP address of a ClickHouse server");
    let scheme = if authority.is_some() { "https" } else { "http" };
    for url in urls {
        let parsed: reqwest::Url =
            url.parse().with_context(|| format!("store.urls: {url:?} is not an address"))?;
        ensure!(
            parsed.scheme() == scheme,
            "store.urls: {url:?} does not begin with {scheme}://; https:// and store.authority go together"
        );
        ensure!(
            parsed.username().is_empty() && parsed.password().is_none(),
            "store.urls: an address holds a user or password; set store.user and store.password_file"
        );
    }
    ensure!(
        insecure || authority.is_some() || !leave_machine(urls),
        "store.urls: rows and the password would go to another machine in plain text: use https:// and set store.authority, or write \
         insecure = true"
    );
    ensure!(!user.is_empty(), "store.user is empty");
    if password.is_some() && password_file.is_some() {
        bail!("store.password and store.password_file are both set");
    }
    Ok(())
}

/// Whether what is sent to one of these addresses leaves this machine.
pub(crate) fn leave_machine(urls: &[String]) -> bool {
    let stays = |url: &String| {
        let url = url.parse::<reqwest::Url>().ok();
        url.as_ref().and_then(reqwest::Url::host_str).is_some_and(metaflow_tls::is_local)
    };
    !urls.iter().all(stays)
}
