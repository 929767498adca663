//! The HTTP server: SQL, the node's own metrics, health.
//!
//! Bound: connections, bytes of a body, time for a head and a body; queries are bounded by the querier. A client that goes away ends its
//! query, because its connection's future is dropped.

mod api;
mod cluster;
mod connection;
mod fleet;
mod forward;
mod guard;
mod inspect;
mod member;
mod observe;
mod overview;
mod page;
mod profile;
mod trace;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header},
    middleware,
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};

use crate::{metrics::Metrics, node::Parts};

pub(crate) use connection::{Door, serve};
pub(crate) use forward::{HEADER as MEMBER_HEADER, answer_forwarded};
pub(crate) use guard::Guard;

/// The longest accepted SQL text is 64 KiB; form encoding can make three bytes of one.
const BODY_BYTES_MAX: usize = 3 * metaflow_query::TEXT_BYTES_MAX + 4096;
/// Time for a client to send what it announced.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) parts: Parts,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) guard: Guard,
}

/// All routes, for whoever may ask.
pub(crate) fn router(services: Services) -> Router {
    pages(services.clone())
        .layer(middleware::from_fn_with_state(services.clone(), forward::to_member))
        .layer(middleware::from_fn_with_state(services, guard::check))
}

/// All routes, of this node and for whoever was let in already.
pub(crate) fn pages(services: Services) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/v1/query", get(api::query_get).post(api::query_post))
        .route("/v1/query/", get(api::query_get).post(api::query_post))
        .route("/v1/agents", get(api::agents))
        .route("/v1/cluster/members", get(api::members))
        .route("/v1/cluster/members/{node}", get(member::show).delete(member::remove))
        .route("/v1/cluster/members/{node}/drain", post(member::drain))
        .route("/v1/forget/{node_id}/{generation}", post(member::forget))
        .route("/v1/cluster/status", get(overview::overview))
        .route("/v1/cluster/reachability", get(cluster::reachability))
        .route("/v1/reachability", get(cluster::own_reachability))
        .route("/v1/status", get(api::status))
        .merge(inspect::routes())
        .merge(fleet::routes())
        .merge(observe::routes())
        .merge(trace::routes())
        .merge(profile::routes())
        .route("/metrics", get(metrics))
        .route("/health/live", get(|| async { "alive\n" }))
        .route("/health/ready", get(ready))
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(services)
}

async fn index() -> Html<String> {
    Html(page::index())
}

async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "nothing is here; / lists what is\n").into_response()
}

async fn ready(State(services): State<Services>) -> Response {
    let health = services.parts.health().await;
    if health.is_ready() {
        return "ready\n".into_response();
    }
    let reasons = health.problems.join("\n");
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{reasons}\n")).into_response()
}

async fn metrics(State(services): State<Services>) -> Response {
    match services.metrics.encode() {
        Ok(text) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "metrics could not be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
