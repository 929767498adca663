//! The figures of the actors, for `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use metaflow_actors::{doubts, ingester, writer};
use metaflow_schema::TABLES;

use super::Running;
use crate::metrics::Reading;

impl Running {
    /// Readings of one name stand together.
    pub(super) fn read(&self, out: &mut Vec<Reading>) {
        let used = self.memory.used();
        out.push(Reading::gauge(
            "memory_used_bytes",
            "Row data in memory, from socket to store",
            used as f64,
        ));
        let capacity = self.memory.capacity() as f64;
        out.push(Reading::gauge("memory_budget_bytes", "Row data allowed in memory", capacity));
        out.push(Reading::gauge(
            "process_memory_budget_bytes",
            "Memory that the process may use, rows included and the engine not",
            self.memory_bytes as f64,
        ));
        if let Some(resident) = resident_bytes() {
            out.push(Reading::gauge("process_memory_bytes", "Memory that the process uses", resident as f64));
        }
        out.push(Reading::gauge("queries_running", "Queries that run", self.querier.running() as f64));
        let waiting = self.querier.waiting() as f64;
        out.push(Reading::gauge("queries_waiting", "Queries that wait for one to end", waiting));
        out.push(Reading::gauge("ingest_streams", "Streams of agents", self.streams.open() as f64));
        let sessions = self.sessions.count() as f64;
        out.push(Reading::gauge("agent_sessions", "Agents that are connected", sessions));
        out.push(Reading::gauge(
            "ingest_credit_bytes",
            "Payload that agents may send now, all together",
            self.ingester.credit() as f64,
        ));
        self.read_ingester(out);
        self.read_wal(out);
        self.read_labeler(out);
        self.read_writer(out);
        self.read_doubts(out);
        self.read_dictionary(out);
    }

    fn read_doubts(&self, out: &mut Vec<Reading>) {
        let Some(doubts) = &self.doubts else { return };
        let doubts::Metrics { open, removed, forgotten } = doubts.metrics();
        let help = "Batches stored here that another node may have stored, too, and has not answered for";
        out.push(Reading::gauge("doubted_batches", help, get(open) as f64));
        let help = "Batches whose rows were removed from this node's store, because another has them, too";
        out.push(Reading::counter("doubted_batches_removed", help, get(removed)));
        let help = "Batches that may be in two stores for good, because too many were in doubt";
        out.push(Reading::counter("doubted_batches_forgotten", help, get(forgotten)));
    }

    fn read_ingester(&self, out: &mut Vec<Reading>) {
        let ingester::Metrics {
            batches_accepted,
            rows_accepted,
            bytes_accepted,
            known,
            committed,
            batches_rejected,
            rows_rejected,
            rejected_later,
            batches_dropped,
            acks_unsent,
        } = self.ingester.metrics();
        let mut add = |name, help, counter: &AtomicU64| out.push(Reading::counter(name, help, get(counter)));
        add("ingest_batches", "Row batches accepted", batches_accepted);
        add("ingest_rows", "Rows accepted", rows_accepted);
        add("ingest_bytes", "Compressed bytes of accepted rows", bytes_accepted);
        add("ingest_batches_known", "Batches that came again", known);
        add("ingest_batches_committed", "Batches whose rows are in the store", committed);
        add("ingest_batches_malformed", "Batches refused for their envelope", batches_rejected);
        add("ingest_rows_malformed", "Rows of batches refused for their envelope", rows_rejected);
        add("ingest_batches_refused_later", "Batches refused by labeler or store", rejected_later);
        add("ingest_acks_unsent", "Acknowledgements that no stream took", acks_unsent);
        for (reason, counter) in ingester::metrics::DROP_REASONS.iter().zip(batches_dropped) {
            let reading = Reading::counter(
                "ingest_batches_not_taken",
                "Batches that were not taken and must be sent again, by reason",
                get(counter),
            );
            out.push(reading.label("reason", *reason));
        }
    }

