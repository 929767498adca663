//! The row path put together: ingester, labeler, writer, with dictionary and controller beside it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use metaflow_actors::{
    controller::{self, Controller},
    dictionary::{self, Dictionary, Ids, NodeId},
    disk::Disk,
    doubts::Doubts,
    groups::Registry,
    ingester::{self, Ingester},
    labeler::{self, Labeler},
    memory::Memory,
    rows::{Labelled, Outcome, Report},
    store::{self, Guard, Insert, Store},
    tap::Tap,
    writer::{self, BeforeInsert, Writer},
};
use metaflow_schema::{
    Block as _, encode_native,
    enums::Kind,
    tables::{DICTIONARY, Dictionary as DictionaryRows},
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    clock,
    config::{self, Config},
};

/// Batches between two actors. Each holds its memory permit; the queue only evens out who is faster at a moment.
const QUEUE_MAX: usize = 64;

/// Before another try at a claim of ids.
const CLAIM_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// The running row path.
pub(super) struct Pipeline {
    pub(super) controller: Controller,
    pub(super) dictionary: Dictionary,
    pub(super) labeler: Arc<labeler::Counters>,
    pub(super) tap: Arc<Tap>,
    pub(super) registry: Registry,
    pub(super) writer: Arc<writer::Metrics>,
    /// Where each node has a store of its own.
    pub(super) doubts: Option<Doubts>,
    ingester: ingester::Running,
    controller_task: JoinHandle<()>,
    writer_actors: Writer,
    tasks: Vec<JoinHandle<()>>,
    /// Claims ids in time.
    ranges: AbortOnDropHandle<()>,
}

impl Pipeline {
    /// Starts it; what the write-ahead log still has is on its way to the store when this returns.
    pub(super) async fn start(
        config: &Config,
        disk: Disk,
        store: Store,
        memory: Memory,
    ) -> anyhow::Result<Self> {
        let node_id = NodeId::new(config.node_id).context("node_id is out of range")?;
        let dictionary = open_dictionary(node_id, disk.clone(), &store, config).await?;
        let registry = tokio::task::spawn_blocking({
            let disk = disk.clone();
            move || Registry::open(disk, node_id)
        })
        .await?
        .context("failed to read the groups of agents")?;
        let (controller, controller_task) =
            Controller::start(controller::Config::default(), disk.clone(), dictionary.clone())
                .await
                .context("failed to start the controller")?;
        let (accepted, labeler_input) = mpsc::channel(QUEUE_MAX);
        let ingester_config =
            ingester::Config { wal_bytes_max: config.wal.size_max.0, keep_free: config.wal.keep_free.0 };
        let doubts = open_doubts(node_id, disk.clone(), config).await?;
        let ingester = Ingester::start(disk, ingester_config, memory, accepted)
            .await
            .context("failed to open the write-ahead log")?;
        let report = ingester.ingester().report();
        let before_insert = before_insert(dictionary.clone(), store.clone());
        let writer_config = writer::Config {
            is_shared: is_store_shared(config) && config.cluster.is_several(),
            doubts: doubts.clone(),
            ..writer::Config::default()
        };
        let id_ranges = store.id_ranges(node_id);
        let writer_actors = Writer::start(store, writer_config, before_insert, Arc::clone(&report)).await;
        let labeler = Labeler::new(labeler::Config::default(), dictionary.clone(), controller.snapshot());
        let (counters, tap) = (labeler.counters(), labeler.tap());
        let (labelled, writer_input) = mpsc::channel(QUEUE_MAX);
        let (outcomes, outcomes_input) = mpsc::channel(QUEUE_MAX);
        let tasks = vec![
            tokio::spawn(labeler.run(labeler_input, labelled, outcomes)),
            tokio::spawn(write(writer_input, writer_actors.handle())),
            tokio::spawn(tell(outcomes_input, report)),
        ];
        let ranges = AbortOnDropHandle::new(tokio::spawn(keep_ranges(dictionary.clone(), id_ranges)));
        Ok(Self {
            controller,
            dictionary,
            labeler: counters,
            tap,
            registry,
            writer: Arc::clone(writer_actors.handle().metrics()),
            doubts,
            ingester,
            controller_task,
            writer_actors,
            tasks,
            ranges,
        })
    }

