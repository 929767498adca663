//! Metrics: what queries may aggregate, and from which columns it comes.

/// What a metric is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Amounts that add up: the sum of these columns.
    Counter(&'static [&'static str]),
    /// A delay kept as sum, count and maximum, so that averages are weighted and maxima stay true; `prefix` names the three columns.
    Delay { prefix: &'static str },
    /// A delay of a single request; 0 means none and is ignored.
    SingleDelay { column: &'static str },
    /// Sums divided: numerator columns by denominator columns, null on zero. `percentage` is clamped to 0..1.
    Quotient { numerator: &'static [&'static str], denominator: &'static [&'static str], percentage: bool },
    /// Number of rows.
    Rows,
}

/// A metric's declaration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub unit: &'static str,
    pub doc: &'static str,
    pub source: Source,
}

const fn counter(
    name: &'static str,
    unit: &'static str,
    columns: &'static [&'static str],
    doc: &'static str,
) -> Metric {
    Metric { name, unit, doc, source: Source::Counter(columns) }
}
const fn delay(name: &'static str, doc: &'static str) -> Metric {
    Metric { name, unit: "us", doc, source: Source::Delay { prefix: name } }
}
const fn ratio(
    name: &'static str,
    numerator: &'static [&'static str],
    denominator: &'static [&'static str],
    doc: &'static str,
) -> Metric {
    Metric { name, unit: "%", doc, source: Source::Quotient { numerator, denominator, percentage: true } }
}
const fn quotient(
    name: &'static str,
    unit: &'static str,
    numerator: &'static [&'static str],
    denominator: &'static [&'static str],
    doc: &'static str,
) -> Metric {
    Metric { name, unit, doc, source: Source::Quotient { numerator, denominator, percentage: false } }
}

const LOG_COUNT: Metric = Metric { name: "log_count", unit: "rows", doc: "rows", source: Source::Rows };

/// Metrics of network tables and flow logs that come from [`crate::tables::NetworkFigures`].
macro_rules! network_metrics {
    ($($more:expr,)*) => {
        &[
            counter("packet", "packets", &["packet_tx", "packet_rx"], "packets in both directions"),
            counter("packet_tx", "packets", &["packet_tx"], "packets sent by the client"),
            counter("packet_rx", "packets", &["packet_rx"], "packets sent by the server"),
            counter("byte", "bytes", &["byte_tx", "byte_rx"], "bytes in both directions"),
            counter("byte_tx", "bytes", &["byte_tx"], "bytes sent by the client"),
            counter("byte_rx", "bytes", &["byte_rx"], "bytes sent by the server"),
            counter("l4_byte", "bytes", &["l4_byte_tx", "l4_byte_rx"], "transport payload in both directions"),
            counter("l4_byte_tx", "bytes", &["l4_byte_tx"], "transport payload sent by the client"),
            counter("l4_byte_rx", "bytes", &["l4_byte_rx"], "transport payload sent by the server"),
            quotient("bpp", "bytes", &["byte_tx", "byte_rx"], &["packet_tx", "packet_rx"], "bytes a packet"),
            delay("rtt", "TCP handshake time"),
            delay("rtt_client", "client part of the TCP handshake time"),
            delay("rtt_server", "server part of the TCP handshake time"),
            delay("srt", "system response time: data to its bare acknowledgement"),
            delay("art", "application response time: request data to response data"),
            delay("cit", "client idle time: response to the next request"),
            counter("syn_count", "packets", &["syn_count"], "SYN packets"),
            counter("synack_count", "packets", &["synack_count"], "SYN-ACK packets"),
            counter("retrans_syn", "packets", &["retrans_syn"], "repeated SYN packets"),
            counter("retrans_synack", "packets", &["retrans_synack"], "repeated SYN-ACK packets"),
            ratio("retrans_syn_ratio", &["retrans_syn"], &["syn_count"], "repeated SYN packets of all SYN packets"),
            counter("retrans", "packets", &["retrans_tx", "retrans_rx"], "retransmissions in both directions"),
            counter("retrans_tx", "packets", &["retrans_tx"], "retransmissions of the client"),
            counter("retrans_rx", "packets", &["retrans_rx"], "retransmissions of the server"),
            ratio("retrans_ratio", &["retrans_tx", "retrans_rx"], &["packet_tx", "packet_rx"],
                "retransmissions of all packets"),
            counter("zero_win", "packets", &["zero_win_tx", "zero_win_rx"], "zero windows in both directions"),
            counter("zero_win_tx", "packets", &["zero_win_tx"], "zero windows of the client"),
            counter("zero_win_rx", "packets", &["zero_win_rx"], "zero windows of the server"),
            counter("ooo", "packets", &["ooo_tx", "ooo_rx"], "segments out of order in both directions"),
            counter("ooo_tx", "packets", &["ooo_tx"], "segments of the client out of order"),
            counter("ooo_rx", "packets", &["ooo_rx"], "segments of the server out of order"),
            LOG_COUNT,
            $($more,)*
        ]
    };
}

pub(crate) const NETWORK: &[Metric] = network_metrics![
    counter("new_flow", "flows", &["new_flow"], "flows that began"),
    counter("closed_flow", "flows", &["closed_flow"], "flows that ended"),
    counter("flow_load", "flows", &["flow_load"], "flows that were active"),
    counter("client_reset", "flows", &["client_reset"], "flows that the client reset"),
    counter("server_reset", "flows", &["server_reset"], "flows that the server reset"),
    counter("syn_timeout", "flows", &["syn_timeout"], "connections that were never established"),
];

