//! Live requests over HTTP: a JSON object a line, for as long as the client listens.

use std::{convert::Infallible, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use tokio::sync::mpsc;

use super::{Services, api::failure};
use crate::observe::{Filter, Line, Part};

/// A line says that the stream lives when nothing else does; a client that is gone is noticed by it.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

pub(super) fn routes() -> Router<Services> {
    Router::new().route("/v1/observe", get(observe))
}

/// What stands in a line that is no call.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Note<'a> {
    /// Calls that came faster than they were read.
    Dropped {
        node_id: u16,
        calls: u64,
    },
    Missing {
        node_id: u16,
        address: String,
        reason: &'a str,
    },
    Alive {},
}

async fn observe(State(services): State<Services>, filter: Query<Filter>) -> Response {
    let Some(fleet) = services.parts.fleet() else {
        return failure(StatusCode::SERVICE_UNAVAILABLE, "SERVER_ERROR", "the node is starting");
    };
    match fleet.calls(filter.0) {
        Ok(parts) => {
            let content_type = [(header::CONTENT_TYPE, "application/x-ndjson")];
            (content_type, Body::from_stream(lines(parts))).into_response()
        }
        Err(status) if status.code() == tonic::Code::InvalidArgument => {
            failure(StatusCode::BAD_REQUEST, "INVALID_PARAMETERS", status.message())
        }
        Err(status) => failure(StatusCode::SERVICE_UNAVAILABLE, "SERVER_ERROR", status.message()),
    }
}

fn lines(parts: mpsc::Receiver<Part>) -> impl futures::Stream<Item = Result<Bytes, Infallible>> {
    futures::stream::unfold(parts, async |mut parts| {
        let mut text = Vec::new();
        match tokio::time::timeout(SIGN_OF_LIFE, parts.recv()).await {
            Err(_) => line(&mut text, &Note::Alive {}),
            Ok(Some(Part::Calls { node, calls, dropped })) => {
                for call in calls {
                    line(&mut text, &Line::new(node, call));
                }
                if dropped > 0 {
                    line(&mut text, &Note::Dropped { node_id: node.get(), calls: dropped });
                }
            }
            Ok(Some(Part::Missing { node, address, reason })) => {
                let address = address.to_string();
                line(&mut text, &Note::Missing { node_id: node.get(), address, reason: &reason });
            }
            Ok(None) => return None,
        }
        Some((Ok(text.into()), parts))
    })
}

fn line(text: &mut Vec<u8>, value: &impl Serialize) {
    match serde_json::to_writer(&mut *text, value) {
        Ok(()) => text.push(b'\n'),
        Err(error) => tracing::error!(%error, "a call could not be written as JSON"),
    }
}
