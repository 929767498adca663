//! Flame data over HTTP: as a tree in DeepFlow's shape, and as folded text.

use std::time::Instant;

use axum::{
    Json, Router,
    extract::{Query, State, rejection::JsonRejection},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use metaflow_actors::querier::flame::{Asked as Question, Flame, Time};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Services, api};
use crate::{clock, metrics::QueryOutcome};

/// Where nothing is said, so much is looked at.
const LOOK_BACK_SECONDS: u64 = 900;
const EVENT_TYPE: &str = "on-cpu";

/// Posts that only read.
pub(super) const PATH: &str = "/v1/profile/ProfileTracing";

pub(super) fn routes() -> Router<Services> {
    Router::new().route(PATH, post(tracing)).route("/v1/profile/folded", get(folded))
}

/// What is looked for. Fields that other systems' clients send beside these are ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Asked {
    /// Name of the process; empty: all.
    app_service: String,
    profile_event_type: String,
    /// A condition on further tags, in SQL.
    tag_filter: String,
    /// Seconds since 1970.
    #[serde(alias = "start")]
    time_start: Option<u64>,
    #[serde(alias = "end")]
    time_end: Option<u64>,
}

async fn tracing(State(services): State<Services>, asked: Result<Json<Asked>, JsonRejection>) -> Response {
    let asked = match asked {
        Ok(Json(asked)) => asked,
        Err(rejection) => {
            services.metrics.refused_request();
            let text = format!(
                "send JSON: {{\"app_service\": a process, \"profile_event_type\": \"on-cpu\" or \"off-cpu\"}}, with time_start and \
                 time_end in seconds: {}",
                rejection.body_text()
            );
            return api::failure(rejection.status(), "INVALID_PARAMETERS", &text);
        }
    };
    match find(&services, asked).await {
        Ok(flame) => api::json(StatusCode::OK, &deepflow(&flame)),
        Err(response) => response,
    }
}

async fn folded(State(services): State<Services>, Query(asked): Query<Asked>) -> Response {
    match find(&services, asked).await {
        Ok(flame) => ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], flame.folded()).into_response(),
        Err(response) => response,
    }
}

async fn find(services: &Services, asked: Asked) -> Result<Flame, Response> {
    let started = Instant::now();
    let Asked { app_service, profile_event_type, tag_filter, time_start, time_end } = asked;
    let Some(querier) = services.parts.querier() else {
        return Err(api::failure(StatusCode::SERVICE_UNAVAILABLE, "SERVER_ERROR", "the node is starting"));
    };
    let now = clock::seconds();
    let to = time_end.unwrap_or_else(|| u64::from(now) + 1);
    let event_type = if profile_event_type.is_empty() { EVENT_TYPE.to_owned() } else { profile_event_type };
    let question = Question {
        process: app_service,
        event_type,
        filter: tag_filter,
        from: time_start.unwrap_or_else(|| to.saturating_sub(LOOK_BACK_SECONDS)),
        to,
    };
    let (outcome, result) = match querier.flame(&question, now).await {
        Ok(flame) => (QueryOutcome::Answered, Ok(flame)),
        Err(error) => {
            let (outcome, response) = api::refused(&error);
            (outcome, Err(response))
        }
    };
    services.metrics.query(outcome, started.elapsed());
    result
}

/// As DeepFlow's ProfileTracing answers; `cut` and `missing` are our own.
fn deepflow(flame: &Flame) -> Value {
    let Flame { functions, nodes, cut, missing } = flame;
    let types: Vec<&str> = functions.iter().enumerate().map(|(at, name)| function_type(at, name)).collect();
    let times: Vec<[u64; 2]> = flame.times().iter().map(|Time { own, total }| [*own, *total]).collect();
    let nodes: Vec<Value> = nodes
        .iter()
        .map(|node| {
            let parent = node.parent.map_or(-1, |at| i64::try_from(at).unwrap_or(-1));
            json!([node.function, parent, node.own, node.total])
        })
        .collect();
    json!({
        "OPT_STATUS": "SUCCESS",
        "DESCRIPTION": "",
        "DATA": {
            "functions": functions,
            "function_types": types,
            "function_values": { "columns": ["self_value", "total_value"], "values": times },
            "node_values": { "columns": ["function_id", "parent_node_id", "self_value", "total_value"], "values": nodes },
            "cut": cut,
            "missing": missing,
        },
    })
}

/// H host, P process, T thread, K function of the kernel, A of the application, ? not known.
fn function_type(at: usize, name: &str) -> &'static str {
    match name {
        "Total" if at == 0 => "H",
        _ if at == 0 => "P",
        _ if name.starts_with("[t] ") => "T",
        _ if name.starts_with("[k] ") => "K",
        _ if name.starts_with('[') => "?",
        _ => "A",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flame_data_has_the_shape_that_deepflows_clients_read() {
        let flame = Flame::new("app", [("[t] main;work;[k] read", 3), ("[t] main;[libc.so.6]", 1)]);
        let data = &deepflow(&flame)["DATA"];
        assert_eq!(data["functions"], json!(["app", "[t] main", "work", "[k] read", "[libc.so.6]"]));
        assert_eq!(data["function_types"], json!(["P", "T", "A", "K", "?"]));
        assert_eq!(data["function_values"]["values"], json!([[0, 4], [0, 4], [0, 3], [3, 3], [1, 1]]));
        assert_eq!(
            data["node_values"]["values"],
            json!([[0, -1, 0, 4], [1, 0, 0, 4], [2, 1, 0, 3], [3, 2, 3, 3], [4, 1, 1, 1]])
        );
        assert_eq!(deepflow(&Flame::new("Total", []))["DATA"]["function_types"], json!(["H"]));
    }
}
