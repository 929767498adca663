//! `flow_log.l4_flow_log` and `flow_metrics.network*`: flows and what they did.

use crate::{
    block::block,
    enums::{CloseType, Kind, L7Protocol, ObservationPoint},
    tags::Tags,
    types::{Micros, Seconds, U8, U16, U32, U64},
};

block! {
    /// Network figures that logs and metrics share. `tx` is client to server; delays in microseconds.
    NetworkFigures, row NetworkFiguresRow {
        columns {
            /// packets sent by the client
            packet_tx: U64 Amount;
            /// packets sent by the server
            packet_rx: U64 Amount;
            /// bytes on the wire sent by the client
            byte_tx: U64 Amount;
            /// bytes on the wire sent by the server
            byte_rx: U64 Amount;
            /// transport payload sent by the client
            l4_byte_tx: U64 Amount;
            /// transport payload sent by the server
            l4_byte_rx: U64 Amount;
            /// TCP handshake time, sum
            rtt_sum: U64 Amount;
            /// TCP handshake time, count
            rtt_count: U32 Amount;
            /// TCP handshake time, maximum
            rtt_max: U32 Amount;
            /// client part of the handshake time, sum
            rtt_client_sum: U64 Amount;
            /// client part of the handshake time, count
            rtt_client_count: U32 Amount;
            /// client part of the handshake time, maximum
            rtt_client_max: U32 Amount;
            /// server part of the handshake time, sum
            rtt_server_sum: U64 Amount;
            /// server part of the handshake time, count
            rtt_server_count: U32 Amount;
            /// server part of the handshake time, maximum
            rtt_server_max: U32 Amount;
            /// system response time, sum
            srt_sum: U64 Amount;
            /// system response time, count
            srt_count: U32 Amount;
            /// system response time, maximum
            srt_max: U32 Amount;
            /// application response time, sum
            art_sum: U64 Amount;
            /// application response time, count
            art_count: U32 Amount;
            /// application response time, maximum
            art_max: U32 Amount;
            /// client idle time, sum
            cit_sum: U64 Amount;
            /// client idle time, count
            cit_count: U32 Amount;
            /// client idle time, maximum
            cit_max: U32 Amount;
            /// SYN packets
            syn_count: U32 Amount;
            /// SYN-ACK packets
            synack_count: U32 Amount;
            /// repeated SYN packets
            retrans_syn: U32 Amount;
            /// repeated SYN-ACK packets
            retrans_synack: U32 Amount;
            /// retransmissions of the client
            retrans_tx: U32 Amount;
            /// retransmissions of the server
            retrans_rx: U32 Amount;
            /// zero windows of the client
            zero_win_tx: U32 Amount;
            /// zero windows of the server
            zero_win_rx: U32 Amount;
            /// segments of the client that came out of order
            ooo_tx: U32 Amount;
            /// segments of the server that came out of order
            ooo_rx: U32 Amount;
        }
        groups {}
    }
}

block! {
    /// `flow_log.l4_flow_log`: a flow's minute, or its end.
    L4FlowLog, row L4FlowLogRow {
        columns {
            /// first packet of the interval
            start_time: Micros Plain;
            /// last packet of the interval
            time: Micros Time;
            /// life of the flow so far in microseconds
            duration: U64 Amount;
            /// number of the flow on its agent
            flow_id: U64 Plain;
            /// agent that saw it
            agent_id: U32 Dictionary(Kind::Agent);
            /// batch that brought the row
            batch_seq: U64 Ledger, "DoubleDelta, LZ4";
            /// where on the path it was seen
            observation_point: U8 Enum(ObservationPoint::VALUES);
            /// IANA protocol number
            protocol: U8 Plain;
            /// application protocol
            l7_protocol: U8 Enum(L7Protocol::VALUES);
            /// port of the client
            client_port: U16 Plain;
            /// port of the server
            server_port: U16 Plain;
            /// network interface
            interface_index: U32 Plain;
            /// MAC address of the client
            mac_0: U64 Plain;
            /// MAC address of the server
            mac_1: U64 Plain;
            /// VLAN
            vlan: U16 Plain;
            /// how it ended
            close_type: U8 Enum(CloseType::VALUES);
            /// it began in this interval
            is_new_flow: U8 Plain;
            /// TCP flags of the client, joined by OR
            tcp_flags_bit_0: U8 Plain;
            /// TCP flags of the server, joined by OR
            tcp_flags_bit_1: U8 Plain;
            /// sequence number of the SYN
            syn_seq: U32 Plain;
            /// sequence number of the SYN-ACK
            synack_seq: U32 Plain;
            /// packets sent by the client since the flow began
            total_packet_tx: U64 Amount;
            /// packets sent by the server since the flow began
            total_packet_rx: U64 Amount;
            /// bytes sent by the client since the flow began
            total_byte_tx: U64 Amount;
            /// bytes sent by the server since the flow began
            total_byte_rx: U64 Amount;
            /// requests
            l7_request: U32 Amount;
            /// responses
            l7_response: U32 Amount;
            /// client errors
            l7_client_error: U32 Amount;
            /// server errors
            l7_server_error: U32 Amount;
            /// requests without response in time
            l7_timeout: U32 Amount;
            /// response delay, sum
            rrt_sum: U64 Amount;
            /// response delay, count
            rrt_count: U32 Amount;
            /// response delay, maximum
            rrt_max: U32 Amount;
        }
        groups { figures: NetworkFigures ""; tags_0: Tags "_0"; tags_1: Tags "_1"; }
    }
}

block! {
    /// What all network metrics have beside tags and figures.
    NetworkInterval, row NetworkIntervalRow {
        columns {
            /// begin of the interval
            time: Seconds Time;
            /// agent that saw it
            agent_id: U32 Dictionary(Kind::Agent);
            /// batch that brought the row
            batch_seq: U64 Ledger, "DoubleDelta, LZ4";
            /// where on the path it was seen
            observation_point: U8 Enum(ObservationPoint::VALUES);
            /// IANA protocol number
            protocol: U8 Plain;
            /// application protocol
            l7_protocol: U8 Enum(L7Protocol::VALUES);
            /// port of the server
            server_port: U16 Plain;
            /// network interface
            interface_index: U32 Plain;
            /// flows that began
            new_flow: U32 Amount;
            /// flows that ended
            closed_flow: U32 Amount;
            /// flows that were active
            flow_load: U32 Amount;
            /// flows that the client reset
            client_reset: U32 Amount;
            /// flows that the server reset
            server_reset: U32 Amount;
            /// connections that were never established
            syn_timeout: U32 Amount;
        }
        groups {}
    }
}

block! {
    /// `flow_metrics.network`: what each service's connections did.
    Network, row NetworkRow {
        columns {}
        groups { interval: NetworkInterval ""; figures: NetworkFigures ""; tags: Tags ""; }
    }
}

block! {
    /// `flow_metrics.network_map`: the same for each pair of client and service.
    NetworkMap, row NetworkMapRow {
        columns {}
        groups { interval: NetworkInterval ""; figures: NetworkFigures ""; tags_0: Tags "_0"; tags_1: Tags "_1"; }
    }
}
