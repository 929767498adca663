//! The embedded engine: a child process that serves ClickHouse on the loopback interface, and the task that keeps it running.
//!
//! The child ends when its standard input closes, so it never outlives this process. Each start has new ports, and each
//! [`Engine`] a new password. Leaves out: what is asked of the engine (`store::Store`) and the library call itself (node's `store-engine` verb).

mod config;
mod start;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    process::{Child, ChildStdin},
    sync::{oneshot, watch},
    task::JoinHandle,
    time::Instant,
};

use super::{Error, Servers};

pub use config::Limits;
use start::Started;

/// Version whose library the default path names.
pub const ENGINE_VERSION: &str = "26.7.3-stable.1";

/// A crashed engine starts again after this long, doubled for each crash that follows soon.
const RESTART_AFTER: Duration = Duration::from_millis(100);
const RESTART_AFTER_MAX: Duration = Duration::from_secs(5);
/// An engine that ran this long did not crash at its start: the next wait is short again.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// The engine closes its tables in about a second; one that takes longer is killed, which costs no data.
const STOP_WITHIN: Duration = Duration::from_secs(15);

/// How the engine is run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The program that has the verb, normally this one.
    pub executable: PathBuf,
    /// libchdb.so; [`find_library`] finds it.
    pub library: PathBuf,
    /// Folder of its configuration, log and tables.
    pub folder: PathBuf,
    pub limits: Limits,
    /// Whether other nodes may read its rows, and it those of theirs: see [`Engine::native`].
    pub is_shard: bool,
    /// From the start of the process to its first answer, including the wait for a previous engine that is ending.
    pub ready_within: Duration,
}

impl Config {
    pub fn new(executable: PathBuf, library: PathBuf, folder: PathBuf) -> Self {
        Self {
            executable,
            library,
            folder,
            limits: Limits::default(),
            is_shard: false,
            ready_within: Duration::from_secs(60),
        }
    }
}

/// How the engine is read over its native protocol, which is how one engine reads another.
#[derive(Clone, PartialEq, Eq)]
pub struct Native {
    pub port: u16,
    /// It reads MetaFlow's tables and can do nothing else.
    pub user: &'static str,
    pub password: String,
}

impl std::fmt::Debug for Native {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Native").field("port", &self.port).field("user", &self.user).finish_non_exhaustive()
    }
}

/// The passwords of an engine's two users: this node, and whoever reads.
#[derive(Clone)]
struct Passwords {
    node: String,
    reader: String,
}

/// A running engine. Dropping it ends the engine too, without waiting for it.
#[derive(Debug)]
pub struct Engine {
    servers: watch::Receiver<Servers>,
    native: watch::Receiver<Native>,
    process: watch::Receiver<Option<u32>>,
    stop: Option<oneshot::Sender<()>>,
    supervisor: JoinHandle<()>,
}

impl Engine {
    /// Starts the engine and waits until it answers.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let password = || {
            start::password()
                .map_err(|error| Error::Setup(format!("failed to make a password for the engine: {error}")))
        };
        let passwords = Passwords { node: password()?, reader: password()? };
        let started = start::start(&config, &passwords).await?;
        let Started { child, lifeline, servers, native } = started;
        let (servers_sender, servers) = watch::channel(servers);
        let (native_sender, native) = watch::channel(native);
        let (process_sender, process) = watch::channel(child.id());
        let (stop, stopped) = oneshot::channel();
        let supervisor = Supervisor {
            config,
            passwords,
            servers: servers_sender,
            native: native_sender,
            process: process_sender,
        };
        let supervisor = tokio::spawn(supervisor.run(child, lifeline, stopped));
        Ok(Self { servers, native, process, stop: Some(stop), supervisor })
    }

    /// Where the engine listens; changes when it starts again.
    pub fn servers(&self) -> watch::Receiver<Servers> {
        self.servers.clone()
    }

    /// Where it is read over its native protocol, if [`Config::is_shard`]; changes when it starts again.
    pub fn native(&self) -> watch::Receiver<Native> {
        self.native.clone()
    }

    /// The process now; none while it is between two starts.
    pub fn process(&self) -> watch::Receiver<Option<u32>> {
        self.process.clone()
    }

    /// Ends the engine: it finishes what runs, closes its tables, or is killed after a while.
    pub async fn stop(mut self) {
        if let Some(stop) = self.stop.take()
            && stop.send(()).is_ok()
            && let Err(error) = self.supervisor.await
        {
            tracing::error!(%error, "the engine's supervisor failed");
        }
    }
}

