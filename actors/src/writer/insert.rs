//! One block into the store: tries until it is stored or refused for good.
//!
//! A token makes a repeated insert harmless while the store runs. But the store notes a token before it stores the rows (ClickHouse,
//! `MergeTreeSink::finishDelayedChunk`): a crash or a full disk can keep the token and lose them. So a token is used for one run of the store only, and when a try with it has failed, the
//! success of a later one is believed only after the rows themselves were looked up.
//!
//! A batch that an agent sent to two nodes is in two logs, and both may find that the store has it not. The node to which it was sent again
//! knows so, and so does one that was started anew; there the batch is uncertain. Where nodes share a store, an uncertain batch is claimed,
//! so that the other node cannot store it any more without knowing (`store/fence.rs`), and then looked up. It is inserted alone, with a
//! token that all make of its number: of those who know, the store takes one ([`claimed`]).

mod claimed;
#[cfg(test)]
mod tests;

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use metaflow_schema::Table;

use super::{
    BeforeInsert, Metrics, Pause, Settled, Shelf,
    block::{Block, Piece},
    metrics::reason as metrics_reason,
};
use crate::{
    rows::BatchId,
    store::{Error, Guard, Insert},
};

/// Refusals of the same rows before they are believed: one could come from a connection that was cut inside the block.
const REFUSALS_MAX: u32 = 2;

pub(super) struct Inserter<S> {
    pub(super) store: S,
    pub(super) table: &'static Table,
    pub(super) before_insert: BeforeInsert,
    pub(super) metrics: Arc<Metrics>,
    /// Of the table, in `TABLES`.
    pub(super) index: usize,
    pub(super) is_shared: bool,
}

/// A block under way.
struct Work {
    block: Arc<Block>,
    token: String,
    /// A try with this token failed: the store may take the next for a repetition and store nothing.
    token_used: bool,
    /// The try whose outcome is unknown.
    unknown: Option<String>,
    refusals: u32,
}

impl<S: Shelf> Inserter<S> {
    /// Stores a block; the answer says for each batch whether its rows are stored.
    pub(super) async fn store(&self, block: Block) -> Vec<Settled> {
        let mut settled = Vec::with_capacity(block.pieces.len());
        let mut pause = Pause::default();
        while let Err(error) = (self.before_insert)().await {
            self.metrics.failed(self.index, metrics_reason::DICTIONARY);
            tracing::warn!(table = self.table.name, error, "rows wait for the dictionary to be stored");
            pause.wait(&self.store).await;
        }
        let mut todo = Vec::new();
        self.begin(block, &mut todo, &mut settled).await;
        while let Some(work) = todo.pop() {
            self.finish(work, &mut todo, &mut settled).await;
        }
        settled
    }

    /// Stores what another node may have, too; the rest is to be done.
    async fn begin(&self, block: Block, todo: &mut Vec<Work>, settled: &mut Vec<Settled>) {
        let (certain, uncertain) = if self.is_shared { block.apart() } else { (Some(block), vec![]) };
        self.store_claimed(uncertain, settled).await;
        todo.extend(certain.map(|block| self.work(block)));
    }

    fn work(&self, block: Block) -> Work {
        Work {
            block: Arc::new(block),
            token: self.store.query_id(),
            token_used: false,
            unknown: None,
            refusals: 0,
        }
    }

    fn renew_token(&self, work: &mut Work) {
        work.token = self.store.query_id();
        work.token_used = false;
    }

    /// Brings one block to its end, or splits it in two.
    async fn finish(&self, mut work: Work, todo: &mut Vec<Work>, settled: &mut Vec<Settled>) {
        let mut pause = Pause::default();
        loop {
            work = match self.look_up(work, settled).await {
                Ok(Some(work)) => work,
                Ok(None) => return,
                Err((work, error)) => {
                    self.trouble(&error, "the ledger could not be read");
                    pause.wait(&self.store).await;
                    work
                }
            };
            if work.unknown.is_some() || work.block.pieces.iter().any(|piece| piece.uncertain) {
                continue;
            }
            let query_id = self.store.query_id();
            match self.insert(&work, &query_id).await {
                Ok(_) if work.token_used => {
                    self.renew_token(&mut work);
                    work.unknown = Some(query_id);
                    continue;
                }
                Ok(bytes) => {
                    self.metrics.stored(self.index, work.block.rows.len(), bytes);
                    settled.extend(work.block.pieces.iter().map(|piece| (piece.id, Ok(()))));
                    return;
                }
                Err(Error::Refused { message, .. }) => {
                    self.metrics.failed(self.index, metrics_reason::REFUSED);
                    work.refusals += 1;
                    work.token_used = true;
                    if work.refusals < REFUSALS_MAX {
                        continue;
                    }
                    self.split(work, &message, todo, settled);
                    return;
                }
                Err(error @ Error::Fenced(_)) => {
                    self.trouble(&error, "an insert has batches that another node has, too");
                    match self.doubted(&work).await {
                        Ok(doubted) => {
                            let mut block = Arc::unwrap_or_clone(work.block);
                            block.doubt(&doubted);
                            self.begin(block, todo, settled).await;
                            return;
                        }
                        Err(error) => self.trouble(&error, "claims could not be read"),
                    }
                }
                Err(error @ Error::Unknown(_)) => {
                    self.trouble(&error, "an insert got no answer");
                    work.token_used = true;
                    work.unknown = Some(query_id);
                }
                Err(error) => {
                    self.trouble(&error, "an insert failed");
                    work.token_used = true;
                }
            }
            pause.wait(&self.store).await;
        }
    }

