//! What became of a stream's batches, kept until the stream says it.
//!
//! Sequence numbers are kept as runs of neighbours, so that ten thousand batches which are stored at once take no more room than one. No
//! ack is ever dropped silently: a stream that lets too much pile up is told so, ends, and its agent sends again what it knows nothing of.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc;

/// Runs of one kind; batches are numbered in their order, so more means that nobody reads.
const RUNS_MAX: usize = 16_384;
/// Rejections with their reasons.
const REJECTED_MAX: usize = 4_096;

/// What a stream is told about one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ack {
    /// On this node's disk.
    Received(u64),
    /// In the store.
    Committed(u64),
    /// Never going to be stored.
    Rejected { seq: u64, reason: String },
}

/// What became of batches since it was asked last.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Acks {
    pub received: Runs,
    pub committed: Runs,
    pub rejected: Vec<(u64, String)>,
    /// Something could not be said: the stream must end, so that its agent asks again.
    pub incomplete: bool,
}

/// Where the acks of one stream go; clones are the same stream.
#[derive(Debug, Clone)]
pub struct Reply {
    acks: Arc<Mutex<Acks>>,
    bell: mpsc::Sender<()>,
}

/// The stream's end of a [`Reply`].
#[derive(Debug)]
pub struct Answers {
    acks: Arc<Mutex<Acks>>,
    bell: mpsc::Receiver<()>,
}

/// Both ends of a stream's acks.
pub fn acks() -> (Reply, Answers) {
    let acks = Arc::default();
    // One ring is enough: whoever hears it takes everything.
    let (sender, receiver) = mpsc::channel(1);
    (Reply { acks: Arc::clone(&acks), bell: sender }, Answers { acks, bell: receiver })
}

impl Reply {
    /// False when the stream is gone or has no room: the agent is going to ask again.
    pub fn send(&self, ack: Ack) -> bool {
        if self.bell.is_closed() {
            return false;
        }
        let taken = lock(&self.acks).add(ack);
        // A full bell is rung already; a closed one has nobody to hear it.
        !matches!(self.bell.try_send(()), Err(mpsc::error::TrySendError::Closed(()))) && taken
    }

    /// The agent has to send again what it does not know to be stored.
    pub(super) fn ask_again(&self) {
        lock(&self.acks).incomplete = true;
        // As above; a stream that is gone is over anyway.
        self.bell.try_send(()).ok();
    }

    pub(super) fn is_same_stream(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.acks, &other.acks)
    }
}

impl Answers {
    /// Waits for acks; none when no batch can bring one any more. What a cancelled call would have given, the next one gives.
    pub async fn next(&mut self) -> Option<Acks> {
        let rung = self.bell.recv().await;
        let acks = self.take();
        (rung.is_some() || !acks.is_empty()).then_some(acks)
    }

    /// What there is now.
    pub fn take(&self) -> Acks {
        std::mem::take(&mut lock(&self.acks))
    }
}

fn lock(acks: &Mutex<Acks>) -> MutexGuard<'_, Acks> {
    acks.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Acks {
    pub fn is_empty(&self) -> bool {
        self.received.is_empty() && self.committed.is_empty() && self.rejected.is_empty() && !self.incomplete
    }

    fn add(&mut self, ack: Ack) -> bool {
        let taken = match ack {
            Ack::Received(seq) => self.received.insert(seq),
            Ack::Committed(seq) => self.committed.insert(seq),
            Ack::Rejected { seq, reason } => {
                let has_room = self.rejected.len() < REJECTED_MAX;
                if has_room {
                    self.rejected.push((seq, reason));
                }
                has_room
            }
        };
        self.incomplete |= !taken;
        taken
    }
}

/// A set of numbers as runs of neighbours, by their first.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Runs(BTreeMap<u64, u64>);

impl Runs {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// First and last of each run, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(first, last)| (*first, *last))
    }

    /// How many numbers there are.
    pub fn count(&self) -> u64 {
        self.iter().map(|(first, last)| (last - first).saturating_add(1)).fold(0, u64::saturating_add)
    }

    /// False when it would be one run too many.
    fn insert(&mut self, seq: u64) -> bool {
        let before = self.0.range(..=seq).next_back().map(|(first, last)| (*first, *last));
        if before.is_some_and(|(_, last)| seq <= last) {
            return true;
        }
        let joins_before = before.filter(|(_, last)| last + 1 == seq);
        let after = seq.checked_add(1).and_then(|next| self.0.get(&next).map(|last| (next, *last)));
        if joins_before.is_none() && after.is_none() && self.0.len() >= RUNS_MAX {
            return false;
        }
        if let Some((next, _)) = after {
            self.0.remove(&next);
        }
        let first = joins_before.map_or(seq, |(first, _)| first);
        self.0.insert(first, after.map_or(seq, |(_, last)| last));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(numbers: impl IntoIterator<Item = u64>) -> Runs {
        let mut runs = Runs::default();
        for number in numbers {
            assert!(runs.insert(number));
        }
        runs
    }

    #[test]
    fn neighbours_become_runs_in_any_order_of_arrival() {
        #[track_caller]
        fn check(numbers: &[u64], expected: &[(u64, u64)], count: u64) {
            let runs = runs(numbers.iter().copied());
            assert_eq!(runs.iter().collect::<Vec<_>>(), expected);
            assert_eq!(runs.count(), count);
        }
        check(&[], &[], 0);
        check(&[7, 5, 6, 6, 10], &[(5, 7), (10, 10)], 4);
        check(&[1, 3, 2, 0], &[(0, 3)], 4);
        check(&[u64::MAX, 0, u64::MAX - 1], &[(0, 0), (u64::MAX - 1, u64::MAX)], 3);
        check(&[4, 3, 2, 2, 3, 4], &[(2, 4)], 3);
    }

    #[tokio::test]
    async fn a_million_acks_that_nobody_reads_are_all_there_afterwards() {
        let (reply, mut answers) = acks();
        for seq in 0..1_000_000 {
            assert!(reply.send(Ack::Received(seq)) && reply.send(Ack::Committed(seq)));
        }
        assert!(reply.send(Ack::Rejected { seq: 1_000_000, reason: "checksum".into() }));
        let all = answers.next().await.unwrap();
        assert_eq!(
            (all.received.count(), all.committed.count(), all.incomplete),
            (1_000_000, 1_000_000, false)
        );
        assert_eq!(all.rejected, [(1_000_000, "checksum".to_owned())]);
        assert!(answers.take().is_empty());
        drop(reply);
        assert!(answers.next().await.is_none());
    }

    #[tokio::test]
    async fn what_finds_no_room_is_said() {
        let (reply, mut answers) = acks();
        for seq in 0..RUNS_MAX as u64 {
            assert!(reply.send(Ack::Committed(2 * seq)));
        }
        assert!(!reply.send(Ack::Committed(2 * RUNS_MAX as u64)));
        assert!(reply.send(Ack::Committed(1)), "what joins runs needs no room");
        drop(reply);
        let acks = answers.next().await.unwrap();
        assert!(acks.incomplete);
        assert!(answers.next().await.is_none());
    }

    #[test]
    fn a_stream_that_is_gone_takes_nothing() {
        let (reply, answers) = acks();
        let (other, _kept) = acks();
        assert!(reply.is_same_stream(&reply.clone()) && !reply.is_same_stream(&other));
        reply.ask_again();
        assert!(answers.take().incomplete);
        drop(answers);
        assert!(!reply.send(Ack::Received(1)));
    }
}