    pub(super) fn ingester(&self) -> Ingester {
        self.ingester.ingester()
    }

    /// Stores what was accepted, for at most `within`; what is left then waits in the write-ahead log. Nothing may be submitted any more.
    /// Says whether nothing is left.
    pub(super) async fn flush(&self, within: Duration) -> bool {
        let ingester = self.ingester();
        let is_empty = tokio::time::timeout(within, ingester.wal().emptied()).await.is_ok();
        if !is_empty {
            tracing::warn!("not everything was stored in time: the rest waits in the write-ahead log");
        }
        is_empty
    }

    /// Ends all actors, in the order of the row path.
    pub(super) async fn stop(self, within: Duration) {
        let Self {
            controller,
            dictionary: _,
            labeler: _,
            tap: _,
            registry: _,
            writer: _,
            doubts: _,
            ingester,
            controller_task,
            writer_actors,
            tasks,
            ranges: _ranges,
        } = self;
        controller.stop();
        let ended = async {
            ingester.stop().await;
            for task in tasks {
                end(task).await;
            }
            writer_actors.stop().await;
            end(controller_task).await;
        };
        if tokio::time::timeout(within, ended).await.is_err() {
            tracing::warn!(
                "the row path did not end in time and is cut off: the write-ahead log has its batches"
            );
        }
    }
}

async fn end(task: JoinHandle<()>) {
    if let Err(error) = task.await {
        tracing::error!(%error, "a part of the row path failed");
    }
}

/// From the labeler to the writer's tables.
async fn write(mut labelled: mpsc::Receiver<Labelled>, writer: writer::Handle) {
    while let Some(batch) = labelled.recv().await {
        if let Err(Labelled { id, .. }) = writer.write(batch).await {
            // Only while the node stops: the batch is in the write-ahead log.
            tracing::debug!(agent_id = id.agent_id, seq = id.seq, "the writer took no more");
        }
    }
}

/// From the labeler back to the ingester.
async fn tell(mut outcomes: mpsc::Receiver<Outcome>, report: Report) {
    while let Some(outcome) = outcomes.recv().await {
        report(outcome);
    }
}

/// Whether rows go to servers that other nodes may write to as well.
fn is_store_shared(config: &Config) -> bool {
    matches!(config.store, config::Store::Server { .. })
}

async fn open_doubts(node_id: NodeId, disk: Disk, config: &Config) -> anyhow::Result<Option<Doubts>> {
    if is_store_shared(config) || !config.cluster.is_several() {
        return Ok(None);
    }
    let opened = tokio::task::spawn_blocking(move || Doubts::open(node_id, disk)).await?;
    opened.map(Some).context("failed to read which batches may be stored twice")
}

