//! Keys, sums and rows of the `network*` and `application*` tables.

use std::sync::Arc;

use metaflow_schema::enums::{CloseType, L7Protocol, L7Type, ResponseStatus};
use metaflow_wire::{self as wire, Endpoints, columns::Rows as WireRows};

use super::{
    basis::Place,
    columns::{Builder, Rows, push_performance, push_row, trim_columns, trim_performance},
    pool::KEY_TEXT_MAX,
    rollup::{Key, Value},
};
use crate::{
    flow::{Activity, Delay, FlowReport},
    session::Session,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NetworkKey {
    pub place: Place,
    pub l7_protocol: L7Protocol,
}

impl Key for NetworkKey {
    fn one_sided(&self) -> Self {
        Self { place: self.place.one_sided(), ..*self }
    }

    fn collapsed(&self, level: u8) -> Self {
        match level {
            // There is no text to drop: the client goes first.
            0..=2 => self.one_sided(),
            _ => Self { place: self.place.anonymous(), l7_protocol: L7Protocol::Unknown },
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct NetworkValue {
    activity: Activity,
    new_flow: u32,
    closed_flow: u32,
    flow_load: u32,
    /// Flows that were not yet counted in the minute.
    flow_load_of_minute: u32,
    client_reset: u32,
    server_reset: u32,
    syn_timeout: u32,
}

impl NetworkValue {
    pub(super) fn from_report(report: &FlowReport, first_in_minute: bool) -> Self {
        let is = |types: &[CloseType]| u32::from(types.contains(&report.close_type));
        Self {
            activity: report.activity,
            new_flow: report.is_new.into(),
            closed_flow: Self::is_over(report.close_type).into(),
            flow_load: 1,
            flow_load_of_minute: first_in_minute.into(),
            client_reset: is(&[CloseType::ClientReset, CloseType::ClientEstablishReset]),
            server_reset: is(&[CloseType::ServerReset, CloseType::ServerEstablishReset]),
            // Handshakes that one side repeated in vain.
            syn_timeout: is(&[CloseType::ClientSynRepeat, CloseType::ServerSynAckRepeat]),
        }
    }

    pub(super) fn is_over(close_type: CloseType) -> bool {
        close_type != CloseType::ForcedReport
    }
}

impl Value for NetworkValue {
    fn merge(&mut self, other: &Self) {
        let Self {
            activity,
            new_flow,
            closed_flow,
            flow_load,
            flow_load_of_minute,
            client_reset,
            server_reset,
            syn_timeout,
        } = other;
        self.activity.merge(activity);
        let counts = [
            (&mut self.new_flow, new_flow),
            (&mut self.closed_flow, closed_flow),
            (&mut self.flow_load, flow_load),
            (&mut self.flow_load_of_minute, flow_load_of_minute),
            (&mut self.client_reset, client_reset),
            (&mut self.server_reset, server_reset),
            (&mut self.syn_timeout, syn_timeout),
        ];
        for (sum, count) in counts {
            *sum = sum.saturating_add(*count);
        }
    }

    fn for_minute(&self) -> Self {
        Self { flow_load: self.flow_load_of_minute, ..*self }
    }
}

#[derive(Debug, Default)]
pub(super) struct NetworkRows {
    rows: wire::Network,
    performance: wire::NetworkPerformance,
}

impl Rows for NetworkRows {
    const ROW_BYTES: usize = 220;

    fn into_wire(mut self, endpoints: Endpoints) -> WireRows {
        trim_performance(&mut self.performance);
        let rows = &mut self.rows;
        trim_columns!(rows, Network {
            time, packet_tx, packet_rx, byte_tx, byte_rx, l4_byte_tx, l4_byte_rx, new_flow, closed_flow,
            flow_load, client_reset, server_reset, syn_timeout, l7_protocol,
        } nested { endpoints, performance });
        self.rows.endpoints = Some(endpoints);
        self.rows.performance = Some(self.performance);
        WireRows::Network(self.rows)
    }
}

pub(super) fn push_network(
    builder: &mut Builder<NetworkRows>,
    time: u32,
    key: &NetworkKey,
    value: &NetworkValue,
    two_sided: bool,
    now: u64,
) {
    builder.push_place(&key.place, two_sided, now);
    push_performance(&mut builder.columns.performance, &value.activity);
    let Activity { tx, rx, .. } = &value.activity;
    let rows = &mut builder.columns.rows;
    push_row!(rows, Network {
        time: time,
        packet_tx: tx.packets,
        packet_rx: rx.packets,
        byte_tx: tx.bytes,
        byte_rx: rx.bytes,
        l4_byte_tx: tx.l4_bytes,
        l4_byte_rx: rx.l4_bytes,
        new_flow: value.new_flow,
        closed_flow: value.closed_flow,
        flow_load: value.flow_load,
        client_reset: value.client_reset,
        server_reset: value.server_reset,
        syn_timeout: value.syn_timeout,
        l7_protocol: key.l7_protocol as u32,
    } nested { endpoints, performance });
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ApplicationKey {
    pub place: Place,
    pub protocol: L7Protocol,
    pub domain: Arc<str>,
    pub endpoint: Arc<str>,
}

impl Key for ApplicationKey {
    fn one_sided(&self) -> Self {
        Self { place: self.place.one_sided(), ..self.clone() }
    }

    fn collapsed(&self, level: u8) -> Self {
        let place = match level {
            0 | 1 => self.place,
            2 => self.place.one_sided(),
            _ => self.place.anonymous(),
        };
        Self { place, protocol: self.protocol, domain: Arc::default(), endpoint: Arc::default() }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ApplicationValue {
    pub(super) request: u32,
    response: u32,
    client_error: u32,
    server_error: u32,
    timeout: u32,
    rrt: Delay,
}

impl ApplicationValue {
    pub(super) fn from_session(session: &Session) -> Self {
        let is = |status: ResponseStatus| u32::from(session.status == status);
        let rrt = session.response_duration.map_or_else(Delay::default, |duration| Delay {
            sum: duration,
            count: 1,
            max: u32::try_from(duration).unwrap_or(u32::MAX),
        });
        Self {
            request: (session.l7_type != L7Type::Response).into(),
            response: (session.l7_type != L7Type::Request).into(),
            client_error: is(ResponseStatus::ClientError),
            server_error: is(ResponseStatus::ServerError),
            timeout: is(ResponseStatus::Timeout),
            rrt,
        }
    }
}

impl Value for ApplicationValue {
    fn merge(&mut self, other: &Self) {
        let Self { request, response, client_error, server_error, timeout, rrt } = other;
        self.rrt.merge(rrt);
        let counts = [
            (&mut self.request, request),
            (&mut self.response, response),
            (&mut self.client_error, client_error),
            (&mut self.server_error, server_error),
            (&mut self.timeout, timeout),
        ];
        for (sum, count) in counts {
            *sum = sum.saturating_add(*count);
        }
    }

    fn for_minute(&self) -> Self {
        *self
    }
}

#[derive(Debug, Default)]
pub(super) struct ApplicationRows {
    rows: wire::Application,
}

impl Rows for ApplicationRows {
    const ROW_BYTES: usize = 100;

    fn into_wire(mut self, endpoints: Endpoints) -> WireRows {
        let rows = &mut self.rows;
        trim_columns!(rows, Application {
            time, l7_protocol, endpoint, request, response, client_error, server_error, timeout, rrt_sum,
            rrt_count, rrt_max, request_domain,
        } nested { endpoints });
        self.rows.endpoints = Some(endpoints);
        WireRows::Application(self.rows)
    }
}

pub(super) fn push_application(
    builder: &mut Builder<ApplicationRows>,
    time: u32,
    key: &ApplicationKey,
    value: &ApplicationValue,
    two_sided: bool,
    now: u64,
) {
    builder.push_place(&key.place, two_sided, now);
    // Keys were cut when they were made.
    let mut truncated = 0;
    let endpoint = builder.pool.text(&key.endpoint, KEY_TEXT_MAX, &mut truncated);
    let request_domain = builder.pool.text(&key.domain, KEY_TEXT_MAX, &mut truncated);
    let ApplicationValue { request, response, client_error, server_error, timeout, rrt } = value;
    let rows = &mut builder.columns.rows;
    push_row!(rows, Application {
        time: time,
        l7_protocol: key.protocol as u32,
        endpoint: endpoint,
        request: *request,
        response: *response,
        client_error: *client_error,
        server_error: *server_error,
        timeout: *timeout,
        rrt_sum: rrt.sum,
        rrt_count: rrt.count,
        rrt_max: rrt.max,
        request_domain: request_domain,
    } nested { endpoints });
}
