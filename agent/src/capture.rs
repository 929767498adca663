//! Where frames come from: interfaces of this host and capture files, in one shape.
//!
//! A [`Source`] is polled: it hands frames to a function and says whether more may come. Leaves out: what is in a frame (`packet`).

mod block;
mod file;
mod filter;
mod live;
mod pcap;
mod pcapng;
mod ring;

use std::path::PathBuf;
use std::time::Duration;

use crate::packet::Frame;

pub use file::{FileSource, Replay, ReplayAt};
pub use live::{LiveConfig, LiveSource};

/// A source of frames.
pub trait Source {
    /// Hands over frames that are there, or waits for some up to `wait`. Work a call is bounded.
    fn poll(&mut self, wait: Duration, each: &mut dyn FnMut(&Frame<'_>)) -> Result<Progress, Error>;

    /// What was captured and lost since the source was opened.
    fn statistics(&mut self) -> Statistics;
}

/// What a poll came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Frames were handed over.
    Frames,
    /// None came in time.
    Idle,
    /// There will be no more.
    End,
}

/// What was captured and lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames handed over.
    pub frames: u64,
    /// Frames that found no room in the kernel's ring.
    pub dropped: u64,
    /// Times that the ring was full.
    pub full: u64,
    /// Frames that were seen a second time on a loopback interface, or that make no sense, and were left out.
    pub ignored: u64,
}

/// Why a source cannot be opened or read on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to open capture file {path}")]
    Open { path: PathBuf, source: std::io::Error },
    #[error("capture file {path}: {what} at packet {packet}")]
    Damaged { path: PathBuf, packet: u64, what: String },
    #[error("failed to read capture file {path} at packet {packet}")]
    Read { path: PathBuf, packet: u64, source: std::io::Error },
    #[error("failed to capture on interface {interface} (needs CAP_NET_RAW)")]
    Socket { interface: String, source: std::io::Error },
    #[error("failed to wait for frames")]
    Wait { source: std::io::Error },
}
