//! The JSON interface: SQL in DeepFlow's form, agents, status.
//!
//! An answer says `OPT_STATUS` SUCCESS, or what went wrong and, in `DESCRIPTION`, where and what to do; the HTTP status says the same.

use std::{sync::Arc, time::Instant};

use axum::{
    body::Bytes,
    extract::{
        Form, FromRequest, Query, Request, State,
        rejection::{BytesRejection, FormRejection},
    },
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use metaflow_actors::querier::{self, Answer, Missing};
use metaflow_query::ColumnKind;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{RECEIVE_TIMEOUT, Services};
use crate::{clock, metrics::QueryOutcome};

/// What a client asks. Fields that other systems' clients send beside these are ignored.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    db: String,
    #[serde(default)]
    sql: String,
}

#[derive(Serialize)]
#[serde(rename_all = "UPPERCASE")]
struct Envelope<'a> {
    opt_status: &'static str,
    description: &'a str,
    #[serde(rename = "result")]
    result: Option<Result<'a>>,
    /// Nodes whose rows the answer lacks.
    #[serde(rename = "missing", skip_serializing_if = "<[_]>::is_empty")]
    missing: &'a [Missing],
}

#[derive(Serialize)]
struct Result<'a> {
    columns: Vec<&'a str>,
    values: &'a RawValue,
    schemas: Vec<Schema<'a>>,
}

/// What a client may want to know of a column.
#[derive(Serialize)]
struct Schema<'a> {
    /// 0 tag, 1 metric.
    r#type: u8,
    label_type: &'static str,
    value_type: &'a str,
    unit: &'a str,
    /// Of another system's clients, which expect the field.
    pre_as: &'static str,
}

pub(super) async fn query_get(State(services): State<Services>, asked: Query<Asked>) -> Response {
    answer(&services, asked.0).await
}

pub(super) async fn query_post(State(services): State<Services>, request: Request) -> Response {
    let asked = match tokio::time::timeout(RECEIVE_TIMEOUT, read(request)).await {
        Ok(Ok(asked)) => asked,
        Ok(Err(refused)) => {
            services.metrics.refused_request();
            return refused;
        }
        Err(_) => {
            services.metrics.refused_request();
            return failure(
                StatusCode::REQUEST_TIMEOUT,
                "INVALID_PARAMETERS",
                "the body did not arrive in time",
            );
        }
    };
    answer(&services, asked).await
}

/// The form, or the JSON object, that a request's body is.
async fn read(request: Request) -> std::result::Result<Asked, Response> {
    let refuse = |text: &str| failure(StatusCode::BAD_REQUEST, "INVALID_PARAMETERS", text);
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if content_type.is_some_and(|value| value.starts_with("application/json")) {
        let body = Bytes::from_request(request, &()).await.map_err(too_large)?;
        return serde_json::from_slice(&body)
            .map_err(|error| refuse(&format!("the body is not {{\"db\":..., \"sql\":...}}: {error}")));
    }
    match Form::<Asked>::from_request(request, &()).await {
        Ok(Form(asked)) => Ok(asked),
        Err(FormRejection::InvalidFormContentType(_)) => {
            Err(refuse("send a form: curl -d db=flow_metrics --data-urlencode 'sql=SHOW TABLES' ..."))
        }
        Err(FormRejection::BytesRejection(rejection)) => Err(too_large(rejection)),
        Err(rejection) => Err(refuse(&format!("the form is not readable: {}", rejection.body_text()))),
    }
}

fn too_large(rejection: BytesRejection) -> Response {
    failure(rejection.status(), "INVALID_PARAMETERS", "the body is too large or was cut off")
}

async fn answer(services: &Services, asked: Asked) -> Response {
    if asked.sql.trim().is_empty() {
        services.metrics.refused_request();
        return failure(StatusCode::BAD_REQUEST, "INVALID_PARAMETERS", "the parameter sql is missing");
    }
    let started = Instant::now();
    let database = (!asked.db.is_empty()).then_some(asked.db.as_str());
    let Some(querier) = services.parts.querier() else {
        return failure(StatusCode::SERVICE_UNAVAILABLE, "SERVER_ERROR", "the node is starting");
    };
    let result = querier.answer(&asked.sql, database, clock::seconds()).await;
    let (outcome, response) = match result {
        Ok(answer) => (QueryOutcome::Answered, success(&answer)),
        Err(error) => refused(&error),
    };
    services.metrics.query(outcome, started.elapsed());
    response
}

fn success(answer: &Answer) -> Response {
    let columns = answer.columns.iter().map(|column| column.name.as_str()).collect();
    let schemas = answer
        .columns
        .iter()
        .map(|column| Schema {
            r#type: u8::from(column.kind == ColumnKind::Metric),
            label_type: match column.kind {
                ColumnKind::Tag => "tag",
                ColumnKind::Time => "time",
                ColumnKind::Metric => "metric",
            },
            value_type: &column.value_type,
            unit: &column.unit,
            pre_as: "",
        })
        .collect();
    let result = Result { columns, values: &answer.rows, schemas };
    let missing: &[Missing] = &answer.missing;
    let lacking = missing.iter().map(|node| format!("rows of {} are missing: {}", node.name, node.reason));
    let description = lacking.collect::<Vec<_>>().join("; ");
    let envelope =
        Envelope { opt_status: "SUCCESS", description: &description, result: Some(result), missing };
    json(StatusCode::OK, &envelope)
}

pub(super) fn refused(error: &querier::Error) -> (QueryOutcome, Response) {
    use querier::Error;
    let (outcome, status, name) = match error {
        Error::Refused(_) | Error::NoSeed(_) => {
            (QueryOutcome::Refused, StatusCode::BAD_REQUEST, "INVALID_PARAMETERS")
        }
        Error::TooLarge(_) => {
            (QueryOutcome::TooLarge, StatusCode::UNPROCESSABLE_ENTITY, "INVALID_PARAMETERS")
        }
        Error::Busy { .. } => (QueryOutcome::Busy, StatusCode::SERVICE_UNAVAILABLE, "SERVER_ERROR"),
        Error::TimedOut(_) => (QueryOutcome::TimedOut, StatusCode::GATEWAY_TIMEOUT, "SERVER_ERROR"),
        Error::Unavailable(_) => (QueryOutcome::Failed, StatusCode::SERVICE_UNAVAILABLE, "SERVER_ERROR"),
        Error::Store(_) => (QueryOutcome::Failed, StatusCode::INTERNAL_SERVER_ERROR, "SERVER_ERROR"),
    };
    if outcome == QueryOutcome::Failed {
        tracing::warn!(%error, "a query failed");
    }
    (outcome, failure(status, name, &error.to_string()))
}

pub(super) fn failure(status: StatusCode, name: &'static str, description: &str) -> Response {
    json(status, &Envelope { opt_status: name, description, result: None, missing: &[] })
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

pub(super) async fn agents(State(services): State<Services>) -> Response {
    match services.parts.agents().await {
        Ok(agents) => json(StatusCode::OK, &agents),
        Err(reason) => failure(StatusCode::SERVICE_UNAVAILABLE, "SERVER_ERROR", &reason),
    }
}

pub(super) async fn members(State(services): State<Services>) -> Response {
    let view = Arc::clone(&services.parts.membership().view().borrow());
    json(StatusCode::OK, &view.report(Instant::now()))
}

pub(super) async fn status(State(services): State<Services>) -> Response {
    json(StatusCode::OK, &services.parts.status().await)
}
