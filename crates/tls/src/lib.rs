//! Encrypted connections: what agent and node share of TLS.
//!
//! Certificates and keys are PEM files; what changes on disk is taken over within seconds. TLS 1.3 alone, since both ends are ours or
//! recent. Sessions resume by tickets that the server does not keep, so that a herd of agents which comes back costs no signatures.
//!
//! Leaves out: who must be encrypted (configuration of agent and node), and how certificates are made (`metaflow ctl cert`).

mod client;
mod error;
mod pem;
mod reload;
mod server;
mod stream;
#[cfg(test)]
mod tests;
mod validity;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use client::{Client, ClientFiles, ClientStream, Connector};
pub use error::{AcceptError, Error};
pub use reload::Reloading;
pub use server::{Server, ServerFiles, ServerStream, hang_up};
pub use stream::Stream;

/// Protocol names (ALPN).
pub const HTTP_1: &[u8] = b"http/1.1";
pub const HTTP_2: &[u8] = b"h2";

/// Who one is: a certificate, with those between it and the authority after it, and its private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Whether a connection to `host` stays on this machine, where plain text is no risk. A name but `localhost` may mean any machine.
pub fn is_local(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Whether the first certificate of a file is that of a public key.
pub fn has_key(certificate: &Path, public_key: &[u8]) -> Result<bool, Error> {
    let content = reload::read_file(certificate)?;
    let certificates = pem::certificates(certificate, &content)?;
    Ok(certificates.first().is_some_and(|first| {
        !public_key.is_empty() && first.windows(public_key.len()).any(|part| part == public_key)
    }))
}

/// The cryptography behind it all, named wherever a configuration is made: nothing depends on a default of the process.
fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
