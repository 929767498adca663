//! One agent's stream of row batches: batches up, acknowledgements and credit down.
//!
//! Two tasks a stream. One reads: it takes the next message only when the one before has its memory permit, so that transport's flow
//! control reaches the agent. The other answers: it gathers what became of batches, and tells the agent how much may be under way.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metaflow_actors::ingester::{self, Ack, Acks, Answers, Ingester, Reply};
use metaflow_schema::enums::Kind;
use metaflow_wire::{BATCH_BYTES_MAX, Batch, IngestAck, Rejection, SeqRange};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{ANSWERS_MAX, Agents};

/// How often an agent hears of changed credit when nothing else is said.
const CREDIT_INTERVAL: Duration = Duration::from_millis(200);
/// Most credit of one stream: what a fast network moves in a moment; more only makes a broken stream dearer.
const CREDIT_MAX: u64 = 32 << 20;
/// Streams of one agent: one, and those that it left behind when it came anew.
const STREAMS_OF_AGENT_MAX: u32 = 4;

/// The streams that are open now.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    open: AtomicU64,
    /// By agent.
    agents: Mutex<HashMap<u32, u32>>,
}

impl Streams {
    /// Streams that are open.
    pub(crate) fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
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

/// Starts both tasks of a stream.
pub(super) fn start(agents: Agents, batches: Streaming<Batch>) -> ReceiverStream<Result<IngestAck, Status>> {
    let (output, messages) = mpsc::channel(ANSWERS_MAX);
    let (reply, answers) = ingester::acks();
    let answering = Answering {
        answers,
        output: output.clone(),
        ingester: agents.ingester.clone(),
        streams: Arc::clone(&agents.streams),
        stop: agents.stop.serving.clone(),
    };
    tokio::spawn(answering.run());
    tokio::spawn(read(agents, batches, reply, output));
    ReceiverStream::new(messages)
}

/// Reads until the agent is done, breaks the contract, or the node stops.
async fn read(
    agents: Agents,
    batches: Streaming<Batch>,
    reply: Reply,
    output: mpsc::Sender<Result<IngestAck, Status>>,
) {
    let ended = tokio::select! {
        ended = take(&agents, batches, &reply) => ended,
        () = agents.stop.taking.cancelled() => Ok(()),
        () = output.closed() => Ok(()),
    };
    if let Err(status) = ended {
        tracing::warn!(code = ?status.code(), reason = status.message(), "a stream of rows ended");
        // The agent may be gone; then it does not care.
        output.send(Err(status)).await.ok();
    }
}

async fn take(agents: &Agents, mut batches: Streaming<Batch>, reply: &Reply) -> Result<(), Status> {
    let Some(first) = batches.message().await? else { return Ok(()) };
    let agent_id = first.agent_id;
    if !is_known(agents, agent_id).await? {
        agents.metrics.reject("unknown_agent");
        return Err(Status::failed_precondition(format!(
            "agent {agent_id} is not known here: say Hello on Sync first"
        )));
    }
    let _entered = agents.streams.enter(agent_id).ok_or_else(|| {
        agents.metrics.reject("too_many_streams");
        Status::resource_exhausted(format!("agent {agent_id} has {STREAMS_OF_AGENT_MAX} streams already"))
    })?;
    let mut next = Some(first);
    while let Some(batch) = next {
        if batch.agent_id == agent_id {
            let permit = agents.budget.acquire(ingester::cost(&batch)).await;
            agents.ingester.submit(batch, permit, reply.clone());
        } else {
            agents.metrics.reject("other_agent");
            let reason = format!("batch of agent {} on a stream of agent {agent_id}", batch.agent_id);
            if !reply.send(Ack::Rejected { seq: batch.seq, reason }) {
                return Ok(());
            }
        }
        next = batches.message().await?;
    }
    Ok(())
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

/// The task that answers.
struct Answering {
    answers: Answers,
    output: mpsc::Sender<Result<IngestAck, Status>>,
    ingester: Ingester,
    streams: Arc<Streams>,
    stop: CancellationToken,
}

impl Answering {
    async fn run(mut self) {
        self.streams.open.fetch_add(1, Ordering::Relaxed);
        self.answer().await;
        self.streams.open.fetch_sub(1, Ordering::Relaxed);
    }

    async fn answer(&mut self) {
        let mut tick = tokio::time::interval(CREDIT_INTERVAL);
        let mut told = None;
        loop {
            let (acks, ended) = tokio::select! {
                acks = self.answers.next() => match acks {
                    Some(acks) => (acks, false),
                    None => return,
                },
                _ = tick.tick() => (Acks::default(), false),
                () = self.stop.cancelled() => (self.answers.take(), true),
                () = self.output.closed() => return,
            };
            let credit = credit(self.ingester.credit(), self.streams.open());
            let incomplete = acks.incomplete;
            if !acks.is_empty() || (told != Some(credit) && !ended) {
                told = Some(credit);
                if self.output.send(Ok(message(acks, credit))).await.is_err() {
                    return;
                }
            }
            if incomplete {
                let status = Status::resource_exhausted(
                    "not every acknowledgement could be given: send again what is not committed",
                );
                tracing::warn!(reason = status.message(), "a stream of rows ends");
                // An agent that is gone does not care.
                self.output.send(Err(status)).await.ok();
                return;
            }
            if ended {
                return;
            }
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
