//! The groups as they are now, followed by whoever speaks to agents.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::{Change, Groups, Plan, Refusal, plan};
use crate::{
    dictionary::NodeId,
    disk::{self, Disk},
    documents::{self, Document, Documents},
};

/// Clones share the groups.
#[derive(Clone)]
pub struct Registry {
    documents: Documents,
    current: Arc<watch::Sender<Arc<Groups>>>,
    /// One reading at a time, so that an earlier one does not come last.
    reading: Arc<Mutex<()>>,
}

impl Registry {
    /// Blocks.
    pub fn open(disk: Disk, own: NodeId) -> Result<Self, disk::Error> {
        let documents = Documents::open(disk, own)?;
        let (current, _) = watch::channel(Arc::new(documents.read(Groups::of)));
        Ok(Self { documents, current: Arc::new(current), reading: Arc::default() })
    }

    pub fn groups(&self) -> Arc<Groups> {
        Arc::clone(&self.current.borrow())
    }

    /// The groups now and every later state of them.
    pub fn follow(&self) -> watch::Receiver<Arc<Groups>> {
        self.current.subscribe()
    }

    /// What other nodes are asked for and told.
    pub fn documents(&self) -> &Documents {
        &self.documents
    }

    /// Plans a change and performs it; blocks for the disk. Answers what other nodes are to be told.
    pub fn change(&self, change: &Change, now: u32) -> Result<(Plan, Vec<Document>), Refusal> {
        let mut planned = Plan::default();
        let written = self.documents.update(|kept| {
            planned = plan(&Groups::of(kept), change, now)?;
            Ok::<_, Refusal>(planned.writes.clone())
        })?;
        self.refresh();
        Ok((planned, written))
    }

    /// Groups as they would be after a change.
    pub fn preview(&self, change: &Change, now: u32) -> Result<(Plan, Groups), Refusal> {
        self.documents.read(|kept| {
            let planned = plan(&Groups::of(kept), change, now)?;
            let mut after = kept.clone();
            for (key, body) in &planned.writes {
                let stamp = documents::Stamp { counter: 0, node: 0 };
                after.insert(key.clone(), Document { key: key.clone(), stamp, body: body.clone() });
            }
            Ok((planned, Groups::of(&after)))
        })
    }

    /// Takes documents of another node. Blocks for the disk.
    pub fn learn(&self, documents: Vec<Document>) -> Result<usize, documents::Error> {
        let learned = self.documents.learn(documents)?;
        if learned > 0 {
            self.refresh();
        }
        Ok(learned)
    }

    fn refresh(&self) {
        let _one = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        self.current.send_replace(Arc::new(self.documents.read(Groups::of)));
    }
}
