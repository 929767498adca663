//! All agents of the cluster, for operators: who they are and how they are, what they are to run with, and what they see.
//!
//! Any node answers for all: it asks the others and says which did not answer. What operators change is written here, told to the others at
//! once, and compared with them round by round, so that a node that was away hears of it, too. Leaves out: what groups mean
//! (`metaflow_actors::groups`), and who speaks to agents (`grpc/sync`).

mod agent;
mod documents;
mod rollouts;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use metaflow_actors::{
    controller::Controller,
    dictionary::{Dictionary, NodeId},
    groups::{Change, Groups, Refusal, Registry},
    tap::Tap,
};
use metaflow_wire::{AgentState, ListAgentsRequest};
use serde::Serialize;
use tonic::Status;

use crate::{
    clock,
    events::{self, Events},
    peers::Peers,
};

pub(crate) use agent::Agent;

/// Agents of one message: a few hundred bytes each.
pub(crate) const AGENTS_A_MESSAGE: usize = 2_000;
/// Time for another node to tell all of its agents.
const LIST_WITHIN: Duration = Duration::from_secs(5);

/// Clones share everything.
#[derive(Clone)]
pub(crate) struct Fleet {
    pub(crate) own: NodeId,
    pub(crate) registry: Registry,
    pub(crate) controller: Controller,
    pub(crate) dictionary: Dictionary,
    pub(crate) tap: Arc<Tap>,
    pub(crate) peers: Peers,
    pub(crate) events: Events,
}

/// A node that did not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Missing {
    pub(crate) node_id: u16,
    pub(crate) address: SocketAddr,
    pub(crate) reason: String,
}

/// Agents by id, and who did not tell its own.
#[derive(Debug, Serialize)]
pub(crate) struct Gathered {
    pub(crate) agents: Vec<Agent>,
    pub(crate) missing: Vec<Missing>,
}

/// What a change came to.
#[derive(Debug, Serialize)]
pub(crate) struct Changed {
    pub(crate) says: Vec<String>,
    /// Whose agents are to follow.
    pub(crate) group: Option<String>,
    /// Agents that get another configuration by it.
    pub(crate) agents: usize,
    pub(crate) is_done: bool,
    /// Nodes that hear of it later; their agents, too.
    pub(crate) missing: Vec<Missing>,
}

impl Fleet {
    /// The agents that this node knows, as it tells others.
    pub(crate) async fn own_agents(&self) -> Result<Vec<AgentState>, Status> {
        let agents =
            self.controller.agents().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(agents.into_iter().map(agent::to_wire).collect())
    }

    /// The agents of the whole cluster.
    pub(crate) async fn agents(&self) -> Result<Gathered, Status> {
        let own = self.own_agents().await?.into_iter().map(|state| (self.own, state)).collect();
        let others = self.peers.others();
        let asked = others.into_iter().map(async |(node, address)| {
            let answer = tokio::time::timeout(LIST_WITHIN, self.agents_of(address)).await;
            let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer came in time")));
            answer
                .map_err(|status| Missing {
                    node_id: node.get(),
                    address,
                    reason: status.message().to_owned(),
                })
                .map(|states| states.into_iter().map(|state| (node, state)).collect())
        });
        let answers: Vec<Result<Vec<_>, Missing>> = futures::future::join_all(asked).await;
        let (mut told, mut missing) = (vec![own], Vec::new());
        for answer in answers {
            match answer {
                Ok(states) => told.push(states),
                Err(node) => missing.push(node),
            }
        }
        let groups = self.registry.groups();
        Ok(Gathered { agents: agent::merged(told.into_iter().flatten(), &groups), missing })
    }

    async fn agents_of(&self, address: SocketAddr) -> Result<Vec<AgentState>, Status> {
        let mut client = self.peers.fleet(address)?;
        let mut stream = client.list_agents(ListAgentsRequest {}).await?.into_inner();
        let mut states = Vec::new();
        while let Some(part) = stream.message().await? {
            states.extend(part.agents);
        }
        Ok(states)
    }

    /// Performs a change, or says what it would come to.
    pub(crate) async fn change(&self, change: Change, is_dry: bool) -> Result<Changed, Refusal> {
        let before = self.registry.groups();
        let (registry, now) = (self.registry.clone(), clock::seconds());
        let work = move || {
            if is_dry {
                let (plan, after) = registry.preview(&change, now)?;
                return Ok::<_, Refusal>((plan, after.into(), vec![]));
            }
            let (plan, written) = registry.change(&change, now)?;
            Ok((plan, registry.groups(), written))
        };
        let (plan, after, written) = tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| Refusal::Wrong(format!("the change ended with a defect: {error}")))??;
        if !is_dry {
            self.events.record(
                events::Kind::Config,
                plan.group.as_deref().unwrap_or("agents"),
                plan.says.join("; "),
            );
        }
        // First those who must know; a kill switch does not wait for the count.
        let mut missing = self.tell(written).await;
        let agents = self.agents().await.map_or(0, |gathered| {
            missing.extend(gathered.missing.into_iter().filter(|_| is_dry));
            affected(&gathered.agents, &before, &after)
        });
        Ok(Changed { says: plan.says, group: plan.group, agents, is_done: !is_dry, missing })
    }
}

fn affected(agents: &[Agent], before: &Groups, after: &Groups) -> usize {
    let version = |groups: &Groups, agent: &Agent| groups.wanted(&agent.who()).config.version;
    agents.iter().filter(|agent| version(before, agent) != version(after, agent)).count()
}
