//! The store as nodes see it: a model of what the real one promises, in a few lines, and the way to it.
//!
//! What is modelled: an insert is stored whole or not at all; a token that was used stores nothing again; a query that was killed has
//! ended and stores nothing any more; rows, names and claims are there for good; a guard is looked at when an insert begins. An answer
//! may be lost after the insert was done.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use metaflow_actors::{
    dictionary::{NodeId, Register},
    rows::{BatchId, Rows},
    store::{Error, Guard, Insert},
    writer::{Block, Shelf},
};
use metaflow_schema::{Table, enums::Kind, tables::Dictionary as NameRows};

use super::random::Random;

/// What a node asks of the store.
#[derive(Debug, Clone)]
pub(super) enum Request {
    Names(Vec<(Kind, u32, String)>),
    Rows { stored: Stored, token: String, guard: Guard },
    NoteClaims(u32, Vec<BatchId>),
    WhichAreClaimed(u32, Vec<BatchId>),
    RunningInserts,
    Now,
    Kill(String),
    KillAll(String),
    WhichAreStored(Vec<BatchId>),
    Run,
    Maxima(NodeId),
    HighestRange(NodeId),
    NoteRanges(NodeId, Range<u32>, u64),
    RangeHolders(NodeId, Range<u32>),
}

/// What matters of the rows of an insert.
#[derive(Debug, Clone, Default)]
pub(super) struct Stored {
    /// Rows by batch, and by what the agent knows the batch by.
    rows: BTreeMap<(BatchId, u64), u32>,
    ids: BTreeSet<(Kind, u32)>,
}

#[derive(Debug, Clone)]
pub(super) enum Answer {
    Done,
    Batches(HashSet<BatchId>),
    Queries(HashSet<String>),
    Second(u32),
    Run(String),
    Maxima(HashMap<Kind, u64>),
    HighestRange(Option<u32>),
    Holders(HashSet<u64>),
}

type Slot = Arc<Mutex<Option<Result<Answer, Error>>>>;

/// A question on its way.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) node: usize,
    pub(super) request: Request,
    pub(super) query_id: String,
    /// It is sent slowly: while its node is stopped, it is under way.
    pub(super) is_slow: bool,
    slot: Slot,
}

impl Call {
    pub(super) fn answer(&self, answer: Result<Answer, Error>) {
        let mut slot = lock(&self.slot);
        if slot.is_none() {
            *slot = Some(answer);
        }
    }
}

/// Where nodes leave what the world must do for them: questions to the store, and moments to be woken at.
#[derive(Debug)]
pub(super) struct Office {
    begin: Instant,
    now_ms: AtomicU64,
    queries: AtomicU64,
    /// Numbers that tell claims apart.
    random: Mutex<Random>,
    calls: Mutex<Vec<Call>>,
    wakes: Mutex<Vec<(usize, u64)>>,
}

impl Office {
    pub(super) fn new(random: Random) -> Arc<Self> {
        Arc::new(Self {
            random: Mutex::new(random),
            begin: Instant::now(),
            now_ms: AtomicU64::new(0),
            queries: AtomicU64::new(0),
            calls: Mutex::default(),
            wakes: Mutex::default(),
        })
    }

    pub(super) fn set(&self, now_ms: u64) {
        self.now_ms.store(now_ms, Ordering::Relaxed);
    }

    pub(super) fn random(&self) -> u64 {
        lock(&self.random).next()
    }

    pub(super) fn instant(&self) -> Instant {
        self.begin + Duration::from_millis(self.now_ms.load(Ordering::Relaxed))
    }

    pub(super) fn milliseconds(&self, moment: Instant) -> u64 {
        // Rounded up: who is woken too early sleeps again.
        moment.saturating_duration_since(self.begin).as_micros().div_ceil(1000) as u64
    }

    pub(super) fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut lock(&self.calls))
    }

    pub(super) fn take_wakes(&self) -> Vec<(usize, u64)> {
        std::mem::take(&mut lock(&self.wakes))
    }
}

