//! The signals that end a node.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// SIGTERM and SIGINT, listened to from the start on: a stop during the start counts too.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Whoever runs the node in their own process.
    stop: CancellationToken,
}

impl Signals {
    pub(super) fn listen(stop: CancellationToken) -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?,
            stop,
        })
    }

    /// The name of the signal that came.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            () = stopped(&mut self.stop) => "a stop",
        }
    }
}

/// Comes once: what comes next is a second signal.
async fn stopped(stop: &mut CancellationToken) {
    stop.cancelled().await;
    *stop = CancellationToken::new();
}
