//! Every fence by itself: a store in which the worst happens that a stopped node can bring about, at the moment when one fence alone is in
//! the way. The simulation and chaos meet these moments by chance, and most of them are covered by two fences at a time.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use metaflow_schema::{
    TABLES,
    block::Group,
    tables::{NETWORK_1S, Network, NetworkRow},
};

use super::*;
use crate::rows::Rows;

const ID: BatchId = BatchId { agent_id: 7, seq: 1 };
/// As all who claimed the batch call their first insert of it.
const CLAIMERS_TOKEN: &str = "batch.7.1.0.0";
const HOUR: Duration = Duration::from_secs(3_600);
/// What the store has taken longer ago than this, it may take again.
const TOKEN_MEMORY: Duration = HOUR;

/// What happens to the next insert.
#[derive(Debug, Clone, Copy)]
enum Mishap {
    /// The node is stopped before it sends. Another one claims the batch and stores it.
    Late,
    /// Another node that claimed the batch, too, is a moment faster.
    Raced,
    /// There is no answer, and the store goes on with it for hours.
    Unanswered,
}

struct Insertion {
    query_id: String,
    token: String,
    ends: Duration,
}

/// The store, and the clock of all.
struct Desk {
    begin: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    now: Duration,
    running: Vec<Insertion>,
    taken: HashMap<String, Duration>,
    /// Times that the batch is in the store.
    copies: u32,
    is_claimed: bool,
    mishaps: VecDeque<Mishap>,
    queries: u32,
}

impl State {
    fn pass(&mut self, time: Duration) {
        self.now += time;
        let now = self.now;
        let (ended, running) =
            std::mem::take(&mut self.running).into_iter().partition(|insertion| insertion.ends <= now);
        self.running = running;
        for Insertion { token, .. } in ended {
            self.take(&token);
        }
    }

    fn take(&mut self, token: &str) {
        let before = self.taken.insert(token.to_owned(), self.now);
        let is_known = before.is_some_and(|before| self.now - before < TOKEN_MEMORY);
        self.copies += u32::from(!is_known);
    }

    fn seconds(&self) -> u32 {
        u32::try_from(self.now.as_secs()).unwrap()
    }

    fn insert(&mut self, insert: Insert) -> Result<usize, Error> {
        let Insert { token, guard, query_id, .. } = insert;
        match self.mishaps.pop_front() {
            Some(Mishap::Late) => {
                self.is_claimed = true;
                self.take(CLAIMERS_TOKEN);
                self.pass(2 * HOUR);
            }
            Some(Mishap::Raced) => self.take(CLAIMERS_TOKEN),
            Some(Mishap::Unanswered) => {
                self.running.push(Insertion { query_id, token, ends: self.now + 2 * HOUR });
                return Err(Error::Unknown("no answer".to_owned()));
            }
            None => {}
        }
        let is_fenced = match guard {
            Guard::Open => false,
            Guard::Unclaimed { .. } => self.is_claimed,
            Guard::Before(second) => self.seconds() >= second,
        };
        if is_fenced {
            return Err(Error::Fenced("fenced".to_owned()));
        }
        self.take(&token);
        Ok(1)
    }
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn batch_if(&self, is_so: bool) -> HashSet<BatchId> {
        if is_so { HashSet::from([ID]) } else { HashSet::new() }
    }
}

impl Shelf for Desk {
    fn instant(&self) -> Instant {
        self.begin + self.state().now
    }

    async fn sleep_until(&self, moment: Instant) {
        let pause = moment.saturating_duration_since(self.instant());
        self.state().pass(pause);
    }

    fn query_id(&self) -> String {
        let mut state = self.state();
        state.queries += 1;
        format!("metaflow-1-{}", state.queries)
    }

    async fn run(&self) -> Result<String, Error> {
        Ok("1".to_owned())
    }

    async fn insert(&self, _block: Arc<Block>, insert: Insert) -> Result<usize, Error> {
        self.state().insert(insert)
    }

    async fn kill(&self, query_id: &str) -> Result<(), Error> {
        self.state().running.retain(|insertion| insertion.query_id != query_id);
        Ok(())
    }

    async fn stored_batches(
        &self,
        _: &'static Table,
        _: u32,
        _: &[BatchId],
    ) -> Result<HashSet<BatchId>, Error> {
        Ok(self.batch_if(self.state().copies > 0))
    }

    async fn note_claims(&self, _: &'static Table, _: u32, _: &[BatchId]) -> Result<(), Error> {
        self.state().is_claimed = true;
        Ok(())
    }

    async fn running_inserts(&self, _: &'static Table) -> Result<HashSet<String>, Error> {
        Ok(self.state().running.iter().map(|insertion| insertion.query_id.clone()).collect())
    }

    async fn end(&self, query_id: &str) -> Result<(), Error> {
        self.kill(query_id).await
    }

    async fn claimed(&self, _: &'static Table, _: u32, _: &[BatchId]) -> Result<HashSet<BatchId>, Error> {
        Ok(self.batch_if(self.state().is_claimed))
    }

    async fn now(&self) -> Result<u32, Error> {
        Ok(self.state().seconds())
    }
}

/// Stores a batch, waits until whatever is under way has ended, and looks for copies; answers how long it took to store it.
async fn check(is_uncertain: bool, others: Option<Duration>, mishaps: &[Mishap]) -> Duration {
    let mut rows = Network::default();
    rows.push(&NetworkRow::default());
    let rows = Rows::Network(&NETWORK_1S, Box::new(rows));
    let others = others.map(|ends| {
        let query_id = "metaflow-2-1".to_owned();
        Insertion { token: query_id.clone(), query_id, ends }
    });
    let state = State {
        running: others.into_iter().collect(),
        mishaps: mishaps.iter().copied().collect(),
        ..State::default()
    };
    let inserter = Inserter {
        store: Desk { begin: Instant::now(), state: Mutex::new(state) },
        table: &NETWORK_1S,
        before_insert: Arc::new(|| Box::pin(async { Ok(()) })),
        metrics: Arc::default(),
        index: TABLES.iter().position(|table| std::ptr::eq(*table, &NETWORK_1S)).unwrap(),
        is_shared: true,
    };
    let settled = inserter.store(Block::new(0, ID, is_uncertain, rows)).await;
    assert_eq!(settled, [(ID, Ok(()))]);
    let mut state = inserter.store.state();
    let took = state.now;
    assert!(state.mishaps.is_empty(), "{:?} did not happen", state.mishaps);
    state.pass(9 * HOUR);
    assert_eq!(state.copies, 1, "copies in the store");
    took
}

#[tokio::test]
async fn who_claims_waits_for_the_insert_that_began_before() {
    let took = check(true, Some(Duration::from_secs(2)), &[]).await;
    assert!(took >= Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn an_insert_of_a_node_that_is_stopped_in_it_is_ended_and_not_waited_for() {
    let took = check(true, Some(2 * HOUR), &[]).await;
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test]
async fn who_knows_of_no_other_is_stopped_by_the_claim() {
    check(false, None, &[Mishap::Late]).await;
}

#[tokio::test]
async fn a_claimer_that_was_stopped_after_its_look_up_inserts_nothing_when_tokens_are_forgotten() {
    check(true, None, &[Mishap::Late]).await;
}

#[tokio::test]
async fn of_two_claimers_the_store_takes_one() {
    check(true, None, &[Mishap::Raced]).await;
}

#[tokio::test]
async fn an_insert_without_an_answer_is_ended_before_the_next_try() {
    for is_uncertain in [false, true] {
        check(is_uncertain, None, &[Mishap::Unanswered]).await;
    }
}