/// One life of a node at the store.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) node: usize,
    pub(super) node_id: NodeId,
    pub(super) life: u64,
    pub(super) office: Arc<Office>,
}

impl Client {
    pub(super) fn prefix(&self) -> String {
        format!("metaflow-{}-", self.node_id.get())
    }

    pub(super) async fn ask(&self, request: Request, query_id: String) -> Result<Answer, Error> {
        let slot = Slot::default();
        let call = Call { node: self.node, request, query_id, is_slow: false, slot: Arc::clone(&slot) };
        lock(&self.office.calls).push(call);
        std::future::poll_fn(move |_| match lock(&slot).take() {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        })
        .await
    }

    async fn batches(&self, question: Request) -> Result<HashSet<BatchId>, Error> {
        match self.ask(question, self.query_id()).await? {
            Answer::Batches(batches) => Ok(batches),
            other => Err(Error::Setup(format!("{other:?}"))),
        }
    }

    /// Names on their way into the store's dictionary.
    pub(super) async fn names(&self, rows: NameRows) -> Result<(), Error> {
        let names = rows.kind.iter().zip(&rows.id).zip(rows.name.iter()).filter_map(|((kind, id), name)| {
            Some((Kind::from_number(*kind)?, u32::try_from(*id).ok()?, name.to_owned()))
        });
        self.ask(Request::Names(names.collect()), self.query_id()).await.map(drop)
    }
}

impl Shelf for Client {
    fn instant(&self) -> Instant {
        self.office.instant()
    }

    async fn sleep_until(&self, moment: Instant) {
        let office = Arc::clone(&self.office);
        lock(&office.wakes).push((self.node, office.milliseconds(moment)));
        std::future::poll_fn(
            move |_: &mut Context<'_>| {
                if office.instant() >= moment { Poll::Ready(()) } else { Poll::Pending }
            },
        )
        .await;
    }

    fn query_id(&self) -> String {
        let number = self.office.queries.fetch_add(1, Ordering::Relaxed);
        format!("{}{:016x}-{number}", self.prefix(), self.life)
    }

    async fn run(&self) -> Result<String, Error> {
        match self.ask(Request::Run, self.query_id()).await? {
            Answer::Run(run) => Ok(run),
            other => Err(Error::Setup(format!("{other:?}"))),
        }
    }

    async fn insert(&self, block: Arc<Block>, insert: Insert) -> Result<usize, Error> {
        let Insert { token, guard, query_id, .. } = insert;
        let stored = Stored::of(block.rows());
        self.ask(Request::Rows { stored, token, guard }, query_id).await.map(|_| 1)
    }

    async fn kill(&self, query_id: &str) -> Result<(), Error> {
        self.ask(Request::Kill(query_id.to_owned()), self.query_id()).await.map(drop)
    }

    async fn stored_batches(
        &self,
        _table: &'static Table,
        _partition: u32,
        ids: &[BatchId],
    ) -> Result<HashSet<BatchId>, Error> {
        self.batches(Request::WhichAreStored(ids.to_vec())).await
    }

    async fn note_claims(
        &self,
        _table: &'static Table,
        partition: u32,
        ids: &[BatchId],
    ) -> Result<(), Error> {
        self.ask(Request::NoteClaims(partition, ids.to_vec()), self.query_id()).await.map(drop)
    }

    async fn running_inserts(&self, _table: &'static Table) -> Result<HashSet<String>, Error> {
        match self.ask(Request::RunningInserts, self.query_id()).await? {
            Answer::Queries(queries) => Ok(queries),
            other => Err(Error::Setup(format!("{other:?}"))),
        }
    }

    async fn end(&self, query_id: &str) -> Result<(), Error> {
        self.kill(query_id).await
    }

    async fn claimed(
        &self,
        _table: &'static Table,
        partition: u32,
        ids: &[BatchId],
    ) -> Result<HashSet<BatchId>, Error> {
        self.batches(Request::WhichAreClaimed(partition, ids.to_vec())).await
    }

    async fn now(&self) -> Result<u32, Error> {
        match self.ask(Request::Now, self.query_id()).await? {
            Answer::Second(second) => Ok(second),
            other => Err(Error::Setup(format!("{other:?}"))),
        }
    }
}