    /// The batches for which the store did not let a block through its guard.
    async fn doubted(&self, work: &Work) -> Result<HashSet<BatchId>, Error> {
        let ids: Vec<_> = work.block.pieces.iter().map(|piece| piece.id).collect();
        self.store.claimed(self.table, work.block.partition, &ids).await
    }

    /// Takes out what is stored already; none when that is everything.
    async fn look_up(
        &self,
        mut work: Work,
        settled: &mut Vec<Settled>,
    ) -> Result<Option<Work>, (Work, Error)> {
        let ids: Vec<BatchId> = if let Some(query_id) = &work.unknown {
            // It must have ended, or it could store the block after the ledger was read.
            if let Err(error) = self.store.kill(query_id).await {
                return Err((work, error));
            }
            work.block.pieces.iter().map(|piece| piece.id).collect()
        } else {
            work.block.uncertain()
        };
        if ids.is_empty() {
            return Ok(Some(work));
        }
        let stored: HashSet<_> = match self.store.stored_batches(self.table, work.block.partition, &ids).await
        {
            Ok(stored) => stored,
            Err(error) => return Err((work, error)),
        };
        self.metrics.looked_up(self.index, ids.len(), stored.len());
        work.unknown = None;
        if !stored.is_empty() {
            // Other rows than before, so another token.
            self.renew_token(&mut work);
        }
        settled.extend(
            work.block
                .pieces
                .iter()
                .filter(|piece| stored.contains(&piece.id))
                .map(|piece| (piece.id, Ok(()))),
        );
        let left = Arc::unwrap_or_clone(work.block).without(&stored);
        Ok(left.map(|block| Work { block: Arc::new(block), ..work }))
    }

    /// Answers with the size of the body.
    async fn insert(&self, work: &Work, query_id: &str) -> Result<usize, Error> {
        let token = format!("{}.{}", work.token, self.store.run().await?);
        let guard =
            if self.is_shared { Guard::Unclaimed { partition: work.block.partition } } else { Guard::Open };
        let block = Bytes::new();
        let insert = Insert { table: self.table, block, token, guard, query_id: query_id.to_owned() };
        self.store.insert(Arc::clone(&work.block), insert).await
    }

    fn split(&self, work: Work, message: &str, todo: &mut Vec<Work>, settled: &mut Vec<Settled>) {
        if let Some((first, second)) = work.block.halves() {
            todo.push(self.work(second));
            todo.push(self.work(first));
            return;
        }
        settled.extend(work.block.pieces.iter().map(|piece| self.give_up(piece, message)));
    }

    fn give_up(&self, piece: &Piece, message: &str) -> Settled {
        let rows = piece.rows.len();
        tracing::warn!(
            table = self.table.name,
            agent_id = piece.id.agent_id,
            seq = piece.id.seq,
            rows,
            error = message,
            "rows are lost: the store refuses them"
        );
        self.metrics.rejected(self.index, rows);
        (piece.id, Err(message.chars().take(500).collect()))
    }

    fn trouble(&self, error: &Error, what: &str) {
        let reason = match error {
            Error::Unknown(_) => metrics_reason::UNKNOWN,
            Error::Fenced(_) => metrics_reason::FENCED,
            Error::Transient { .. } | Error::TooLarge(_) => metrics_reason::TRANSIENT,
            Error::Setup(_) | Error::Refused { .. } => metrics_reason::SETUP,
        };
        self.metrics.failed(self.index, reason);
        tracing::warn!(table = self.table.name, %error, "{what}, trying again");
    }
}
