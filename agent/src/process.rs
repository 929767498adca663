//! The agent as a process: starts the threads, watches them, and ends them in order.
//!
//! ```text
//! capture thread --queue of pieces--> sealing thread --spool--> sender (tokio)
//! eBPF thread -----queue of pieces--> sealing thread
//! profile thread --queue of pieces--> sealing thread
//! facts thread --snapshots--> sealing thread, sender        guard (tokio, once a second) --level--> capture thread
//! ```
//!
//! The end: the capture stops, flows and intervals are closed, all is made durable, the sender gets a while to send it.

#[cfg(test)]
mod corpus_tests;
mod host;
mod inside;
mod replay;
mod run;
mod status;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use metaflow_wire::Hello;
use tokio::{sync::watch, task::JoinHandle as Task};
use tokio_util::sync::CancellationToken;

pub use replay::{Replay, replay};
pub use run::run;
pub use status::Status;

use crate::{
    clock,
    config::Config,
    control::{Control, Running},
    emit,
    facts::{Host, Identity, Snapshot},
    guard::{Ceilings, Guard, LOOK_INTERVAL, Level, Shedding, UsageMeter},
    metrics::Metrics,
    pipeline::{Piece, QUEUE, Sealer, Settings},
    sender::{self, Sender, SharedSpool, State},
    spool::{self, Spool, generation_at},
};

/// A process without its source of frames.
struct Process {
    config: Config,
    metrics: Arc<Metrics>,
    shedding: Arc<Shedding>,
    spool: SharedSpool,
    state: Arc<State>,
    /// Ends the threads that look at the host.
    stop: CancellationToken,
    sender: Task<()>,
    stop_sender: CancellationToken,
    guard: Task<()>,
    sealer: Option<JoinHandle<()>>,
    queue: Option<SyncSender<Piece>>,
    hurry: Arc<AtomicBool>,
}

/// What differs between capturing and replaying.
struct Start {
    machine_id: String,
    emit: emit::Config,
    /// A replay waits for room in the spool.
    spool_bytes_wait: Option<u64>,
    facts: watch::Receiver<Arc<Snapshot>>,
    host: watch::Receiver<Arc<Host>>,
    /// The guard holds the agent within its ceilings; a replay runs as fast as it can.
    is_guarded: bool,
}

impl Process {
    /// `config` is what counts at the start, with what nodes set before.
    fn start(config: Config, control: Control, start: Start) -> anyhow::Result<Self> {
        let mut sender_config = sender::Config::new(config.servers.clone());
        sender_config.tls = config.tls.client()?;
        sender_config.insecure = config.insecure;
        let now = clock::now();
        let spool_config = spool::Config::new(config.data_dir.clone(), config.spool.bytes_max.0);
        let (spool, recovery) = Spool::open(spool_config, generation_at(now))?;
        tracing::info!(
            generation = spool.generation(),
            agent_id = spool.agent_id(),
            batches = recovery.batches,
            corrupt_records = recovery.corrupt_records,
            torn_bytes = recovery.torn_bytes,
            "spool is open"
        );
        let generation = spool.generation();
        let spool = SharedSpool::new(spool);
        let metrics = Arc::new(Metrics::default());
        let settings = control.running();
        let running = start.is_guarded.then(|| settings.clone());
        let sender = Sender::new(
            sender_config,
            hello(&config, &start.machine_id),
            spool.clone(),
            start.facts,
            control,
            Arc::clone(&metrics),
        );
        let state = sender.state();
        let stop = CancellationToken::new();
        let stop_sender = CancellationToken::new();
        let stopping = stop_sender.clone();
        let sender = tokio::spawn(async move {
            if recovery.created {
                generation_over(generation).await;
            }
            sender.run(stopping).await;
        });
        let shedding = Arc::new(Shedding::default());
        let guard = tokio::spawn(guard(
            start.is_guarded,
            settings,
            Arc::clone(&metrics),
            Arc::clone(&shedding),
            stop.clone(),
        ));
        let hurry = Arc::new(AtomicBool::new(false));
        let (queue, pieces) = sync_channel(QUEUE);
        let settings = Settings {
            emit: start.emit,
            flush_interval: config.spool.flush_interval,
            spool_bytes_wait: start.spool_bytes_wait,
            clock: clock::now,
            running,
        };
        let sealer = Sealer::new(settings, spool.clone(), start.host, Arc::clone(&metrics));
        let sealer = seal_thread(sealer, pieces, Arc::clone(&hurry))?;
        Ok(Self {
            config,
            metrics,
            shedding,
            spool,
            state,
            stop,
            sender,
            stop_sender,
            guard,
            sealer: Some(sealer),
            queue: Some(queue),
            hurry,
        })
    }

    fn queue(&self) -> anyhow::Result<SyncSender<Piece>> {
        self.queue.clone().context("the process is ending")
    }

    /// Closes the queue and waits until everything is durable. The capture thread must be over.
    async fn seal(&mut self) -> anyhow::Result<()> {
        drop(self.queue.take());
        let Some(sealer) = self.sealer.take() else { return Ok(()) };
        join(sealer, "sealing").await
    }

