//! The node's own metrics, in the OpenMetrics text form.
//!
//! What happens at the sockets is counted here; what the actors hold and count is read from them when somebody asks ([`Reading`]).

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric as _},
    metrics::{
        MetricType, counter::ConstCounter, counter::Counter, family::Family, gauge::ConstGauge,
        histogram::Histogram,
    },
    registry::Registry,
};

/// Bounds of query times in seconds: dashboards want tens of milliseconds, the limit is tens of seconds.
const QUERY_SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0];

/// What became of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum QueryOutcome {
    Answered,
    Refused,
    TooLarge,
    Busy,
    TimedOut,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: QueryOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Where somebody connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Listener {
    Grpc,
    Http,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabels {
    listener: Listener,
    reason: &'static str,
}

/// How often something was refused at a socket, by reason, for who tells people of it; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refusals {
    counts: Arc<Mutex<BTreeMap<&'static str, u64>>>,
}

impl Refusals {
    fn add(&self, reason: &'static str) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
    }

    /// Since the start.
    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Connections that did not come to a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connections {
    refused: Family<ListenerLabels, Counter>,
    refusals: Refusals,
}

impl Connections {
    /// `reason` comes from a fixed list.
    pub(crate) fn refuse(&self, listener: Listener, reason: &'static str) {
        self.refused.get_or_create(&ListenerLabels { listener, reason }).inc();
        self.refusals.add(reason);
    }

    #[cfg(test)]
    pub(crate) fn refused(&self, reason: &str) -> u64 {
        self.refusals.counts().get(reason).copied().unwrap_or(0)
    }
}

/// A figure that is read when somebody asks.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reading {
    /// Without the prefix `metaflow_`; counters without `_total`.
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) kind: ReadingKind,
    pub(crate) labels: Vec<(&'static str, String)>,
    pub(crate) value: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadingKind {
    Counter,
    Gauge,
}

impl Reading {
    pub(crate) fn gauge(name: &'static str, help: &'static str, value: f64) -> Self {
        Self { name, help, kind: ReadingKind::Gauge, labels: vec![], value }
    }

    pub(crate) fn counter(name: &'static str, help: &'static str, value: u64) -> Self {
        Self { name, help, kind: ReadingKind::Counter, labels: vec![], value: value as f64 }
    }

    pub(crate) fn label(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.labels.push((name, value.into()));
        self
    }
}

/// Reads the figures of everything that is not counted here. Readings of one name stand together.
pub(crate) type Read = Box<dyn Fn() -> Vec<Reading> + Send + Sync>;

/// All metrics of the process.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    queries: Family<OutcomeLabel, Counter>,
    query_seconds: Histogram,
    refused_requests: Counter,
    unauthorized: Family<ReasonLabel, Counter>,
    connections: Connections,
    ingest: Ingest,
    refusals: Refusals,
}

/// Counters at the socket that agents send rows to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ingest {
    rejected: Family<ReasonLabel, Counter>,
    refusals: Refusals,
}

impl Ingest {
    /// A batch was refused at the socket. `reason` comes from a fixed list.
    pub(crate) fn reject(&self, reason: &'static str) {
        self.rejected.get_or_create(&ReasonLabel { reason }).inc();
        self.refusals.add(reason);
    }
}

