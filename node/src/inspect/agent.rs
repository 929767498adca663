//! What this node knows of an agent.

use serde_json::json;

use super::{Answer, Arguments, Failure};
use crate::node::Parts;

/// Agents of one name that are listed: a host's name may be given twice.
const SAME_NAME_MAX: usize = 20;

/// The agents with this id, host name or machine id, and how they are connected.
pub(super) async fn agent(parts: &Parts, arguments: &Arguments) -> Answer {
    let wanted = arguments.text("agent")?;
    let running = parts.started()?;
    let agents =
        running.controller.agents().await.map_err(|error| Failure::Unavailable(error.to_string()))?;
    let id = wanted.parse::<u32>().ok();
    let found = agents.into_iter().filter(|agent| {
        id.map_or_else(|| agent.host == wanted || agent.machine_id == wanted, |id| agent.agent_id == id)
    });
    let agents: Vec<_> = found
        .take(SAME_NAME_MAX)
        .map(|agent| {
            let session = running.sessions.of(agent.agent_id);
            let connected = session.as_ref().map(|session| session.since.elapsed().as_secs());
            let losses: serde_json::Map<_, _> =
                agent.losses.iter().map(|(reason, rows)| (reason.clone(), (*rows).into())).collect();
            json!({
                "agent_id": agent.agent_id,
                "host": agent.host,
                "machine_id": agent.machine_id,
                "version": agent.version,
                "connected_seconds": connected,
                "region": session.map(|session| session.region),
                "silent_seconds": agent.silent_for.map(|silent| silent.as_secs()),
                "spool_bytes": agent.spool_bytes,
                "losses": losses,
            })
        })
        .collect();
    Ok(json!({ "agents": agents }))
}
