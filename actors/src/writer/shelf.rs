//! The store as the writer uses it, and the time that it waits. A trait, so that the simulation drives the very code that a node runs.

use std::{collections::HashSet, sync::Arc, time::Instant};

use metaflow_schema::Table;

use super::block::Block;
use crate::{
    rows::BatchId,
    store::{Error, Insert, Store},
};

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

    /// See [`Store::claim`]. A store that nodes do not share knows no claims.
    fn claim(
        &self,
        _table: &'static Table,
        _partition: u32,
        _ids: &[BatchId],
    ) -> impl Future<Output = Result<(), Error>> + Send {
        std::future::ready(Ok(()))
    }

    /// See [`Store::claimed`].
    fn claimed(
        &self,
        _table: &'static Table,
        _partition: u32,
        _ids: &[BatchId],
    ) -> impl Future<Output = Result<HashSet<BatchId>, Error>> + Send {
        std::future::ready(Ok(HashSet::new()))
    }

    /// See [`Store::now`].
    fn now(&self) -> impl Future<Output = Result<u32, Error>> + Send {
        std::future::ready(Ok(0))
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

    async fn claim(&self, table: &'static Table, partition: u32, ids: &[BatchId]) -> Result<(), Error> {
        self.claim(table, partition, ids).await
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
