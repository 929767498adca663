//! Start and stop of the whole node.
//!
//! Start: data folder, own database, sockets, engine, tables, dictionary, replay of the write-ahead log; then it is ready. HTTP answers
//! from the moment the sockets are there, so that a probe can see what a start waits for. Stop: no new rows, what was accepted goes to the
//! store within a deadline, the engine ends last. Nothing depends on a clean stop: kill -9 at any point loses nothing that was
//! acknowledged.

mod folder;
mod load;
mod parts;
mod pipeline;
mod readings;
mod signals;
mod start;

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    http,
    membership::{self, Membership},
    metrics::Metrics,
};

use folder::Folder;
pub(crate) use parts::{Parts, Running};
use signals::Signals;

/// Runs a node until a signal ends it.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let folder = Folder::take(&config.data_dir)?;
    let http_listener = bind("http.listen", config.http.listen).await?;
    let grpc_listener = bind("grpc.listen", config.grpc.listen).await?;
    let (http_address, grpc_address) = (http_listener.local_addr()?, grpc_listener.local_addr()?);
    warn_of_open_sockets(&[http_address, grpc_address]);

    let membership = Arc::new(join(&config, &folder, grpc_address, http_address).await?);
    let parts = Parts::new(config.node_id, Arc::clone(&membership));
    let metrics = Arc::new(Metrics::new(parts.readings()));
    let stop_http = CancellationToken::new();
    let services = http::Services { parts: parts.clone(), metrics: Arc::clone(&metrics) };
    let connections_max = config.http.connections_max.get();
    let http = http::serve(http_listener, http::router(services), connections_max, stop_http.clone());
    let http = tokio::spawn(http);

    let started = tokio::select! {
        started = start::start(&config, &folder, &parts, metrics.ingest(), grpc_listener) => started,
        signal = signals.next() => {
            tracing::info!(signal, "stopped during the start");
            membership.leave().await;
            return Ok(());
        }
    };
    let started = started?;
    membership.set_state(membership::State::Ready);
    let load = tokio::spawn(load::tell(parts.clone(), Arc::clone(&membership)));
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node_id = config.node_id,
        http = %format_args!("http://{http_address}"),
        grpc = %grpc_address,
        data_dir = %config.data_dir.display(),
        "the node is ready"
    );

    let signal = signals.next().await;
    tracing::info!(signal, "stopping");
    parts.stopping();
    membership.set_state(membership::State::Draining);
    let stop = async {
        started.stop(config.stop_within).await;
        load.abort();
        membership.leave().await;
    };
    tokio::select! {
        () = stop => {}
        signal = signals.next() => tracing::warn!(signal, "a second signal: ending without waiting"),
    }
    stop_http.cancel();
    // Requests that still run were answered or failed with the store; a client that dawdles does not hold up the end.
    if tokio::time::timeout(std::time::Duration::from_secs(2), http).await.is_err() {
        tracing::warn!("HTTP connections were still open");
    }
    tracing::info!("stopped");
    Ok(())
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
    if !cluster.seeds.is_empty() {
        warn_of_open_sockets(&[cluster.listen]);
    }
    Ok(membership)
}

async fn bind(setting: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("failed to listen on {setting} = {address}; is another node running?"))
}

/// Connections are neither encrypted nor authenticated: whoever opens them to others should know.
fn warn_of_open_sockets(addresses: &[SocketAddr]) {
    for address in addresses.iter().filter(|address| !address.ip().is_loopback()) {
        tracing::warn!(%address, "listens beyond this machine without encryption: keep it in a private network");
    }
}
