//! One agent's stream of row batches: batches up, acknowledgements and credit down.
//!
//! A stream of answers that gathers what became of batches and tells the agent how much may be under way. With the first batch a task
//! begins to read; a message comes with its memory permit (`admission`). A stream that brings nothing has no task, and none has a clock: the credit of all is found in one place.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::Stream;
use metaflow_actors::{
    ingester::{self, Acks, Ingester, Reply},
    memory::Permit,
};
use metaflow_schema::enums::Kind;
use metaflow_wire::{BATCH_BYTES_MAX, Batch, IngestAck, Rejection, SeqRange, UNKNOWN_AGENT};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, Streaming};

use super::{Admitted, Agents};

/// How often an agent hears of changed credit when nothing else is said.
const CREDIT_INTERVAL: Duration = Duration::from_millis(200);
/// Most credit of one stream: what a fast network moves in a moment; more only makes a broken stream dearer.
const CREDIT_MAX: u64 = 32 << 20;
/// Streams of one agent: one, and those that it left behind when it came anew.
const STREAMS_OF_AGENT_MAX: u32 = 4;
/// Ids of one agent: a machine that was given another one still has batches under those that it had.
const IDS_OF_AGENT_MAX: usize = 4;

/// The streams that are open now.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    open: AtomicU64,
    /// What each stream may have under way.
    credit: watch::Sender<u64>,
    /// By agent.
    agents: Mutex<HashMap<u32, u32>>,
}

impl Streams {
    /// Streams that are open.
    pub(crate) fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Finds the credit of all streams again and again, until it is aborted.
    pub(super) async fn share(self: Arc<Self>, ingester: Ingester) {
        let mut tick = tokio::time::interval(CREDIT_INTERVAL);
        loop {
            tick.tick().await;
            self.credit.send_if_modified(|told| {
                let now = credit(ingester.credit(), self.open());
                std::mem::replace(told, now) != now
            });
        }
    }

    /// Counts a stream of an agent; none when it has too many.
    fn enter(self: &Arc<Self>, agent_id: u32) -> Option<Entered> {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        let count = agents.entry(agent_id).or_default();
        if *count >= STREAMS_OF_AGENT_MAX {
            return None;
        }
        *count += 1;
        Some(Entered { streams: Arc::clone(self), agent_id })
    }
}

/// A stream of an agent, counted until it is dropped.
#[derive(Debug)]
struct Entered {
    streams: Arc<Streams>,
    agent_id: u32,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut agents = self.streams.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = agents.get_mut(&self.agent_id) {
            *count -= 1;
            if *count == 0 {
                agents.remove(&self.agent_id);
            }
        }
    }
}

pub(super) type Answers = Pin<Box<dyn Stream<Item = Result<IngestAck, Status>> + Send>>;

/// The answers to an agent.
pub(super) fn answers(agents: Arc<Agents>, batches: Streaming<Batch>, admitted: Admitted) -> Answers {
    let (reply, answers) = ingester::acks();
    let mut credit = agents.streams.credit.subscribe();
    // The first credit is news.
    credit.mark_changed();
    agents.streams.open.fetch_add(1, Ordering::Relaxed);
    let open = Open(Arc::clone(&agents.streams));
    let reading = Reading::Idle(Box::new(Incoming { batches, admitted }), reply);
    let answering = Answering { agents, reading, answers, credit, _open: open };
    Box::pin(futures::stream::unfold(Some(Box::new(answering)), |answering| async {
        let mut answering = answering?;
        match answering.next().await {
            Ok(Some(ack)) => Some((Ok(ack), Some(answering))),
            Ok(None) => None,
            Err(status) => {
                tracing::warn!(code = ?status.code(), reason = status.message(), "a stream of rows ended");
                Some((Err(status), None))
            }
        }
    }))
}

