//! Copies of batches in the stores of two nodes: asks the others, answers them, removes what is to go. What follows from an answer is decided
//! in `metaflow_actors::doubts`; this file performs it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use anyhow::Context as _;
use metaflow_actors::{
    dictionary::NodeId,
    doubts::{self, Doubt, Doubts, Elsewhere, Todo},
    ingester::{Found, Ingester},
    rows::BatchId,
    store::Store,
};
use metaflow_schema::Table;
use metaflow_wire::{self as wire, BatchPlace, FindBatchesRequest, FindBatchesResponse};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::{clock, peers::Peers};

/// Between two rounds, while there are doubts.
const ROUND: Duration = Duration::from_secs(1);
/// The pause grows with what a round took, up to this.
const ROUND_REST: u32 = 4;
const ROUND_MAX: Duration = Duration::from_secs(15);
/// Until gossip has found the others after a start.
const FIRST_AFTER: Duration = Duration::from_secs(3);
/// A look into the other's store.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The doubts of this node, with what it takes to end them.
#[derive(Clone)]
pub(crate) struct Copies {
    pub(crate) doubts: Doubts,
    pub(crate) store: Store,
    pub(crate) ingester: Ingester,
}

impl Copies {
    /// Ends doubts until it is aborted.
    pub(crate) async fn keep_single(self, peers: Peers) {
        let mut next = Instant::now() + FIRST_AFTER;
        loop {
            tokio::time::sleep_until(next).await;
            if self.doubts.is_empty() {
                self.doubts.noted().await;
            }
            let begin = Instant::now();
            if let Err(error) = self.round(&peers).await {
                tracing::warn!(error = format!("{error:#}"), "copies of batches could not be looked for now");
            }
            next = Instant::now() + ROUND.max(begin.elapsed() * ROUND_REST).min(ROUND_MAX);
        }
    }

    /// Asks every node that can be reached what it has not answered.
    async fn round(&self, peers: &Peers) -> anyhow::Result<()> {
        let others: BTreeMap<NodeId, SocketAddr> = peers.others().into_iter().collect();
        let reached: BTreeSet<NodeId> = others.keys().copied().collect();
        let now = clock::seconds().into();
        let Todo { questions, removals } = self
            .blocking(move |doubts| {
                let known = doubts.meet(reached.iter().copied(), now)?;
                doubts.begin(&known, &reached)
            })
            .await?;
        let asking = questions.into_iter().filter_map(|(node, doubts)| {
            let address = *others.get(&node)?;
            Some(async move { (node, ask(peers, address, doubts).await) })
        });
        for (node, answers) in futures::future::join_all(asking).await {
            self.blocking(move |doubts| doubts.answered(node, &answers)).await?;
        }
        self.doubts.end();
        self.remove(removals).await
    }

    async fn remove(&self, removals: Vec<Doubt>) -> anyhow::Result<()> {
        for Group { table, partition, doubts } in groups(removals) {
            let ids: Vec<_> = doubts.iter().map(|doubt| doubt.id).collect();
            self.store.remove_batches(table, partition, &ids).await?;
            let batches = ids.len();
            tracing::info!(table = table.name, batches, "batches that another node has, too, were removed");
            self.blocking(move |known| known.removed(&doubts)).await?;
        }
        Ok(())
    }

    /// Where batches are that another node may have stored.
    pub(crate) async fn find(&self, request: FindBatchesRequest) -> Result<FindBatchesResponse, Status> {
        let FindBatchesRequest { table, partition, ids } = request;
        if ids.len() > doubts::ASKED_MAX {
            return Err(Status::invalid_argument(format!("more than {} batches", doubts::ASKED_MAX)));
        }
        let Some(table) = doubts::table(&table) else {
            // This release has never had rows of it.
            return Ok(FindBatchesResponse { places: vec![BatchPlace::Absent.into(); ids.len()] });
        };
        let unavailable = |error: anyhow::Error| Status::unavailable(format!("{error:#}"));
        let ids: Vec<BatchId> = ids.iter().map(|id| BatchId { agent_id: id.agent_id, seq: id.seq }).collect();
        let asked = ids.clone();
        let were_in_doubt: Vec<bool> = self
            .blocking(move |doubts| {
                asked.iter().map(|id| doubts.contains(Doubt { table, partition, id: *id })).collect()
            })
            .await
            .map_err(unavailable)?;
        // In this order: what is stored meanwhile was on its way, and what is found nowhere is remembered.
        let found = self.ingester.find_for_other(ids.clone()).await;
        let found = found.ok_or_else(|| Status::unavailable("the node stops"))?;
        let stored = self.store.stored_batches(table, partition, &ids).await;
        let stored = stored.map_err(|error| Status::unavailable(error.to_string()))?;
        self.blocking(move |doubts| {
            let known = ids.iter().zip(&found).zip(were_in_doubt);
            let places = known.map(|((id, found), was_in_doubt)| {
                let told = match found {
                    Found::Logging(_) | Found::Logged(_) => Elsewhere::Waits,
                    _ if !stored.contains(id) => Elsewhere::Absent,
                    _ => doubts.tell(Doubt { table, partition, id: *id }, was_in_doubt)?,
                };
                Ok(place(told).into())
            });
            Ok(FindBatchesResponse { places: places.collect::<Result<_, _>>()? })
        })
        .await
        .map_err(unavailable)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Doubts) -> Result<T, metaflow_actors::disk::Error> + Send + 'static,
    ) -> anyhow::Result<T> {
        let doubts = self.doubts.clone();
        Ok(tokio::task::spawn_blocking(move || work(&doubts)).await.context("it failed")??)
    }
}

