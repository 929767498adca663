//! One agent's control stream: who it is, what runs on its host, that it lives; identity and configuration come back.
//!
//! A stream of answers that is asked for the next one, with no task, queue or timer beside it: an agent that says nothing costs what this
//! holds.

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use metaflow_actors::{
    controller::{self, Admission, FactsReply},
    groups::{Groups, Who},
};
use metaflow_wire::{
    Config, Heartbeat, HeartbeatReply, Hello, ResendFacts, Servers, SyncRequest, SyncResponse, sync_request,
    sync_response::Body,
};
use tokio::{
    sync::watch,
    time::{Instant, Sleep, sleep_until},
};
use tonic::{Status, Streaming};

use super::{Admitted, Agents, sessions::Entered};
use crate::node::{Guide, Guides};

/// Time for the first message; who says nothing is no agent.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Heartbeats come every few seconds.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// A heartbeat that says what the one before said, but for the load of the agent, is told to the controller so often. It is answered
/// at once in any case.
const TOLD_EVERY: Duration = Duration::from_secs(5);

pub(super) type Answers = Pin<Box<dyn Stream<Item = Result<SyncResponse, Status>> + Send>>;

/// The answers to an agent.
pub(super) fn answers(agents: Arc<Agents>, requests: Streaming<SyncRequest>, admitted: Admitted) -> Answers {
    Box::pin(futures::stream::unfold(Stage::New(agents, Box::new(requests), admitted), step))
}

enum Stage {
    New(Arc<Agents>, Box<Streaming<SyncRequest>>, Admitted),
    Open(Box<Control>),
    Ended,
}

/// A stream whose agent is known.
struct Control {
    agents: Arc<Agents>,
    requests: Box<Streaming<SyncRequest>>,
    /// Holds the memory of the message that is being handled.
    admitted: Admitted,
    guides: Guides,
    /// The one that the agent's servers were last told from.
    guide: Arc<Guide>,
    /// What agents are to run with.
    groups: watch::Receiver<Arc<Groups>>,
    /// The configuration that the agent has, or was sent on this stream: what it does not take is not sent twice.
    config_version: u64,
    agent_id: u32,
    who: Box<Who>,
    /// Answers that are ready.
    ready: VecDeque<Body>,
    heard: Instant,
    /// Looks whether the agent is silent; it is set anew only when it rings, because heartbeats are many.
    alarm: Pin<Box<Sleep>>,
    /// What the controller was told last, and when.
    told: Option<(Heartbeat, Instant)>,
    /// Counts as connected while it is kept.
    _session: Entered,
}

async fn step(stage: Stage) -> Option<(Result<SyncResponse, Status>, Stage)> {
    let opened = match stage {
        Stage::New(agents, requests, admitted) => Box::pin(open(agents, requests, admitted)).await,
        Stage::Open(control) => Ok(control),
        Stage::Ended => return None,
    };
    let answered = match opened {
        Ok(mut control) => control.next().await.map(|body| body.map(|body| (body, control))),
        Err(status) => Err(status),
    };
    match answered {
        Ok(Some((body, control))) => Some((Ok(SyncResponse { body: Some(body) }), Stage::Open(control))),
        Ok(None) => None,
        Err(status) => {
            tracing::debug!(code = ?status.code(), reason = status.message(), "a control stream ended");
            Some((Err(status), Stage::Ended))
        }
    }
}

async fn open(
    agents: Arc<Agents>,
    mut requests: Box<Streaming<SyncRequest>>,
    admitted: Admitted,
) -> Result<Box<Control>, Status> {
    let first = tokio::select! {
        first = tokio::time::timeout(HELLO_TIMEOUT, requests.message()) => {
            first.map_err(|_| Status::deadline_exceeded("no Hello came"))??
        }
        () = agents.stop.serving.cancelled() => return Err(stopping()),
    };
    let Some(SyncRequest { body: Some(sync_request::Body::Hello(hello)) }) = first else {
        return Err(Status::failed_precondition("the first message must be a Hello"));
    };
    let mut guides = agents.guides.clone();
    let guide = Arc::clone(&guides.borrow_and_update());
    let (who, config_version) = (Box::new(Who::from(&hello)), hello.config_version);
    let groups = agents.registry.follow();
    let (agent_id, ready) = greet(&agents, hello, &guide).await?;
    drop(admitted.take());
    let session = agents.sessions.enter(agent_id, &who.region);
    let now = Instant::now();
    let alarm = Box::pin(sleep_until(now + SILENCE_MAX));
    let mut control = Box::new(Control {
        agents,
        requests,
        admitted,
        guides,
        guide,
        groups,
        config_version,
        agent_id,
        who,
        ready,
        heard: now,
        alarm,
        told: None,
        _session: session,
    });
    control.configure();
    Ok(control)
}

/// The id of the agent and the first answers to it.
async fn greet(agents: &Agents, hello: Hello, guide: &Guide) -> Result<(u32, VecDeque<Body>), Status> {
    let (region, machine_id) = (hello.region.clone(), hello.machine_id.clone());
    let introduction = agents.proofs.check(hello);
    let Admission { mut welcome } = agents.controller.hello(introduction).await.map_err(status)?;
    let agent_id = welcome.agent_id;
    agents.proofs.sign(&mut welcome, &machine_id);
    welcome.servers = guide.servers(agent_id, &region);
    Ok((agent_id, VecDeque::from([Body::Welcome(welcome)])))
}

