//! Traces over HTTP: a tree of spans in DeepFlow's shape, and Tempo's, which Grafana reads.

mod tempo;

use std::{collections::BTreeMap, time::Instant};

use axum::{
    Json, Router,
    extract::{Path, Query, State, rejection::JsonRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use metaflow_actors::querier::trace::{Row, Seed, Span, TimeSpan, Timing, Trace, timings};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Services, api};
use crate::{clock, metrics::QueryOutcome};

/// Where nothing is said, traces that ended within the last hour are looked at.
const LOOK_BACK_SECONDS: u64 = 3_600;

/// Posts that only read.
pub(super) const PATH: &str = "/v1/stats/querier/L7FlowTracing";

pub(super) fn routes() -> Router<Services> {
    Router::new().route(PATH, post(flow_tracing)).route("/api/traces/{id}", get(by_trace_id))
}

/// What is looked for. Fields that other systems' clients send beside these are ignored.
#[derive(Debug, Default, Deserialize)]
struct Asked {
    /// A row's id.
    #[serde(rename = "_id", default)]
    row: String,
    #[serde(default)]
    trace_id: String,
    /// Seconds since 1970.
    time_start: Option<u64>,
    time_end: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Range {
    start: Option<u64>,
    end: Option<u64>,
}

async fn flow_tracing(
    State(services): State<Services>,
    asked: Result<Json<Asked>, JsonRejection>,
) -> Response {
    let Asked { row, trace_id, time_start, time_end } = match asked {
        Ok(Json(asked)) => asked,
        Err(rejection) => {
            services.metrics.refused_request();
            let text = format!(
                "send JSON: {{\"trace_id\": ...}} or {{\"_id\": a row's id}}, with time_start and time_end in seconds: {}",
                rejection.body_text()
            );
            return api::failure(rejection.status(), "INVALID_PARAMETERS", &text);
        }
    };
    let id = if row.is_empty() { &trace_id } else { &row };
    match find(&services, id, time_start, time_end).await {
        Ok((_, trace)) => api::json(StatusCode::OK, &deepflow(&trace)),
        Err(response) => response,
    }
}

/// As the client accepts it: Grafana's data source asks for protobuf.
async fn by_trace_id(
    State(services): State<Services>,
    Path(id): Path<String>,
    Query(Range { start, end }): Query<Range>,
    headers: HeaderMap,
) -> Response {
    match find(&services, &id, start, end).await {
        Ok((_, trace)) if trace.spans.is_empty() => {
            let text = format!("no trace {id} ended in that time; give start and end in seconds since 1970");
            api::failure(StatusCode::NOT_FOUND, "NOT_FOUND", &text)
        }
        Ok((seed, trace)) if accepts_protobuf(&headers) => {
            let body = tempo::Traces::new(&seed, &trace).protobuf();
            (StatusCode::OK, [(header::CONTENT_TYPE, tempo::PROTOBUF)], body).into_response()
        }
        Ok((seed, trace)) => api::json(StatusCode::OK, &tempo::Traces::new(&seed, &trace).json()),
        Err(response) => response,
    }
}

/// Whether protobuf is named, and JSON is not named before it.
fn accepts_protobuf(headers: &HeaderMap) -> bool {
    let named = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut types = named.flat_map(|value| value.split(',')).map(|value| {
        let name = value.split(';').next().unwrap_or_default();
        name.trim().to_ascii_lowercase()
    });
    types
        .find(|name| name == tempo::PROTOBUF || name == "application/json")
        .is_some_and(|name| name == tempo::PROTOBUF)
}

async fn find(
    services: &Services,
    id: &str,
    from: Option<u64>,
    to: Option<u64>,
) -> Result<(Seed, Trace), Response> {
    let started = Instant::now();
    let Some(querier) = services.parts.querier() else {
        return Err(api::failure(StatusCode::SERVICE_UNAVAILABLE, "SERVER_ERROR", "the node is starting"));
    };
    let now = clock::seconds();
    let to = to.unwrap_or_else(|| u64::from(now) + 1);
    let from = from.unwrap_or_else(|| to.saturating_sub(LOOK_BACK_SECONDS));
    let found = match Seed::parse(id) {
        Ok(seed) => querier.trace(&seed, TimeSpan { from, to }, now).await.map(|trace| (seed, trace)),
        Err(error) => Err(error),
    };
    let (outcome, result) = match found {
        Ok(found) => (QueryOutcome::Answered, Ok(found)),
        Err(error) => {
            let (outcome, response) = api::refused(&error);
            (outcome, Err(response))
        }
    };
    services.metrics.query(outcome, started.elapsed());
    result
}

/// As DeepFlow's L7FlowTracing answers; `reason`, `gap` and what is said of the whole are our own.
fn deepflow(trace: &Trace) -> Value {
    let timings = timings(&trace.spans);
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); trace.spans.len()];
    for (at, span) in trace.spans.iter().enumerate() {
        if let Some((above, _)) = span.parent {
            children[above].push(at);
        }
    }
    let tracing: Vec<Value> = (trace.spans.iter().zip(&timings).zip(&children).enumerate())
        .map(|(at, ((span, timing), children))| deepflow_span(at, span, *timing, children))
        .collect();
    let mut services: BTreeMap<&str, u64> = BTreeMap::new();
    for (span, timing) in trace.spans.iter().zip(&timings) {
        *services.entry(service(&span.row)).or_default() += timing.own;
    }
    let total: u64 = services.values().sum::<u64>().max(1);
    let services: Vec<Value> = services
        .iter()
        .map(|(name, own)| {
            let ratio = format!("{:.2}", *own as f64 * 100.0 / total as f64);
            json!({ "service_uid": name, "service_uname": name, "duration": own, "duration_ratio": ratio })
        })
        .collect();
    json!({
        "OPT_STATUS": "SUCCESS",
        "DESCRIPTION": "",
        "DATA": { "services": services, "tracing": tracing, "rounds": trace.rounds, "cut": trace.cut },
    })
}

fn deepflow_span(at: usize, span: &Span, timing: Timing, children: &[usize]) -> Value {
    let Span { row, parent, depth, start, end } = span;
    let mut value = serde_json::to_value(row).unwrap_or_default();
    let more = json!({
        "id": at,
        "parent_id": parent.map_or(-1, |(above, _)| above as i64),
        "reason": parent.map(|(_, reason)| reason.name()),
        "childs": children,
        "level": depth,
        "_id": row.id().to_string(),
        "tap_side": row.observed_at(),
        "start_time_us": start,
        "end_time_us": end,
        "duration": end - start,
        "selftime": timing.own,
        "gap": timing.gap,
        "service_uname": service(row),
    });
    if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
        value.extend(more);
    }
    value
}

/// Whose work a span is: the client's where it was seen at the client.
fn service(row: &Row) -> &str {
    let (name, instance, ip) = if is_client(row) {
        (&row.auto_service_0, &row.auto_instance_0, &row.ip_0)
    } else {
        (&row.auto_service_1, &row.auto_instance_1, &row.ip_1)
    };
    [name, instance, ip].into_iter().find(|name| !name.is_empty()).map_or("unknown", String::as_str)
}

fn is_client(row: &Row) -> bool {
    matches!(row.observed_at(), "c" | "c-p")
}