pub(crate) const L4_FLOW_LOG: &[Metric] = network_metrics![
    counter("total_packet_tx", "packets", &["total_packet_tx"], "packets of the client since the flow began"),
    counter("total_packet_rx", "packets", &["total_packet_rx"], "packets of the server since the flow began"),
    counter("total_byte_tx", "bytes", &["total_byte_tx"], "bytes of the client since the flow began"),
    counter("total_byte_rx", "bytes", &["total_byte_rx"], "bytes of the server since the flow began"),
    counter("new_flow", "flows", &["is_new_flow"], "flows that began"),
    Metric {
        name: "duration",
        unit: "us",
        doc: "life of the flow",
        source: Source::SingleDelay { column: "duration" }
    },
    counter("l7_request", "requests", &["l7_request"], "requests"),
    counter("l7_response", "responses", &["l7_response"], "responses"),
    counter("l7_error", "requests", &["l7_client_error", "l7_server_error"], "errors"),
    counter("l7_client_error", "requests", &["l7_client_error"], "client errors"),
    counter("l7_server_error", "requests", &["l7_server_error"], "server errors"),
    counter("l7_timeout", "requests", &["l7_timeout"], "requests without response in time"),
    ratio(
        "l7_error_ratio",
        &["l7_client_error", "l7_server_error"],
        &["l7_response"],
        "errors of all responses"
    ),
    delay("rrt", "response delay"),
];

pub(crate) const APPLICATION: &[Metric] = &[
    counter("request", "requests", &["request"], "requests"),
    counter("response", "responses", &["response"], "responses"),
    counter("error", "requests", &["client_error", "server_error"], "errors"),
    counter("client_error", "requests", &["client_error"], "errors that the request is at fault for"),
    counter("server_error", "requests", &["server_error"], "errors of the server"),
    counter("timeout", "requests", &["timeout"], "requests without response in time"),
    ratio("error_ratio", &["client_error", "server_error"], &["response"], "errors of all responses"),
    ratio("client_error_ratio", &["client_error"], &["response"], "client errors of all responses"),
    ratio("server_error_ratio", &["server_error"], &["response"], "server errors of all responses"),
    ratio("timeout_ratio", &["timeout"], &["request"], "timeouts of all requests"),
    ratio("success_ratio", &["success"], &["response"], "successes of all responses"),
    delay("rrt", "response delay"),
    LOG_COUNT,
];

/// In the request log a row counts as one request, response or error by its type and status: those columns are expressions that
/// the query compiler knows by the names below.
pub(crate) const L7_FLOW_LOG: &[Metric] = &[
    counter("request", "requests", &["request"], "requests"),
    counter("response", "responses", &["response"], "responses"),
    counter("error", "requests", &["client_error", "server_error"], "errors"),
    counter("client_error", "requests", &["client_error"], "errors that the request is at fault for"),
    counter("server_error", "requests", &["server_error"], "errors of the server"),
    counter("timeout", "requests", &["timeout"], "requests without response in time"),
    ratio("error_ratio", &["client_error", "server_error"], &["response"], "errors of all responses"),
    ratio("client_error_ratio", &["client_error"], &["response"], "client errors of all responses"),
    ratio("server_error_ratio", &["server_error"], &["response"], "server errors of all responses"),
    ratio("success_ratio", &["success"], &["response"], "successes of all responses"),
    Metric {
        name: "rrt",
        unit: "us",
        doc: "response delay",
        source: Source::SingleDelay { column: "response_duration" },
    },
    Metric {
        name: "response_duration",
        unit: "us",
        doc: "response delay",
        source: Source::SingleDelay { column: "response_duration" },
    },
    counter("request_length", "bytes", &["request_length"], "size of requests"),
    counter("response_length", "bytes", &["response_length"], "size of responses"),
    counter(
        "session_length",
        "bytes",
        &["request_length", "response_length"],
        "size of requests and responses",
    ),
    counter("captured_request_byte", "bytes", &["captured_request_byte"], "captured bytes of requests"),
    counter("captured_response_byte", "bytes", &["captured_response_byte"], "captured bytes of responses"),
    LOG_COUNT,
];

pub(crate) const IN_PROCESS: &[Metric] =
    &[counter("profile_value", "us", &["profile_value"], "time in the stack"), LOG_COUNT];

pub(crate) const FILE_EVENT: &[Metric] = &[
    counter("bytes", "bytes", &["bytes"], "bytes that were read or written"),
    Metric {
        name: "duration",
        unit: "us",
        doc: "how long it took",
        source: Source::SingleDelay { column: "duration" },
    },
    LOG_COUNT,
];

pub(crate) const PROCESS_EVENT: &[Metric] = &[
    Metric {
        name: "duration",
        unit: "us",
        doc: "life of processes that ended",
        source: Source::SingleDelay { column: "duration" },
    },
    LOG_COUNT,
];

/// Columns that exist only as expressions over stored ones: name, table family, expression.
pub const COMPUTED: &[(&str, &str, &str)] = &[
    ("request", "l7_flow_log", "toUInt64(l7_type IN (0, 2))"),
    ("response", "l7_flow_log", "toUInt64(l7_type IN (1, 2))"),
    ("client_error", "l7_flow_log", "toUInt64(response_status = 4)"),
    ("server_error", "l7_flow_log", "toUInt64(response_status = 3)"),
    ("timeout", "l7_flow_log", "toUInt64(response_status = 2)"),
    ("success", "l7_flow_log", "toUInt64(response_status = 0)"),
    ("success", "application", "toUInt64(greatest(toInt64(response) - client_error - server_error, 0))"),
    ("success", "application_map", "toUInt64(greatest(toInt64(response) - client_error - server_error, 0))"),
];
