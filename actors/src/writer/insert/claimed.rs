//! Batches that other nodes may insert, too: claimed and looked up together, inserted alone.
//!
//! Each has a token made of its number, the same for all who know, so that of two inserts the store takes one; success may therefore be
//! another's, and counts when the rows are there. Questions are asked for many at a time and some inserts run beside one another: after the
//! death of a node all of its agents send again at once, and who waits for them is served late.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;

use super::{Inserter, REFUSALS_MAX};
use crate::{
    rows::BatchId,
    store::{Error, Guard, Insert},
    writer::{Pause, Settled, Shelf, block::Block, metrics::reason as metrics_reason},
};

/// From the look-up to the beginning of the insert: much less time than the store remembers tokens.
const BEGIN_WITHIN_SECONDS: u32 = 60;
/// Batches that are looked up together: their inserts begin within seconds.
const ROUND_MAX: usize = 64;
/// Inserts that run at a time.
const AT_ONCE: usize = 8;

/// One batch under way.
struct Claimed {
    block: Arc<Block>,
    id: BatchId,
    /// Tries whose success was nobody's: all who know count alike, so their tokens are the same.
    tries: u32,
    /// The try whose outcome is unknown.
    unknown: Option<String>,
    refusals: u32,
    refused: Option<String>,
}

impl<S: Shelf> Inserter<S> {
    /// Stores blocks of one batch each, all of one partition.
    pub(super) async fn store_claimed(&self, blocks: Vec<Block>, settled: &mut Vec<Settled>) {
        let mut left: Vec<_> = blocks.into_iter().filter_map(Claimed::new).collect();
        let Some(partition) = left.first().map(|first| first.block.partition) else { return };
        let ids: Vec<_> = left.iter().map(|claimed| claimed.id).collect();
        let mut pause = Pause::default();
        while let Err(error) = self.store.claim(self.table, partition, &ids).await {
            self.trouble(&error, "batches could not be claimed");
            pause.wait(&self.store).await;
        }
        while !left.is_empty() {
            let rest = left.split_off(left.len().min(ROUND_MAX));
            let before = left.len();
            let is_well = match self.look_up_claimed(partition, &mut left, settled).await {
                Ok(begin_before) => self.insert_claimed(&mut left, begin_before, settled).await,
                Err(error) => {
                    self.trouble(&error, "the ledger could not be read");
                    false
                }
            };
            if is_well || left.len() < before {
                pause = Pause::default();
            }
            if !is_well {
                pause.wait(&self.store).await;
            }
            left.extend(rest);
        }
    }

    /// Takes out what is stored; the answer is when inserts of the others must have begun.
    async fn look_up_claimed(
        &self,
        partition: u32,
        left: &mut Vec<Claimed>,
        settled: &mut Vec<Settled>,
    ) -> Result<u32, Error> {
        for claimed in left.iter_mut() {
            if let Some(query_id) = &claimed.unknown {
                // It must have ended, or it could store the batch after the ledger was read.
                self.store.kill(query_id).await?;
                claimed.unknown = None;
            }
        }
        let begin_before = self.store.now().await?.saturating_add(BEGIN_WITHIN_SECONDS);
        let ids: Vec<_> = left.iter().map(|claimed| claimed.id).collect();
        let stored: HashSet<_> = self.store.stored_batches(self.table, partition, &ids).await?;
        self.metrics.looked_up(self.index, ids.len(), stored.len());
        left.retain(|claimed| {
            let is_stored = stored.contains(&claimed.id);
            if is_stored {
                settled.push((claimed.id, Ok(())));
            }
            !is_stored
        });
        Ok(begin_before)
    }

    /// Tries each once, and takes out what the store refuses for good. Says whether all went well.
    async fn insert_claimed(
        &self,
        left: &mut Vec<Claimed>,
        begin_before: u32,
        settled: &mut Vec<Settled>,
    ) -> bool {
        let mut is_well = true;
        for some in left.chunks_mut(AT_ONCE) {
            let tries = some.iter_mut().map(|claimed| self.try_claimed(claimed, begin_before));
            is_well &= futures::future::join_all(tries).await.into_iter().all(|is_well| is_well);
        }
        left.retain(|Claimed { block, refusals, refused, .. }| {
            let message = refused.as_ref().filter(|_| *refusals >= REFUSALS_MAX);
            if let Some(message) = message {
                settled.extend(block.pieces.iter().map(|piece| self.give_up(piece, message)));
            }
            message.is_none()
        });
        is_well
    }

    async fn try_claimed(&self, claimed: &mut Claimed, begin_before: u32) -> bool {
        let Claimed { block, id, tries, .. } = claimed;
        let query_id = self.store.query_id();
        let insert = Insert {
            table: self.table,
            block: Bytes::new(),
            token: format!("batch.{}.{}.{}.{tries}", id.agent_id, id.seq, block.partition),
            guard: Guard::Before(begin_before),
            query_id: query_id.clone(),
        };
        let Err(error) = self.store.insert(Arc::clone(block), insert).await else {
            claimed.tries += 1;
            return true;
        };
        match &error {
            Error::Refused { message, .. } => {
                claimed.refusals += 1;
                claimed.refused = Some(message.clone());
                self.metrics.failed(self.index, metrics_reason::REFUSED);
            }
            Error::Unknown(_) => {
                claimed.unknown = Some(query_id);
                self.trouble(&error, "an insert got no answer");
            }
            _ => self.trouble(&error, "an insert failed"),
        }
        false
    }
}

impl Claimed {
    fn new(block: Block) -> Option<Self> {
        let id = block.pieces.first()?.id;
        Some(Self { block: Arc::new(block), id, tries: 0, unknown: None, refusals: 0, refused: None })
    }
}
