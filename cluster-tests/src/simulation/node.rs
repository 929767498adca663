//! A node: dictionary, ingester, labeler and writer as they are, performed step by step on a disk in memory.
//!
//! What a node does between these (`node/src/grpc/ingest.rs`: who may send on a stream; `node/src/node/pipeline.rs`: the order of the
//! start) is written again here in its shortest form.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Waker},
};

use metaflow_actors::{
    controller::{self, Introduction},
    dictionary::{self, Dictionary, Ids, NodeId},
    disk::{Disk, Memory},
    ingester::{self, Answers, Core, Reply},
    labeler::{self, Input, Snapshot},
    memory::Budget,
    rows::{Accepted, Labelled, Outcome},
    wal::{Group, Left},
    writer::{self, BeforeInsert},
};
use metaflow_schema::{TABLES, enums::Kind, tables::L7_FLOW_LOG};
use metaflow_wire::{Batch, Hello};
use tokio::sync::mpsc;

use super::{
    Mutation,
    names::{Net, Way},
    store::{Answer, Client, Request, lock},
};

/// Bytes of row data in a node: room for a few dozen batches, so that it is full now and then.
const BUDGET_BYTES: usize = 2 << 20;
/// Ids of a range: so few that they become few now and then.
const RANGE_IDS: u32 = 16;
/// Batches between labeler and writer.
const QUEUE_MAX: usize = 64;

type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a node is made of, once it has started.
pub(super) struct Running {
    pub(super) dictionary: Dictionary,
    pub(super) core: Core,
    budget: Budget,
    left: VecDeque<Left>,
    accepted: VecDeque<Accepted>,
    pub(super) logging: Option<Group>,
    labelled: mpsc::Sender<Labelled>,
    writer: Task<()>,
    claims: Task<()>,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
    snapshot: Snapshot,
    pub(super) is_labelling: bool,
    mutation: Option<Mutation>,
}

/// A stream of batches at the node's end.
pub(super) struct Stream {
    pub(super) agent_id: u32,
    /// The agent of the first batch.
    sender: Option<u32>,
    reply: Reply,
    pub(super) answers: Answers,
    pub(super) credit_told: u64,
}

/// What became of a message on a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Done,
    /// There is no memory for it now: the stream waits.
    Waits(Box<Batch>),
    Refused(&'static str),
}

/// Starts a node; ends when it runs.
pub(super) fn start(
    client: Client,
    disk: &Memory,
    net: Arc<Mutex<Net>>,
    wal_bytes_max: u64,
    mutation: Option<Mutation>,
) -> Task<Running> {
    let disk = Disk::in_memory(disk);
    Box::pin(async move {
        let node_id = client.node_id;
        let ended = || client.ask(Request::KillAll(client.prefix()), String::new());
        while ended().await.is_err() {
            pause(&client).await;
        }
        let maxima = loop {
            match client.ask(Request::Maxima(node_id), String::new()).await {
                Ok(Answer::Maxima(maxima)) => break maxima,
                _ => pause(&client).await,
            }
        };
        let ids = match mutation {
            Some(Mutation::NoClaimOfIds) => Ids::Whole,
            _ => Ids::Claimed { is_drawn: false },
        };
        let config = dictionary::Config { ids, range_ids: RANGE_IDS, ..dictionary::Config::new(node_id) };
        let wal = ingester::Config { wal_bytes_max, keep_free: 0 };
        // A full disk: whoever supervises the node starts it again.
        let (dictionary, core, left) = loop {
            if let Ok(dictionary) = Dictionary::open(disk.clone(), config.clone(), &maxima)
                && let Ok((core, left)) = Core::open(disk.clone(), &wal)
            {
                break (dictionary, core, left);
            }
            pause(&client).await;
        };
        dictionary.set_owners(Arc::new(Way { node: client.node, net: Arc::downgrade(&net) }));
        if ids != Ids::Whole {
            claim_ids(&client, &dictionary).await;
        }
        let outcomes = Arc::<Mutex<Vec<Outcome>>>::default();
        let told = Arc::clone(&outcomes);
        let work = writer::Work {
            config: writer::Config {
                is_shared: mutation != Some(Mutation::NoFence),
                queue_max: QUEUE_MAX,
                ..writer::Config::default()
            },
            table: &L7_FLOW_LOG,
            index: TABLES.iter().position(|table| std::ptr::eq(*table, &L7_FLOW_LOG)).unwrap_or(0),
            before_insert: before_insert(&client, &dictionary, mutation),
            metrics: Arc::default(),
            report: Arc::new(move |outcome| lock(&told).push(outcome)),
        };
        let (labelled, queue) = mpsc::channel(QUEUE_MAX);
        Running {
            core,
            budget: Budget::new(BUDGET_BYTES),
            left: left.into(),
            accepted: VecDeque::new(),
            logging: None,
            labelled,
            claims: Box::pin(keep_ranges(client.clone(), dictionary.clone())),
            writer: Box::pin(work.run(client, queue)),
            outcomes,
            snapshot: Snapshot::default(),
            is_labelling: false,
            mutation,
            dictionary,
        }
    })
}

