//! The store as nodes see it: a model of what the real one promises, in a few lines, and the way to it.
//!
//! What is modelled: an insert is stored whole or not at all; a token that was used stores nothing again; a query that was killed has
//! ended and stores nothing any more; rows and names are there for good. An answer may be lost after the insert was done.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use metaflow_actors::{
    dictionary::NodeId,
    rows::{BatchId, Rows},
    store::{Error, Insert},
    writer::{Block, Shelf},
};
use metaflow_schema::{Table, enums::Kind, tables::Dictionary as NameRows};

/// What a node asks of the store.
#[derive(Debug, Clone)]
pub(super) enum Request {
    Names(Vec<(Kind, u32, String)>),
    Rows(Stored, String),
    Kill(String),
    KillAll(String),
    WhichAreStored(Vec<BatchId>),
    Run,
    Maxima(NodeId),
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
    Stored(HashSet<BatchId>),
    Run(String),
    Maxima(HashMap<Kind, u64>),
}

type Slot = Arc<Mutex<Option<Result<Answer, Error>>>>;

/// A question on its way.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) node: usize,
    pub(super) request: Request,
    pub(super) query_id: String,
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
    calls: Mutex<Vec<Call>>,
    wakes: Mutex<Vec<(usize, u64)>>,
}

impl Office {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
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
        let call = Call { node: self.node, request, query_id, slot: Arc::clone(&slot) };
        lock(&self.office.calls).push(call);
        std::future::poll_fn(move |_| match lock(&slot).take() {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        })
        .await
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
        let stored = Stored::of(block.rows());
        self.ask(Request::Rows(stored, insert.token), insert.query_id).await.map(|_| 1)
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
        match self.ask(Request::WhichAreStored(ids.to_vec()), self.query_id()).await? {
            Answer::Stored(stored) => Ok(stored),
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

/// What is in the store, and what runs in it.
#[derive(Debug, Default)]
pub(super) struct Store {
    names: BTreeMap<(Kind, u32), String>,
    /// Rows by what the agent knows a batch by.
    pub(super) rows: BTreeMap<u64, u32>,
    batches: BTreeSet<BatchId>,
    tokens: BTreeSet<String>,
    /// Inserts that have come and are not done.
    running: BTreeSet<String>,
    runs: u64,
    pub(super) violation: Option<String>,
}

impl Store {
    /// A query has come.
    pub(super) fn begin(&mut self, call: &Call) {
        if matches!(call.request, Request::Names(_) | Request::Rows(..)) {
            self.running.insert(call.query_id.clone());
        }
    }

    /// Ends all that runs, as a restart does.
    pub(super) fn restart(&mut self) {
        self.running.clear();
        self.runs += 1;
    }

    /// Does what was asked.
    pub(super) fn perform(&mut self, call: &Call) -> Result<Answer, Error> {
        match &call.request {
            Request::Names(_) | Request::Rows(..) if !self.running.remove(&call.query_id) => {
                Err(Error::Unknown("the query was killed".to_owned()))
            }
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
                Ok(Answer::Done)
            }
            Request::Rows(stored, token) => {
                self.store(stored, token);
                Ok(Answer::Done)
            }
            Request::Kill(query_id) => {
                self.running.remove(query_id);
                Ok(Answer::Done)
            }
            Request::KillAll(prefix) => {
                self.running.retain(|query_id| !query_id.starts_with(prefix));
                Ok(Answer::Done)
            }
            Request::WhichAreStored(ids) => {
                Ok(Answer::Stored(ids.iter().copied().filter(|id| self.batches.contains(id)).collect()))
            }
            Request::Run => Ok(Answer::Run(self.runs.to_string())),
            Request::Maxima(node) => {
                let mut maxima: HashMap<Kind, u64> = HashMap::new();
                for (kind, id) in self.names.keys().filter(|(_, id)| node.ids().contains(id)) {
                    let maximum = maxima.entry(*kind).or_default();
                    *maximum = u64::from(*id).max(*maximum);
                }
                Ok(Answer::Maxima(maxima))
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
