//! Pages for operators: what is inside the cluster, by any node. See [`crate::inspect`].

use axum::{
    Router,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde_json::Value;

use super::{Services, api};
use crate::inspect::{self, Arguments, Failure, Topic};

type Asked = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// Pages that show every node's own answer, side by side; `?node=NAME` asks for one.
const OF_NODES: [(&str, Topic); 7] = [
    ("/v1/dictionary/stats", Topic::DictionaryStats),
    ("/v1/doctor", Topic::Doctor),
    ("/v1/events", Topic::Events),
    ("/v1/logs", Topic::Logs),
    ("/v1/metrics", Topic::Metrics),
    ("/v1/settings", Topic::Settings),
    ("/v1/wal", Topic::Wal),
];

/// The routes of these pages.
pub(super) fn routes() -> Router<Services> {
    let router = Router::new()
        .route(
            "/v1/balance",
            get(async |State(services): State<Services>, asked: Asked| {
                show(asked, async |arguments| inspect::balance(&services.parts, &arguments).await).await
            }),
        )
        .route(
            "/v1/dictionary/lookup",
            get(async |State(services): State<Services>, asked: Asked| {
                show(asked, async |arguments| inspect::lookup(&services.parts, &arguments).await).await
            }),
        )
        .route(
            "/v1/dictionary/resolve",
            get(async |State(services): State<Services>, asked: Asked| {
                show(asked, async |arguments| inspect::resolve(&services.parts, &arguments).await).await
            }),
        )
        .route(
            "/v1/dictionary/verify",
            get(async |State(services): State<Services>, asked: Asked| {
                show(asked, async |arguments| inspect::verify(&services.parts, &arguments).await).await
            }),
        )
        .route(
            "/v1/ingest/trace",
            get(async |State(services): State<Services>, asked: Asked| {
                show(asked, async |arguments| inspect::trace(&services.parts, &arguments).await).await
            }),
        )
        .route(
            "/v1/shard",
            get(async |State(services): State<Services>, asked: Asked| {
                show(asked, async |arguments| inspect::explain(&services.parts, &arguments).await).await
            }),
        );
    OF_NODES.into_iter().fold(router, |router, (path, topic)| {
        router.route(
            path,
            get(async move |State(services): State<Services>, asked: Asked| {
                show(asked, async |arguments| inspect::of_cluster(&services.parts, topic, &arguments).await)
                    .await
            }),
        )
    })
}

async fn show(asked: Asked, answer: impl AsyncFnOnce(Arguments) -> Result<Value, Failure>) -> Response {
    let arguments = match asked {
        Ok(Query(arguments)) => Arguments::new(arguments),
        Err(rejection) => {
            return api::failure(StatusCode::BAD_REQUEST, "INVALID_PARAMETERS", &rejection.body_text());
        }
    };
    match answer(arguments).await {
        Ok(value) => axum::Json(value).into_response(),
        Err(Failure::Wrong(reason)) => api::failure(StatusCode::BAD_REQUEST, "INVALID_PARAMETERS", &reason),
        Err(Failure::Unavailable(reason)) => {
            api::failure(StatusCode::SERVICE_UNAVAILABLE, "SERVER_ERROR", &reason)
        }
    }
}
