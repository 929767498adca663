//! What an operator asks of other nodes through this one: whether they answer, and requests that concern them. And the last word of a node
//! that goes.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use metaflow_actors::dictionary::{Dictionary, hand_over};
use metaflow_wire::{ForwardRequest, ForwardResponse, PingRequest};
use tonic::Status;

use super::Peers;

/// Longer than a node takes that does anything at all.
const PING_WITHIN: Duration = Duration::from_secs(2);

impl Peers {
    /// How fast a node answers. The first call may have to connect, so the second one counts.
    pub(crate) async fn ping(&self, node_id: u16, address: SocketAddr) -> Result<Duration, String> {
        let mut client = self.client(address).ok_or("its address cannot be used")?;
        let mut fastest = Duration::MAX;
        for _ in 0..2 {
            let begun = Instant::now();
            let answer = within(PING_WITHIN, client.ping(PingRequest {})).await;
            let answered = answer.map_err(|status| reason(&status))?.into_inner().node_id;
            if answered != u32::from(node_id) {
                return Err(format!("node {answered} answers at {address}"));
            }
            fastest = fastest.min(begun.elapsed());
        }
        Ok(fastest)
    }

    /// Hands a request to the node that it concerns.
    pub(crate) async fn forward(
        &self,
        address: SocketAddr,
        request: ForwardRequest,
        timeout: Duration,
    ) -> Result<ForwardResponse, String> {
        let mut client = self.client(address).ok_or("its address cannot be used")?;
        let answer = within(timeout, client.forward(request)).await;
        answer.map(tonic::Response::into_inner).map_err(|status| reason(&status))
    }

    /// Before this node goes: tells every other node what it may not know of the partitions that it holds now.
    pub(crate) async fn hand_over(&self, dictionary: &Dictionary) {
        let guide = self.guide();
        self.tell_news(dictionary).await;
        for (node, address) in guide.nodes().filter(|(node, _)| *node != self.inner.own) {
            let comparison = hand_over(node, |partition| guide.owners(partition));
            if let Err(status) = self.compare(address, comparison, dictionary).await {
                tracing::warn!(%address, %status, "names could not be handed over");
            }
        }
    }
}

async fn within<T>(timeout: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(timeout, call)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")))
}

/// What went wrong, with its cause: the transport's own text says only that it was the transport.
pub(super) fn reason(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
