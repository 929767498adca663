//! Start and stop of the whole node.
//!
//! Start: data folder, own database, sockets, engine, tables, dictionary, replay of the write-ahead log; then it is ready. HTTP answers
//! from the moment the sockets are there, so that a probe can see what a start waits for. Stop: no new rows, what was accepted goes to the
//! store within a deadline, the engine ends last. Nothing depends on a clean stop: kill -9 at any point loses nothing that was
//! acknowledged.
//!
//! In a cluster a stop is a drain: others hear of it first, agents go to them while this node still serves, and only then it takes no more.

mod counts;
mod drain;
mod folder;
mod guide;
mod load;
mod locks;
mod parts;
mod pipeline;
mod readings;
mod signals;
mod start;
mod witness;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Outside,
    config::Config,
    files, grpc, http,
    membership::{self, Membership, State},
    metrics::{Metrics, Read, Reading},
};

pub(crate) use drain::plan;
use folder::Folder;
pub(crate) use guide::{Guide, Guides};
use locks::Locks;
pub(crate) use parts::{Parts, Running};
use signals::Signals;
use start::Started;

/// A stop gives this part of its time to agents that move, and to names: the rest is for rows.
const HAND_OVER_SHARE: u32 = 3;
/// Why a node ends that was told so by command.
const DRAIN: &str = "drain";
/// Whoever gave the command and waits is told so long that the node is empty.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
const HTTP_ENDS_WITHIN: Duration = Duration::from_secs(2);

/// Connections that the kernel keeps until they are accepted, if the system's own limit (net.core.somaxconn) is not below: thousands of
/// agents come at once when their node died.
const BACKLOG: u32 = 16_384;

/// Runs a node until a signal ends it.
pub(crate) async fn run(config: Config, outside: Outside) -> anyhow::Result<()> {
    let mut signals = Signals::listen(outside.stop)?;
    let files = files::raise_limit();
    let Locks { http: http_tls, grpc: grpc_tls, tokens } = Locks::load(&config)?;
    let folder = Folder::take(&config.data_dir)?;
    let http_listener = bind("http.listen", config.http.listen)?;
    let grpc_listener = bind("grpc.listen", config.grpc.listen)?;
    let (http_address, grpc_address) = (http_listener.local_addr()?, grpc_listener.local_addr()?);

    let membership = Arc::new(join(&config, &folder, grpc_address, http_address).await?);
    let (parts, metrics) = parts_of(&config, &membership, grpc_tls.clone());
    let witness = tokio::spawn(witness::watch(parts.clone()));
    let stop_http = CancellationToken::new();
    let services = http::Services {
        parts: parts.clone(),
        metrics: Arc::clone(&metrics),
        guard: http::Guard::new(tokens),
    };
    let scheme = if http_tls.is_some() { "https" } else { "http" };
    let door = http::Door {
        tls: http_tls,
        connections_max: config.http.connections_max.get(),
        metrics: metrics.connections(),
    };
    let pages = http::pages(services.clone());
    let http = tokio::spawn(http::serve(http_listener, http::router(services), door, stop_http.clone()));
    let door = grpc::Door {
        tls: grpc_tls,
        connections_max: files::connections(config.grpc.connections_max.get(), files),
        metrics: metrics.connections(),
    };

    let started = tokio::select! {
        started = start::start(&config, &folder, &parts, metrics.ingest(), &membership, (grpc_listener, door, pages), outside.route) => started,
        signal = signals.next() => {
            tracing::info!(signal, "stopped during the start");
            membership.leave().await;
            return Ok(());
        }
    };
    let started = started?;
    membership.set_state(State::Ready);
    let load = tokio::spawn(load::tell(parts.clone(), Arc::clone(&membership)));
    announce(&config, scheme, http_address, grpc_address);
    let cause = tokio::select! {
        signal = signals.next() => signal,
        () = parts.drain_is_wanted() => DRAIN,
    };
    tracing::info!(cause, "stopping");
    tokio::select! {
        () = stop(cause, &config, &parts, &membership, started, load) => {}
        signal = signals.next() => tracing::warn!(signal, "a second signal: ending without waiting"),
    }
    witness.abort();
    if cause == DRAIN {
        tokio::time::sleep(LAST_ANSWERS).await;
    }
    stop_http.cancel();
    // Requests that still run were answered or failed with the store; a client that dawdles does not hold up the end.
    if tokio::time::timeout(HTTP_ENDS_WITHIN, http).await.is_err() {
        tracing::warn!("HTTP connections were still open");
    }
    tracing::info!("stopped");
    Ok(())
}