impl Register for Client {
    type Error = Error;

    async fn highest(&self) -> Result<Option<u32>, Error> {
        match self.ask(Request::HighestRange(self.node_id), self.query_id()).await? {
            Answer::HighestRange(range) => Ok(range),
            other => Err(Error::Setup(format!("{other:?}"))),
        }
    }

    async fn note(&self, ranges: Range<u32>, holder: u64) -> Result<(), Error> {
        self.ask(Request::NoteRanges(self.node_id, ranges, holder), self.query_id()).await.map(drop)
    }

    async fn holders(&self, ranges: Range<u32>) -> Result<HashSet<u64>, Error> {
        match self.ask(Request::RangeHolders(self.node_id, ranges), self.query_id()).await? {
            Answer::Holders(holders) => Ok(holders),
            other => Err(Error::Setup(format!("{other:?}"))),
        }
    }
}

impl Stored {
    fn of(rows: &Rows) -> Self {
        let mut stored = Self::default();
        let Rows::L7FlowLog(block) = rows else { return stored };
        for row in 0..rows.len() {
            let id = BatchId { agent_id: block.agent_id[row], seq: block.batch_seq[row] };
            *stored.rows.entry((id, block.flow_id[row])).or_default() += 1;
            let named = [
                (Kind::Agent, block.agent_id[row]),
                (Kind::Endpoint, block.endpoint_id[row]),
                (Kind::RequestDomain, block.request_domain_id[row]),
                (Kind::RequestType, block.request_type_id[row]),
            ];
            stored.ids.extend(named.into_iter().filter(|(_, id)| *id != 0));
        }
        stored
    }
}

#[derive(Debug)]
struct Running {
    of_rows: bool,
    /// Whether its guard let it through.
    guarded: Result<(), Error>,
}

/// What is in the store, and what runs in it.
#[derive(Debug, Default)]
pub(super) struct Store {
    names: BTreeMap<(Kind, u32), String>,
    /// Rows by what the agent knows a batch by.
    pub(super) rows: BTreeMap<u64, u32>,
    batches: BTreeSet<BatchId>,
    tokens: BTreeSet<String>,
    claims: BTreeSet<(u32, BatchId)>,
    ranges: BTreeSet<(NodeId, u32, u64)>,
    /// Inserts that have come and are not done.
    running: BTreeMap<String, Running>,
    runs: u64,
    /// Its clock, which may be set back.
    pub(super) clock_ms: u64,
    pub(super) violation: Option<String>,
}

impl Store {
    /// A query has come.
    pub(super) fn begin(&mut self, call: &Call) {
        let running = match &call.request {
            Request::Names(_) => Running { of_rows: false, guarded: Ok(()) },
            Request::Rows { stored, guard, .. } => {
                Running { of_rows: true, guarded: self.let_through(stored, *guard) }
            }
            _ => return,
        };
        self.running.insert(call.query_id.clone(), running);
    }

    /// Whether an insert that begins now may be done.
    fn let_through(&self, stored: &Stored, guard: Guard) -> Result<(), Error> {
        let is_fenced = match guard {
            Guard::Open => false,
            Guard::Unclaimed { partition } => {
                stored.rows.keys().any(|(batch, _)| self.claims.contains(&(partition, *batch)))
            }
            Guard::Before(second) => self.second() >= second,
        };
        if is_fenced { Err(Error::Fenced("fenced".to_owned())) } else { Ok(()) }
    }

    fn second(&self) -> u32 {
        u32::try_from(self.clock_ms / 1_000).unwrap_or(u32::MAX)
    }

    /// A connection broke in the middle of an insert.
    pub(super) fn cut(&mut self, query_id: &str) {
        self.running.remove(query_id);
    }

