//! The capture thread: frames to packets to flows, handed over in pieces.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, TrySendError},
    },
    time::Duration,
};

use super::{PIECE_ROWS, Piece, rows};
use crate::{
    capture::{self, Progress, Source, Statistics},
    control::Running,
    flow::{self, FlowTable, Output},
    guard::{Level, Shedding},
    metrics::{Metrics, reason},
    packet::{self, Frame},
};

/// How long a poll waits for frames: bounds how late a tick and a stop are.
const POLL_WAIT: Duration = Duration::from_millis(50);
/// Rows of less than a piece are handed over after so long.
const HAND_OVER_US: u64 = 100_000;
/// While the guard samples, one flow in so many is looked at.
const SAMPLE_ONE_IN: u64 = 8;

/// What happens when the sealing thread does not follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// A live capture: the piece is dropped and counted.
    Drop,
    /// A replay: the capture waits.
    Wait,
}

/// The flow table and what it produced but did not hand over yet.
pub struct Feed {
    table: FlowTable,
    output: Output,
    queue: SyncSender<Piece>,
    overflow: Overflow,
    metrics: Arc<Metrics>,
    shedding: Arc<Shedding>,
    /// Latest time of a packet.
    traffic_now: u64,
    handed_over: u64,
    counted: Statistics,
    is_closed: bool,
    /// What nodes may change while it runs; a replay follows nobody.
    settings: Option<Running>,
}

impl Feed {
    pub fn new(
        config: flow::Config,
        queue: SyncSender<Piece>,
        overflow: Overflow,
        metrics: Arc<Metrics>,
        shedding: Arc<Shedding>,
    ) -> Self {
        Self {
            table: FlowTable::new(config),
            output: Output::default(),
            queue,
            overflow,
            metrics,
            shedding,
            traffic_now: 0,
            handed_over: 0,
            counted: Statistics::default(),
            is_closed: false,
            settings: None,
        }
    }

    /// From now on new flows are searched for requests as the settings say.
    pub fn follow(&mut self, settings: Running) {
        self.settings = Some(settings);
    }

    fn take_settings(&mut self) {
        let Some(settings) = &mut self.settings else { return };
        if settings.has_changed().unwrap_or(false) {
            let session = settings.borrow_and_update().session.clone();
            self.table.set_session(Arc::new(session));
        }
    }

    fn frame(&mut self, frame: &Frame<'_>, level: Level) {
        Metrics::add(&self.metrics.packets, 1);
        Metrics::add(&self.metrics.bytes, frame.wire_length.into());
        let Ok(packet) = packet::decode(frame) else {
            Metrics::add(&self.metrics.skipped, 1);
            return;
        };
        if level >= Level::Sample && !is_sampled(&packet) {
            self.metrics.lose(reason::SHED_PACKETS, 1);
            return;
        }
        self.traffic_now = self.traffic_now.max(packet.timestamp);
        self.table.packet(&packet, &mut self.output);
        if rows(&self.output) >= PIECE_ROWS {
            self.hand_over(false);
        }
    }

    fn hand_over(&mut self, end: bool) {
        self.handed_over = self.traffic_now;
        // As much room as it took this time: growing anew would move all of it several times.
        let next = Output { sessions: Vec::with_capacity(self.output.sessions.len()), ..Output::default() };
        let output = std::mem::replace(&mut self.output, next);
        let piece = Piece { output, traffic_now: self.traffic_now, end };
        let refused = match self.overflow {
            Overflow::Wait => self.queue.send(piece).err().map(|error| (error.0, true)),
            Overflow::Drop => match self.queue.try_send(piece) {
                Ok(()) => None,
                Err(TrySendError::Full(piece)) => Some((piece, false)),
                Err(TrySendError::Disconnected(piece)) => Some((piece, true)),
            },
        };
        if let Some((piece, is_closed)) = refused {
            self.is_closed |= is_closed;
            self.metrics.lose(reason::EMIT_BACKLOG, rows(&piece.output) as u64);
        }
    }

    /// Moves the clock of the flow table, and hands over what it reports. For live captures; files bring their own time.
    fn tick(&mut self, now: u64) {
        self.traffic_now = self.traffic_now.max(now);
        self.table.tick(now, &mut self.output);
        if now.abs_diff(self.handed_over) >= HAND_OVER_US {
            self.hand_over(false);
        }
    }

    /// Ends all flows: the source is over.
    fn finish(&mut self) {
        self.table.finish(&mut self.output);
        self.hand_over(true);
        // The next file may begin earlier.
        self.traffic_now = 0;
    }

    /// While nothing is captured, what the kernel drops is what the agent was told to leave out.
    fn count(&mut self, statistics: Statistics, level: Level) {
        let dropped = statistics.dropped.saturating_sub(self.counted.dropped);
        Metrics::add(&self.metrics.kernel_drops, dropped);
        let why = if level >= Level::Stop { reason::SHED_PACKETS } else { reason::KERNEL_DROPS };
        self.metrics.lose(why, dropped);
        self.counted = statistics;
    }
}

/// Keeps both directions of a flow together.
fn is_sampled(packet: &packet::Packet<'_>) -> bool {
    use std::hash::{Hash as _, Hasher as _};
    let (source, destination) = packet.transport.ports();
    let side = |address: std::net::IpAddr, port: u16| {
        let mut hasher = rustc_hash::FxHasher::default();
        (address, port).hash(&mut hasher);
        hasher.finish()
    };
    let both = side(packet.source, source) ^ side(packet.destination, destination);
    (both >> 24).is_multiple_of(SAMPLE_ONE_IN)
}

/// Reads a source to its end, or until told to stop. `clock` moves the time of live captures.
pub fn capture(
    source: &mut dyn Source,
    feed: &mut Feed,
    clock: Option<fn() -> u64>,
    stop: &AtomicBool,
) -> Result<(), capture::Error> {
    feed.counted = Statistics::default();
    while !stop.load(Ordering::Relaxed) && !feed.is_closed {
        let level = feed.shedding.level();
        feed.take_settings();
        feed.table.set_sessions(level < Level::NoRequests);
        let progress = if level >= Level::Stop {
            // Frames stay in the ring until it is full; the kernel counts what it drops.
            std::thread::park_timeout(POLL_WAIT);
            Ok(Progress::Idle)
        } else {
            source.poll(POLL_WAIT, &mut |frame| feed.frame(frame, level))
        };
        if let Some(clock) = clock {
            feed.tick(clock());
        }
        feed.count(source.statistics(), level);
        match progress {
            Ok(Progress::Frames | Progress::Idle) => {}
            Ok(Progress::End) => break,
            Err(error) => {
                // What came before the damage counts.
                feed.finish();
                return Err(error);
            }
        }
    }
    feed.finish();
    Ok(())
}