/// What was inserted into one partition of a table.
struct Group {
    table: &'static Table,
    partition: u32,
    doubts: Vec<Doubt>,
}

fn groups(doubts: Vec<Doubt>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for doubt in doubts {
        let Doubt { table, partition, .. } = doubt;
        match groups.iter_mut().find(|group| std::ptr::eq(group.table, table) && group.partition == partition)
        {
            Some(group) => group.doubts.push(doubt),
            None => groups.push(Group { table, partition, doubts: vec![doubt] }),
        }
    }
    groups
}

/// What a node answers; what it does not answer now is left out.
async fn ask(peers: &Peers, address: SocketAddr, doubts: Vec<Doubt>) -> Vec<(Doubt, Elsewhere)> {
    let mut answers = Vec::with_capacity(doubts.len());
    for Group { table, partition, doubts } in groups(doubts) {
        match ask_for(peers, address, table, partition, &doubts).await {
            Ok(places) => answers.extend(doubts.into_iter().zip(places)),
            Err(status) => {
                tracing::debug!(%address, %status, "a node does not say which batches it has");
                break;
            }
        }
    }
    answers
}

async fn ask_for(
    peers: &Peers,
    address: SocketAddr,
    table: &Table,
    partition: u32,
    doubts: &[Doubt],
) -> Result<Vec<Elsewhere>, Status> {
    let request = FindBatchesRequest {
        table: format!("{}.{}", table.database, table.name),
        partition,
        ids: doubts
            .iter()
            .map(|Doubt { id, .. }| wire::BatchId { agent_id: id.agent_id, seq: id.seq })
            .collect(),
    };
    let mut client = peers.client(address).ok_or_else(|| Status::internal("its address cannot be used"))?;
    let answer = tokio::time::timeout(ANSWER_WITHIN, client.find_batches(request)).await;
    let places = match answer {
        Ok(Ok(answer)) => answer.into_inner().places,
        // It has no store of its own.
        Ok(Err(status)) if status.code() == Code::FailedPrecondition => {
            return Ok(vec![Elsewhere::Absent; doubts.len()]);
        }
        Ok(Err(status)) => return Err(status),
        Err(_) => return Err(Status::deadline_exceeded("no answer came in time")),
    };
    if places.len() != doubts.len() {
        return Err(Status::internal("it answered something else"));
    }
    Ok(places.into_iter().map(elsewhere).collect())
}

fn place(told: Elsewhere) -> BatchPlace {
    match told {
        Elsewhere::Absent => BatchPlace::Absent,
        Elsewhere::Waits => BatchPlace::Waits,
        Elsewhere::Stored { in_doubt: false } => BatchPlace::Stored,
        Elsewhere::Stored { in_doubt: true } => BatchPlace::StoredInDoubt,
    }
}

fn elsewhere(place: i32) -> Elsewhere {
    match BatchPlace::try_from(place) {
        Ok(BatchPlace::Absent) => Elsewhere::Absent,
        Ok(BatchPlace::Stored) => Elsewhere::Stored { in_doubt: false },
        Ok(BatchPlace::StoredInDoubt) => Elsewhere::Stored { in_doubt: true },
        // What a newer release may say more is no reason to remove anything, nor to be content.
        Ok(BatchPlace::Waits | BatchPlace::Unspecified) | Err(_) => Elsewhere::Waits,
    }
}