/// Counts a stream until it is dropped.
struct Open(Arc<Streams>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What comes, each batch with its permit.
struct Incoming {
    batches: Streaming<Batch>,
    admitted: Admitted,
}

impl Incoming {
    async fn next(&mut self) -> Result<Option<(Batch, Permit)>, Status> {
        let batch = self.batches.message().await?;
        Ok(batch.map(|batch| (batch, self.admitted.take())))
    }
}

/// Reads until the agent is done, breaks the contract, or the node stops.
async fn read(
    agents: Arc<Agents>,
    first: (Batch, Permit),
    batches: Box<Incoming>,
    reply: Reply,
) -> Result<(), Status> {
    tokio::select! {
        ended = take(&agents, first, batches, &reply) => ended,
        () = agents.stop.taking.cancelled() => Ok(()),
    }
}

async fn take(
    agents: &Agents,
    first: (Batch, Permit),
    mut batches: Box<Incoming>,
    reply: &Reply,
) -> Result<(), Status> {
    let mut entered: Vec<Entered> = Vec::new();
    let mut next = Some(first);
    while let Some((batch, permit)) = next {
        if !entered.iter().any(|one| one.agent_id == batch.agent_id) {
            entered.push(admit(agents, batch.agent_id, entered.len()).await?);
        }
        agents.ingester.submit(batch, permit, reply.clone());
        next = batches.next().await?;
    }
    Ok(())
}

/// Lets batches under another id in. Where it does not, the stream ends: the agent has the batch still, and knows what to do.
async fn admit(agents: &Agents, agent_id: u32, others: usize) -> Result<Entered, Status> {
    if others >= IDS_OF_AGENT_MAX {
        agents.metrics.reject("too_many_ids");
        return Err(Status::resource_exhausted(format!(
            "a stream brings batches of {IDS_OF_AGENT_MAX} ids: send those of agent {agent_id} on another one"
        )));
    }
    if !is_known(agents, agent_id).await? {
        agents.metrics.reject("unknown_agent");
        let mut status = Status::failed_precondition(format!(
            "agent {agent_id} is not known here: say Hello on Sync first"
        ));
        status.metadata_mut().insert(UNKNOWN_AGENT, agent_id.into());
        return Err(status);
    }
    enter(agents, agent_id)
}

fn enter(agents: &Agents, agent_id: u32) -> Result<Entered, Status> {
    agents.streams.enter(agent_id).ok_or_else(|| {
        agents.metrics.reject("too_many_streams");
        Status::resource_exhausted(format!("agent {agent_id} has {STREAMS_OF_AGENT_MAX} streams already"))
    })
}

/// Whether this node ever gave this id to an agent.
async fn is_known(agents: &Agents, agent_id: u32) -> Result<bool, Status> {
    let dictionary = agents.dictionary.clone();
    let known = tokio::task::spawn_blocking(move || dictionary.resolve(Kind::Agent, agent_id));
    match known.await {
        Ok(Ok(name)) => Ok(name.is_some()),
        Ok(Err(error)) => Err(Status::unavailable(error.to_string())),
        Err(error) => Err(Status::internal(error.to_string())),
    }
}

/// What is read of a stream.
enum Reading {
    /// Nothing yet.
    Idle(Box<Incoming>, Reply),
    /// By a task, which ends with the stream.
    Running(AbortOnDropHandle<Result<(), Status>>),
    /// All: what is left are acknowledgements.
    Done,
}

impl Reading {
    /// Waits for the first batch, then for the end. What a cancelled call would have done, the next one does.
    async fn progress(&mut self, agents: &Arc<Agents>) -> Result<(), Status> {
        match self {
            Self::Idle(batches, _) => {
                let first = tokio::select! {
                    first = batches.next() => first?,
                    () = agents.stop.taking.cancelled() => None,
                };
                *self = match (first, std::mem::replace(self, Self::Done)) {
                    (Some(first), Self::Idle(batches, reply)) => {
                        let reading = tokio::spawn(read(Arc::clone(agents), first, batches, reply));
                        Self::Running(AbortOnDropHandle::new(reading))
                    }
                    _ => Self::Done,
                };
                Ok(())
            }
            Self::Running(task) => {
                let ended = task.await;
                *self = Self::Done;
                ended.unwrap_or_else(|error| Err(Status::internal(error.to_string())))
            }
            Self::Done => std::future::pending().await,
        }
    }
}

/// An open stream.
struct Answering {
    agents: Arc<Agents>,
    reading: Reading,
    answers: ingester::Answers,
    credit: watch::Receiver<u64>,
    _open: Open,
}

impl Answering {
    /// The next answer; none at the end.
    async fn next(&mut self) -> Result<Option<IngestAck>, Status> {
        loop {
            let acks = tokio::select! {
                acks = self.answers.next() => match acks {
                    Some(acks) => acks,
                    None => {
                        // Whoever reads is done, or says why not.
                        if matches!(self.reading, Reading::Running(_)) {
                            self.reading.progress(&self.agents).await?;
                        }
                        return Ok(None);
                    }
                },
                Ok(()) = self.credit.changed() => self.answers.take(),
                () = self.agents.stop.serving.cancelled() => {
                    // What is there is said once more; then there is nothing left to wait for.
                    let acks = self.answers.take();
                    self.reading = Reading::Done;
                    if acks.is_empty() {
                        return Ok(None);
                    }
                    acks
                }
                read = self.reading.progress(&self.agents) => {
                    read?;
                    continue;
                }
            };
            if acks.incomplete {
                return Err(Status::resource_exhausted(
                    "not every acknowledgement could be given: send again what is not committed",
                ));
            }
            return Ok(Some(message(acks, *self.credit.borrow_and_update())));
        }
    }
}

fn message(acks: Acks, credit_bytes: u64) -> IngestAck {
    let Acks { received, committed, rejected, incomplete: _ } = acks;
    let ranges = |runs: ingester::Runs| runs.iter().map(|(first, last)| SeqRange { first, last }).collect();
    let rejected = rejected.into_iter().map(|(seq, reason)| Rejection { seq, reason }).collect();
    IngestAck { received: ranges(received), committed: ranges(committed), rejected, credit_bytes }
}

/// A stream's share of the room. What would hold not one batch is no room.
fn credit(room: u64, streams: u64) -> u64 {
    if room < BATCH_BYTES_MAX as u64 {
        return 0;
    }
    // Small shares would starve large batches; so many agents do not send at once.
    (room / streams.max(1)).clamp(BATCH_BYTES_MAX as u64, CREDIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_a_share_of_the_room_and_nothing_when_it_is_full() {
        const MIB: u64 = 1 << 20;
        let cases = [
            (0, 1, 0),
            (3 * MIB, 1, 0),
            (16 * MIB, 2, 8 * MIB),
            (16 * MIB, 100, 4 * MIB),
            (u64::MAX, 0, 32 * MIB),
        ];
        for (room, streams, expected) in cases {
            assert_eq!(credit(room, streams), expected, "{room} {streams}");
        }
    }

    #[test]
    fn an_agent_has_a_few_streams_and_gets_them_back() {
        let streams = Arc::new(Streams::default());
        let entered: Vec<_> = (0..STREAMS_OF_AGENT_MAX).map(|_| streams.enter(7).unwrap()).collect();
        assert!(streams.enter(7).is_none());
        assert!(streams.enter(8).is_some());
        drop(entered);
        assert!(streams.agents.lock().unwrap().is_empty());
        assert!(streams.enter(7).is_some());
    }
}