async fn claim_ids(client: &Client, dictionary: &Dictionary) {
    while !matches!(dictionary.claim(client, || client.office.random()).await, Ok(true)) {
        pause(client).await;
    }
}

/// Claims more ids whenever they become few.
async fn keep_ranges(client: Client, dictionary: Dictionary) {
    loop {
        dictionary.range_wanted().await;
        claim_ids(&client, &dictionary).await;
    }
}

async fn pause(client: &Client) {
    use metaflow_actors::writer::Shelf as _;
    client.sleep_until(client.instant() + std::time::Duration::from_millis(500)).await;
}

fn before_insert(client: &Client, dictionary: &Dictionary, mutation: Option<Mutation>) -> BeforeInsert {
    let (client, dictionary) = (client.clone(), dictionary.clone());
    Arc::new(move || {
        let (client, dictionary) = (client.clone(), dictionary.clone());
        Box::pin(async move {
            if mutation == Some(Mutation::RowsBeforeNames) {
                return Ok(());
            }
            dictionary.flush(|rows| client.names(rows)).await.map_err(|error| error.to_string())
        })
    })
}

/// Lets a task go on as far as it can.
pub(super) fn poll<T>(task: &mut Task<T>) -> Option<T> {
    match task.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}

impl Running {
    pub(super) fn credit(&self) -> u64 {
        self.core.wal().room().min(self.budget.available() as u64 / 32)
    }

    /// All memory is given back.
    pub(super) fn is_idle(&self) -> bool {
        self.budget.available() == self.budget.capacity()
    }

    /// The agent that says Hello, and its stream.
    pub(super) fn hello(&self, machine: &str, agent_id: u32) -> Result<Stream, String> {
        let hello = Hello {
            protocol_version: metaflow_wire::PROTOCOL_VERSION,
            machine_id: machine.to_owned(),
            hostname: machine.to_owned(),
            agent_id,
            ..Hello::default()
        };
        // An agent of the simulation has no id but what a node gave it, and keeps the proof with it.
        let introduction = Introduction { hello, is_proven: true };
        let agent_id =
            controller::identify(&self.dictionary, introduction).map_err(|error| error.to_string())?;
        let (reply, answers) = ingester::acks();
        Ok(Stream { agent_id, sender: None, reply, answers, credit_told: 0 })
    }

    pub(super) fn batch(&mut self, batch: Batch, stream: &mut Stream) -> Taken {
        let sender = match stream.sender {
            Some(sender) => sender,
            None => match self.dictionary.resolve(Kind::Agent, batch.agent_id) {
                Ok(Some(_)) => *stream.sender.insert(batch.agent_id),
                _ => return Taken::Refused("the agent is not known here"),
            },
        };
        if sender != batch.agent_id {
            let reason = "batch of another agent".to_owned();
            stream.reply.send(ingester::Ack::Rejected { seq: batch.seq, reason });
            return Taken::Done;
        }
        match self.budget.try_acquire(ingester::cost(&batch)) {
            Some(permit) => {
                self.core.batch(batch, permit, stream.reply.clone());
                Taken::Done
            }
            None => Taken::Waits(Box::new(batch)),
        }
    }

