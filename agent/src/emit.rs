//! Flows and sessions become columns: log rows as they come, metrics summed up by second and minute.
//!
//! Pure: reports, times and a [`Basis`] come in, [`Chunk`]s for the spool go out. Rules:
//! * a flow counts in the second of its report, a request in the second of its `end_time`, which is the `time` of its row in
//!   `l7_flow_log`, so that both tables agree; a request that timed out counts as a request and as a timeout;
//! * a request that is seen at several points of this host has a row in the log for each and counts once in the metrics (`once`);
//! * an interval is sealed when it is over by `Config::interval_delay`; what comes later goes out as further rows of the same interval,
//!   so sums over rows stay right;
//! * rows by the minute are folded from rows by the second, one-sided rows from two-sided ones, so all tables agree by construction;
//! * keys of an interval are bounded: what exceeds the bound is counted in rows with fewer details (`Counters::collapsed`).
//!
//! Leaves out: numbers, compression and durability (`spool`).

mod basis;
mod columns;
mod host;
mod limit;
mod logs;
mod metrics;
mod once;
mod pool;
mod rollup;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use metaflow_wire::{Columns, Table};

pub use basis::{Basis, Nowhere};

use crate::{
    flow::{FlowFacts, FlowReport, Output},
    session::Session,
    sockets::Call,
};
pub(crate) use pool::truncate;

use basis::{FlowNotes, Place};
use columns::Builder;
use limit::Limit;
use logs::Origin;
use metrics::{ApplicationKey, ApplicationValue, NetworkKey, NetworkValue};
use once::{Count, Counts, Once};
use pool::Symbols;
use rollup::{Interval, Rollup};

/// Limits of what is held and sent.
#[derive(Debug, Clone)]
pub struct Config {
    /// How long after its end an interval waits for late data.
    pub interval_delay: Duration,
    /// Oldest age of a row before its batch is cut.
    pub batch_age: Duration,
    pub batch_rows: u32,
    /// Estimated bytes of a batch before compression.
    pub batch_bytes: usize,
    /// Full-detail keys in one interval of one family of tables.
    pub interval_keys: usize,
    /// Flows whose processes are remembered.
    pub flow_notes: usize,
    /// Requests come from processes, too: what packets show of them may be counted already.
    pub sees_processes: bool,
    /// Rows of requests a second; beyond it the log has a sample. 0: no bound.
    pub request_rows_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interval_delay: Duration::from_millis(1_500),
            batch_age: Duration::from_secs(1),
            batch_rows: 8_192,
            // Below the wire's limit for compressed payloads even when nothing compresses.
            batch_bytes: 3 << 20,
            interval_keys: 10_000,
            flow_notes: 100_000,
            sees_processes: false,
            request_rows_max: 0,
        }
    }
}

/// Columns of one batch, not yet numbered.
#[derive(Debug)]
pub struct Chunk {
    pub table: Table,
    pub rows: u32,
    pub columns: Columns,
}

/// What the emitter did since its start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Flow reports of a log.
    pub flows: u64,
    pub sessions: u64,
    /// Additions to an interval that went to a row with fewer details.
    pub collapsed: u64,
    /// Texts that were cut at the limit of their column.
    pub truncated: u64,
    /// Requests that have no row in the log, because there were too many.
    pub left_out: u64,
    /// Requests, flows and their seconds of MetaFlow itself, which are not reported.
    pub own: u64,
}

/// Sums up and lays out what the flow table hands out.
pub struct Emitter {
    config: Config,
    notes: FlowNotes,
    symbols: Symbols,
    flow_log: Builder<logs::FlowLog>,
    request_log: Builder<logs::RequestLog>,
    stacks: Builder<host::Stacks>,
    files: Builder<host::Files>,
    lives: Builder<host::Lives>,
    network: Rollup<NetworkKey, NetworkValue>,
    network_rows: [Builder<metrics::NetworkRows>; 4],
    application: Rollup<ApplicationKey, ApplicationValue>,
    once: Once,
    limit: Limit,
    application_rows: [Builder<metrics::ApplicationRows>; 4],
    chunks: Vec<Chunk>,
    counters: Counters,
}

impl Emitter {
    pub fn new(config: Config) -> Self {
        let keys = config.interval_keys;
        Self {
            notes: FlowNotes::new(config.flow_notes),
            symbols: Symbols::default(),
            flow_log: Builder::new(Table::L4FlowLog),
            request_log: Builder::new(Table::L7FlowLog),
            stacks: Builder::new(Table::InProcess),
            files: Builder::new(Table::FileEvent),
            lives: Builder::new(Table::ProcessEvent),
            network: Rollup::new(keys),
            network_rows: [Table::Network1s, Table::NetworkMap1s, Table::Network1m, Table::NetworkMap1m]
                .map(Builder::new),
            application: Rollup::new(keys),
            once: Once::new(config.sees_processes),
            limit: Limit::new(config.request_rows_max),
            application_rows: [
                Table::Application1s,
                Table::ApplicationMap1s,
                Table::Application1m,
                Table::ApplicationMap1m,
            ]
            .map(Builder::new),
            chunks: Vec::new(),
            counters: Counters::default(),
            config,
        }
    }

