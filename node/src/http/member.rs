//! One node of the cluster: what it is, emptying it, forgetting it when it is dead.
//!
//! A path names the node by number or name. What concerns another node is handed to it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use futures::future::join_all;
use metaflow_wire::ForwardRequest;
use serde::{Deserialize, Serialize};

use super::{
    Services,
    api::{failure, json},
    forward::{find, hand_on},
};
use crate::{membership::Member, node};

/// Time for a node to say what it would do, or to begin.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// How to do it.
#[derive(Debug, Deserialize)]
pub(super) struct Order {
    /// Only say what would be done.
    #[serde(default)]
    dry_run: bool,
    /// Do it although it is not safe.
    #[serde(default)]
    force: bool,
}

pub(super) async fn show(State(services): State<Services>, Path(name): Path<String>) -> Response {
    match find(&services, &name) {
        Ok(member) => json(StatusCode::OK, &member.report(Instant::now())),
        Err(refused) => refused,
    }
}

/// Empties a node and ends it: answers with the plan, and the node goes on by itself.
pub(super) async fn drain(
    State(services): State<Services>,
    Path(name): Path<String>,
    Query(order): Query<Order>,
) -> Response {
    let member = match find(&services, &name) {
        Ok(member) => member,
        Err(refused) => return refused,
    };
    if member.node_id == services.parts.config().node_id {
        return drain_own(&services, order).await;
    }
    let Order { dry_run, force } = order;
    let request = ForwardRequest {
        method: "POST".to_owned(),
        path: format!("/v1/cluster/members/{}/drain?dry_run={dry_run}&force={force}", member.node_id),
        ..Default::default()
    };
    match hand_on(&services, &member, request, ANSWER_WITHIN).await {
        Ok(answer) => answer.into_response(),
        Err(reason) => failure(StatusCode::BAD_GATEWAY, "SERVER_ERROR", &reason),
    }
}

async fn drain_own(services: &Services, Order { dry_run, force }: Order) -> Response {
    let Some(standing) = services.parts.standing().await else {
        return failure(StatusCode::SERVICE_UNAVAILABLE, "SERVER_ERROR", "the node is starting");
    };
    let view = Arc::clone(&services.parts.membership().view().borrow());
    let name = view.member(view.own).map(|own| own.facts.name.clone()).unwrap_or_default();
    let plan = match tokio::task::spawn_blocking(move || node::plan(&view, standing)).await {
        Ok(plan) => plan,
        Err(error) => {
            return failure(StatusCode::INTERNAL_SERVER_ERROR, "SERVER_ERROR", &error.to_string());
        }
    };
    if dry_run {
        return json(StatusCode::OK, &plan);
    }
    if !plan.risks.is_empty() && !force {
        let risks = plan.risks.join("; ");
        return failure(StatusCode::CONFLICT, "UNSAFE", &format!("draining {name} is not safe: {risks}"));
    }
    services.parts.drain();
    json(StatusCode::ACCEPTED, &plan)
}

/// Who does not show the dead node any more, and who could not be told.
#[derive(Debug, Serialize)]
struct Removed {
    node_id: u16,
    name: String,
    told: Vec<String>,
    failed: Vec<String>,
}

/// Removes a dead node from the view of every node that lives. A node that comes back is a member again.
pub(super) async fn remove(
    State(services): State<Services>,
    Path(name): Path<String>,
    Query(order): Query<Order>,
) -> Response {
    let member = match find(&services, &name) {
        Ok(member) => member,
        Err(refused) => return refused,
    };
    let name = &member.facts.name;
    if member.live {
        let word = member.word();
        let text =
            format!("node {name} is {word}, not dead; empty it with `metaflow ctl member drain {name}`");
        return failure(StatusCode::CONFLICT, "UNSAFE", &text);
    }
    let view = Arc::clone(&services.parts.membership().view().borrow());
    let own = services.parts.config().node_id;
    let mut removed = Removed { node_id: member.node_id, name: name.clone(), told: vec![], failed: vec![] };
    if order.dry_run {
        removed.told = view.live().map(|other| other.facts.name.clone()).collect();
        return json(StatusCode::OK, &removed);
    }
    services.parts.membership().forget(member.node_id, member.generation);
    let others: Vec<&Member> = view.live().filter(|other| other.node_id != own).collect();
    let answers = join_all(others.iter().map(|other| tell_to_forget(&services, other, &member))).await;
    removed.told.extend(view.member(own).map(|own| own.facts.name.clone()));
    for (other, answer) in others.iter().zip(answers) {
        match answer {
            Ok(()) => removed.told.push(other.facts.name.clone()),
            Err(reason) => removed.failed.push(reason),
        }
    }
    json(StatusCode::OK, &removed)
}

async fn tell_to_forget(services: &Services, other: &Member, dead: &Member) -> Result<(), String> {
    let request = ForwardRequest {
        method: "POST".to_owned(),
        path: format!("/v1/forget/{}/{}", dead.node_id, dead.generation),
        ..Default::default()
    };
    let answer = hand_on(services, other, request, ANSWER_WITHIN).await?.0;
    if answer.status == 204 {
        return Ok(());
    }
    Err(format!("node {} answered {}", other.facts.name, answer.status))
}

/// Removes a dead node from this node's view alone.
pub(super) async fn forget(
    State(services): State<Services>,
    Path((node_id, generation)): Path<(u16, u64)>,
) -> StatusCode {
    let membership = services.parts.membership();
    let is_known = membership.view().borrow().member(node_id).is_some();
    if is_known && !membership.forget(node_id, generation) {
        StatusCode::CONFLICT
    } else {
        StatusCode::NO_CONTENT
    }
}