    fn read_wal(&self, out: &mut Vec<Reading>) {
        let wal = self.ingester.wal().metrics();
        out.push(Reading::gauge("wal_bytes", "Bytes that wait for the store", get(&wal.bytes) as f64));
        out.push(Reading::gauge("wal_batches", "Batches that wait for the store", get(&wal.batches) as f64));
        let waiting = self.ingester.waiting() as f64;
        out.push(Reading::gauge("wal_batches_on_disk", "Batches that wait there and not in memory", waiting));
        out.push(Reading::counter("wal_syncs", "Group commits", get(&wal.syncs)));
        out.push(Reading::counter(
            "wal_write_errors",
            "Writes that the disk refused",
            get(&wal.write_errors),
        ));
        out.push(Reading::counter("wal_damaged", "Entries that could not be read back", get(&wal.damaged)));
    }

    fn read_labeler(&self, out: &mut Vec<Reading>) {
        let labeler = &self.labeler;
        let mut add = |name, help, counter: &AtomicU64| out.push(Reading::counter(name, help, get(counter)));
        add("labeler_rows", "Rows labelled", &labeler.rows);
        add("labeler_batches", "Batches labelled", &labeler.batches);
        add("labeler_rows_rejected", "Rows of malformed batches", &labeler.rejected_rows);
        add("labeler_batches_rejected", "Malformed batches", &labeler.rejected_batches);
        add("labeler_retries", "Attempts that the dictionary's disk made fail", &labeler.retries);
    }

    fn read_writer(&self, out: &mut Vec<Reading>) {
        type Figure = (&'static str, &'static str, fn(&writer::metrics::Table) -> &AtomicU64);
        const FIGURES: [Figure; 6] = [
            ("writer_rows", "Rows stored", |table| &table.rows_stored),
            ("writer_bytes", "Bytes inserted", |table| &table.bytes_inserted),
            ("writer_inserts", "Inserts that succeeded", |table| &table.inserts),
            ("writer_rows_rejected", "Rows that the store refused for their content", |table| {
                &table.rows_rejected
            }),
            ("writer_batches_looked_up", "Batches looked up in the store", |table| &table.batches_looked_up),
            ("writer_batches_found", "Batches that were stored already", |table| &table.batches_found_stored),
        ];
        let tables = || TABLES.into_iter().zip(&self.writer.tables);
        for (name, help, figure) in FIGURES {
            for (table, metrics) in tables() {
                out.push(Reading::counter(name, help, get(figure(metrics))).label("table", table.name));
            }
        }
        for (table, metrics) in tables() {
            let waiting = get(&metrics.rows_waiting) as f64;
            let reading = Reading::gauge("writer_rows_waiting", "Rows that wait for their insert", waiting);
            out.push(reading.label("table", table.name));
        }
        for (table, metrics) in tables() {
            for (reason, counter) in writer::metrics::reason::NAMES.iter().zip(&metrics.failures) {
                let reading =
                    Reading::counter("writer_failures", "Inserts that failed, by reason", get(counter));
                out.push(reading.label("table", table.name).label("reason", *reason));
            }
        }
    }

    fn read_dictionary(&self, out: &mut Vec<Reading>) {
        let stats = self.dictionary.stats();
        for kind in &stats {
            let reading = Reading::gauge("dictionary_names", "Names known, by kind", kind.names as f64);
            out.push(reading.label("kind", kind.kind.name()));
        }
        for kind in &stats {
            let help = "Share of this node's ids of a kind that is used up";
            let reading = Reading::gauge("dictionary_used_ratio", help, kind.used_share());
            out.push(reading.label("kind", kind.kind.name()));
        }
        for kind in &stats {
            let help = "Lookups beyond the limit of a kind";
            let reading = Reading::counter("dictionary_overflowed", help, kind.overflowed);
            out.push(reading.label("kind", kind.kind.name()));
        }
        for kind in &stats {
            let help = "Ids beside the canonical ones of their names";
            let reading = Reading::gauge("dictionary_aliases", help, kind.aliases as f64);
            out.push(reading.label("kind", kind.kind.name()));
        }
        let conflicts = Reading::counter(
            "dictionary_conflicts",
            "Entries of other nodes that give an id a second name: two nodes had one number",
            self.dictionary.conflicts(),
        );
        out.push(conflicts);
        let pending = self.dictionary.pending() as f64;
        out.push(Reading::gauge("dictionary_pending", "Names that the store does not have yet", pending));
    }
}

/// Resident memory of this process; none where /proc is not to be read.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size() as u64)
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Relaxed)
}
