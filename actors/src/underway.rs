//! Batches that a part of the row path has in its hands now, for who asks where a batch is.
//!
//! One entry a batch, made and taken away with it, so it is bounded as batches are: by the memory budget. Leaves out what becomes of them.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use metaflow_schema::Table;

use crate::rows::BatchId;

/// What is being done to a batch.
#[derive(Debug, Clone, Copy)]
pub enum Stage {
    /// Its tags are being filled in.
    Labelling,
    /// It waits for others to fill a block of its table.
    Collecting(&'static Table),
    /// Its block is being inserted, or waits for the store to take it.
    Inserting(&'static Table),
}

/// The batches in the hands of one part.
#[derive(Debug, Default)]
pub struct Underway(Mutex<HashMap<BatchId, Stage>>);

impl Underway {
    /// Notes that something new is done to a batch.
    pub(crate) fn enter(&self, id: BatchId, stage: Stage) {
        self.lock().insert(id, stage);
    }

    /// The batch left this part.
    pub(crate) fn leave(&self, id: BatchId) {
        self.lock().remove(&id);
    }

    /// What is being done to a batch; none when it is not here.
    pub fn stage(&self, id: BatchId) -> Option<Stage> {
        self.lock().get(&id).copied()
    }

    pub fn len(&self) -> usize {
        self.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BatchId, Stage>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
