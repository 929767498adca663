//! Documents that every node keeps: small values that operators set, of which the last writer wins.
//!
//! Nothing needs agreement: a node writes alone, with a stamp above every stamp that it has seen, and tells the others; what two nodes
//! wrote while they were apart is decided by the stamp alone, so all nodes that know the same writes keep the same values. Nodes find
//! what they do not both know by digests of buckets (see [`Documents::digests`]). Bound: [`DOCUMENTS_MAX`], [`BODY_BYTES_MAX`]. On failure
//! of the disk nothing is changed. Leaves out: what a document says (`groups`), and who asks whom (`node`).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::{
    dictionary::NodeId,
    disk::{self, Changes, Disk, Durability, Family},
    placement::text_hash,
};

/// An assignment for each of 100,000 agents and as much again.
pub const DOCUMENTS_MAX: usize = 250_000;
/// A message between nodes holds several.
pub const BODY_BYTES_MAX: usize = 256 << 10;
pub const KEY_BYTES_MAX: usize = 512;
/// What is compared at a time: few enough for one message a second, enough that a difference means few documents.
pub const BUCKETS: usize = 64;
/// Stamps beyond this come from a defect: taken, they would leave no room for later writers.
const COUNTER_MAX: u64 = 1 << 48;

/// When something was written, as far as order matters. The greater wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    pub counter: u64,
    pub node: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub key: String,
    pub stamp: Stamp,
    /// None: deleted. It is kept, so that no node brings it back.
    pub body: Option<String>,
}

impl Document {
    /// The stamp decides; two nodes with one number may write with one stamp, then what they wrote does.
    fn wins_over(&self, other: &Self) -> bool {
        (self.stamp, &self.body) > (other.stamp, &other.body)
    }

    fn hash(&self) -> u64 {
        let Self { key, stamp, body } = self;
        let body = text_hash(u64::from(stamp.node), body.as_deref().unwrap_or("\0"));
        text_hash(stamp.counter ^ body, key)
    }

    fn bytes(&self) -> usize {
        self.key.len() + self.body.as_ref().map_or(0, String::len) + 32
    }

    fn is_sound(&self) -> bool {
        self.key.len() <= KEY_BYTES_MAX
            && self.body.as_ref().is_none_or(|body| body.len() <= BODY_BYTES_MAX)
            && self.stamp.counter <= COUNTER_MAX
    }

    fn encode(&self) -> Vec<u8> {
        let Self { key: _, stamp, body } = self;
        let head = [&stamp.counter.to_be_bytes()[..], &stamp.node.to_be_bytes(), &[u8::from(body.is_some())]];
        [&head.concat(), body.as_deref().unwrap_or("").as_bytes()].concat()
    }

    fn decode(key: &[u8], value: &[u8]) -> Option<Self> {
        let (counter, rest) = value.split_first_chunk()?;
        let (node, rest) = rest.split_first_chunk()?;
        let (has_body, body) = rest.split_first()?;
        Some(Self {
            key: String::from_utf8(key.to_vec()).ok()?,
            stamp: Stamp { counter: u64::from_be_bytes(*counter), node: u16::from_be_bytes(*node) },
            body: (*has_body == 1).then(|| String::from_utf8(body.to_vec()).ok()).flatten(),
        })
    }
}

