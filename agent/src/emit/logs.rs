//! Rows of `l4_flow_log` and `l7_flow_log`.

use metaflow_schema::enums::{SignalSource, SyscallTraceSource};
use metaflow_wire::{self as wire, Endpoints, columns::Rows as WireRows};

use super::{
    basis::Place,
    columns::{Builder, Rows, push_performance, push_row, trim_columns, trim_performance},
    pool::KEY_TEXT_MAX,
};
use crate::{
    flow::{FlowFacts, FlowReport},
    session::Session,
};

/// Longest statement, target or error text that is kept.
const LONG_TEXT_MAX: usize = 4_096;
/// Trace and request ids: twice the longest known form.
const ID_TEXT_MAX: usize = 128;

#[derive(Debug, Default)]
pub(super) struct FlowLog {
    rows: wire::L4FlowLog,
    performance: wire::NetworkPerformance,
}

impl Rows for FlowLog {
    const ROW_BYTES: usize = 320;

    fn into_wire(mut self, endpoints: Endpoints) -> WireRows {
        trim_performance(&mut self.performance);
        let rows = &mut self.rows;
        trim_columns!(rows, L4FlowLog {
            client_port, flow_id, start_time, end_time, duration, close_type, is_new_flow, l7_protocol,
            client_mac, server_mac, vlan, tcp_flags_tx, tcp_flags_rx, syn_seq, synack_seq, packet_tx, packet_rx,
            byte_tx, byte_rx, l4_byte_tx, l4_byte_rx, total_packet_tx, total_packet_rx, total_byte_tx,
            total_byte_rx, l7_request, l7_response, l7_client_error, l7_server_error, l7_timeout, l7_rrt_sum,
            l7_rrt_count, l7_rrt_max,
        } nested { endpoints, performance });
        self.rows.endpoints = Some(endpoints);
        self.rows.performance = Some(self.performance);
        WireRows::L4FlowLog(self.rows)
    }
}

pub(super) fn push_flow(builder: &mut Builder<FlowLog>, place: &Place, report: &FlowReport, now: u64) {
    builder.push_place(place, true, now);
    let FlowReport {
        facts,
        start_time,
        end_time,
        activity,
        total_tx,
        total_rx,
        l7_protocol,
        syn_seq,
        synack_seq,
        is_new,
        close_type,
    } = report;
    let FlowFacts { ends, flow_id, interface_index: _, client_mac, server_mac, vlan, first_seen } = facts;
    push_performance(&mut builder.columns.performance, activity);
    let rows = &mut builder.columns.rows;
    push_row!(rows, L4FlowLog {
        client_port: ends.client_port.into(),
        flow_id: *flow_id,
        start_time: *start_time,
        end_time: *end_time,
        duration: end_time.saturating_sub(*first_seen),
        close_type: *close_type as u32,
        is_new_flow: *is_new,
        l7_protocol: *l7_protocol as u32,
        client_mac: *client_mac,
        server_mac: *server_mac,
        vlan: u32::from(*vlan),
        tcp_flags_tx: activity.tx.tcp_flags.into(),
        tcp_flags_rx: activity.rx.tcp_flags.into(),
        syn_seq: *syn_seq,
        synack_seq: *synack_seq,
        packet_tx: activity.tx.packets,
        packet_rx: activity.rx.packets,
        byte_tx: activity.tx.bytes,
        byte_rx: activity.rx.bytes,
        l4_byte_tx: activity.tx.l4_bytes,
        l4_byte_rx: activity.rx.l4_bytes,
        total_packet_tx: total_tx.packets,
        total_packet_rx: total_rx.packets,
        total_byte_tx: total_tx.bytes,
        total_byte_rx: total_rx.bytes,
        l7_request: activity.l7_request,
        l7_response: activity.l7_response,
        l7_client_error: activity.l7_client_error,
        l7_server_error: activity.l7_server_error,
        l7_timeout: activity.l7_timeout,
        l7_rrt_sum: activity.l7_rrt.sum,
        l7_rrt_count: activity.l7_rrt.count,
        l7_rrt_max: activity.l7_rrt.max,
    } nested { endpoints, performance });
}

#[derive(Debug, Default)]
pub(super) struct RequestLog {
    rows: wire::L7FlowLog,
}

impl Rows for RequestLog {
    const ROW_BYTES: usize = 200;