    /// Ends all that runs, as a restart does.
    pub(super) fn restart(&mut self) {
        self.running.clear();
        self.runs += 1;
    }

    /// Does what was asked.
    pub(super) fn perform(&mut self, call: &Call) -> Result<Answer, Error> {
        if matches!(call.request, Request::Names(_) | Request::Rows { .. }) {
            match self.running.remove(&call.query_id) {
                Some(running) => running.guarded?,
                None => return Err(Error::Unknown("the query was killed".to_owned())),
            }
        }
        Ok(self.answer(&call.request))
    }

    fn answer(&mut self, request: &Request) -> Answer {
        match request {
            Request::Names(names) => {
                for (kind, id, name) in names {
                    let known = self.names.entry((*kind, *id)).or_insert_with(|| name.clone());
                    if known != name {
                        self.violation = Some(format!(
                            "I1: id {id} ({}, {}) of {kind:?} names {known} and {name}",
                            id >> 22,
                            id & 0x3f_ffff
                        ));
                    }
                }
                Answer::Done
            }
            Request::Rows { stored, token, guard: _ } => {
                self.store(stored, token);
                Answer::Done
            }
            Request::NoteClaims(partition, ids) => {
                self.claims.extend(ids.iter().map(|id| (*partition, *id)));
                Answer::Done
            }
            Request::WhichAreClaimed(partition, ids) => {
                let is_claimed = |id: &BatchId| self.claims.contains(&(*partition, *id));
                Answer::Batches(ids.iter().copied().filter(is_claimed).collect())
            }
            Request::RunningInserts => {
                let of_rows = self.running.iter().filter(|(_, running)| running.of_rows);
                Answer::Queries(of_rows.map(|(query_id, _)| query_id.clone()).collect())
            }
            Request::Now => Answer::Second(self.second()),
            Request::Kill(query_id) => {
                self.running.remove(query_id);
                Answer::Done
            }
            Request::KillAll(prefix) => {
                self.running.retain(|query_id, _| !query_id.starts_with(prefix));
                Answer::Done
            }
            Request::WhichAreStored(ids) => {
                Answer::Batches(ids.iter().copied().filter(|id| self.batches.contains(id)).collect())
            }
            Request::Run => Answer::Run(self.runs.to_string()),
            Request::Maxima(node) => {
                let mut maxima: HashMap<Kind, u64> = HashMap::new();
                for (kind, id) in self.names.keys().filter(|(_, id)| node.ids().contains(id)) {
                    let maximum = maxima.entry(*kind).or_default();
                    *maximum = u64::from(*id).max(*maximum);
                }
                Answer::Maxima(maxima)
            }
            Request::HighestRange(node) => {
                let of_node = self.ranges.iter().filter(|(of, ..)| of == node);
                Answer::HighestRange(of_node.map(|(_, range, _)| *range).max())
            }
            Request::NoteRanges(node, ranges, holder) => {
                self.ranges.extend(ranges.clone().map(|range| (*node, range, *holder)));
                Answer::Done
            }
            Request::RangeHolders(node, ranges) => {
                let claims = self.ranges.iter().filter(|(of, range, _)| of == node && ranges.contains(range));
                Answer::Holders(claims.map(|(_, _, holder)| *holder).collect())
            }
        }
    }

    fn store(&mut self, stored: &Stored, token: &str) {
        if !self.tokens.insert(token.to_owned()) {
            return;
        }
        for ((batch, truth), rows) in &stored.rows {
            self.batches.insert(*batch);
            *self.rows.entry(*truth).or_default() += rows;
        }
        if let Some((kind, id)) = stored.ids.iter().find(|id| !self.names.contains_key(id)) {
            self.violation = Some(format!("I3: a stored row has id {id} of {kind:?}, which names nothing"));
        }
    }

    pub(super) fn names(&self) -> &BTreeMap<(Kind, u32), String> {
        &self.names
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
