//! The start, step by step, and what a started node must do to stop.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use metaflow_actors::{
    dictionary::NodeId,
    disk::Disk,
    memory::Memory,
    querier::{self, Querier},
    store::{self, Servers, Store, embedded},
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use super::{Folder, Parts, Running, guide, pipeline::Pipeline};
use crate::{
    Route,
    config::{self, Config},
    doubts::Copies,
    fleet::Fleet,
    grpc::{self, Stop},
    membership::Membership,
    metrics::Ingest,
    peers::Peers,
    shards::{self, Shards},
};

/// Time for agents to take their last acknowledgements.
const STREAMS_END_WITHIN: Duration = Duration::from_secs(2);
/// Time for the actors to end once there is nothing left to store, or once it was given up.
const ACTORS_END_WITHIN: Duration = Duration::from_secs(5);

/// Pause before a server that did not answer is asked again.
pub(super) const STORE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A node that runs.
pub(super) struct Started {
    engine: Option<embedded::Engine>,
    pipeline: Pipeline,
    grpc: JoinHandle<()>,
    /// Of the cluster's view.
    followers: Vec<JoinHandle<()>>,
    stop: Stop,
}

/// Everything up to the moment when rows are taken and queries answered.
pub(super) async fn start(
    config: &Config,
    folder: &Folder,
    parts: &Parts,
    metrics: &Ingest,
    membership: &Membership,
    (grpc_listener, door, pages): (TcpListener, grpc::Door, axum::Router),
    route: Route,
) -> anyhow::Result<Started> {
    parts.stage("opening the node's database");
    let database = folder.database();
    let memory = config.memory.split();
    let disk = tokio::task::spawn_blocking(move || Disk::open_within(&database, memory.database)).await??;
    parts.stage("starting the store");
    let (engine, store) = open_store(config, folder).await?;
    parts.stage("making the store's tables");
    make_tables(config, parts, &store).await?;
    parts.stage("opening dictionary and write-ahead log");
    let rows = Memory::new(memory.rows);
    let pipeline = Pipeline::start(config, disk, store.clone(), rows.clone()).await?;
    let stop = Stop::default();
    let (guides, guide) = guide::follow(membership.view(), pipeline.dictionary.clone());
    let secret = config.cluster.secret_file.clone().map(grpc::Secret::load).transpose()?;
    let trust = grpc::Trust::new(secret.clone(), config.cluster.is_several());
    let own = NodeId::new(config.node_id).context("node_id is out of range")?;
    let peers = Peers::new(own, guides.clone(), secret, config.tls.peers()?).over(route);
    pipeline.dictionary.set_owners(Arc::new(peers.clone()));
    let fleet = fleet_of(own, &pipeline, &peers, parts);
    let names = tokio::spawn(peers.clone().keep_alike(pipeline.dictionary.clone()));
    let documents = tokio::spawn(fleet.clone().keep_alike());
    let rollouts = tokio::spawn(fleet.clone().watch_rollouts());
    let shard = engine.as_ref().filter(|_| config.cluster.is_several()).map(embedded::Engine::native);
    let copies = copies(&pipeline, &store);
    let settling = copies.clone().map(|copies| tokio::spawn(copies.keep_single(peers.clone())));
    let agents = grpc::Agents {
        controller: pipeline.controller.clone(),
        dictionary: pipeline.dictionary.clone(),
        ingester: pipeline.ingester(),
        memory: rows.clone(),
        metrics: metrics.clone(),
        stop: stop.clone(),
        streams: Arc::default(),
        sessions: grpc::Sessions::default(),
        guides,
        registry: pipeline.registry.clone(),
        proofs: grpc::Proofs::new(trust.clone()),
    };
    let querier = querier(config, &store, shard.as_ref(), membership, &peers)?;
    parts.running(Running {
        querier,
        store,
        store_is_embedded: engine.is_some(),
        memory_bytes: memory.total,
        memory: rows,
        controller: pipeline.controller.clone(),
        dictionary: pipeline.dictionary.clone(),
        ingester: pipeline.ingester(),
        labeler: Arc::clone(&pipeline.labeler),
        writer: Arc::clone(&pipeline.writer),
        doubts: pipeline.doubts.clone(),
        streams: Arc::clone(&agents.streams),
        sessions: agents.sessions.clone(),
        guides: agents.guides.clone(),
        peers,
        fleet: fleet.clone(),
    });
    let nodes = grpc::nodes::Nodes {
        dictionary: pipeline.dictionary.clone(),
        trust,
        parts: Some(parts.clone()),
        engine: shard.map(shards::Engine::new),
        copies,
        pages,
    };
    let grpc = tokio::spawn(grpc::serve(grpc_listener, agents, fleet, nodes, door));
    let followers = [guide, names, documents, rollouts].into_iter().chain(settling).collect();
    Ok(Started { engine, pipeline, grpc, followers, stop })
}

