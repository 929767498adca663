//! Captures the traffic of this host until told to stop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::host;
use super::inside::Inside;
use super::{Process, Start, Status, first_level, join};
use crate::{
    capture::{LiveConfig, LiveSource},
    clock,
    config::Config,
    control::Control,
    emit,
    facts::{Collector, Host, Snapshot, machine_id},
    flow,
    guard::{Level, Shedding},
    pipeline::{Feed, Overflow, capture},
};

/// How long the sender may go on after the end of the capture; what is left stays in the spool.
const LINGER: Duration = Duration::from_secs(3);
/// How often the host is looked at, and the status file is written.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Beyond its ceilings the agent looks at the host so many times less often: on a host of many processes that is most of what is left to spare.
const LOOKS_LEFT_OUT: u32 = 9;

pub async fn run(file: Config, stop: CancellationToken) -> anyhow::Result<Status> {
    let mut control = Control::open(file);
    let settings = control.running();
    let first = open_source(&settings.borrow());
    let mut source = match first {
        Err(error) if control.has_more_than_the_file() => {
            control.fall_back(&error);
            open_source(&settings.borrow())?
        }
        first => first?,
    };
    let config = Config::clone(&settings.borrow());
    let inside = Inside::open(&config)?;
    let sees_host = host::is_free();
    let mut collector = Collector::default();
    let (snapshot, first_host) = collector.look();
    let server_ports = snapshot.listeners.iter().map(|listener| listener.port).collect();
    let (facts, facts_changes) = watch::channel(Arc::new(snapshot));
    let (host, host_changes) = watch::channel(Arc::new(first_host));
    let start = Start {
        machine_id: machine_id(&config.machine_id),
        emit: emit_config(&config, inside.is_some()),
        spool_bytes_wait: None,
        facts: facts_changes.clone(),
        host: host_changes,
        is_guarded: true,
    };
    let mut process = Process::start(config, control, start)?;
    process.shedding.set(first_level(&process.config));
    // Facts are told until the sender is done: a node that connects late still learns the names.
    let stop_looking = CancellationToken::new();
    let looking = look_thread(collector, facts, host, Arc::clone(&process.shedding), stop_looking.clone())?;
    let flows = flow::Config {
        flows_max: process.config.capture.flows_max,
        excluded_ports: process.config.excluded_ports(),
        server_ports,
        session: Arc::new(process.config.session.clone()),
        hash_seed: std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), clock::now()),
        ..flow::Config::default()
    };
    let (metrics, shedding) = (Arc::clone(&process.metrics), Arc::clone(&process.shedding));
    let halt = Arc::new(AtomicBool::new(false));
    let watching = host::spawn(&process, sees_host, facts_changes.clone(), settings.clone(), &halt)?;
    let looking_inside =
        inside.map(|inside| inside.spawn(&process, facts_changes, settings.clone(), &halt)).transpose()?;
    let mut feed = Feed::new(flows, process.queue()?, Overflow::Drop, metrics, shedding);
    feed.follow(settings);
    let halted = Arc::clone(&halt);
    let thread = std::thread::Builder::new()
        .name("capture".to_owned())
        .spawn(move || capture(&mut source, &mut feed, Some(clock::now), &halted))
        .context("failed to start the capture thread")?;
    tracing::info!("capturing");
    let watched = watch_until(&process, &thread, &stop).await;
    halt.store(true, Ordering::Relaxed);
    let captured = join(thread, "capture").await?;
    if let Some(thread) = looking_inside {
        join(thread, "eBPF").await?;
    }
    join(watching, "profile").await?;
    process.seal().await?;
    process.drain(LINGER, false, &CancellationToken::new()).await;
    stop_looking.cancel();
    join(looking, "facts").await?;
    let path = process.config.data_dir.join("status.json");
    let status = process.end().await?;
    status.write(&path)?;
    captured.context("capture ended").and(watched).map(|()| status)
}

fn emit_config(config: &Config, sees_processes: bool) -> emit::Config {
    emit::Config {
        sees_processes,
        request_rows_max: config.guard.request_rows_max,
        ..emit::Config::default()
    }
}

fn open_source(config: &Config) -> anyhow::Result<LiveSource> {
    LiveSource::open(LiveConfig {
        interfaces: config.capture.interfaces.clone(),
        snap_length: u32::try_from(config.capture.snaplen.0).unwrap_or(u32::MAX),
        ring_bytes: u32::try_from(config.capture.ring.0).unwrap_or(u32::MAX),
        excluded_ports: config.excluded_ports(),
    })
    .context("failed to capture: packet sockets need root or the right CAP_NET_RAW")
}

/// Writes the status file every second until told to stop, or until the capture ends by itself.
async fn watch_until<T>(
    process: &Process,
    capturing: &JoinHandle<T>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let path = process.config.data_dir.join("status.json");
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    while !capturing.is_finished() {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = look.tick() => {}
        }
        if let Err(error) = process.status().write(&path) {
            tracing::debug!(error = format!("{error:#}"), "no status file");
        }
    }
    Ok(())
}

/// The facts thread.
fn look_thread(
    mut collector: Collector,
    facts: watch::Sender<Arc<Snapshot>>,
    host: watch::Sender<Arc<Host>>,
    shedding: Arc<Shedding>,
    stop: CancellationToken,
) -> anyhow::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("facts".to_owned())
        .spawn(move || {
            let mut left_out = 0;
            while !stop.is_cancelled() {
                std::thread::park_timeout(LOOK_INTERVAL);
                if shedding.level() > Level::Normal && left_out < LOOKS_LEFT_OUT {
                    left_out += 1;
                    continue;
                }
                left_out = 0;
                let (snapshot, seen) = collector.look();
                host.send_replace(Arc::new(seen));
                facts.send_if_modified(|known| {
                    let is_new = **known != snapshot;
                    if is_new {
                        *known = Arc::new(snapshot);
                    }
                    is_new
                });
            }
        })
        .context("failed to start the facts thread")
}
