//! One block into the store: tries until it is stored or refused for good.
//!
//! A token makes a repeated insert harmless while the store runs. But the store notes a token before it stores the rows (ClickHouse,
//! `MergeTreeSink::finishDelayedChunk`): a crash or a full disk can keep the token and lose them. So a token is used for one run of the store only, and when a try with it has failed, the
//! success of a later one is believed only after the rows themselves were looked up.
//!
//! A batch that an agent sent to two nodes is in two logs, and both may find that the store has it not. The node to which it was sent again
//! knows so, and so does one that was started anew; there the batch is uncertain. Where nodes share a store, an uncertain batch is claimed,
//! so that the other node cannot store it any more without knowing (`store/fence.rs`), and then looked up. It is inserted alone, with a
//! token that all make of its number: of those who know, the store takes one.

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
/// From the look-up of an uncertain batch to the beginning of its insert: much less time than the store remembers tokens.
const BEGIN_WITHIN_SECONDS: u32 = 60;

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
    /// Tries at a batch that other nodes may insert, too: they count alike, so their tokens are the same.
    claim: Option<u32>,
    /// When such a batch must be looked up again, by the store's clock.
    begin_before: u32,
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
        let mut todo = self.works(block).await;
        while let Some(work) = todo.pop() {
            self.finish(work, &mut todo, &mut settled).await;
        }
        settled
    }

    /// The certain batches of a block together, and each that another node may have, too, alone.
    async fn works(&self, block: Block) -> Vec<Work> {
        let uncertain = block.uncertain();
        if !self.is_shared || uncertain.is_empty() {
            return vec![self.work(block)];
        }
        let mut pause = Pause::default();
        while let Err(error) = self.store.claim(self.table, block.partition, &uncertain).await {
            self.trouble(&error, "batches could not be claimed");
            pause.wait(&self.store).await;
        }
        block.apart().into_iter().map(|block| self.work(block)).collect()
    }

    fn work(&self, block: Block) -> Work {
        let claim = match &block.pieces[..] {
            [piece] if self.is_shared && piece.uncertain => Some(0),
            _ => None,
        };
        let mut work = Work {
            block: Arc::new(block),
            token: String::new(),
            claim,
            begin_before: 0,
            token_used: false,
            unknown: None,
            refusals: 0,
        };
        self.renew_token(&mut work);
        work
    }

    fn renew_token(&self, work: &mut Work) {
        match (&mut work.claim, work.block.pieces.first()) {
            (Some(claim), Some(Piece { id, .. })) => {
                work.token = format!("batch.{}.{}.{}.{claim}", id.agent_id, id.seq, work.block.partition);
                *claim += 1;
                // Success may be another node's: it counts when the rows are there.
                work.token_used = true;
            }
            _ => {
                work.token = self.store.query_id();
                work.token_used = false;
            }
        }
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
                            todo.extend(self.works(block).await);
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
        match work.claim {
            // It came too late.
            Some(_) => Ok(ids.into_iter().collect()),
            None => self.store.claimed(self.table, work.block.partition, &ids).await,
        }
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
        if work.claim.is_some() {
            match self.store.now().await {
                Ok(now) => work.begin_before = now.saturating_add(BEGIN_WITHIN_SECONDS),
                Err(error) => return Err((work, error)),
            }
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
        let token = match work.claim {
            // The same for all nodes, who may name a run differently; the rows are looked up afterwards.
            Some(_) => work.token.clone(),
            None => format!("{}.{}", work.token, self.store.run().await?),
        };
        let guard = match work.claim {
            Some(_) => Guard::Before(work.begin_before),
            None if self.is_shared => Guard::Unclaimed { partition: work.block.partition },
            None => Guard::Open,
        };
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
        for piece in &work.block.pieces {
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
            settled.push((piece.id, Err(message.chars().take(500).collect())));
        }
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
