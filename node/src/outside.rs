//! A node within another program: what it meets outside of its process. A test runs a whole cluster this way, with faults between its nodes.

use std::{net::SocketAddr, sync::Arc};

use tokio_util::sync::CancellationToken;

use crate::{config::Config, node};

/// Where a connection to another node really goes, by the address that the node says of itself.
pub type Route = Arc<dyn Fn(SocketAddr) -> SocketAddr + Send + Sync>;

#[derive(Clone)]
pub struct Outside {
    /// Ends the node as SIGTERM does.
    pub stop: CancellationToken,
    pub route: Route,
}

impl Default for Outside {
    /// The real thing.
    fn default() -> Self {
        Self { stop: CancellationToken::new(), route: Arc::new(|address| address) }
    }
}

impl Outside {
    /// Runs a node until it is told to end. When its runtime is ended before, that is its death.
    pub async fn run(self, config: Config) -> anyhow::Result<()> {
        node::run(config, self).await
    }
}
