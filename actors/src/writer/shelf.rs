//! The store as the writer uses it, and the time that it waits. A trait, so that the simulation drives the very code that a node runs.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use metaflow_schema::Table;

use super::block::Block;
use crate::{
    rows::BatchId,
    store::{Error, Insert, Store},
};

/// How often it is asked whether inserts have ended; most take less than this.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// An insert that takes longer is ended: its node may be the one that is stopped.
const END_AFTER: Duration = Duration::from_secs(5);

pub trait Shelf: Send + Sync {
    fn instant(&self) -> Instant;

    fn sleep_until(&self, moment: Instant) -> impl Future<Output = ()> + Send;

    /// See [`Store::query_id`].
    fn query_id(&self) -> String;

    /// See [`Store::run`].
    fn run(&self) -> impl Future<Output = Result<String, Error>> + Send;

    /// Stores a block as `insert` says, whose own block is still to be made of it; answers with the bytes that this took.
    fn insert(&self, block: Arc<Block>, insert: Insert) -> impl Future<Output = Result<usize, Error>> + Send;

    /// See [`Store::kill`].
    fn kill(&self, query_id: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// See [`Store::stored_batches`].
    fn stored_batches(
        &self,
        table: &'static Table,
        partition: u32,
        ids: &[BatchId],
    ) -> impl Future<Output = Result<HashSet<BatchId>, Error>> + Send;

    /// See [`Store::note_claims`].
    fn note_claims(
        &self,
        table: &'static Table,
        partition: u32,
        ids: &[BatchId],
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// See [`Store::running_inserts`].
    fn running_inserts(
        &self,
        table: &'static Table,
    ) -> impl Future<Output = Result<HashSet<String>, Error>> + Send;

    /// See [`Store::end`].
    fn end(&self, query_id: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// See [`Store::claimed`].
    fn claimed(
        &self,
        table: &'static Table,
        partition: u32,
        ids: &[BatchId],
    ) -> impl Future<Output = Result<HashSet<BatchId>, Error>> + Send;

    /// See [`Store::now`].
    fn now(&self) -> impl Future<Output = Result<u32, Error>> + Send;

    /// Claims batches: after this, no insert of them can succeed that is not a claimer's own.
    fn claim(
        &self,
        table: &'static Table,
        partition: u32,
        ids: &[BatchId],
    ) -> impl Future<Output = Result<(), Error>> + Send {
        async move {
            self.note_claims(table, partition, ids).await?;
            let mut earlier = self.running_inserts(table).await?;
            let mut end_at = Some(self.instant() + END_AFTER);
            while !earlier.is_empty() {
                if end_at.is_some_and(|at| self.instant() >= at) {
                    end_at = None;
                    tracing::warn!(?earlier, "an insert of another node takes too long and is ended");
                    for query_id in &earlier {
                        self.end(query_id).await?;
                    }
                }
                self.sleep_until(self.instant() + ASK_AGAIN_AFTER).await;
                let now = self.running_inserts(table).await?;
                earlier.retain(|query_id| now.contains(query_id));
            }
            Ok(())
        }
    }
}

impl Shelf for Store {
    fn instant(&self) -> Instant {
        Instant::now()
    }

    async fn sleep_until(&self, moment: Instant) {
        tokio::time::sleep_until(moment.into()).await;
    }

    fn query_id(&self) -> String {
        self.query_id()
    }

    async fn run(&self) -> Result<String, Error> {
        self.run().await
    }

    async fn insert(&self, block: Arc<Block>, mut insert: Insert) -> Result<usize, Error> {
        let encoded = tokio::task::spawn_blocking(move || block.rows().encode_native()).await;
        insert.block = match encoded {
            Ok(Ok(body)) => body.into(),
            Ok(Err(error)) => return Err(Error::Refused { code: 0, message: error.to_string() }),
            Err(error) => return Err(Error::Setup(format!("the encoder failed: {error}"))),
        };
        self.insert(&insert).await?;
        Ok(insert.block.len())
    }

    async fn kill(&self, query_id: &str) -> Result<(), Error> {
        self.kill(query_id).await
    }

    async fn stored_batches(
        &self,
        table: &'static Table,
        partition: u32,
        ids: &[BatchId],
    ) -> Result<HashSet<BatchId>, Error> {
        self.stored_batches(table, partition, ids).await
    }

    async fn note_claims(&self, table: &'static Table, partition: u32, ids: &[BatchId]) -> Result<(), Error> {
        self.note_claims(table, partition, ids).await
    }

    async fn running_inserts(&self, table: &'static Table) -> Result<HashSet<String>, Error> {
        self.running_inserts(table).await
    }

    async fn end(&self, query_id: &str) -> Result<(), Error> {
        self.end(query_id).await
    }

    async fn claimed(
        &self,
        table: &'static Table,
        partition: u32,
        ids: &[BatchId],
    ) -> Result<HashSet<BatchId>, Error> {
        self.claimed(table, partition, ids).await
    }

    async fn now(&self) -> Result<u32, Error> {
        self.now().await
    }
}
