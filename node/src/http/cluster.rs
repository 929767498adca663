//! What the nodes of a cluster know together: gathered from each by the node that is asked.

use std::{sync::Arc, time::Duration};

use axum::{extract::State, http::StatusCode, response::Response};
use futures::future::join_all;
use metaflow_wire::ForwardRequest;
use serde::{Deserialize, Serialize};

use super::{Services, api::json, forward::hand_on};
use crate::membership::Member;

/// Time for a node to ping all others, and to tell.
const ROW_WITHIN: Duration = Duration::from_secs(6);

/// How one node reaches the others.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    node_id: u16,
    name: String,
    /// Why the node told nothing.
    error: Option<String>,
    reaches: Vec<Reached>,
}

/// Whether and how fast a node is reached over gRPC.
#[derive(Debug, Serialize, Deserialize)]
struct Reached {
    node_id: u16,
    name: String,
    milliseconds: Option<f64>,
    error: Option<String>,
}

/// Of this node.
pub(super) async fn own_reachability(State(services): State<Services>) -> Response {
    json(StatusCode::OK, &own_row(&services).await)
}

/// Of every node that is known, as it says itself.
pub(super) async fn reachability(State(services): State<Services>) -> Response {
    let view = Arc::clone(&services.parts.membership().view().borrow());
    let rows =
        view.members.iter().filter(|member| member.word() != "left").map(|member| row(&services, member));
    json(StatusCode::OK, &join_all(rows).await)
}

async fn row(services: &Services, member: &Member) -> Row {
    if member.node_id == services.parts.config().node_id {
        return own_row(services).await;
    }
    match ask(services, member, "/v1/reachability", ROW_WITHIN).await {
        Ok(row) => row,
        Err(error) => Row {
            node_id: member.node_id,
            name: member.facts.name.clone(),
            error: Some(error),
            reaches: vec![],
        },
    }
}

async fn own_row(services: &Services) -> Row {
    let view = Arc::clone(&services.parts.membership().view().borrow());
    let own = services.parts.config().node_id;
    let others = view.members.iter().filter(|member| member.node_id != own && member.word() != "left");
    let reaches = join_all(others.map(async |member| {
        let reached = reach(services, member).await;
        let (milliseconds, error) = match reached {
            Ok(time) => (Some(time.as_secs_f64() * 1e3), None),
            Err(error) => (None, Some(error)),
        };
        Reached { node_id: member.node_id, name: member.facts.name.clone(), milliseconds, error }
    }))
    .await;
    let name = view.member(own).map(|own| own.facts.name.clone()).unwrap_or_default();
    Row { node_id: own, name, error: None, reaches }
}

async fn reach(services: &Services, member: &Member) -> Result<Duration, String> {
    let running = services.parts.started()?;
    let address = member.facts.grpc.ok_or("it does not say where it listens")?;
    running.peers.ping(member.node_id, address).await
}

/// What another node answers to a GET.
pub(super) async fn ask<T: for<'a> Deserialize<'a>>(
    services: &Services,
    member: &Member,
    path: &str,
    within: Duration,
) -> Result<T, String> {
    let request = ForwardRequest { method: "GET".to_owned(), path: path.to_owned(), ..Default::default() };
    let answer = hand_on(services, member, request, within).await?.0;
    let name = &member.facts.name;
    if answer.status != 200 {
        return Err(format!(
            "node {name} answered {}: {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        ));
    }
    serde_json::from_slice(&answer.body)
        .map_err(|error| format!("node {name} answered something else: {error}"))
}
