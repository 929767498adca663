//! Building one batch of columns: rows are pushed, columns of defaults are left out at the end.

use metaflow_wire::{self as wire, Columns, Endpoints, Table, columns::Rows as WireRows};

use super::{Chunk, basis::Place, pool::Pool};
use crate::flow::Activity;

/// All texts of a row, each as long as it may be.
const ROW_TEXT_BYTES_MAX: usize = 64 << 10;

/// Appends one value to each column of a message; the pattern names every field, so that a new one is noticed.
macro_rules! push_row {
    ($columns:expr, $message:ident { $($field:ident: $value:expr),+ $(,)? } nested { $($nested:ident),* }) => {{
        let metaflow_wire::$message { $($field: _,)+ $($nested: _),* } = &$columns;
        $( $columns.$field.push($value); )+
    }};
}

/// Empties the columns that hold nothing but defaults.
macro_rules! trim_columns {
    ($columns:expr, $message:ident { $($field:ident),+ $(,)? } nested { $($nested:ident),* }) => {{
        let metaflow_wire::$message { $($field,)+ $($nested: _),* } = &mut *$columns;
        $( $crate::emit::columns::trim($field); )+
    }};
}
pub(super) use {push_row, trim_columns};

/// Empties a column of defaults: that is how the wire says it.
pub(super) fn trim<T: Default + PartialEq>(column: &mut Vec<T>) {
    if column.iter().all(|value| *value == T::default()) {
        column.clear();
    }
}

/// Columns of one kind of row without the ends.
pub(super) trait Rows: Default {
    /// Upper estimate of the encoded bytes of one row without its texts.
    const ROW_BYTES: usize;
    fn into_wire(self, endpoints: Endpoints) -> WireRows;
}

/// A batch being built.
#[derive(Debug)]
pub(super) struct Builder<T> {
    table: Table,
    pub(super) columns: T,
    endpoints: Endpoints,
    pub(super) pool: Pool,
    rows: u32,
    /// Time of the first row, microseconds.
    opened: u64,
}

impl<T: Rows> Builder<T> {
    pub(super) fn new(table: Table) -> Self {
        Self {
            table,
            columns: T::default(),
            endpoints: Endpoints::default(),
            pool: Pool::default(),
            rows: 0,
            opened: 0,
        }
    }

    pub(super) fn rows(&self) -> u32 {
        self.rows
    }

    pub(super) fn bytes(&self) -> usize {
        self.rows as usize * T::ROW_BYTES + self.pool.bytes()
    }

    /// Whether another row could have more text than nodes take of so many rows.
    pub(super) fn shares_much_text(&self) -> bool {
        self.pool.shared_bytes() + ROW_TEXT_BYTES_MAX > metaflow_wire::shared_text_bytes_max(self.rows)
    }

    /// Begins a row that has no ends. The caller pushes its columns.
    pub(super) fn begin_row(&mut self, now: u64) {
        if self.rows == 0 {
            self.opened = now;
        }
        self.rows += 1;
    }

    /// Begins a row: its ends. The caller pushes the other columns.
    pub(super) fn push_place(&mut self, place: &Place, two_sided: bool, now: u64) {
        self.begin_row(now);
        if two_sided {
            self.endpoints.client_ip.push(self.pool.address(place.client_ip));
            self.endpoints.client_pid.push(place.client_pid);
        }
        let Endpoints {
            client_ip: _,
            client_pid: _,
            server_ip,
            server_port,
            server_pid,
            ip_protocol,
            observation_point,
            interface_index,
        } = &mut self.endpoints;
        server_ip.push(self.pool.address(place.server_ip));
        server_port.push(place.server_port.into());
        server_pid.push(place.server_pid);
        ip_protocol.push(place.ip_protocol.into());
        observation_point.push(place.point as u32);
        interface_index.push(place.interface_index);
    }

    /// Hands out the batch if it was opened before `limit`.
    pub(super) fn cut_opened_before(&mut self, limit: u64, chunks: &mut Vec<Chunk>) {
        if self.rows > 0 && self.opened < limit {
            self.cut(chunks);
        }
    }

    pub(super) fn cut(&mut self, chunks: &mut Vec<Chunk>) {
        if self.rows == 0 {
            return;
        }
        let Self { table, columns, mut endpoints, pool, rows, opened: _ } =
            std::mem::replace(self, Self::new(self.table));
        trim_columns!(&mut endpoints, Endpoints {
            client_ip, server_ip, server_port, client_pid, server_pid, ip_protocol, observation_point,
            interface_index,
        } nested {});
        let (strings, addresses) = pool.into_tables();
        let columns = Columns { strings, addresses, rows: Some(columns.into_wire(endpoints)) };
        chunks.push(Chunk { table, rows, columns });
    }
}

/// Delays and TCP events of a row.
pub(super) fn push_performance(columns: &mut wire::NetworkPerformance, activity: &Activity) {
    // The traffic counters and the requests have columns elsewhere.
    let Activity {
        tx,
        rx,
        rtt,
        rtt_client,
        rtt_server,
        srt,
        art,
        cit,
        syn,
        synack,
        retrans_syn,
        retrans_synack,
        l7_request: _,
        l7_response: _,
        l7_client_error: _,
        l7_server_error: _,
        l7_timeout: _,
        l7_rrt: _,
    } = *activity;
    push_row!(*columns, NetworkPerformance {
        rtt_sum: rtt.sum, rtt_count: rtt.count, rtt_max: rtt.max,
        rtt_client_sum: rtt_client.sum, rtt_client_count: rtt_client.count, rtt_client_max: rtt_client.max,
        rtt_server_sum: rtt_server.sum, rtt_server_count: rtt_server.count, rtt_server_max: rtt_server.max,
        srt_sum: srt.sum, srt_count: srt.count, srt_max: srt.max,
        art_sum: art.sum, art_count: art.count, art_max: art.max,
        cit_sum: cit.sum, cit_count: cit.count, cit_max: cit.max,
        syn_count: syn, synack_count: synack,
        retrans_syn: retrans_syn, retrans_synack: retrans_synack,
        retrans_tx: tx.retransmissions, retrans_rx: rx.retransmissions,
        zero_win_tx: tx.zero_windows, zero_win_rx: rx.zero_windows,
        ooo_tx: tx.out_of_order, ooo_rx: rx.out_of_order,
    } nested {});
}

pub(super) fn trim_performance(columns: &mut wire::NetworkPerformance) {
    trim_columns!(columns, NetworkPerformance {
        rtt_sum, rtt_count, rtt_max, rtt_client_sum, rtt_client_count, rtt_client_max, rtt_server_sum,
        rtt_server_count, rtt_server_max, srt_sum, srt_count, srt_max, art_sum, art_count, art_max, cit_sum,
        cit_count, cit_max, syn_count, synack_count, retrans_syn, retrans_synack, retrans_tx, retrans_rx,
        zero_win_tx, zero_win_rx, ooo_tx, ooo_rx,
    } nested {});
}