struct Supervisor {
    config: Config,
    /// The same for each start: the dictionary in the store knows one.
    passwords: Passwords,
    servers: watch::Sender<Servers>,
    native: watch::Sender<Native>,
    process: watch::Sender<Option<u32>>,
}

impl Supervisor {
    async fn run(
        self,
        mut child: Child,
        mut lifeline: Option<ChildStdin>,
        mut stopped: oneshot::Receiver<()>,
    ) {
        let mut wait = RESTART_AFTER;
        loop {
            let started_at = Instant::now();
            tokio::select! {
                _ = &mut stopped => return stop(child, lifeline).await,
                status = child.wait() => {
                    let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                    tracing::error!(status, log = %start::log_path(&self.config.folder).display(), "the engine ended, starting it again");
                }
            }
            self.process.send_replace(None);
            if started_at.elapsed() > STABLE_AFTER {
                wait = RESTART_AFTER;
            }
            (child, lifeline) = loop {
                tokio::select! {
                    _ = &mut stopped => return,
                    () = tokio::time::sleep(wait) => {}
                }
                wait = (wait * 2).min(RESTART_AFTER_MAX);
                tokio::select! {
                    _ = &mut stopped => return,
                    started = start::start(&self.config, &self.passwords) => match started {
                        Ok(started) => {
                            // First the name of the run: nobody may reach it under the old one.
                            self.process.send_replace(started.child.id());
                            self.servers.send_replace(started.servers);
                            self.native.send_replace(started.native);
                            break (started.child, started.lifeline);
                        }
                        Err(error) => tracing::error!(error = %format!("{error:#}"), "the engine does not start"),
                    }
                }
            };
        }
    }
}

async fn stop(mut child: Child, lifeline: Option<ChildStdin>) {
    drop(lifeline);
    match tokio::time::timeout(STOP_WITHIN, child.wait()).await {
        Ok(Ok(status)) => tracing::info!(%status, "the engine stopped"),
        Ok(Err(error)) => tracing::error!(%error, "failed to wait for the engine"),
        Err(_) => {
            tracing::warn!("the engine did not stop in time and is killed");
            if let Err(error) = child.kill().await {
                tracing::error!(%error, "failed to kill the engine");
            }
        }
    }
}

/// The engine's library: the configured path, else the first that exists of `METAFLOW_ENGINE`, the program's folder and the user's cache.
pub fn find_library(configured: Option<&Path>) -> Result<PathBuf, Error> {
    let missing = |path: &Path| {
        Error::Setup(format!(
            "the embedded engine's library is not at {}: get it with ./dev engine, or configure ClickHouse servers as the store",
            path.display()
        ))
    };
    let named = configured
        .map(Path::to_owned)
        .or_else(|| std::env::var_os("METAFLOW_ENGINE").filter(|path| !path.is_empty()).map(PathBuf::from));
    if let Some(path) = named {
        return if path.is_file() { Ok(path) } else { Err(missing(&path)) };
    }
    let beside =
        std::env::current_exe().ok().and_then(|path| path.parent().map(|folder| folder.join("libchdb.so")));
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .unwrap_or_default()
        .join("metaflow/engine")
        .join(ENGINE_VERSION)
        .join("libchdb.so");
    beside
        .filter(|path| path.is_file())
        .or_else(|| Some(cache.clone()).filter(|path| path.is_file()))
        .ok_or_else(|| missing(&cache))
}