    /// From now on so many requests a second become rows.
    pub fn set_request_rows_max(&mut self, rows: u32) {
        self.limit.set(rows);
    }

    /// Takes in what one call of the flow table produced. `now` is the process's own clock in microseconds.
    pub fn accept(&mut self, output: &mut Output, now: u64, basis: &dyn Basis) {
        // Requests and logs first: the report of a flow's end makes its notes go.
        for (facts, session) in output.sessions.drain(..) {
            let place = self.notes.place(&facts, now, basis);
            if place.is_own(basis) {
                self.counters.own += 1;
                continue;
            }
            self.session(&place, &facts, &session, Origin::Packets, now);
        }
        for call in output.calls.drain(..) {
            let Call { facts, point, client_pid, server_pid, threads, coroutines, traces, source, session } =
                call;
            let place = Place::of_process(&facts, point, [client_pid, server_pid], basis);
            let origin = Origin::Process { threads, coroutines, traces, source };
            if place.is_own(basis) {
                self.counters.own += 1;
                continue;
            }
            self.session(&place, &facts, &session, origin, now);
        }
        for report in output.logs.drain(..) {
            let place = self.notes.place(&report.facts, now, basis);
            if place.is_own(basis) {
                self.counters.own += 1;
                continue;
            }
            self.counters.flows += 1;
            logs::push_flow(&mut self.flow_log, &place, &report, now);
            cut_when_full(&mut self.flow_log, &self.config, &mut self.chunks);
        }
        for report in output.seconds.drain(..) {
            self.accept_second(&report, now, basis);
        }
        self.accept_processes(output, now, basis);
        self.counters.collapsed = self.network.collapsed + self.application.collapsed;
    }

    /// What was seen of processes beside their requests.
    fn accept_processes(&mut self, output: &mut Output, now: u64, basis: &dyn Basis) {
        let Self { stacks, files, lives, config, chunks, counters, .. } = self;
        let mut is_own = |pid: u32| {
            let is_own = basis.is_own(pid);
            counters.own += u64::from(is_own);
            is_own
        };
        output.stacks.retain(|row| !is_own(row.pid));
        output.files.retain(|row| !is_own(row.pid));
        let truncated = &mut counters.truncated;
        for row in output.stacks.drain(..) {
            host::push_stack(stacks, &row, now, truncated);
            cut_when_full(stacks, config, chunks);
        }
        for row in output.files.drain(..) {
            host::push_file(files, &row, now, truncated);
            cut_when_full(files, config, chunks);
        }
        for row in output.lives.drain(..) {
            host::push_life(lives, &row, now, truncated);
            cut_when_full(lives, config, chunks);
        }
    }

    /// A row of the log, and what it adds to the metrics.
    fn session(&mut self, place: &Place, facts: &FlowFacts, session: &Session, origin: Origin, now: u64) {
        self.counters.sessions += 1;
        let value = ApplicationValue::from_session(session);
        let counts = self.once.look(place.point, &facts.ends, now, value.request > 0);
        if counts != Counts::Elsewhere {
            let key = ApplicationKey {
                place: *place,
                protocol: session.protocol,
                domain: self.intern(&session.request_domain),
                endpoint: self.intern(&session.endpoint),
            };
            let count = Count { second: second_of(session.end_time), key, value };
            match counts {
                Counts::Perhaps(view) => self.once.wait(view, count),
                Counts::Here | Counts::Elsewhere => {
                    self.application.add(count.second, count.key, &count.value)
                }
            }
        }
        let sequence = if session.req_tcp_seq == 0 { session.resp_tcp_seq } else { session.req_tcp_seq };
        let ports = u32::from(facts.ends.client_port) << 16 | u32::from(facts.ends.server_port);
        if !self.limit.admits(now, u64::from(ports) << 32 | u64::from(sequence)) {
            self.counters.left_out = self.limit.left_out;
            return;
        }
        let truncated = &mut self.counters.truncated;
        logs::push_session(&mut self.request_log, place, facts, session, origin, now, truncated);
        cut_when_full(&mut self.request_log, &self.config, &mut self.chunks);
    }