fn copies(pipeline: &Pipeline, store: &Store) -> Option<Copies> {
    let doubts = pipeline.doubts.clone()?;
    Some(Copies { doubts, store: store.clone(), ingester: pipeline.ingester() })
}

/// Answers for the own store, or for those of all nodes.
fn querier(
    config: &Config,
    store: &Store,
    shard: Option<&watch::Receiver<embedded::Native>>,
    membership: &Membership,
    peers: &Peers,
) -> anyhow::Result<Querier<Store>> {
    let querier = Querier::new(store.clone(), querier_config(&config.query));
    let Some(native) = shard else { return Ok(querier) };
    let stores = Shards::new(membership.view(), peers.clone(), native.clone())?;
    Ok(querier.with_stores(Arc::new(stores)))
}

fn fleet_of(own: NodeId, pipeline: &Pipeline, peers: &Peers, parts: &Parts) -> Fleet {
    Fleet {
        own,
        registry: pipeline.registry.clone(),
        controller: pipeline.controller.clone(),
        dictionary: pipeline.dictionary.clone(),
        tap: Arc::clone(&pipeline.tap),
        peers: peers.clone(),
        events: parts.events().clone(),
    }
}

fn querier_config(query: &config::Query) -> querier::Config {
    let config::Query { running_max, waiting_max, timeout, memory } = query;
    querier::Config {
        running_max: running_max.get(),
        waiting_max: *waiting_max,
        timeout: *timeout,
        memory_bytes: memory.0,
    }
}

async fn open_store(config: &Config, folder: &Folder) -> anyhow::Result<(Option<embedded::Engine>, Store)> {
    match &config.store {
        config::Store::Embedded { library } => {
            let library = embedded::find_library(library.as_deref())?;
            let program = std::env::current_exe().context("failed to find this program")?;
            let engine = embedded::Config {
                is_shard: config.cluster.is_several(),
                ..embedded::Config::new(program, library, folder.engine())
            };
            let engine =
                embedded::Engine::start(engine).await.context("failed to start the embedded engine")?;
            let store = Store::embedded(&engine, config.node_id.into());
            Ok((Some(engine), store))
        }
        config::Store::Server { urls, authority: _, user, password, password_file } => {
            let password = match (password, password_file) {
                (Some(password), _) => password.expose().to_owned(),
                (None, Some(file)) => tokio::fs::read_to_string(file)
                    .await
                    .with_context(|| format!("failed to read store.password_file {}", file.display()))?
                    .trim_end()
                    .to_owned(),
                (None, None) => String::new(),
            };
            let compress = config::leave_machine(urls);
            let servers = Servers { urls: urls.clone(), user: user.clone(), password, compress };
            let tls = config::store_tls(&config.store)?;
            Ok((None, Store::servers_over(tls.as_ref(), servers, config.node_id.into())))
        }
    }
}

/// A server may be down or unreachable for a while: that is no reason to end, and whoever asks for the node's health is told.
async fn make_tables(config: &Config, parts: &Parts, store: &Store) -> anyhow::Result<()> {
    let may_come_later = matches!(config.store, config::Store::Server { .. });
    loop {
        match store.migrate().await {
            Ok(_) => return Ok(()),
            Err(error @ (store::Error::Unknown(_) | store::Error::Transient { .. })) if may_come_later => {
                parts.stage("making the store's tables: the store does not answer or refuses, see the log");
                tracing::warn!(%error, "the store's tables cannot be made, trying again");
                tokio::time::sleep(STORE_AGAIN_AFTER).await;
            }
            Err(error) => return Err(error).context("failed to make the store's tables"),
        }
    }
}

impl Started {
    /// Hands what was accepted to the store and ends all streams; gives up waiting after `within`, since the write-ahead log has what is
    /// left. Says whether nothing is left.
    pub(super) async fn empty(&mut self, within: Duration) -> bool {
        self.stop.taking.cancel();
        let is_empty = self.pipeline.flush(within).await;
        self.stop.serving.cancel();
        let grpc_end = self.grpc.abort_handle();
        if tokio::time::timeout(STREAMS_END_WITHIN, &mut self.grpc).await.is_err() {
            // Agents that do not read their answers: they will send again what they do not know to be stored.
            grpc_end.abort();
        }
        is_empty
    }

    /// Ends everything, in the order of the row path.
    pub(super) async fn end(self) {
        let Self { engine, pipeline, grpc: _, followers, stop: _ } = self;
        for follower in followers {
            follower.abort();
        }
        pipeline.stop(ACTORS_END_WITHIN).await;
        if let Some(engine) = engine {
            engine.stop().await;
        }
    }
}
