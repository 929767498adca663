//! Whom the agent trusts, and how it proves itself.

use std::path::PathBuf;

use anyhow::ensure;
use metaflow_tls::{Client, ClientFiles, HTTP_2, Identity};
use serde::{Deserialize, Serialize};

/// Files in PEM form; they may change while the agent runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Nodes must have a certificate of one of these. Without it connections are plain text.
    pub authority: Option<PathBuf>,
    /// What the agent shows to nodes that ask for it.
    pub certificate: Option<PathBuf>,
    /// Private key of the certificate.
    pub key: Option<PathBuf>,
}

impl Tls {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let Self { authority, certificate, key } = self;
        ensure!(certificate.is_some() == key.is_some(), "tls.certificate and tls.key go together");
        ensure!(
            authority.is_some() || certificate.is_none(),
            "tls.certificate needs tls.authority, the one of the nodes' certificates"
        );
        Ok(())
    }

    /// Reads the files; none when connections are plain text.
    pub fn client(&self) -> Result<Option<Client>, metaflow_tls::Error> {
        let Self { authority: Some(authority), certificate, key } = self.clone() else { return Ok(None) };
        let identity = certificate.zip(key).map(|(certificate, key)| Identity { certificate, key });
        Client::load(ClientFiles { authority, identity }, HTTP_2).map(Some)
    }
}
