//! Requests: `flow_log.l7_flow_log` and `flow_metrics.application*`.

use metaflow_schema::{
    enums::Kind,
    tables::{Application, ApplicationInterval, ApplicationMap, L7FlowLog},
};
use metaflow_wire as wire;

use super::{
    Error, Input, Names,
    cells::{Cells, map_columns},
    ends::{self, Ends, Sides},
    names,
};

pub(super) fn request_log<N: Names>(
    input: &Input<'_, N>,
    cells: &mut Cells<'_>,
    addresses: &[Vec<u8>],
    mut rows: wire::L7FlowLog,
) -> Result<L7FlowLog, Error<N::Error>> {
    let [version_id, request_type_id, request_domain_id, endpoint_id, user_agent_id] = names::resolve(
        input.names,
        cells,
        [
            ("version", Kind::Version, &rows.version),
            ("request_type", Kind::RequestType, &rows.request_type),
            ("request_domain", Kind::RequestDomain, &rows.request_domain),
            ("endpoint", Kind::Endpoint, &rows.endpoint),
            ("user_agent", Kind::UserAgent, &rows.user_agent),
        ],
    )?;
    let Ends { client, server, observation_point, protocol, server_port, interface_index } = ends::resolve(
        input.snapshot,
        input.id.agent_id,
        cells,
        addresses,
        rows.endpoints.take(),
        Sides::Both,
    )?;
    Ok(map_columns!(cells, rows, L7FlowLog => L7FlowLog,
        same {
            micros { start_time }
            port { client_port }
            byte { l7_protocol, l7_type, response_status, signal_source, syscall_trace_source }
            text {
                request_resource, response_exception, response_result, trace_id, span_id, parent_span_id,
                x_request_id_0, x_request_id_1, referer, http_proxy_client, socket_path,
            }
            whole {
                flow_id, response_duration, request_id, response_code, request_length, response_length,
                captured_request_byte, captured_response_byte, req_tcp_seq, resp_tcp_seq,
                syscall_trace_id_request, syscall_trace_id_response, syscall_thread_0, syscall_thread_1,
                syscall_coroutine_0, syscall_coroutine_1,
            }
        }
        renamed { micros { end_time => time } }
        nested { endpoints: _, version: _, request_type: _, request_domain: _, endpoint: _, user_agent: _ }
        rest {
            agent_id: vec![input.id.agent_id; cells.rows],
            batch_seq: vec![input.id.seq; cells.rows],
            observation_point: observation_point,
            protocol: protocol,
            server_port: server_port,
            interface_index: interface_index,
            version_id: version_id,
            request_type_id: request_type_id,
            request_domain_id: request_domain_id,
            endpoint_id: endpoint_id,
            user_agent_id: user_agent_id,
            tags_0: client,
            tags_1: server,
        }
    ))
}

pub(super) fn application<N: Names>(
    input: &Input<'_, N>,
    cells: &mut Cells<'_>,
    addresses: &[Vec<u8>],
    rows: wire::Application,
) -> Result<Application, Error<N::Error>> {
    let (interval, ends) = interval(input, cells, addresses, rows, Sides::Server)?;
    Ok(Application { interval, tags: ends.server })
}

pub(super) fn application_map<N: Names>(
    input: &Input<'_, N>,
    cells: &mut Cells<'_>,
    addresses: &[Vec<u8>],
    rows: wire::Application,
) -> Result<ApplicationMap, Error<N::Error>> {
    let (interval, ends) = interval(input, cells, addresses, rows, Sides::Both)?;
    Ok(ApplicationMap { interval, tags_0: ends.client, tags_1: ends.server })
}

/// What both tables share; of the ends only the tags are left.
fn interval<N: Names>(
    input: &Input<'_, N>,
    cells: &mut Cells<'_>,
    addresses: &[Vec<u8>],
    mut rows: wire::Application,
    sides: Sides,
) -> Result<(ApplicationInterval, Ends), Error<N::Error>> {
    let [request_domain_id, endpoint_id] = names::resolve(
        input.names,
        cells,
        [
            ("request_domain", Kind::RequestDomain, &rows.request_domain),
            ("endpoint", Kind::Endpoint, &rows.endpoint),
        ],
    )?;
    let mut ends =
        ends::resolve(input.snapshot, input.id.agent_id, cells, addresses, rows.endpoints.take(), sides)?;
    let interval = map_columns!(cells, rows, Application => ApplicationInterval,
        same {
            byte { l7_protocol }
            whole {
                time, request, response, client_error, server_error, timeout, rrt_sum, rrt_count, rrt_max,
            }
        }
        renamed {}
        nested { endpoints: _, request_domain: _, endpoint: _ }
        rest {
            agent_id: vec![input.id.agent_id; cells.rows],
            batch_seq: vec![input.id.seq; cells.rows],
            observation_point: std::mem::take(&mut ends.observation_point),
            protocol: std::mem::take(&mut ends.protocol),
            server_port: std::mem::take(&mut ends.server_port),
            request_domain_id: request_domain_id,
            endpoint_id: endpoint_id,
        }
    );
    Ok((interval, ends))
}