fn announce(config: &Config, scheme: &str, http: SocketAddr, grpc: SocketAddr) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node_id = config.node_id,
        http = %format_args!("{scheme}://{http}"),
        %grpc,
        data_dir = %config.data_dir.display(),
        "the node is ready"
    );
}

/// Hands over, empties and ends the node, within the time that a stop may take and a few seconds for the parts to end.
async fn stop(
    cause: &str,
    config: &Config,
    parts: &Parts,
    membership: &Membership,
    mut started: Started,
    load: JoinHandle<()>,
) {
    let deadline = Instant::now() + config.stop_within;
    parts.stopping(cause);
    membership.set_state(State::Draining);
    if let Ok(running) = parts.started() {
        drain::agents_gone(running, membership, config.stop_within / HAND_OVER_SHARE).await;
        let names = running.peers.hand_over(&running.dictionary);
        if tokio::time::timeout(config.stop_within / HAND_OVER_SHARE, names).await.is_err() {
            tracing::warn!(
                "not all names were told to other nodes in time: those in the store are known to them"
            );
        }
    }
    let is_empty = started.empty(deadline.saturating_duration_since(Instant::now())).await;
    load.abort();
    if let Some(work) = parts.work() {
        membership.set_load(work.load(0));
    }
    if is_empty {
        // The engine takes seconds to end; nothing of the node's work waits for that.
        membership.set_state(State::Drained);
    }
    started.end().await;
    membership.leave().await;
}

/// The figures of the actors, and when the node's certificate ends.
fn readings(parts: &Parts, tls: Option<metaflow_tls::Server>) -> Read {
    let read = parts.readings();
    Box::new(move || {
        let mut readings = read();
        if let Some(tls) = &tls {
            let help = "When the node's certificate ends, in seconds since 1970";
            readings.push(Reading::gauge("tls_certificate_end_seconds", help, tls.certificate_end() as f64));
        }
        readings
    })
}

/// The node as others see it, and its figures.
fn parts_of(
    config: &Config,
    membership: &Arc<Membership>,
    tls: Option<metaflow_tls::Server>,
) -> (Parts, Arc<Metrics>) {
    let parts = Parts::new(config.clone(), Arc::clone(membership));
    let metrics = Arc::new(Metrics::new(readings(&parts, tls)));
    parts.metrics(Arc::clone(&metrics));
    parts.happened("starting");
    (parts, metrics)
}

/// Takes part in the cluster, as a node that is starting.
async fn join(
    config: &Config,
    folder: &Folder,
    grpc: SocketAddr,
    http: SocketAddr,
) -> anyhow::Result<Membership> {
    let cluster = &config.cluster;
    let member = membership::Config {
        cluster: cluster.name.clone(),
        node_id: config.node_id,
        facts: cluster.facts(config.node_id, grpc, http),
        seeds: cluster.seeds.clone(),
        interval: cluster.gossip_interval,
        phi_threshold: cluster.phi_threshold,
        generation_file: folder.gossip_generation(),
    };
    let membership = Membership::start(member, cluster.transport()).await?;
    Ok(membership)
}

fn bind(setting: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    listen(address)
        .with_context(|| format!("failed to listen on {setting} = {address}; is another node running?"))
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted node gets its port back from connections that still end.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
