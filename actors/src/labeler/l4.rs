//! Flows: `flow_log.l4_flow_log` and `flow_metrics.network*`.

use metaflow_schema::tables::{L4FlowLog, Network, NetworkFigures, NetworkInterval, NetworkMap};
use metaflow_wire as wire;

use super::{
    Input, Malformed,
    cells::{Cells, map_columns},
    ends::{self, Ends, Sides},
};

/// Traffic of both directions, which logs and metrics carry outside of the performance figures.
struct Traffic {
    packet_tx: Vec<u64>,
    packet_rx: Vec<u64>,
    byte_tx: Vec<u64>,
    byte_rx: Vec<u64>,
    l4_byte_tx: Vec<u64>,
    l4_byte_rx: Vec<u64>,
}

macro_rules! take_traffic {
    ($rows:expr) => {
        Traffic {
            packet_tx: std::mem::take(&mut $rows.packet_tx),
            packet_rx: std::mem::take(&mut $rows.packet_rx),
            byte_tx: std::mem::take(&mut $rows.byte_tx),
            byte_rx: std::mem::take(&mut $rows.byte_rx),
            l4_byte_tx: std::mem::take(&mut $rows.l4_byte_tx),
            l4_byte_rx: std::mem::take(&mut $rows.l4_byte_rx),
        }
    };
}

pub(super) fn flow_log<N>(
    input: &Input<'_, N>,
    cells: &mut Cells<'_>,
    addresses: &[Vec<u8>],
    mut rows: wire::L4FlowLog,
) -> Result<L4FlowLog, Malformed> {
    let Ends { client, server, observation_point, protocol, server_port, interface_index } = ends::resolve(
        input.snapshot,
        input.id.agent_id,
        cells,
        addresses,
        rows.endpoints.take(),
        Sides::Both,
    )?;
    let figures = figures(cells, take_traffic!(rows), rows.performance.take())?;
    Ok(map_columns!(cells, rows, L4FlowLog => L4FlowLog,
        same {
            micros { start_time }
            port { client_port, vlan }
            byte { close_type, l7_protocol }
            flag { is_new_flow }
            whole {
                duration, flow_id, syn_seq, synack_seq, total_packet_tx, total_packet_rx, total_byte_tx,
                total_byte_rx, l7_request, l7_response, l7_client_error, l7_server_error, l7_timeout,
            }
        }
        renamed {
            micros { end_time => time }
            byte { tcp_flags_tx => tcp_flags_bit_0, tcp_flags_rx => tcp_flags_bit_1 }
            whole {
                client_mac => mac_0, server_mac => mac_1, l7_rrt_sum => rrt_sum, l7_rrt_count => rrt_count,
                l7_rrt_max => rrt_max,
            }
        }
        nested {
            endpoints: _, performance: _, packet_tx: _, packet_rx: _, byte_tx: _, byte_rx: _, l4_byte_tx: _,
            l4_byte_rx: _
        }
        rest {
            agent_id: vec![input.id.agent_id; cells.rows],
            batch_seq: vec![input.id.seq; cells.rows],
            observation_point: observation_point,
            protocol: protocol,
            server_port: server_port,
            interface_index: interface_index,
            figures: figures,
            tags_0: client,
            tags_1: server,
        }
    ))
}

pub(super) fn network<N>(
    input: &Input<'_, N>,
    cells: &mut Cells<'_>,
    addresses: &[Vec<u8>],
    rows: wire::Network,
) -> Result<Network, Malformed> {
    let (interval, figures, ends) = interval(input, cells, addresses, rows, Sides::Server)?;
    Ok(Network { interval, figures, tags: ends.server })
}

pub(super) fn network_map<N>(
    input: &Input<'_, N>,
    cells: &mut Cells<'_>,
    addresses: &[Vec<u8>],
    rows: wire::Network,
) -> Result<NetworkMap, Malformed> {
    let (interval, figures, ends) = interval(input, cells, addresses, rows, Sides::Both)?;
    Ok(NetworkMap { interval, figures, tags_0: ends.client, tags_1: ends.server })
}

/// What both tables share; of the ends only the tags are left.
fn interval<N>(
    input: &Input<'_, N>,
    cells: &mut Cells<'_>,
    addresses: &[Vec<u8>],
    mut rows: wire::Network,
    sides: Sides,
) -> Result<(NetworkInterval, NetworkFigures, Ends), Malformed> {
    let mut ends =
        ends::resolve(input.snapshot, input.id.agent_id, cells, addresses, rows.endpoints.take(), sides)?;
    let figures = figures(cells, take_traffic!(rows), rows.performance.take())?;
    let interval = map_columns!(cells, rows, Network => NetworkInterval,
        same {
            byte { l7_protocol }
            whole {
                time, new_flow, closed_flow, flow_load, client_reset, server_reset, syn_timeout,
            }
        }
        renamed {}
        nested {
            endpoints: _, performance: _, packet_tx: _, packet_rx: _, byte_tx: _, byte_rx: _, l4_byte_tx: _,
            l4_byte_rx: _
        }
        rest {
            agent_id: vec![input.id.agent_id; cells.rows],
            batch_seq: vec![input.id.seq; cells.rows],
            observation_point: std::mem::take(&mut ends.observation_point),
            protocol: std::mem::take(&mut ends.protocol),
            server_port: std::mem::take(&mut ends.server_port),
            interface_index: std::mem::take(&mut ends.interface_index),
        }
    );
    Ok((interval, figures, ends))
}

fn figures(
    cells: &mut Cells<'_>,
    traffic: Traffic,
    performance: Option<wire::NetworkPerformance>,
) -> Result<NetworkFigures, Malformed> {
    let Traffic { packet_tx, packet_rx, byte_tx, byte_rx, l4_byte_tx, l4_byte_rx } = traffic;
    Ok(map_columns!(cells, performance.unwrap_or_default(), NetworkPerformance => NetworkFigures,
        same {
            whole {
                rtt_sum, rtt_count, rtt_max, rtt_client_sum, rtt_client_count, rtt_client_max,
                rtt_server_sum, rtt_server_count, rtt_server_max, srt_sum, srt_count, srt_max, art_sum,
                art_count, art_max, cit_sum, cit_count, cit_max, syn_count, synack_count, retrans_syn,
                retrans_synack, retrans_tx, retrans_rx, zero_win_tx, zero_win_rx, ooo_tx, ooo_rx,
            }
        }
        renamed {}
        nested {}
        rest {
            packet_tx: cells.whole("packet_tx", packet_tx)?,
            packet_rx: cells.whole("packet_rx", packet_rx)?,
            byte_tx: cells.whole("byte_tx", byte_tx)?,
            byte_rx: cells.whole("byte_rx", byte_rx)?,
            l4_byte_tx: cells.whole("l4_byte_tx", l4_byte_tx)?,
            l4_byte_rx: cells.whole("l4_byte_rx", l4_byte_rx)?,
        }
    ))
}
