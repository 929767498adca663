//! What others should hear at once: names that this node gave an id, for the holders of their partitions, and names that turned out to have
//! several ids, for all. What is forgotten here, or does not arrive, comes to them when nodes compare.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use metaflow_schema::enums::Kind;
use metaflow_wire::LearnRequest;
use tokio::sync::Notify;

use super::{Dictionary, Entry, NodeId, exchange};
use crate::placement::{Owners, PartitionId, partition_of};

/// Entries that wait to be told.
const NEWS_MAX: usize = 100_000;
/// Who did not answer is left alone for so long.
const LEAVE_ALONE: Duration = Duration::from_secs(1);

/// Who is to hear of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    Holders,
    Everybody,
}

type Piece = (Audience, Kind, u32, Arc<str>);

#[derive(Default)]
pub(super) struct News {
    queue: Mutex<VecDeque<Piece>>,
    bell: Notify,
}

impl News {
    pub(super) fn add(&self, audience: Audience, kind: Kind, id: u32, name: &Arc<str>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() < NEWS_MAX {
            queue.push_back((audience, kind, id, Arc::clone(name)));
            self.bell.notify_one();
        }
    }
}

impl Dictionary {
    /// Waits until there is something to tell.
    pub async fn news(&self) {
        self.inner.news.bell.notified().await;
    }

    /// Takes what is to be told, by node. `nodes` are all others that can be called.
    pub fn take_news(
        &self,
        nodes: &[NodeId],
        owners: impl Fn(PartitionId) -> Owners,
    ) -> BTreeMap<NodeId, Vec<LearnRequest>> {
        let news = std::mem::take(&mut *self.inner.news.queue.lock().unwrap_or_else(PoisonError::into_inner));
        let unconfirmed = self.inner.pending.ids();
        let mut told: BTreeMap<NodeId, Vec<_>> = BTreeMap::new();
        for (audience, kind, id, name) in news {
            let holders = owners(partition_of(kind, &name));
            let hears =
                |node: NodeId| audience == Audience::Everybody || holders.iter().any(|holder| holder == node);
            for node in nodes.iter().copied().filter(|node| hears(*node)) {
                let entry = Entry { kind, id, name: name.to_string() };
                let is_stored = !unconfirmed.contains(&(kind, id));
                told.entry(node).or_default().push(exchange::to_wire((entry, is_stored)));
            }
        }
        let requests = |entries: Vec<_>| -> Vec<LearnRequest> {
            let chunks = entries.chunks(exchange::ENTRIES_MAX as usize);
            chunks.map(|entries| LearnRequest { entries: entries.to_vec() }).collect()
        };
        told.into_iter().map(|(node, entries)| (node, requests(entries))).collect()
    }
}

/// Who did not answer of late.
#[derive(Debug, Default)]
pub struct Silent(BTreeMap<NodeId, Instant>);

impl Silent {
    /// Notes whether a node answered.
    pub fn note(&mut self, node: NodeId, has_answered: bool, now: Instant) {
        if has_answered {
            self.0.remove(&node);
        } else {
            self.0.insert(node, now + LEAVE_ALONE);
        }
    }

    pub fn is_left_alone(&self, node: NodeId, now: Instant) -> bool {
        self.0.get(&node).is_some_and(|until| now < *until)
    }

    /// Whom to ask for the ids of names, and where these stand: the owner of each, or the first that stands in for it when the owner does
    /// not answer. What stands in no answer this node names itself: it is the one to do so, or nobody can be asked.
    pub fn questions(
        &self,
        own: NodeId,
        names: &[(Kind, &str)],
        owners: impl Fn(PartitionId) -> Owners,
        now: Instant,
    ) -> BTreeMap<NodeId, Vec<usize>> {
        let mut questions: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
        for (at, (kind, name)) in names.iter().enumerate() {
            let holders = owners(partition_of(*kind, name));
            let asked = holders.iter().find(|node| *node == own || !self.is_left_alone(*node, now));
            if let Some(node) = asked.filter(|node| *node != own) {
                questions.entry(node).or_default().push(at);
            }
        }
        questions
    }
}
