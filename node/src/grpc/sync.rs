//! One agent's control stream: who it is, what runs on its host, that it lives; identity and configuration come back.

use std::time::Duration;

use metaflow_actors::controller::{self, Admission, FactsReply};
use metaflow_wire::{
    HeartbeatReply, Hello, ResendFacts, Servers, SyncRequest, SyncResponse, sync_request, sync_response,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{ANSWERS_MAX, Agents};
use crate::node::Guide;

/// Time for the first message; who says nothing is no agent.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Heartbeats come every few seconds.
const SILENCE_MAX: Duration = Duration::from_secs(60);

type Output = mpsc::Sender<Result<SyncResponse, Status>>;

/// Starts the task of a stream.
pub(super) fn start(
    agents: Agents,
    requests: Streaming<SyncRequest>,
) -> ReceiverStream<Result<SyncResponse, Status>> {
    let (output, answers) = mpsc::channel(ANSWERS_MAX);
    tokio::spawn(async move {
        let ended = tokio::select! {
            ended = serve(&agents, requests, &output) => ended,
            () = agents.stop.serving.cancelled() => Err(Status::unavailable("the node is stopping")),
            () = output.closed() => return,
        };
        if let Err(status) = ended {
            tracing::debug!(code = ?status.code(), reason = status.message(), "a control stream ended");
            // The agent may be gone; then it does not care.
            output.send(Err(status)).await.ok();
        }
    });
    ReceiverStream::new(answers)
}

async fn serve(agents: &Agents, mut requests: Streaming<SyncRequest>, output: &Output) -> Result<(), Status> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, requests.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no Hello came"))??;
    let Some(SyncRequest { body: Some(sync_request::Body::Hello(hello)) }) = first else {
        return Err(Status::failed_precondition("the first message must be a Hello"));
    };
    let region = hello.region.clone();
    let mut guides = agents.guides.clone();
    let guide = guides.borrow_and_update().clone();
    let (agent_id, mut servers) = greet(agents, hello, &guide, output).await?;
    let _session = agents.sessions.enter(agent_id, &region);
    let mut deadline = Instant::now() + SILENCE_MAX;
    loop {
        let request = tokio::select! {
            request = timeout_at(deadline, requests.message()) => {
                request.map_err(|_| Status::deadline_exceeded("no heartbeat came"))??
            }
            Ok(()) = guides.changed() => {
                let now = guides.borrow_and_update().servers(agent_id, &region);
                if now != servers {
                    servers.clone_from(&now);
                    answer(output, sync_response::Body::Servers(Servers { servers: now })).await?;
                }
                continue;
            }
        };
        deadline = Instant::now() + SILENCE_MAX;
        match request {
            None => return Ok(()),
            // A newer agent may say what this release does not know.
            Some(SyncRequest { body: None }) => {}
            Some(SyncRequest { body: Some(body) }) => handle(agents, agent_id, body, output).await?,
        }
    }
}

async fn handle(
    agents: &Agents,
    agent_id: u32,
    body: sync_request::Body,
    output: &Output,
) -> Result<(), Status> {
    match body {
        sync_request::Body::Hello(_) => {
            Err(Status::failed_precondition("a second Hello: one stream is one agent"))
        }
        sync_request::Body::Heartbeat(heartbeat) => {
            let config = agents.controller.heartbeat(agent_id, heartbeat).await.map_err(status)?;
            if let Some(config) = config {
                answer(output, sync_response::Body::Config(config)).await?;
            }
            let spread_ms = spread_ms(agents.streams.open());
            answer(output, sync_response::Body::Heartbeat(HeartbeatReply { spread_ms })).await
        }
        sync_request::Body::Facts(facts) => {
            match agents.controller.facts(agent_id, facts).await.map_err(status)? {
                FactsReply::Kept => Ok(()),
                FactsReply::Resend => answer(output, sync_response::Body::ResendFacts(ResendFacts {})).await,
            }
        }
    }
}

/// Within which the agents of this node return when it is lost. Each costs the others about a tenth of a millisecond; the silence that a
/// death begins with takes 2 s more, and after 6 s they are to be served again.
fn spread_ms(agents: u64) -> u32 {
    const AGENTS_A_MILLISECOND: u64 = 10;
    const SPREAD_MS_MAX: u64 = 3_000;
    u32::try_from((agents / AGENTS_A_MILLISECOND).min(SPREAD_MS_MAX)).unwrap_or(0)
}

/// Answers with the id of the agent and the servers that it was told.
async fn greet(
    agents: &Agents,
    hello: Hello,
    guide: &Guide,
    output: &Output,
) -> Result<(u32, Vec<String>), Status> {
    let region = hello.region.clone();
    let Admission { mut welcome, config } = agents.controller.hello(hello).await.map_err(status)?;
    let agent_id = welcome.agent_id;
    let servers = guide.servers(agent_id, &region);
    welcome.servers.clone_from(&servers);
    answer(output, sync_response::Body::Welcome(welcome)).await?;
    if let Some(config) = config {
        answer(output, sync_response::Body::Config(config)).await?;
    }
    Ok((agent_id, servers))
}

async fn answer(output: &Output, body: sync_response::Body) -> Result<(), Status> {
    output
        .send(Ok(SyncResponse { body: Some(body) }))
        .await
        .map_err(|_| Status::cancelled("the agent is gone"))
}

/// What an agent is told: its own faults by name, the node's as something that passes.
fn status(error: controller::Error) -> Status {
    match &error {
        controller::Error::Refused(controller::Refusal::Full(_)) => {
            Status::resource_exhausted(error.to_string())
        }
        controller::Error::Refused(_) => Status::invalid_argument(error.to_string()),
        controller::Error::Disk(_) | controller::Error::Dictionary(_) | controller::Error::Stopped => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the controller could not answer an agent"
            );
            Status::unavailable(error.to_string())
        }
    }
}
