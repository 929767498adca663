//! The sealing thread: reports become batches, batches become durable.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use metaflow_wire::{BATCH_BYTES_MAX, COLUMNS_BYTES_MAX, seal};
use tokio::sync::watch;

use super::Piece;
use crate::{
    control::Running,
    emit::{self, Chunk, Emitter},
    facts::Host,
    metrics::{Metrics, reason},
    sender::SharedSpool,
    spool::generation_at,
};

#[derive(Debug, Clone)]
pub struct Settings {
    pub emit: emit::Config,
    pub flush_interval: Duration,
    /// A replay waits while the spool holds more than this, instead of pushing its own oldest batches out.
    pub spool_bytes_wait: Option<u64>,
    pub clock: fn() -> u64,
    /// What nodes may change while it runs; a replay follows nobody.
    pub running: Option<Running>,
}

/// How often a replay looks whether there is room again.
const ROOM_WAIT: Duration = Duration::from_millis(20);

/// State of the sealing thread.
pub struct Sealer {
    settings: Settings,
    emitter: Emitter,
    spool: SharedSpool,
    host: watch::Receiver<Arc<Host>>,
    metrics: Arc<Metrics>,
    flushed: Instant,
    is_failing: bool,
    left_out: u64,
}

impl Sealer {
    pub fn new(
        settings: Settings,
        spool: SharedSpool,
        host: watch::Receiver<Arc<Host>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let emitter = Emitter::new(settings.emit.clone());
        Self {
            settings,
            emitter,
            spool,
            host,
            metrics,
            flushed: Instant::now(),
            is_failing: false,
            left_out: 0,
        }
    }

    /// Works until the queue is closed; then seals what is open and makes it durable. `hurry` ends waiting for room.
    pub fn run(mut self, queue: &Receiver<Piece>, hurry: &AtomicBool) {
        loop {
            let next = self.settings.flush_interval.saturating_sub(self.flushed.elapsed());
            match queue.recv_timeout(next) {
                Ok(piece) => self.take(piece),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.store();
            if self.flushed.elapsed() >= self.settings.flush_interval {
                self.flush();
                self.wait_for_room(hurry);
            }
        }
        self.emitter.finish((self.settings.clock)());
        self.store();
        self.flush();
    }

    fn take(&mut self, piece: Piece) {
        let Piece { mut output, traffic_now, end } = piece;
        let now = (self.settings.clock)();
        if let Some(running) = &mut self.settings.running
            && running.has_changed().unwrap_or(false)
        {
            self.emitter.set_request_rows_max(running.borrow_and_update().guard.request_rows_max);
        }
        // The host's facts are borrowed for one piece, a fraction of a millisecond.
        let host = Arc::clone(&self.host.borrow());
        self.emitter.accept(&mut output, now, host.as_ref());
        if end {
            self.emitter.finish(now);
        } else {
            self.emitter.tick(traffic_now, now);
        }
    }

    /// Numbers what the emitter finished.
    fn store(&mut self) {
        for chunk in self.emitter.take() {
            let Chunk { table, rows, columns } = chunk;
            let batch = seal(0, 0, table, rows, &columns);
            // The emitter's limits keep far below; this is the wire's own.
            if batch.payload.len() > BATCH_BYTES_MAX || batch.uncompressed_bytes as usize > COLUMNS_BYTES_MAX
            {
                self.metrics.lose(reason::BATCH_TOO_LARGE, rows.into());
                continue;
            }
            self.metrics.add_rows(table.as_str_name(), rows.into());
            Metrics::add(&self.metrics.batches_sealed, 1);
            let generation_now = generation_at((self.settings.clock)());
            // None is counted by the spool.
            self.spool.lock().append(batch, generation_now);
        }
        let counters = self.emitter.counters();
        self.metrics.flows.store(counters.flows, Ordering::Relaxed);
        self.metrics.sessions.store(counters.sessions, Ordering::Relaxed);
        self.metrics.lose(reason::REQUEST_ROWS, counters.left_out - self.left_out);
        self.left_out = counters.left_out;
    }

    fn flush(&mut self) {
        self.flushed = Instant::now();
        match self.spool.flush() {
            Ok(()) if self.is_failing => {
                self.is_failing = false;
                tracing::info!("spool is written again");
            }
            Ok(()) => {}
            // Once, and not five times a second.
            Err(error) if !self.is_failing => {
                self.is_failing = true;
                tracing::error!(%error, "failed to write the spool: batches wait in memory");
                self.metrics.fail(&format!("failed to write the spool: {error}"));
            }
            Err(_) => {}
        }
    }

    fn wait_for_room(&mut self, hurry: &AtomicBool) {
        let Some(limit) = self.settings.spool_bytes_wait else { return };
        while self.spool.lock().stats().disk_bytes > limit && !hurry.load(Ordering::Relaxed) {
            std::thread::park_timeout(ROOM_WAIT);
        }
    }
}
