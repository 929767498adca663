//! Encryption of the node's sockets, and the rule that nothing leaves the machine in plain text unless somebody wrote so.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context as _, ensure};
use metaflow_tls::{Client, ClientFiles, HTTP_1, HTTP_2, Identity, Server, ServerFiles};
use serde::Deserialize;

use super::{Config, Store};

/// Files in PEM form; they may change while the node runs. With a certificate, gRPC and HTTP are encrypted wherever they listen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// The node's certificate: it names the node's names and addresses, and serves towards other nodes as well.
    pub certificate: Option<PathBuf>,
    /// Private key of the certificate.
    pub key: Option<PathBuf>,
    /// Agents and other nodes must have a certificate of one of these.
    pub client_authority: Option<PathBuf>,
}

impl Tls {
    fn identity(&self) -> Option<Identity> {
        let (certificate, key) = self.certificate.clone().zip(self.key.clone())?;
        Some(Identity { certificate, key })
    }

    /// What the gRPC socket is encrypted with; none in plain text.
    pub(crate) fn grpc(&self) -> anyhow::Result<Option<Server>> {
        self.server(self.client_authority.clone(), HTTP_2)
    }

    /// The same for HTTP: people and dashboards prove themselves by tokens.
    pub(crate) fn http(&self) -> anyhow::Result<Option<Server>> {
        self.server(None, HTTP_1)
    }

    fn server(
        &self,
        client_authority: Option<PathBuf>,
        protocol: &'static [u8],
    ) -> anyhow::Result<Option<Server>> {
        let Some(identity) = self.identity() else { return Ok(None) };
        let server = Server::load(ServerFiles { identity, client_authority }, protocol);
        server.context("in [tls] of the configuration").map(Some)
    }

    /// What connections to other nodes are made with; none in plain text. One is enough for a process: it keeps tickets.
    pub(crate) fn peers(&self) -> anyhow::Result<Option<Client>> {
        let (Some(identity), Some(authority)) = (self.identity(), self.client_authority.clone()) else {
            return Ok(None);
        };
        let client = Client::load(ClientFiles { authority, identity: Some(identity) }, HTTP_2);
        client.context("in [tls] of the configuration").map(Some)
    }
}

/// What connections to ClickHouse servers are made with; none in plain text.
pub(crate) fn store(store: &Store) -> anyhow::Result<Option<Client>> {
    let Store::Server { authority: Some(authority), .. } = store else { return Ok(None) };
    let client = Client::load(ClientFiles { authority: authority.clone(), identity: None }, HTTP_1);
    client.context("in store.authority of the configuration").map(Some)
}

/// Refuses sockets that would let strangers read or ask.
pub(super) fn check(config: &Config) -> anyhow::Result<()> {
    let Tls { certificate, key, client_authority } = &config.tls;
    ensure!(certificate.is_some() == key.is_some(), "tls.certificate and tls.key go together");
    ensure!(
        client_authority.is_none() || certificate.is_some(),
        "tls.client_authority needs tls.certificate and tls.key"
    );
    if config.insecure {
        return Ok(());
    }
    for (setting, address) in [("grpc.listen", config.grpc.listen), ("http.listen", config.http.listen)] {
        ensure!(
            is_local(address) || certificate.is_some(),
            "{setting} = {address} is open to other machines, and nothing is encrypted: set tls.certificate and tls.key (`metaflow ctl cert \
             bootstrap` makes them), listen on 127.0.0.1, or write insecure = true"
        );
    }
    ensure!(
        is_local(config.http.listen) || config.http.tokens_file.is_some(),
        "http.listen = {} is open to other machines, and everybody may ask: set http.tokens_file (`metaflow ctl token create` makes one), \
         listen on 127.0.0.1, or write insecure = true",
        config.http.listen
    );
    ensure!(
        !config.cluster.is_several() || config.cluster.secret_file.is_some(),
        "cluster.seeds names other nodes, and everybody who connects could call as one of them: set cluster.secret_file to a file that all \
         nodes share (`openssl rand -hex 32` makes a secret), or write insecure = true"
    );
    Ok(())
}

pub(crate) fn is_local(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}
