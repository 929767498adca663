//! A trace as Tempo answers with it: OTLP, as protobuf or JSON.
//!
//! The messages are the part of `opentelemetry.proto.trace.v1` that is filled here, with the numbers that the protocol gives its fields.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use metaflow_actors::querier::trace::{Row, Seed, Span, Trace};
use prost::Message;
use serde_json::{Value, json};

use super::service;

pub(super) const PROTOBUF: &str = "application/protobuf";

/// Of spans by the service that they are of.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Traces {
    #[prost(message, repeated, tag = "1")]
    batches: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<OneSpan>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct OneSpan {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<Attribute>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "OneValue", tags = "1, 3")]
    value: Option<OneValue>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum OneValue {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Number(i64),
}

impl Traces {
    pub(super) fn new(seed: &Seed, trace: &Trace) -> Self {
        let trace_id = trace_id(seed);
        let mut spans: BTreeMap<&str, Vec<OneSpan>> = BTreeMap::new();
        for span in &trace.spans {
            let parent = span.parent.map(|(above, _)| span_id(&trace.spans[above].row));
            spans.entry(service(&span.row)).or_default().push(OneSpan::new(trace_id, span, parent));
        }
        let batch = |(service, spans)| ResourceSpans {
            resource: Some(Resource { attributes: vec![Attribute::text("service.name", service)] }),
            scope_spans: vec![ScopeSpans { scope: Some(Scope { name: "metaflow".to_owned() }), spans }],
        };
        Self { batches: spans.into_iter().map(batch).collect() }
    }

    pub(super) fn protobuf(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    pub(super) fn json(&self) -> Value {
        let batches: Vec<Value> = (self.batches.iter())
            .map(|ResourceSpans { resource, scope_spans }| {
                let attributes = resource.as_ref().map_or(&[][..], |resource| &resource.attributes);
                let scopes: Vec<Value> = (scope_spans.iter())
                    .map(|ScopeSpans { scope, spans }| {
                        let name = scope.as_ref().map_or("", |scope| &scope.name);
                        let spans: Vec<Value> = spans.iter().map(OneSpan::json).collect();
                        json!({ "scope": { "name": name }, "spans": spans })
                    })
                    .collect();
                json!({ "resource": { "attributes": list(attributes) }, "scopeSpans": scopes })
            })
            .collect();
        json!({ "batches": batches })
    }
}

impl OneSpan {
    fn new(trace_id: u128, span: &Span, parent: Option<u64>) -> Self {
        let Span { row, start, end, .. } = span;
        // INTERNAL, SERVER, CLIENT.
        let kind = match row.observed_at() {
            "c" | "c-p" => 3,
            "s" | "s-p" => 2,
            _ => 1,
        };
        let target = if row.endpoint.is_empty() { &row.request_resource } else { &row.endpoint };
        let mut attributes = vec![
            Attribute::text("network.protocol.name", &row.l7_protocol),
            Attribute::text("metaflow.observation_point", row.observed_at()),
            Attribute::text("metaflow.row_id", &row.id().to_string()),
            Attribute::text("client.address", &row.ip_0),
            Attribute::text("server.address", &row.ip_1),
            Attribute::number("server.port", row.server_port.into()),
            Attribute::number("metaflow.response_code", row.response_code.into()),
            Attribute::text("metaflow.request_resource", &row.request_resource),
        ];
        if let Some((_, reason)) = span.parent {
            attributes.push(Attribute::text("metaflow.link", reason.name()));
        }
        // ERROR for failures of either side.
        let code = if matches!(row.response_status, 3 | 4) { 2 } else { 0 };
        Self {
            trace_id: trace_id.to_be_bytes().to_vec(),
            span_id: span_id(row).to_be_bytes().to_vec(),
            parent_span_id: parent.map_or_else(Vec::new, |parent| parent.to_be_bytes().to_vec()),
            name: format!("{} {target}", row.request_type).trim().to_owned(),
            kind,
            start_time_unix_nano: start * 1_000,
            end_time_unix_nano: end * 1_000,
            attributes,
            status: Some(Status { message: row.response_exception.clone(), code }),
        }
    }

    /// As OTLP has it in JSON: ids in hexadecimal, long numbers as text.
    fn json(&self) -> Value {
        let status = self.status.clone().unwrap_or_default();
        json!({
            "traceId": hex(&self.trace_id),
            "spanId": hex(&self.span_id),
            "parentSpanId": hex(&self.parent_span_id),
            "name": self.name,
            "kind": self.kind,
            "startTimeUnixNano": self.start_time_unix_nano.to_string(),
            "endTimeUnixNano": self.end_time_unix_nano.to_string(),
            "attributes": list(&self.attributes),
            "status": { "code": status.code, "message": status.message },
        })
    }
}

impl Attribute {
    fn new(key: &str, value: OneValue) -> Self {
        Self { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
    }

    fn text(key: &str, value: &str) -> Self {
        Self::new(key, OneValue::Text(value.to_owned()))
    }

    fn number(key: &str, value: i64) -> Self {
        Self::new(key, OneValue::Number(value))
    }
}

fn list(attributes: &[Attribute]) -> Vec<Value> {
    (attributes.iter())
        .map(|Attribute { key, value }| {
            let value = match value.as_ref().and_then(|value| value.value.as_ref()) {
                Some(OneValue::Text(text)) => json!({ "stringValue": text }),
                Some(OneValue::Number(number)) => json!({ "intValue": number.to_string() }),
                None => json!({}),
            };
            json!({ "key": key, "value": value })
        })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The id as it was asked for, or one made of it where it is none of OpenTelemetry's.
fn trace_id(seed: &Seed) -> u128 {
    match seed {
        Seed::TraceId(id) => u128::from_str_radix(id, 16).unwrap_or_else(|_| u128::from(digest(id))),
        Seed::Row(id) => digest(id).into(),
    }
}

/// The same for the same row on every node.
fn span_id(row: &Row) -> u64 {
    digest(&row.id()).max(1)
}

fn digest(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use metaflow_actors::querier::trace::{Reason, RowId};

    use super::*;

    #[test]
    fn both_encodings_say_the_same() {
        let row =
            Row { request_type: "GET".into(), endpoint: "/a".into(), server_port: 80, ..Row::default() };
        let span = |parent| Span { row: row.clone(), parent, depth: 0, start: 5, end: 7 };
        let spans = vec![span(None), span(Some((0, Reason::EventLoop)))];
        let seed = Seed::TraceId("0af7651916cd43dd8448eb211c80319c".into());
        let traces = Traces::new(&seed, &Trace { spans, rounds: 1, cut: false });
        let read = Traces::decode(traces.protobuf().as_slice()).unwrap();
        assert_eq!(read.json(), traces.json());
        let span = &traces.json()["batches"][0]["scopeSpans"][0]["spans"][1];
        assert_eq!(span["traceId"], "0af7651916cd43dd8448eb211c80319c");
        assert_eq!((span["name"].as_str(), span["endTimeUnixNano"].as_str()), (Some("GET /a"), Some("7000")));
        assert_eq!(span["attributes"][8]["value"]["stringValue"], "event_loop");
        let id = RowId::parse("1-2-3-4-5-6-7").unwrap();
        assert_ne!(trace_id(&Seed::Row(id)), 0);
    }
}