async fn open_dictionary(
    node_id: NodeId,
    disk: Disk,
    store: &Store,
    config: &Config,
) -> anyhow::Result<Dictionary> {
    // A former life may still be bringing names to the store; what it brings after they were looked at would be given out again.
    let is_store_shared = is_store_shared(config);
    let maxima = loop {
        match begin(node_id, store).await {
            Ok(maxima) => break maxima,
            Err(error) if is_away(is_store_shared, &error) => {
                tracing::warn!(error = format!("{error:#}"), "the store breaks off, trying again");
                tokio::time::sleep(super::start::STORE_AGAIN_AFTER).await;
            }
            Err(error) => return Err(error),
        }
    };
    // A store of its own shows no claims of another node with its number.
    let ids = Ids::Claimed { is_drawn: !is_store_shared && config.cluster.is_several() };
    let config = dictionary::Config { is_store_shared, ids, ..dictionary::Config::new(node_id) };
    let dictionary = tokio::task::spawn_blocking(move || Dictionary::open(disk, config, &maxima))
        .await?
        .context("failed to open the dictionary")?;
    let register = store.id_ranges(node_id);
    loop {
        match dictionary.claim(&register, random).await.context("failed to claim ids in the store") {
            Ok(true) => return Ok(dictionary),
            Ok(false) => {
                tracing::warn!(node_id = node_id.get(), "another node claims ids with this node's number");
            }
            Err(error) if is_away(is_store_shared, &error) => {
                tracing::warn!(error = format!("{error:#}"), "the store breaks off, trying again");
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(CLAIM_AGAIN_AFTER).await;
    }
}

/// Ends what a former life still does, and reads how far it came.
async fn begin(node_id: NodeId, store: &Store) -> anyhow::Result<HashMap<Kind, u64>> {
    store.kill_own_inserts().await.context("failed to end inserts of a former run")?;
    maxima(node_id, store).await.context("failed to read the store's dictionary")
}

/// A server that does not answer or cannot do it now is asked again, as when the tables are made: that is no reason to end.
fn is_away(is_store_shared: bool, error: &anyhow::Error) -> bool {
    let error = error.downcast_ref();
    is_store_shared && matches!(error, Some(store::Error::Unknown(_) | store::Error::Transient { .. }))
}

/// Claims more ids whenever they become few, until it is aborted.
async fn keep_ranges(dictionary: Dictionary, register: store::IdRanges) {
    loop {
        dictionary.range_wanted().await;
        loop {
            match dictionary.claim(&register, random).await {
                Ok(true) => break,
                Ok(false) => tracing::warn!("another node claims ids with this node's number"),
                Err(error) => tracing::warn!(%error, "no ids could be claimed, trying again"),
            }
            tokio::time::sleep(CLAIM_AGAIN_AFTER).await;
        }
    }
}

fn random() -> u64 {
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), ())
}

/// The highest id of this node's own range in the store, by kind.
async fn maxima(node_id: NodeId, store: &Store) -> anyhow::Result<HashMap<Kind, u64>> {
    let own = node_id.ids();
    let sql = format!(
        "SELECT kind, max(id) FROM {}.`{}` WHERE id BETWEEN {} AND {} GROUP BY kind",
        DICTIONARY.database,
        DICTIONARY.name,
        own.start(),
        own.end()
    );
    let mut maxima = HashMap::new();
    for row in store.rows(&sql).await? {
        let (kind, id) = match row.as_slice() {
            [kind, id] => (kind.parse::<u8>()?, id.parse::<u64>()?),
            _ => anyhow::bail!("the answer has {} columns", row.len()),
        };
        // A kind that only a newer release knows gets no ids from this one.
        if let Some(kind) = Kind::from_number(kind) {
            maxima.insert(kind, id);
        }
    }
    Ok(maxima)
}

/// Brings every new name into the store before rows that use it.
fn before_insert(dictionary: Dictionary, store: Store) -> BeforeInsert {
    // Names of inserts repeat after a restart; with the second of the start in front, tokens do not, so no insert is taken for another.
    let start = clock::seconds();
    Arc::new(move || {
        let (dictionary, store) = (dictionary.clone(), store.clone());
        Box::pin(async move {
            let flushed = dictionary.flush(|rows| insert_names(store.clone(), rows, start)).await;
            flushed.map_err(|error| format!("{:#}", anyhow::Error::new(error)))
        })
    })
}

async fn insert_names(store: Store, rows: DictionaryRows, start: u32) -> Result<(), store::Error> {
    let block = encode_native(&rows, rows.rows())
        .map_err(|error| store::Error::Refused { code: 0, message: error.to_string() })?;
    let query_id = store.query_id();
    let token = format!("{query_id}-{start}");
    let guard = Guard::Open;
    store.insert(&Insert { table: &DICTIONARY, block: block.into(), token, guard, query_id }).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_away_is_asked_again_and_a_store_of_ones_own_is_not() {
        let error = |error: store::Error| anyhow::Error::new(error).context("failed").context("to start");
        let unknown = error(store::Error::Unknown("cut off".to_owned()));
        assert!(is_away(true, &unknown) && !is_away(false, &unknown));
        let refused = store::Error::Refused { code: 60, message: "no such table".to_owned() };
        assert!(!is_away(true, &error(refused)));
    }
}