    fn accept_second(&mut self, report: &FlowReport, now: u64, basis: &dyn Basis) {
        let place = self.notes.place(&report.facts, now, basis);
        let second = second_of(report.start_time);
        let first_in_minute = self.notes.first_in_minute(report.facts.flow_id, second / 60);
        if place.is_own(basis) {
            self.counters.own += 1;
        } else {
            let key = NetworkKey { place, l7_protocol: report.l7_protocol };
            self.network.add(second, key, &NetworkValue::from_report(report, first_in_minute));
        }
        if NetworkValue::is_over(report.close_type) {
            self.notes.close(report.facts.flow_id, now);
        }
    }

    fn intern(&mut self, text: &str) -> Arc<str> {
        let (symbol, truncated) = self.symbols.intern(text);
        self.counters.truncated += u64::from(truncated);
        symbol
    }

    /// Seals intervals that are over by the clock of the traffic, and cuts batches that are old by the clock of the process; both in
    /// microseconds since 1970.
    pub fn tick(&mut self, traffic_now: u64, now: u64) {
        let Self { once, application, .. } = self;
        once.due(now, |count| application.add(count.second, count.key, &count.value));
        let delay = u64::try_from(self.config.interval_delay.as_micros()).unwrap_or(u64::MAX);
        self.seal(second_of(traffic_now.saturating_sub(delay)), now);
        self.notes.purge(now);
        let age = u64::try_from(self.config.batch_age.as_micros()).unwrap_or(u64::MAX);
        self.cut_opened_before(now.saturating_sub(age));
    }

    /// Seals everything: the end of the process or of a capture file.
    pub fn finish(&mut self, now: u64) {
        let Self { once, application, .. } = self;
        once.due(u64::MAX, |count| application.add(count.second, count.key, &count.value));
        self.seal(u32::MAX, now);
        self.cut_opened_before(u64::MAX);
    }

    /// Finished batches, oldest first.
    pub fn take(&mut self) -> Vec<Chunk> {
        std::mem::take(&mut self.chunks)
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Rows that wait in open intervals and batches.
    pub fn is_empty(&self) -> bool {
        self.network.is_empty()
            && self.application.is_empty()
            && self.once.is_empty()
            && self.flow_log.rows() == 0
            && self.request_log.rows() == 0
            && self.stacks.rows() == 0
            && self.files.rows() == 0
            && self.lives.rows() == 0
            && self.network_rows.iter().all(|builder| builder.rows() == 0)
            && self.application_rows.iter().all(|builder| builder.rows() == 0)
    }

    fn seal(&mut self, until: u32, now: u64) {
        let Self { config, network, network_rows, application, application_rows, chunks, .. } = self;
        network.seal(until, |interval, time, keys| {
            let [one_sided, map] = pair(network_rows, interval);
            for (key, value) in Rollup::one_sided(&keys) {
                metrics::push_network(one_sided, time, &key, &value, false, now);
                cut_when_full(one_sided, config, chunks);
            }
            for (key, value) in &keys {
                metrics::push_network(map, time, key, value, true, now);
                cut_when_full(map, config, chunks);
            }
        });
        application.seal(until, |interval, time, keys| {
            let [one_sided, map] = pair(application_rows, interval);
            for (key, value) in Rollup::one_sided(&keys) {
                metrics::push_application(one_sided, time, &key, &value, false, now);
                cut_when_full(one_sided, config, chunks);
            }
            for (key, value) in &keys {
                metrics::push_application(map, time, key, value, true, now);
                cut_when_full(map, config, chunks);
            }
        });
    }

    fn cut_opened_before(&mut self, limit: u64) {
        let chunks = &mut self.chunks;
        self.flow_log.cut_opened_before(limit, chunks);
        self.request_log.cut_opened_before(limit, chunks);
        self.stacks.cut_opened_before(limit, chunks);
        self.files.cut_opened_before(limit, chunks);
        self.lives.cut_opened_before(limit, chunks);
        for builder in &mut self.network_rows {
            builder.cut_opened_before(limit, chunks);
        }
        for builder in &mut self.application_rows {
            builder.cut_opened_before(limit, chunks);
        }
    }
}

/// The one-sided and the two-sided builder of an interval's length.
fn pair<T>(builders: &mut [T; 4], interval: Interval) -> [&mut T; 2] {
    let [second, second_map, minute, minute_map] = builders;
    match interval {
        Interval::Second => [second, second_map],
        Interval::Minute => [minute, minute_map],
    }
}

fn cut_when_full<T: columns::Rows>(builder: &mut Builder<T>, config: &Config, chunks: &mut Vec<Chunk>) {
    let is_full = builder.rows() >= config.batch_rows || builder.bytes() >= config.batch_bytes;
    if is_full || builder.shares_much_text() {
        builder.cut(chunks);
    }
}

/// The second of a time in microseconds; times beyond 2106 stay in the last one.
fn second_of(microseconds: u64) -> u32 {
    u32::try_from(microseconds / 1_000_000).unwrap_or(u32::MAX - 120)
}