impl Metrics {
    pub(crate) fn new(read: Read) -> Self {
        let mut registry = Registry::with_prefix("metaflow");
        let queries = Family::default();
        let query_seconds = Histogram::new(QUERY_SECONDS);
        let refused_requests = Counter::default();
        let unauthorized = Family::default();
        let refusals = Refusals::default();
        let connections = Connections { refusals: refusals.clone(), ..Connections::default() };
        let ingest = Ingest { refusals: refusals.clone(), ..Ingest::default() };
        registry.register("queries", "SQL statements, by what became of them", queries.clone());
        registry.register(
            "query_seconds",
            "Time from a statement's arrival to its answer",
            query_seconds.clone(),
        );
        registry.register(
            "http_requests_refused",
            "HTTP requests that were not understood",
            refused_requests.clone(),
        );
        registry.register(
            "http_requests_unauthorized",
            "HTTP requests without a token that allows them, by reason",
            unauthorized.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections that were given up before a request, by listener and reason",
            connections.refused.clone(),
        );
        registry.register(
            "ingest_rejected",
            "Row batches refused at the socket, by reason",
            ingest.rejected.clone(),
        );
        registry.register_collector(Box::new(Readings { read }));
        Self {
            registry,
            queries,
            query_seconds,
            refused_requests,
            unauthorized,
            connections,
            ingest,
            refusals,
        }
    }

    pub(crate) fn query(&self, outcome: QueryOutcome, took: Duration) {
        self.queries.get_or_create(&OutcomeLabel { outcome }).inc();
        self.query_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn refused_request(&self) {
        self.refused_requests.inc();
    }

    /// A request showed no token that allows it. `reason` comes from a fixed list.
    pub(crate) fn unauthorized(&self, reason: &'static str) {
        self.unauthorized.get_or_create(&ReasonLabel { reason }).inc();
        self.refusals.add(reason);
    }

    pub(crate) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    pub(crate) fn connections(&self) -> Connections {
        self.connections.clone()
    }

    pub(crate) fn ingest(&self) -> &Ingest {
        &self.ingest
    }

    /// Everything, as text.
    pub(crate) fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

struct Readings {
    read: Read,
}

impl fmt::Debug for Readings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Readings")
    }
}

impl Collector for Readings {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let readings = (self.read)();
        for group in readings.chunk_by(|one, other| one.name == other.name) {
            let kind = match group[0].kind {
                ReadingKind::Counter => MetricType::Counter,
                ReadingKind::Gauge => MetricType::Gauge,
            };
            let mut metric = encoder.encode_descriptor(group[0].name, group[0].help, None, kind)?;
            for reading in group {
                if reading.labels.is_empty() {
                    encode_value(reading, metric)?;
                    break;
                }
                encode_value(reading, metric.encode_family(&reading.labels)?)?;
            }
        }
        Ok(())
    }
}

fn encode_value(
    reading: &Reading,
    encoder: prometheus_client::encoding::MetricEncoder<'_>,
) -> Result<(), fmt::Error> {
    match reading.kind {
        ReadingKind::Counter => ConstCounter::new(reading.value).encode(encoder),
        ReadingKind::Gauge => ConstGauge::new(reading.value).encode(encoder),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_and_what_is_read_stand_in_one_text() {
        let metrics = Metrics::new(Box::new(|| {
            vec![
                Reading::gauge("memory_used_bytes", "used", 5.0),
                Reading::counter("writer_errors", "errors", 1).label("table", "a"),
                Reading::counter("writer_errors", "errors", 2).label("table", "b"),
            ]
        }));
        metrics.query(QueryOutcome::Busy, Duration::from_millis(3));
        metrics.ingest().reject("checksum");
        metrics.unauthorized("no_token");
        metrics.connections().refuse(Listener::Grpc, "plain_text");
        let text = metrics.encode().unwrap();
        for line in [
            "metaflow_queries_total{outcome=\"Busy\"} 1",
            "metaflow_query_seconds_bucket{le=\"0.005\"} 1",
            "metaflow_ingest_rejected_total{reason=\"checksum\"} 1",
            "metaflow_http_requests_unauthorized_total{reason=\"no_token\"} 1",
            "metaflow_connections_refused_total{listener=\"Grpc\",reason=\"plain_text\"} 1",
            "memory_used_bytes 5.0",
            "writer_errors_total{table=\"a\"} 1.0",
            "writer_errors_total{table=\"b\"} 2.0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("# TYPE metaflow_writer_errors counter").count(), 1, "{text}");
    }
}
