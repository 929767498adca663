//! Connections to a node: encrypted, or plain text where that is allowed.

#[cfg(test)]
mod tests;

use anyhow::{Context as _, ensure};
use tonic::transport::{Channel, Endpoint};

use super::Config;
use crate::config::is_local;

/// Connects to `host:port`, which a file or another node named.
pub(super) async fn connect(config: &Config, server: &str) -> anyhow::Result<Channel> {
    ensure!(
        config.tls.is_some() || config.insecure || is_local(server),
        "{server} is beyond this host and tls.authority is not set: set it, or insecure = true to send what this host says in plain text"
    );
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{server}"))
        .with_context(|| format!("server {server} is not host:port"))?
        .connect_timeout(config.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(config.silence_max * 5)
        .keep_alive_timeout(config.silence_max);
    let channel = match &config.tls {
        Some(tls) => endpoint.connect_with_connector(tls.connector()).await,
        None => endpoint.connect().await,
    };
    channel.with_context(|| format!("failed to connect to {server}"))
}