fn bucket(key: &str) -> usize {
    (text_hash(0, key) % BUCKETS as u64) as usize
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the document cannot be kept")]
    Disk(#[from] disk::Error),
    #[error("{0:?} is larger than what one document may hold")]
    TooLarge(String),
    #[error("{DOCUMENTS_MAX} documents are kept, which is the limit")]
    Full,
}

/// What is written: a key, and a body or none to delete it.
pub type Write = (String, Option<String>);

/// The documents of this node; clones share them.
#[derive(Clone)]
pub struct Documents {
    inner: Arc<Inner>,
}

struct Inner {
    disk: Disk,
    own: u16,
    kept: Mutex<Kept>,
    changes: watch::Sender<u64>,
    /// The digests, and the change after which they were made.
    digests: Mutex<Option<(u64, Vec<u64>)>>,
}

/// Everything in memory: it is small, and read whole when something changes.
pub type Kept = BTreeMap<String, Document>;

impl Documents {
    /// Blocks.
    pub fn open(disk: Disk, own: NodeId) -> Result<Self, disk::Error> {
        let mut kept = Kept::new();
        disk.scan(Family::Documents, b"", |key, value| {
            match Document::decode(key, value) {
                Some(document) => {
                    kept.insert(document.key.clone(), document);
                }
                None => tracing::warn!(key = %key.escape_ascii(), "a document on disk cannot be read"),
            }
            true
        })?;
        let (changes, _) = watch::channel(0);
        Ok(Self {
            inner: Arc::new(Inner {
                disk,
                own: own.get(),
                kept: Mutex::new(kept),
                changes,
                digests: Mutex::default(),
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rises with every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    pub fn read<T>(&self, look: impl FnOnce(&Kept) -> T) -> T {
        look(&self.lock())
    }

    /// Writes what `plan` makes of what is there; nobody else writes here in between. Durable when this returns; blocks for it. Answers
    /// the documents to tell other nodes of.
    pub fn update<E: From<Error>>(
        &self,
        plan: impl FnOnce(&Kept) -> Result<Vec<Write>, E>,
    ) -> Result<Vec<Document>, E> {
        let mut kept = self.lock();
        let writes = plan(&kept)?;
        let counter = kept.values().map(|document| document.stamp.counter).max().unwrap_or(0) + 1;
        let stamp = Stamp { counter, node: self.inner.own };
        let documents: Vec<Document> =
            writes.into_iter().map(|(key, body)| Document { key, stamp, body }).collect();
        if let Some(document) = documents.iter().find(|document| !document.is_sound()) {
            return Err(Error::TooLarge(document.key.clone()).into());
        }
        self.keep(&mut kept, &documents).map_err(E::from)?;
        Ok(documents)
    }

    /// Takes what another node keeps, where it wins. Answers how many did. Blocks for the disk.
    pub fn learn(&self, documents: Vec<Document>) -> Result<usize, Error> {
        let mut kept = self.lock();
        let newer: Vec<Document> = documents
            .into_iter()
            .filter(|document| document.is_sound())
            .filter(|document| kept.get(&document.key).is_none_or(|own| document.wins_over(own)))
            .collect();
        self.keep(&mut kept, &newer)?;
        Ok(newer.len())
    }

    fn keep(&self, kept: &mut Kept, documents: &[Document]) -> Result<(), Error> {
        if documents.is_empty() {
            return Ok(());
        }
        let fresh = documents.iter().filter(|document| !kept.contains_key(&document.key)).count();
        if kept.len() + fresh > DOCUMENTS_MAX {
            return Err(Error::Full);
        }
        let mut changes = Changes::default();
        for document in documents {
            changes.put(Family::Documents, document.key.as_bytes(), document.encode());
        }
        self.inner.disk.write(changes, Durability::Synced)?;
        kept.extend(documents.iter().map(|document| (document.key.clone(), document.clone())));
        self.inner.changes.send_modify(|changes| *changes += 1);
        Ok(())
    }

    /// One number a bucket: two nodes that keep the same have the same.
    pub fn digests(&self) -> Vec<u64> {
        let kept = self.lock();
        let change = *self.inner.changes.borrow();
        let mut known = self.inner.digests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((after, digests)) = &*known
            && *after == change
        {
            return digests.clone();
        }
        let mut digests = vec![0_u64; BUCKETS];
        for document in kept.values() {
            let digest = &mut digests[bucket(&document.key)];
            *digest = digest.wrapping_add(document.hash());
        }
        *known = Some((change, digests.clone()));
        digests
    }

    /// The first of these buckets whose documents fit into `bytes_max`, one at least, and all documents of them.
    pub fn of_buckets(&self, buckets: &[usize], bytes_max: usize) -> (Vec<usize>, Vec<Document>) {
        let kept = self.lock();
        let (mut told, mut documents, mut bytes) = (Vec::new(), Vec::new(), 0);
        for wanted in buckets {
            let its: Vec<&Document> =
                kept.values().filter(|document| bucket(&document.key) == *wanted).collect();
            bytes += its.iter().map(|document| document.bytes()).sum::<usize>();
            if !told.is_empty() && bytes > bytes_max {
                break;
            }
            told.push(*wanted);
            documents.extend(its.into_iter().cloned());
        }
        (told, documents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Node(Documents, tempfile::TempDir);

    fn node(number: u16) -> Node {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path()).unwrap();
        Node(Documents::open(disk, NodeId::new(number).unwrap()).unwrap(), folder)
    }

    fn write(node: &Node, key: &str, body: Option<&str>) -> Vec<Document> {
        let change = (key.to_owned(), body.map(str::to_owned));
        node.0.update::<Error>(|_| Ok(vec![change])).unwrap()
    }

    /// What two nodes do in a round.
    fn exchange(one: &Node, other: &Node) {
        let (mine, theirs) = (one.0.digests(), other.0.digests());
        let differing: Vec<usize> = (0..BUCKETS).filter(|at| mine[*at] != theirs[*at]).collect();
        let (buckets, documents) = other.0.of_buckets(&differing, usize::MAX);
        one.0.learn(documents).unwrap();
        other.0.learn(one.0.of_buckets(&buckets, usize::MAX).1).unwrap();
    }

    fn bodies(node: &Node) -> Vec<(String, Option<String>)> {
        node.0.read(|kept| {
            kept.values().map(|document| (document.key.clone(), document.body.clone())).collect()
        })
    }

    #[test]
    fn nodes_that_were_apart_agree_whichever_way_they_meet() {
        let nodes = [node(1), node(2), node(3)];
        write(&nodes[0], "a", Some("first"));
        exchange(&nodes[1], &nodes[0]);
        exchange(&nodes[2], &nodes[1]);
        // Apart: each writes what the others do not see.
        write(&nodes[0], "a", Some("one"));
        write(&nodes[1], "a", Some("two"));
        write(&nodes[1], "b", Some("two"));
        write(&nodes[2], "a", None);
        write(&nodes[2], "c", Some("three"));
        write(&nodes[2], "c", None);
        for (one, other) in [(0, 1), (2, 1), (0, 2), (1, 0)] {
            exchange(&nodes[one], &nodes[other]);
        }
        // The highest counter, then the highest node: 3 deleted "a" with the same counter as the others wrote it.
        let all = bodies(&nodes[0]);
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(all, [("a".to_owned(), None), ("b".to_owned(), text("two")), ("c".to_owned(), None)]);
        assert_eq!((bodies(&nodes[1]), bodies(&nodes[2])), (all.clone(), all));
        assert_eq!(nodes[0].0.digests(), nodes[2].0.digests());
        // Whoever writes now wins everywhere.
        let written = write(&nodes[0], "a", Some("again"));
        assert_eq!(nodes[1].0.learn(written.clone()).unwrap(), 1);
        assert_eq!(nodes[1].0.learn(written).unwrap(), 0, "what is known changes nothing");
    }

    #[test]
    fn documents_survive_a_restart_and_hostile_ones_are_left_out() {
        let Node(documents, folder) = node(1);
        let one = Node(documents, folder);
        write(&one, "a", Some("é"));
        write(&one, "b", None);
        let before = bodies(&one);
        let far = Stamp { counter: u64::MAX, node: 9 };
        let near = Stamp { counter: 99, node: 9 };
        let hostile = [
            Document { key: "a".to_owned(), stamp: far, body: None },
            Document { key: "x".repeat(KEY_BYTES_MAX + 1), stamp: near, body: None },
            Document { key: "a".to_owned(), stamp: near, body: Some("x".repeat(BODY_BYTES_MAX + 1)) },
        ];
        assert_eq!(one.0.learn(hostile.to_vec()).unwrap(), 0);
        let Node(documents, folder) = one;
        drop(documents);
        let disk = Disk::open(folder.path()).unwrap();
        let again = Node(Documents::open(disk, NodeId::new(1).unwrap()).unwrap(), folder);
        assert_eq!(bodies(&again), before);
    }

    #[test]
    fn buckets_come_in_parts_that_fit() {
        let one = node(1);
        for at in 0..50 {
            write(&one, &format!("key-{at}"), Some("body"));
        }
        let mut left: Vec<usize> = (0..BUCKETS).collect();
        let (mut parts, mut seen) = (0, 0);
        while !left.is_empty() {
            let (told, documents) = one.0.of_buckets(&left, 200);
            assert!(!told.is_empty());
            left.retain(|bucket| !told.contains(bucket));
            (parts, seen) = (parts + 1, seen + documents.len());
        }
        assert!(parts > 5 && seen == 50, "{parts} parts, {seen} documents");
    }
}
