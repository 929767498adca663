//! Requests that concern another node: the header `metaflow-node` names it, by number or name, and the node that was asked hands them on.
//!
//! The token is checked where the request arrives; between nodes the cluster's secret counts. Bound: a body and an answer fit into one
//! message between nodes. Leaves out: streams, which are asked of their node itself.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use metaflow_wire::{ForwardRequest, ForwardResponse, MESSAGE_BYTES_MAX};
use tower_service::Service as _;

use super::{BODY_BYTES_MAX, Services, api};
use crate::membership::Member;

pub(crate) const HEADER: &str = "metaflow-node";
/// Longer than a query may take.
const WITHIN: Duration = Duration::from_secs(120);
/// What of a message is not the body.
const ENVELOPE_BYTES: usize = 4096;

/// Hands a request on when it is for another node.
pub(super) async fn to_member(State(services): State<Services>, request: Request, next: Next) -> Response {
    let Some(name) = request.headers().get(HEADER) else { return next.run(request).await };
    let name = String::from_utf8_lossy(name.as_bytes()).into_owned();
    let member = match find(&services, &name) {
        Ok(member) => member,
        Err(refused) => return refused,
    };
    if member.node_id == services.parts.config().node_id {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else {
        return wrong(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large or was cut off");
    };
    let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let request = ForwardRequest {
        method: parts.method.to_string(),
        path: parts.uri.path_and_query().map_or_else(String::new, ToString::to_string),
        content_type: content_type.unwrap_or_default().to_owned(),
        body: body.into(),
    };
    match hand_on(&services, &member, request, WITHIN).await {
        Ok(answer) => answer.into_response(),
        Err(reason) => wrong(StatusCode::BAD_GATEWAY, &reason),
    }
}

/// The member that a path or a header names.
#[expect(clippy::result_large_err, reason = "the answer, once a request")]
pub(super) fn find(services: &Services, name: &str) -> Result<Member, Response> {
    let view = Arc::clone(&services.parts.membership().view().borrow());
    view.find(name).cloned().ok_or_else(|| {
        let known: Vec<&str> = view.members.iter().map(|member| member.facts.name.as_str()).collect();
        wrong(StatusCode::NOT_FOUND, &format!("no node {name:?} is known; there are {}", known.join(", ")))
    })
}

/// Asks another node; says which one did not answer.
pub(super) async fn hand_on(
    services: &Services,
    member: &Member,
    request: ForwardRequest,
    within: Duration,
) -> Result<Forwarded, String> {
    let name = &member.facts.name;
    let running = services.parts.started()?;
    let address = member.facts.grpc.ok_or_else(|| format!("node {name} does not say where it listens"))?;
    if !member.live {
        return Err(format!("node {name} is {}", member.word()));
    }
    let answer = running.peers.forward(address, request, within).await;
    answer.map(Forwarded).map_err(|reason| format!("node {name} ({address}) did not answer: {reason}"))
}

/// What another node answered.
pub(super) struct Forwarded(pub(super) ForwardResponse);

impl IntoResponse for Forwarded {
    fn into_response(self) -> Response {
        let ForwardResponse { status, content_type, body } = self.0;
        let status = u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok());
        let content_type = HeaderValue::from_str(&content_type);
        let content_type =
            content_type.unwrap_or_else(|_| HeaderValue::from_static("application/octet-stream"));
        (status.unwrap_or(StatusCode::BAD_GATEWAY), [(header::CONTENT_TYPE, content_type)], body)
            .into_response()
    }
}

/// Answers what another node hands on; fails when the answer fits in no message.
pub(crate) async fn answer_forwarded(
    mut pages: Router,
    request: ForwardRequest,
) -> Result<ForwardResponse, String> {
    let ForwardRequest { method, path, content_type, body } = request;
    let mut request = Request::builder().method(method.as_str()).uri(path);
    if !content_type.is_empty() {
        request = request.header(header::CONTENT_TYPE, content_type);
    }
    let request = request.body(Body::from(body)).map_err(|error| error.to_string())?;
    let Ok(response) = pages.call(request).await;
    let (parts, body) = response.into_parts();
    let limit = MESSAGE_BYTES_MAX - ENVELOPE_BYTES;
    let body: Bytes = to_bytes(body, limit)
        .await
        .map_err(|_| format!("the answer has more than {limit} bytes: ask the node itself"))?;
    let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    Ok(ForwardResponse {
        status: parts.status.as_u16().into(),
        content_type: content_type.unwrap_or_default().to_owned(),
        body: body.into(),
    })
}

fn wrong(status: StatusCode, description: &str) -> Response {
    let name = if status.is_client_error() { "INVALID_PARAMETERS" } else { "SERVER_ERROR" };
    api::failure(status, name, description)
}
