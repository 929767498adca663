//! The accepting end.
//!
//! Bound: time of a handshake. Tickets are sealed with a key that lives as long as the configuration does: new files make old
//! tickets worthless, so who was let in by a removed authority must show a certificate again.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use rustls::{ServerConfig, server::WebPkiClientVerifier};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsAcceptor;

use crate::{AcceptError, Error, Identity, Reloading, pem, provider, validity};

/// From the connection to the end of the handshake: some round trips on a bad line.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// What a refused client may still send, and how long.
const DRAIN_BYTES_MAX: u64 = 64 << 10;
const DRAIN_WITHIN: Duration = Duration::from_secs(1);
/// The first byte of a TLS connection: the record that holds the client's greeting.
const HANDSHAKE_RECORD: u8 = 0x16;

/// An accepted connection.
pub type ServerStream = tokio_rustls::server::TlsStream<TcpStream>;

/// What a server needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFiles {
    pub identity: Identity,
    /// Clients must have a certificate of one of these.
    pub client_authority: Option<PathBuf>,
}

/// Makes encrypted connections of accepted ones; clones share it.
#[derive(Debug, Clone)]
pub struct Server {
    made: Arc<Reloading<Made>>,
    pub(crate) within: Duration,
}

#[derive(Debug)]
struct Made {
    config: Arc<ServerConfig>,
    /// Seconds since 1970.
    certificate_end: u64,
    client_authority_end: u64,
}

impl Server {
    /// Reads the files. `protocol` is the one that is spoken inside.
    pub fn load(files: ServerFiles, protocol: &'static [u8]) -> Result<Self, Error> {
        let ServerFiles { identity, client_authority } = files.clone();
        let mut paths = vec![identity.certificate, identity.key];
        paths.extend(client_authority);
        let made = Reloading::load(paths, move |contents| build(&files, protocol, contents))?;
        Ok(Self { made: Arc::new(made), within: HANDSHAKE_WITHIN })
    }

    /// Looks at the files now instead of within some seconds.
    pub fn reload(&self) {
        self.made.reload();
    }

    /// When the server's own certificate ends, in seconds since 1970.
    pub fn certificate_end(&self) -> u64 {
        self.made.get().certificate_end
    }

    /// When the last of the authorities of clients ends, in seconds since 1970; none when clients need no certificate.
    pub fn client_authority_end(&self) -> Option<u64> {
        Some(self.made.get().client_authority_end).filter(|end| *end != u64::MAX)
    }

    /// Waits for the client's greeting and makes the connection secret.
    pub async fn accept(&self, stream: TcpStream) -> Result<ServerStream, AcceptError> {
        match tokio::time::timeout(self.within, self.handshake(stream)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err((error, stream))) => {
                if let Some(stream) = stream {
                    hang_up(stream).await;
                }
                Err(error)
            }
            Err(_) => Err(AcceptError::TimedOut),
        }
    }

    /// Where the client was told why it is not let in, its connection comes with the error.
    async fn handshake(&self, stream: TcpStream) -> Result<ServerStream, (AcceptError, Option<TcpStream>)> {
        let mut first = [0];
        match stream.peek(&mut first).await {
            Err(error) => return Err((AcceptError::Handshake(error), None)),
            Ok(0) => return Err((AcceptError::Handshake(io::ErrorKind::UnexpectedEof.into()), None)),
            Ok(_) if first[0] != HANDSHAKE_RECORD => return Err((AcceptError::PlainText(stream), None)),
            Ok(_) => {}
        }
        let made = self.made.get();
        if made.client_authority_end < validity::now() {
            return Err((AcceptError::AuthorityEnded, None));
        }
        TlsAcceptor::from(Arc::clone(&made.config))
            .accept(stream)
            .into_fallible()
            .await
            .map_err(|(error, stream)| (AcceptError::Handshake(error), Some(stream)))
    }
}

/// Ends a connection so that the last words to the client arrive: closing it with unread bytes would reset it, and the client would
/// see that instead.
pub async fn hang_up(mut stream: TcpStream) {
    let ending = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut (&mut stream).take(DRAIN_BYTES_MAX), &mut tokio::io::sink()).await
    };
    // Who does not listen is not told.
    if let Ok(Err(error)) = tokio::time::timeout(DRAIN_WITHIN, ending).await {
        tracing::debug!(%error, "a refused client was gone");
    }
}

fn build(files: &ServerFiles, protocol: &'static [u8], contents: &[Vec<u8>]) -> Result<Made, Error> {
    let ServerFiles { identity, client_authority } = files;
    let [certificate, key, authority @ ..] = contents else {
        return Err(Error::NoCertificate { path: identity.certificate.clone() });
    };
    let failed =
        |source| Error::Identity { path: identity.certificate.clone(), key: identity.key.clone(), source };
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?;
    let mut client_authority_end = u64::MAX;
    let builder = match (client_authority, authority) {
        (Some(path), [content]) => {
            let (store, end) = pem::authorities(path, content)?;
            client_authority_end = end;
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider())
                    .build()
                    .map_err(|error| Error::Authority { path: path.clone(), reason: error.to_string() })?;
            builder.with_client_cert_verifier(verifier)
        }
        _ => builder.with_no_client_auth(),
    };
    let certificates = pem::certificates(&identity.certificate, certificate)?;
    let certificate_end = certificates.first().and_then(|first| validity::end(first)).unwrap_or(u64::MAX);
    let mut config = builder.with_single_cert(certificates, pem::key(&identity.key, key)?).map_err(failed)?;
    config.alpn_protocols = vec![protocol.to_vec()];
    config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(failed)?;
    Ok(Made { config: Arc::new(config), certificate_end, client_authority_end })
}
