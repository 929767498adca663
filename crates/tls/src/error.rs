//! What may go wrong with certificates and handshakes.

use std::{io, path::PathBuf};

use tokio::net::TcpStream;

/// Files, or a connection to a server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is larger than {max} bytes")]
    TooLarge { path: PathBuf, max: u64 },
    #[error("{path} is not PEM: {reason}")]
    Pem { path: PathBuf, reason: String },
    #[error("{path} holds no certificate")]
    NoCertificate { path: PathBuf },
    #[error("{path} cannot be used with {key}")]
    Identity {
        path: PathBuf,
        key: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("{path} cannot be used as authority: {reason}")]
    Authority { path: PathBuf, reason: String },
    #[error("every certificate of {path} has ended")]
    AuthorityEnded { path: PathBuf },
    #[error("{path}: {reason}")]
    Content { path: PathBuf, reason: String },
    #[error("{0:?} is neither a name nor an address")]
    Name(String),
    #[error("failed to connect")]
    Connect(#[source] io::Error),
    #[error("no encrypted connection")]
    Handshake(#[source] io::Error),
}

/// Why a connection was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The client does not speak TLS; it may be told so.
    #[error("the client speaks plain text")]
    PlainText(TcpStream),
    /// No client can prove itself until there is a new authority.
    #[error("every certificate of the clients' authority has ended")]
    AuthorityEnded,
    #[error("the handshake took too long")]
    TimedOut,
    #[error("the handshake failed")]
    Handshake(#[source] io::Error),
}

impl AcceptError {
    /// A short name for counters.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::PlainText(_) => "plain_text",
            Self::AuthorityEnded => "authority_ended",
            Self::TimedOut => "handshake_timeout",
            Self::Handshake(_) => "handshake",
        }
    }
}
