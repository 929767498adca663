//! What keeps strangers out: read before anything starts, so that a file that cannot be used ends the start.

use std::net::SocketAddr;

use anyhow::Context as _;
use metaflow_tls::{Reloading, Server};

use crate::{
    clock,
    config::{self, Config},
    grpc,
    tokens::Tokens,
};

/// Time to replace a certificate at ease.
const CERTIFICATE_DAYS_MIN: u64 = 30;

/// What the sockets are guarded with; each may be missing where the configuration allows it.
pub(super) struct Locks {
    pub(super) http: Option<Server>,
    pub(super) grpc: Option<Server>,
    pub(super) tokens: Option<Reloading<Tokens>>,
}

impl Locks {
    /// Reads the files, and says what is open.
    pub(super) fn load(config: &Config) -> anyhow::Result<Self> {
        let (http, grpc) = (config.tls.http()?, config.tls.grpc()?);
        let tokens = config.http.tokens_file.clone().map(Tokens::load).transpose();
        let tokens = tokens.context("in http.tokens_file of the configuration")?;
        check_files_of_peers(config)?;
        warn_of_open_sockets(config);
        warn_of_end(grpc.as_ref());
        Ok(Self { http, grpc, tokens })
    }
}

/// What calls between nodes are made with: what cannot be used is said now and not at the first call.
fn check_files_of_peers(config: &Config) -> anyhow::Result<()> {
    config.tls.peers()?;
    config::store_tls(&config.store)?;
    if let Some(file) = config.cluster.secret_file.clone() {
        grpc::Secret::load(file).context("in cluster.secret_file of the configuration")?;
    }
    Ok(())
}

/// A certificate that ends takes the node away from all agents at once.
fn warn_of_end(tls: Option<&Server>) {
    let Some(end) = tls.map(Server::certificate_end) else { return };
    let days = end.saturating_sub(clock::seconds().into()) / (24 * 3600);
    if days < CERTIFICATE_DAYS_MIN {
        tracing::warn!(days, "tls.certificate ends soon: put a new one in its place, which needs no restart");
    }
}

/// Says what others on the network could read or do: what the operator allowed, and gossip, which is always plain text.
fn warn_of_open_sockets(config: &Config) {
    let Config { grpc, http, cluster, tls, store, .. } = config;
    let warn = |setting, address: SocketAddr, what| {
        if !config::is_local(address) {
            tracing::warn!(setting, %address, "{what}");
        }
    };
    if tls.certificate.is_none() {
        for (setting, address) in [("grpc.listen", grpc.listen), ("http.listen", http.listen)] {
            warn(
                setting,
                address,
                "listens beyond this machine without encryption: keep it in a private network",
            );
        }
    } else if tls.client_authority.is_none() {
        warn("grpc.listen", grpc.listen, "takes rows from whoever connects: tls.client_authority is not set");
    }
    if http.tokens_file.is_none() {
        warn("http.listen", http.listen, "answers whoever asks: http.tokens_file is not set");
    }
    if let config::Store::Server { urls, authority: None, .. } = store
        && config::leave_machine(urls)
    {
        tracing::warn!(
            setting = "store.urls",
            "rows and the password go to another machine without encryption: keep it in a private network"
        );
    }
    if !cluster.seeds.is_empty() {
        warn("cluster.listen", cluster.listen, "gossip is not encrypted: keep it in a private network");
    }
}