    /// Waits until the store has all, as long as something moves within `patience`. True when it has.
    /// Without `is_patient`, a missing connection ends it at once.
    async fn drain(&self, patience: Duration, is_patient: bool, give_up: &CancellationToken) -> bool {
        let mut look = tokio::time::interval(Duration::from_millis(10));
        let mut last = (0, Instant::now());
        let mut flushed = Instant::now();
        while !give_up.is_cancelled() {
            look.tick().await;
            let stats = {
                let spool = self.spool.lock();
                if spool.is_empty() {
                    return true;
                }
                spool.stats()
            };
            let committed = stats.committed_batches;
            if stats.waiting_batches > 0 && flushed.elapsed() >= self.config.spool.flush_interval {
                // The disk was full at the end of the capture; nobody else writes what waits any more.
                flushed = Instant::now();
                let spool = self.spool.clone();
                if let Ok(Err(error)) = tokio::task::spawn_blocking(move || spool.flush()).await {
                    tracing::debug!(%error, "the spool cannot be written yet");
                }
            }
            let may_connect = self.state.connected.load(Ordering::Relaxed) || is_patient;
            if committed > last.0 {
                last = (committed, Instant::now());
            } else if last.1.elapsed() >= patience || !may_connect {
                return false;
            }
        }
        self.spool.lock().is_empty()
    }

    fn status(&self) -> Status {
        Status::new(&self.metrics, &self.spool.lock(), &self.state, self.shedding.level())
    }

    /// Ends sender and guard.
    async fn end(self) -> anyhow::Result<Status> {
        let status = self.status();
        self.stop.cancel();
        self.stop_sender.cancel();
        self.sender.await.context("sender panicked")?;
        self.guard.await.context("guard panicked")?;
        Ok(status)
    }
}

fn seal_thread(
    sealer: Sealer,
    pieces: Receiver<Piece>,
    hurry: Arc<AtomicBool>,
) -> anyhow::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("seal".to_owned())
        .spawn(move || sealer.run(&pieces, &hurry))
        .context("failed to start the sealing thread")
}

/// Waits for a thread without holding up the others.
async fn join<T: Send + 'static>(thread: JoinHandle<T>, name: &'static str) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(move || thread.join())
        .await?
        .map_err(|_| anyhow::anyhow!("the {name} thread panicked"))
}

/// A spool created anew, even together with its directory, gets a generation of its own as long as none was used within the second
/// of its creation.
async fn generation_over(generation: u32) {
    while generation_at(clock::now()) == generation {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn hello(config: &Config, machine_id: &str) -> Hello {
    let Identity { hostname, kernel_release, architecture, os } = Identity::read();
    Hello {
        protocol_version: metaflow_wire::PROTOCOL_VERSION,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        machine_id: machine_id.to_owned(),
        hostname,
        config_version: 0,
        agent_id: 0,
        agent_id_proof: Vec::new(),
        region: config.region.clone(),
        zone: config.zone.clone(),
        labels: config.labels.clone().into_iter().collect(),
        kernel_release,
        architecture,
        os,
    }
}

/// Measures once a second, decides how much is shed, and writes the status file.
async fn guard(
    is_guarded: bool,
    mut settings: Running,
    metrics: Arc<Metrics>,
    shedding: Arc<Shedding>,
    stop: CancellationToken,
) {
    let mut guard = Guard::default();
    let mut meter = UsageMeter::default();
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    loop {
        // A changed setting counts at once: the kill switch is no reason to wait.
        tokio::select! {
            () = stop.cancelled() => return,
            _ = look.tick() => {}
            Ok(()) = settings.changed() => {}
        }
        let config = Arc::clone(&settings.borrow_and_update());
        let usage = meter.look(&config.data_dir);
        metrics.memory_bytes.store(usage.memory_bytes, Ordering::Relaxed);
        metrics.cpu_percent.store(usage.cpu_percent, Ordering::Relaxed);
        let ceilings = ceilings(&config);
        let level = guard.look(&usage, &ceilings);
        let before = shedding.level();
        if is_guarded && level != before {
            let Ceilings { enabled, cpu_percent, memory_bytes, disk_free_bytes } = ceilings;
            if level > before {
                tracing::warn!(
                    ?level,
                    ?usage,
                    enabled,
                    cpu_percent,
                    memory_bytes,
                    disk_free_bytes,
                    "agent looks at less"
                );
            } else {
                tracing::info!(?level, ?usage, "agent looks at more again");
            }
            shedding.set(level);
        }
        metrics.shedding.store(u32::from(shedding.level() as u8), Ordering::Relaxed);
    }
}

fn ceilings(config: &Config) -> Ceilings {
    Ceilings {
        enabled: config.enabled,
        cpu_percent: config.guard.cpu_percent_max,
        memory_bytes: config.guard.memory_max.0,
        disk_free_bytes: config.guard.disk_free_min.0,
    }
}

/// The kill switch of the configuration counts from the first frame on.
fn first_level(config: &Config) -> Level {
    if config.enabled { Level::Normal } else { Level::Stop }
}

/// The directory of replays: two agents cannot share a spool.
fn replay_dir(config: &Config) -> PathBuf {
    config.data_dir.join("replay")
}
