//! Rows of requests as the assembly of traces needs them: one list for what is asked and what is read.

use metaflow_schema::enums::{ObservationPoint, SignalSource, SyscallTraceSource};
use serde::{Deserialize, Deserializer, Serialize};

macro_rules! row {
    ($( $(#[$meta:meta])* $field:ident: $type:ty = $sql:literal, )+ ; $( $name:ident, )+) => {
        /// One row of `l7_flow_log`.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
        pub struct Row {
            $( $(#[$meta])* pub $field: $type, )+
            $( #[serde(skip_deserializing)] pub $name: String, )+
        }

        /// What a statement must select to get rows without their names.
        pub(super) const COLUMNS: &[&str] = &[$( $sql, )+];
    };
}

row! {
    // What rows of a trace share, and where the store has them: what the projection of the table holds.
    start_time: u64 = "start_time",
    end_time: u64 = "end_time",
    agent_id: u32 = "agent_id",
    observation_point: u8 = "observation_point",
    req_tcp_seq: u32 = "req_tcp_seq",
    resp_tcp_seq: u32 = "resp_tcp_seq",
    syscall_trace_id_request: u64 = "syscall_trace_id_request",
    #[serde(deserialize_with = "text")]
    trace_id: String = "trace_id",
    #[serde(deserialize_with = "text")]
    x_request_id_0: String = "x_request_id_0",
    #[serde(deserialize_with = "text")]
    x_request_id_1: String = "x_request_id_1",
    auto_service_type_1: u8 = "auto_service_type_1",
    auto_service_id_1: u32 = "auto_service_id_1",
    #[serde(skip_serializing)]
    protocol_number: u8 = "l7_protocol",
    // The rest is asked for once, when the rows are known.
    #[serde(default)]
    flow_id: u64 = "flow_id",
    #[serde(default)]
    request_id: u64 = "request_id",
    #[serde(default)]
    syscall_trace_id_response: u64 = "syscall_trace_id_response",
    #[serde(default)]
    signal_source: u8 = "signal_source",
    #[serde(default)]
    syscall_thread_0: u32 = "syscall_thread_0",
    #[serde(default)]
    syscall_thread_1: u32 = "syscall_thread_1",
    #[serde(default)]
    syscall_coroutine_0: u64 = "syscall_coroutine_0",
    #[serde(default)]
    syscall_coroutine_1: u64 = "syscall_coroutine_1",
    #[serde(default)]
    syscall_trace_source: u8 = "syscall_trace_source",
    #[serde(default)]
    l7_type: u8 = "l7_type",
    #[serde(default)]
    response_status: u8 = "response_status",
    #[serde(default)]
    response_code: i32 = "response_code",
    #[serde(default)]
    client_port: u16 = "client_port",
    #[serde(default)]
    server_port: u16 = "server_port",
    #[serde(default)]
    pid_0: u32 = "pid_0",
    #[serde(default)]
    pid_1: u32 = "pid_1",
    #[serde(default)]
    auto_service_id_0: u32 = "auto_service_id_0",
    #[serde(default, deserialize_with = "text")]
    ip_0: String = "ip_0",
    #[serde(default, deserialize_with = "text")]
    ip_1: String = "ip_1",
    #[serde(default, deserialize_with = "text")]
    span_id: String = "span_id",
    #[serde(default, deserialize_with = "text")]
    parent_span_id: String = "parent_span_id",
    #[serde(default, deserialize_with = "text")]
    l7_protocol: String = "Enum(l7_protocol)",
    #[serde(default, deserialize_with = "text")]
    request_resource: String = "request_resource",
    #[serde(default, deserialize_with = "text")]
    response_exception: String = "response_exception",
    #[serde(default, skip_serializing)]
    request_type_id: u64 = "request_type_id",
    #[serde(default, skip_serializing)]
    request_domain_id: u64 = "request_domain_id",
    #[serde(default, skip_serializing)]
    endpoint_id: u64 = "endpoint_id",
    #[serde(default, skip_serializing)]
    auto_service_type_0: u8 = "auto_service_type_0",
    #[serde(default, skip_serializing)]
    auto_instance_type_0: u8 = "auto_instance_type_0",
    #[serde(default, skip_serializing)]
    auto_instance_id_0: u32 = "auto_instance_id_0",
    #[serde(default, skip_serializing)]
    auto_instance_type_1: u8 = "auto_instance_type_1",
    #[serde(default, skip_serializing)]
    auto_instance_id_1: u32 = "auto_instance_id_1",
    // Names of these, see `names`.
    ;
    request_type,
    request_domain,
    endpoint,
    auto_service_0,
    auto_service_1,
    auto_instance_0,
    auto_instance_1,
    agent,
}

/// Columns that look-ups read.
pub(super) const SHARED: usize = 13;

/// A name that is not known is null.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

/// What tells a row from all others: begin, agent, flow, observation point, sequence numbers and request number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId {
    pub(super) start_time: u64,
    agent_id: u32,
    flow_id: u64,
    observation_point: u8,
    req_tcp_seq: u32,
    resp_tcp_seq: u32,
    request_id: u64,
}

impl RowId {
    /// `1764010000123456-3-17-4-1000-5000-0`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let mut next = || parts.next().filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
        let id = Self {
            start_time: next()?.parse().ok()?,
            agent_id: next()?.parse().ok()?,
            flow_id: next()?.parse().ok()?,
            observation_point: next()?.parse().ok()?,
            req_tcp_seq: next()?.parse().ok()?,
            resp_tcp_seq: next()?.parse().ok()?,
            request_id: next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(id)
    }

    /// A condition that holds for the row, and hardly for others: of what the projection has.
    pub(super) fn condition(&self) -> String {
        let Self {
            start_time,
            agent_id,
            flow_id: _,
            observation_point,
            req_tcp_seq,
            resp_tcp_seq,
            request_id: _,
        } = self;
        format!(
            "start_time = {start_time} AND agent_id = {agent_id} AND observation_point = {observation_point} AND req_tcp_seq = \
             {req_tcp_seq} AND resp_tcp_seq = {resp_tcp_seq}"
        )
    }
}

/// What tells a row from nearly all others, of what look-ups read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    times: (u64, u64),
    agent_id: u32,
    observation_point: u8,
    seqs: (u32, u32),
}

impl std::fmt::Display for RowId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { start_time, agent_id, flow_id, observation_point, req_tcp_seq, resp_tcp_seq, request_id } =
            self;
        write!(
            f,
            "{start_time}-{agent_id}-{flow_id}-{observation_point}-{req_tcp_seq}-{resp_tcp_seq}-{request_id}"
        )
    }
}

impl Row {
    pub fn id(&self) -> RowId {
        RowId {
            start_time: self.start_time,
            agent_id: self.agent_id,
            flow_id: self.flow_id,
            observation_point: self.observation_point,
            req_tcp_seq: self.req_tcp_seq,
            resp_tcp_seq: self.resp_tcp_seq,
            request_id: self.request_id,
        }
    }

    pub(super) fn place(&self) -> Place {
        Place {
            times: (self.start_time, self.end_time),
            agent_id: self.agent_id,
            observation_point: self.observation_point,
            seqs: (self.req_tcp_seq, self.resp_tcp_seq),
        }
    }

    /// How near to the server it was seen.
    pub(super) fn position(&self) -> u8 {
        match ObservationPoint::from_number(self.observation_point) {
            Some(ObservationPoint::ClientProcess) => 0,
            Some(ObservationPoint::Client) => 1,
            Some(ObservationPoint::Rest | ObservationPoint::Local) | None => 2,
            Some(ObservationPoint::Server) => 3,
            Some(ObservationPoint::ServerProcess) => 4,
        }
    }

    pub fn observed_at(&self) -> &'static str {
        ObservationPoint::from_number(self.observation_point).map_or("rest", ObservationPoint::name)
    }

    /// Sent by the program itself rather than seen on its way.
    pub(super) fn is_app_span(&self) -> bool {
        self.signal_source == SignalSource::Otel as u8
    }

    pub(super) fn is_client_process(&self) -> bool {
        self.observation_point == ObservationPoint::ClientProcess as u8
    }

    pub(super) fn is_server_process(&self) -> bool {
        self.observation_point == ObservationPoint::ServerProcess as u8
    }

    /// What it says of its process's other requests is a guess.
    pub(super) fn is_guess(&self) -> bool {
        self.syscall_trace_source == SyscallTraceSource::EventLoop as u8
    }

    /// The ids of system calls that it took part in.
    pub(super) fn syscalls(&self) -> impl Iterator<Item = u64> {
        [self.syscall_trace_id_request, self.syscall_trace_id_response].into_iter().filter(|id| *id != 0)
    }

    pub(super) fn x_request_ids(&self) -> impl Iterator<Item = &str> {
        [self.x_request_id_0.as_str(), self.x_request_id_1.as_str()].into_iter().filter(|id| !id.is_empty())
    }
}
