//! The path of rows within the process: a capture thread with the flow table, a bounded queue, and a sealing thread with the emitter
//! and the spool. No async on it; the sender works from the spool on its own threads.
//!
//! Bound: the queue holds [`QUEUE`] pieces of [`PIECE_ROWS`] rows. When the sealing thread does not follow, a live capture of packets drops
//! pieces and counts their rows (`emit_backlog`), the eBPF thread leaves records in the ring, and a replay waits.

mod feed;
mod seal;

pub use feed::{Feed, Overflow, capture};
pub use seal::{Sealer, Settings};

use crate::flow::Output;

/// Pieces in the queue between the threads.
pub const QUEUE: usize = 8;
/// Rows at which a piece is handed over.
pub const PIECE_ROWS: usize = 1_024;

/// What the capture thread hands to the sealing thread.
#[derive(Debug)]
pub struct Piece {
    pub output: Output,
    /// Clock of the traffic, microseconds since 1970.
    pub traffic_now: u64,
    /// A capture file is over: its intervals are sealed at once.
    pub end: bool,
}

fn rows(output: &Output) -> usize {
    let Output { seconds, logs, sessions, calls, stacks, files, lives } = output;
    seconds.len() + logs.len() + sessions.len() + calls.len() + stacks.len() + files.len() + lives.len()
}