    fn into_wire(mut self, endpoints: Endpoints) -> WireRows {
        let rows = &mut self.rows;
        trim_columns!(rows, L7FlowLog {
            client_port, flow_id, start_time, end_time, response_duration, l7_protocol, l7_type,
            response_status, signal_source, version, request_type, request_domain, request_resource, endpoint,
            response_exception, response_result, trace_id, span_id, parent_span_id, x_request_id_0,
            x_request_id_1, user_agent, referer, http_proxy_client, request_id, response_code, request_length,
            response_length, captured_request_byte, captured_response_byte, req_tcp_seq, resp_tcp_seq,
            syscall_trace_id_request, syscall_trace_id_response, syscall_thread_0, syscall_thread_1,
            syscall_coroutine_0, syscall_coroutine_1, syscall_trace_source, socket_path,
        } nested { endpoints });
        self.rows.endpoints = Some(endpoints);
        WireRows::L7FlowLog(self.rows)
    }
}

/// How a request was seen.
#[derive(Debug, Clone, Copy)]
pub(super) enum Origin {
    /// Packets say nothing about system calls: those columns stay empty.
    Packets,
    /// Threads and coroutines of request and response, the numbers that link them to what caused them, and what those rest on.
    Process { threads: [u32; 2], coroutines: [u64; 2], traces: [u64; 2], source: SyscallTraceSource },
}

/// The columns of it: signal source, threads, coroutines, traces, what those rest on.
type OriginColumns = (SignalSource, [u32; 2], [u64; 2], [u64; 2], SyscallTraceSource);

impl Origin {
    fn columns(self) -> OriginColumns {
        match self {
            Self::Packets => (SignalSource::Packet, [0; 2], [0; 2], [0; 2], SyscallTraceSource::None),
            Self::Process { threads, coroutines, traces, source } => {
                (SignalSource::Ebpf, threads, coroutines, traces, source)
            }
        }
    }
}

pub(super) fn push_session(
    builder: &mut Builder<RequestLog>,
    place: &Place,
    facts: &FlowFacts,
    session: &Session,
    origin: Origin,
    now: u64,
    truncated: &mut u64,
) {
    let (signal_source, threads, routines, traces, trace_source) = origin.columns();
    builder.push_place(place, true, now);
    let Session {
        protocol,
        l7_type,
        start_time,
        end_time,
        response_duration,
        version,
        request_type,
        request_domain,
        request_resource,
        endpoint,
        request_id,
        status,
        response_code,
        response_exception,
        response_result,
        trace_id,
        span_id,
        parent_span_id,
        x_request_id_request,
        x_request_id_response,
        user_agent,
        referer,
        http_proxy_client,
        socket_path,
        request_length,
        response_length,
        captured_request_byte,
        captured_response_byte,
        req_tcp_seq,
        resp_tcp_seq,
    } = session;
    let mut text = |value: &str, bytes_max: usize| builder.pool.text(value, bytes_max, truncated);
    push_row!(builder.columns.rows, L7FlowLog {
        client_port: facts.ends.client_port.into(),
        flow_id: facts.flow_id,
        start_time: *start_time,
        end_time: *end_time,
        response_duration: response_duration.unwrap_or(0),
        l7_protocol: *protocol as u32,
        l7_type: *l7_type as u32,
        response_status: *status as u32,
        signal_source: signal_source as u32,
        version: text(version, KEY_TEXT_MAX),
        request_type: text(request_type, KEY_TEXT_MAX),
        request_domain: text(request_domain, KEY_TEXT_MAX),
        request_resource: text(request_resource, LONG_TEXT_MAX),
        endpoint: text(endpoint, KEY_TEXT_MAX),
        response_exception: text(response_exception, LONG_TEXT_MAX),
        response_result: text(response_result, LONG_TEXT_MAX),
        trace_id: text(trace_id, ID_TEXT_MAX),
        span_id: text(span_id, ID_TEXT_MAX),
        parent_span_id: text(parent_span_id, ID_TEXT_MAX),
        x_request_id_0: text(x_request_id_request, ID_TEXT_MAX),
        x_request_id_1: text(x_request_id_response, ID_TEXT_MAX),
        user_agent: text(user_agent, KEY_TEXT_MAX),
        referer: text(referer, LONG_TEXT_MAX),
        http_proxy_client: text(http_proxy_client, KEY_TEXT_MAX),
        socket_path: text(socket_path, KEY_TEXT_MAX),
        request_id: *request_id,
        response_code: *response_code,
        request_length: *request_length, response_length: *response_length,
        captured_request_byte: *captured_request_byte, captured_response_byte: *captured_response_byte,
        req_tcp_seq: *req_tcp_seq, resp_tcp_seq: *resp_tcp_seq,
        syscall_trace_id_request: traces[0], syscall_trace_id_response: traces[1],
        syscall_thread_0: threads[0], syscall_thread_1: threads[1], syscall_coroutine_0: routines[0], syscall_coroutine_1: routines[1],
        syscall_trace_source: trace_source as u32,
    } nested { endpoints });
}