    /// [`Mutation::AckBeforeSync`].
    pub(super) fn acknowledge_early(&mut self) {
        if let Some(group) = &self.logging {
            self.core.durable(&group.ids());
        }
    }

    /// Writes the log; true when the disk took it.
    pub(super) fn log(&mut self, is_told: bool) -> bool {
        let Some(group) = self.logging.take() else { return true };
        match self.core.log(group) {
            Ok(accepted) => {
                if !is_told {
                    self.core.durable(&accepted.iter().map(|accepted| accepted.id).collect::<Vec<_>>());
                }
                self.accepted.extend(accepted);
                true
            }
            Err(group) => {
                self.logging = Some(group);
                false
            }
        }
    }

    /// Something waits to be labelled.
    pub(super) fn has_unlabelled(&mut self) -> bool {
        while self.accepted.is_empty()
            && let Some(left) = self.left.front().copied()
        {
            let Some(permit) = self.budget.try_acquire(BUDGET_BYTES / 16) else { return false };
            self.left.pop_front();
            if let Ok(Some(accepted)) = self.core.left(left, permit) {
                self.accepted.push_back(accepted);
            }
        }
        !self.accepted.is_empty()
    }

    /// Labels one batch; false when it must be tried again.
    pub(super) fn label(&mut self) -> Result<bool, String> {
        if self.labelled.capacity() == 0 {
            return Ok(false);
        }
        let Some(Accepted { id, batch, uncertain, permit }) = self.accepted.pop_front() else {
            return Ok(true);
        };
        let uncertain = uncertain && self.mutation != Some(Mutation::NoLookUp);
        let labelling = Input { snapshot: &self.snapshot, names: &self.dictionary, id }.label(&batch);
        match labelling {
            Ok(rows) => {
                let sent = self.labelled.try_send(Labelled { id, rows, uncertain, permit });
                sent.map(|()| true).map_err(|_| "the writer has ended".to_owned())
            }
            Err(labeler::Error::Names(_)) => {
                self.accepted.push_front(Accepted { id, batch, uncertain, permit });
                Ok(false)
            }
            Err(labeler::Error::Malformed(malformed)) => {
                Err(format!("I5: a batch that was received is refused: {malformed}"))
            }
        }
    }

    /// Lets the writer go on, and settles what it has done.
    pub(super) fn write(&mut self) -> Result<(), String> {
        if poll(&mut self.claims).is_some() || poll(&mut self.writer).is_some() {
            return Err("the writer has ended".to_owned());
        }
        for outcome in std::mem::take(&mut *lock(&self.outcomes)) {
            if let Outcome::Rejected(id, reason) = &outcome {
                return Err(format!("I5: batch {id:?} was received and is refused: {reason}"));
            }
            self.core.settled(outcome);
        }
        Ok(())
    }

    /// What the writer brings to the log as well: entries that came to an end.
    pub(super) fn group(&mut self) -> bool {
        if self.logging.is_none() {
            self.logging = self.core.wal().group();
            return self.logging.is_some();
        }
        false
    }
}

/// A place where a node runs, or does not.
pub(super) struct Place {
    pub(super) node_id: NodeId,
    pub(super) zone: &'static str,
    pub(super) disk: Memory,
    pub(super) backup: Option<Memory>,
    /// Of the process; lives are never numbered alike.
    pub(super) life: u64,
    pub(super) starting: Option<Task<Running>>,
    pub(super) running: Option<Running>,
    pub(super) is_paused: bool,
    /// Its machine is off: nobody says that nothing listens.
    pub(super) is_silent: bool,
    pub(super) may_reach_store: bool,
    /// Removed for good.
    pub(super) is_gone: bool,
}

impl Place {
    pub(super) fn is_up(&self) -> bool {
        self.starting.is_some() || self.running.is_some()
    }
}

/// The node's number at a place.
pub(super) fn node_id(number: usize) -> NodeId {
    u16::try_from(number + 1).ok().and_then(NodeId::new).expect("a handful of nodes")
}
