//! What the flow table hands out: a flow's identity, and what it did in an interval.
//!
//! Leaves out: how the figures come about (`flow/*`) and how they are sent (`emit`).

use std::net::IpAddr;

use metaflow_schema::enums::{CloseType, L7Protocol};

use crate::incidents::{FileRow, LifeRow};
use crate::profile;
use crate::session::SessionBox;
use crate::sockets::Call;

/// Who talks to whom; `server` is the side that was connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ends {
    pub client_ip: IpAddr,
    pub server_ip: IpAddr,
    pub client_port: u16,
    pub server_port: u16,
    /// IANA protocol number.
    pub ip_protocol: u8,
}

/// Constant facts of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowFacts {
    pub ends: Ends,
    /// Unique on this agent since its start.
    pub flow_id: u64,
    pub interface_index: u32,
    pub client_mac: u64,
    pub server_mac: u64,
    /// 0 without a VLAN tag.
    pub vlan: u16,
    /// Microseconds since 1970: first packet.
    pub first_seen: u64,
}

/// Sum, count and maximum of a delay, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Delay {
    pub sum: u64,
    pub count: u32,
    pub max: u32,
}

/// Counters of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub packets: u64,
    /// Layer 3 and up... as on the wire, with the link header.
    pub bytes: u64,
    /// Transport payload.
    pub l4_bytes: u64,
    /// Of data, SYN, SYN-ACK and FIN.
    pub retransmissions: u32,
    pub zero_windows: u32,
    pub out_of_order: u32,
    /// OR of the TCP flag bytes.
    pub tcp_flags: u8,
}

/// What a flow did in an interval. `tx` is client to server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Activity {
    pub tx: Traffic,
    pub rx: Traffic,
    /// TCP handshake: SYN to the ACK of the SYN-ACK; client part (SYN-ACK to ACK) and server part (SYN to SYN-ACK).
    pub rtt: Delay,
    pub rtt_client: Delay,
    pub rtt_server: Delay,
    /// System response time: the client's data packet to the bare ACK by the server's stack; not where one of them was repeated.
    pub srt: Delay,
    /// Application response time: last request packet to first response packet (DNS and UDP alike).
    pub art: Delay,
    /// Client idle time: last response packet to the next request packet.
    pub cit: Delay,
    pub syn: u32,
    pub synack: u32,
    pub retrans_syn: u32,
    pub retrans_synack: u32,
    pub l7_request: u32,
    pub l7_response: u32,
    pub l7_client_error: u32,
    pub l7_server_error: u32,
    pub l7_timeout: u32,
    pub l7_rrt: Delay,
}

/// A flow in an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowReport {
    pub facts: FlowFacts,
    /// Microseconds since 1970. For reports of a second: that second's bounds; for the log: first and last packet in the interval.
    pub start_time: u64,
    pub end_time: u64,
    pub activity: Activity,
    /// Since the flow began.
    pub total_tx: Traffic,
    pub total_rx: Traffic,
    pub l7_protocol: L7Protocol,
    pub syn_seq: u32,
    pub synack_seq: u32,
    /// The flow began in this interval.
    pub is_new: bool,
    /// How it ended in this interval; `ForcedReport` while it goes on.
    pub close_type: CloseType,
}

/// What one call of the flow table produced; the caller empties it.
#[derive(Debug, Default)]
pub struct Output {
    /// A report for each flow and second in which it did something, began or ended: feeds metrics.
    pub seconds: Vec<FlowReport>,
    /// A report for each flow at its end and after each minute in which it did something: feeds `l4_flow_log`.
    pub logs: Vec<FlowReport>,
    /// Finished requests with their flow.
    pub sessions: Vec<(FlowFacts, SessionBox)>,
    /// Finished requests as processes saw them; not of the flow table.
    pub calls: Vec<Call>,
    /// What was seen of processes beside their requests; not of the flow table.
    pub stacks: Vec<profile::Row>,
    pub files: Vec<FileRow>,
    pub lives: Vec<LifeRow>,
}