impl Control {
    /// The next answer; none when the agent is done.
    async fn next(&mut self) -> Result<Option<Body>, Status> {
        loop {
            if let Some(body) = self.ready.pop_front() {
                return Ok(Some(body));
            }
            tokio::select! {
                request = self.requests.message() => match request? {
                    Some(SyncRequest { body }) => {
                        self.heard = Instant::now();
                        match body {
                            Some(sync_request::Body::Heartbeat(heartbeat)) => self.heartbeat(heartbeat),
                            // Boxed: it is rare, and would make every stream as large as it is.
                            Some(body) => Box::pin(self.handle(body)).await?,
                            // A newer agent may say what this release does not know.
                            None => {}
                        }
                        drop(self.admitted.take());
                    }
                    None => return Ok(None),
                },
                Ok(()) = self.guides.changed() => self.follow(),
                Ok(()) = self.groups.changed() => self.configure(),
                () = self.agents.stop.serving.cancelled() => return Err(stopping()),
                () = &mut self.alarm => {
                    let silent_at = self.heard + SILENCE_MAX;
                    if silent_at <= Instant::now() {
                        return Err(Status::deadline_exceeded("no heartbeat came"));
                    }
                    self.alarm.as_mut().reset(silent_at);
                }
            }
        }
    }

    /// Tells the agent its servers when they are others than it knows.
    fn follow(&mut self) {
        let guide = Arc::clone(&self.guides.borrow_and_update());
        let servers = guide.servers(self.agent_id, &self.who.region);
        if servers != self.guide.servers(self.agent_id, &self.who.region) {
            self.ready.push_back(Body::Servers(Servers { servers }));
        }
        self.guide = guide;
    }

    /// Sends what the agent is to run with, where that is another version.
    fn configure(&mut self) {
        let config = self.groups.borrow_and_update().wanted(&self.who).config;
        if config.version != self.config_version {
            self.config_version = config.version;
            self.ready.push_back(Body::Config(Config::clone(&config)));
        }
    }

    async fn handle(&mut self, body: sync_request::Body) -> Result<(), Status> {
        match body {
            sync_request::Body::Hello(_) => {
                Err(Status::failed_precondition("a second Hello: one stream is one agent"))
            }
            sync_request::Body::Heartbeat(heartbeat) => {
                self.heartbeat(heartbeat);
                Ok(())
            }
            sync_request::Body::Facts(facts) => {
                match self.agents.controller.facts(self.agent_id, facts).await.map_err(status)? {
                    FactsReply::Kept => {}
                    FactsReply::Resend => self.ready.push_back(Body::ResendFacts(ResendFacts {})),
                }
                Ok(())
            }
        }
    }

    fn heartbeat(&mut self, heartbeat: Heartbeat) {
        let is_news = self.told.as_ref().is_none_or(|(told, at)| {
            self.heard.duration_since(*at) >= TOLD_EVERY || !says_the_same(told, &heartbeat)
        });
        if is_news {
            // When the controller is busy, the next heartbeat tells it.
            if self.agents.controller.try_heartbeat(self.agent_id, &heartbeat) {
                self.told = Some((heartbeat, self.heard));
            }
        }
        self.ready
            .push_back(Body::Heartbeat(HeartbeatReply { spread_ms: spread_ms(self.agents.streams.open()) }));
    }
}

/// Whether two heartbeats differ in the load of the agent at most.
fn says_the_same(one: &Heartbeat, other: &Heartbeat) -> bool {
    let load_of_one = |heartbeat: &Heartbeat| {
        let Heartbeat { spool_bytes, memory_bytes, cpu_percent, .. } = *one;
        Heartbeat { spool_bytes, memory_bytes, cpu_percent, ..heartbeat.clone() }
    };
    *one == load_of_one(other)
}

/// Within which the agents of this node return when it is lost. Each costs the others about a quarter of a millisecond; the silence that a
/// death begins with takes 2 s more, and after 6 s they are to be served again.
fn spread_ms(agents: u64) -> u32 {
    const AGENTS_A_MILLISECOND: u64 = 4;
    const SPREAD_MS_MAX: u64 = 3_000;
    u32::try_from((agents / AGENTS_A_MILLISECOND).min(SPREAD_MS_MAX)).unwrap_or(0)
}

fn stopping() -> Status {
    Status::unavailable("the node is stopping")
}

/// What an agent is told: its own faults by name, the node's as something that passes.
fn status(error: controller::Error) -> Status {
    match &error {
        controller::Error::Refused(controller::Refusal::Full(_)) => {
            Status::resource_exhausted(error.to_string())
        }
        controller::Error::Refused(_) => Status::invalid_argument(error.to_string()),
        controller::Error::Disk(_)
        | controller::Error::Dictionary(_)
        | controller::Error::Together(_)
        | controller::Error::Stopped => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the controller could not answer an agent"
            );
            Status::unavailable(error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use metaflow_wire::Loss;

    use super::*;

    #[test]
    fn only_the_load_of_an_agent_is_no_news() {
        let said = Heartbeat { config_version: 3, spool_bytes: 5, memory_bytes: 7, ..Heartbeat::default() };
        let check =
            |other: Heartbeat, expected| assert_eq!(says_the_same(&said, &other), expected, "{other:?}");
        check(Heartbeat { spool_bytes: 6, cpu_percent: 9, ..said.clone() }, true);
        check(Heartbeat { config_version: 4, ..said.clone() }, false);
        check(Heartbeat { losses: vec![Loss { reason: "full".into(), rows: 1 }], ..said.clone() }, false);
    }
}
