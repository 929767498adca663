//! Agents of the whole cluster and their groups, over HTTP.

use axum::{
    Router,
    extract::{Path, Query, State, rejection::JsonRejection},
    http::StatusCode,
    response::Response,
    routing::get,
};
use metaflow_actors::groups::{Change, Group, Matches, Refusal, Rollout, Version};
use serde::{Deserialize, Serialize};

use super::{
    Services,
    api::{failure, json},
};
use crate::fleet::{Agent, Fleet, Missing};

pub(super) fn routes() -> Router<Services> {
    Router::new()
        .route("/v1/cluster/agents", get(agents))
        .route("/v1/cluster/agents/{name}", get(agent))
        .route("/v1/agent-groups", get(groups).post(change))
        .route("/v1/agent-groups/{name}", get(group))
}

/// Which agents are meant; all of what is given must fit.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Filter {
    /// And the groups below it.
    group: Option<String>,
    region: Option<String>,
    status: Option<String>,
}

#[derive(Serialize)]
struct Agents {
    agents: Vec<Agent>,
    missing: Vec<Missing>,
}

/// A group, and how its agents stand to it.
#[derive(Serialize)]
struct Shown {
    name: String,
    parent: String,
    matches: Matches,
    is_off: bool,
    current: u64,
    rollout: Option<Rollout>,
    /// Agents of it and of the groups below, and how many of them run with what they should.
    agents: usize,
    applied: usize,
    waiting: usize,
    restart: usize,
    refused: usize,
    silent: usize,
}

/// One with everything.
#[derive(Serialize)]
struct Detail {
    #[serde(flatten)]
    shown: Shown,
    versions: Vec<Version>,
    /// With what the groups above it set, as TOML.
    effective: String,
    missing: Vec<Missing>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    change: Change,
    #[serde(default)]
    dry_run: bool,
}

fn starting() -> Response {
    failure(StatusCode::SERVICE_UNAVAILABLE, "SERVER_ERROR", "the node is starting")
}

async fn gather(fleet: &Fleet) -> Result<crate::fleet::Gathered, Response> {
    fleet
        .agents()
        .await
        .map_err(|status| failure(StatusCode::SERVICE_UNAVAILABLE, "SERVER_ERROR", status.message()))
}

async fn agents(State(services): State<Services>, filter: Query<Filter>) -> Response {
    let Some(fleet) = services.parts.fleet() else { return starting() };
    let groups = fleet.registry.groups();
    let Filter { group, region, status } = filter.0;
    if let Some(name) = group.as_deref().filter(|name| groups.group(name).is_none()) {
        return failure(StatusCode::NOT_FOUND, "NOT_FOUND", &format!("there is no group {name:?}"));
    }
    match gather(fleet).await {
        Ok(gathered) => {
            let is_meant = |agent: &Agent| {
                group.as_deref().is_none_or(|group| groups.is_within(&agent.group, group))
                    && region.as_deref().is_none_or(|region| agent.region == region)
                    && status
                        .as_deref()
                        .is_none_or(|status| agent.status == status || agent.config_state == status)
            };
            let agents = gathered.agents.into_iter().filter(is_meant).collect();
            json(StatusCode::OK, &Agents { agents, missing: gathered.missing })
        }
        Err(refused) => refused,
    }
}

async fn agent(State(services): State<Services>, Path(name): Path<String>) -> Response {
    let Some(fleet) = services.parts.fleet() else { return starting() };
    match gather(fleet).await {
        Ok(gathered) => {
            let agents: Vec<Agent> = gathered.agents.into_iter().filter(|agent| agent.is(&name)).collect();
            if agents.is_empty() {
                let text = format!("no node knows an agent with the id, machine id or host {name:?}");
                return failure(StatusCode::NOT_FOUND, "NOT_FOUND", &text);
            }
            json(StatusCode::OK, &Agents { agents, missing: gathered.missing })
        }
        Err(refused) => refused,
    }
}

fn shown(fleet: &Fleet, name: &str, group: &Group, agents: &[Agent]) -> Shown {
    let groups = fleet.registry.groups();
    let its: Vec<&Agent> = agents.iter().filter(|agent| groups.is_within(&agent.group, name)).collect();
    let alive = |state: &str| {
        its.iter().filter(|agent| agent.status != "silent" && agent.config_state == state).count()
    };
    let Group { parent: _, matches, versions: _, current, rollout, is_off } = group.clone();
    Shown {
        name: name.to_owned(),
        parent: if name == metaflow_actors::groups::ROOT { String::new() } else { group.parent().to_owned() },
        matches,
        is_off,
        current,
        rollout,
        agents: its.len(),
        applied: alive("applied"),
        waiting: alive("waiting"),
        restart: alive("restart"),
        refused: alive("refused"),
        silent: its.iter().filter(|agent| agent.status == "silent").count(),
    }
}

async fn groups(State(services): State<Services>) -> Response {
    let Some(fleet) = services.parts.fleet() else { return starting() };
    match gather(fleet).await {
        Ok(gathered) => {
            let groups = fleet.registry.groups();
            let all: Vec<Shown> =
                groups.iter().map(|(name, group)| shown(fleet, name, group, &gathered.agents)).collect();
            json(StatusCode::OK, &serde_json::json!({ "groups": all, "missing": gathered.missing }))
        }
        Err(refused) => refused,
    }
}

async fn group(State(services): State<Services>, Path(name): Path<String>) -> Response {
    let Some(fleet) = services.parts.fleet() else { return starting() };
    let groups = fleet.registry.groups();
    let Some(group) = groups.group(&name) else {
        return failure(StatusCode::NOT_FOUND, "NOT_FOUND", &format!("there is no group {name:?}"));
    };
    match gather(fleet).await {
        Ok(gathered) => {
            let detail = Detail {
                shown: shown(fleet, &name, group, &gathered.agents),
                versions: group.versions.clone(),
                effective: groups.settings(&name).to_toml(),
                missing: gathered.missing,
            };
            json(StatusCode::OK, &detail)
        }
        Err(refused) => refused,
    }
}

async fn change(
    State(services): State<Services>,
    asked: Result<axum::Json<Asked>, JsonRejection>,
) -> Response {
    let Some(fleet) = services.parts.fleet() else { return starting() };
    let Asked { change, dry_run } = match asked {
        Ok(asked) => asked.0,
        Err(rejection) => return failure(rejection.status(), "INVALID_PARAMETERS", &rejection.body_text()),
    };
    match fleet.change(change, dry_run).await {
        Ok(changed) => json(StatusCode::OK, &changed),
        Err(refusal) => {
            let (status, name) = match &refusal {
                Refusal::Wrong(_) | Refusal::Settings(_) => (StatusCode::BAD_REQUEST, "INVALID_PARAMETERS"),
                Refusal::Unknown(_) => (StatusCode::NOT_FOUND, "NOT_FOUND"),
                Refusal::Unsafe(_) => (StatusCode::CONFLICT, "UNSAFE"),
                Refusal::Documents(_) => (StatusCode::SERVICE_UNAVAILABLE, "SERVER_ERROR"),
            };
            failure(status, name, &refusal.to_string())
        }
    }
}
