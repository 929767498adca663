//! Agents that say Hello at the same time are taken together.
//!
//! A name that is new costs a question to its owner and a disk sync, so thousands of agents that lost their node would wait for minutes if
//! each was taken alone. Whoever comes while others are being taken is in the next group. Naming happens beside the actor, which
//! answers heartbeats meanwhile. Bound: [`WAITING_MAX`]; who gave up waiting costs nothing any more.

use std::sync::Arc;

use ractor::{ActorRef, rpc::CallResult};
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};

use super::{
    Admission, Error, Msg, Refusal,
    agents::{Greeting, Introduction},
};
use crate::dictionary::Dictionary;

/// Agents that are taken at one time: a question to an owner and a moment of the actor's.
const GROUP_MAX: usize = 1_024;
/// Agents that wait; more wait at their sockets.
const WAITING_MAX: usize = 4_096;

type Answer = Result<Admission, Error>;

struct Call {
    introduction: Introduction,
    reply: oneshot::Sender<Answer>,
}

/// Takes agents; clones are the same one.
#[derive(Clone)]
pub(super) struct Greeter {
    calls: mpsc::Sender<Call>,
}

impl Greeter {
    /// Ends when the last clone is gone.
    pub(super) fn start(dictionary: Dictionary, actor: ActorRef<Msg>) -> Self {
        let (calls, queue) = mpsc::channel(WAITING_MAX);
        tokio::spawn(run(queue, dictionary, actor));
        Self { calls }
    }

    pub(super) async fn hello(&self, introduction: Introduction) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.calls.send(Call { introduction, reply }).await.map_err(|_| Error::Stopped)?;
        answer.await.unwrap_or(Err(Error::Stopped))
    }
}

async fn run(mut queue: mpsc::Receiver<Call>, dictionary: Dictionary, actor: ActorRef<Msg>) {
    let mut calls = Vec::new();
    while queue.recv_many(&mut calls, GROUP_MAX).await > 0 {
        // Agents that waited too long are somewhere else by now.
        calls.retain(|call| !call.reply.is_closed());
        let (introductions, replies): (Vec<_>, Vec<_>) =
            calls.drain(..).map(|call| (call.introduction, call.reply)).unzip();
        match take(introductions, &dictionary, &actor).await {
            Ok(answers) => {
                for (reply, answer) in replies.into_iter().zip(answers) {
                    // Who asked may be gone: then nobody needs the answer.
                    reply.send(answer.map_err(Error::from)).ok();
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for reply in replies {
                    reply.send(Err(Error::Together(Arc::clone(&error)))).ok();
                }
            }
        }
    }
}

async fn take(
    introductions: Vec<Introduction>,
    dictionary: &Dictionary,
    actor: &ActorRef<Msg>,
) -> Result<Vec<Result<Admission, Refusal>>, Error> {
    let dictionary = dictionary.clone();
    let greetings = spawn_blocking(move || Greeting::find_all(&dictionary, introductions));
    let greetings = greetings.await.map_err(|_| Error::Stopped)??;
    match actor.call(|reply| Msg::Hello(greetings, reply), None).await {
        Ok(CallResult::Success(answers)) => answers,
        Ok(CallResult::Timeout | CallResult::SenderError) | Err(_) => Err(Error::Stopped),
    }
}
