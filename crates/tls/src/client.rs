//! The connecting end.
//!
//! One client is kept for as long as its program runs: it remembers the tickets of the servers it spoke to.

use std::{
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{Error, Identity, Reloading, Stream, pem, provider, validity};

/// Where an address names none.
const PORT: u16 = 443;

/// A connection to a server.
pub type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;

/// What a client needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFiles {
    /// Servers must have a certificate of one of these.
    pub authority: PathBuf,
    /// Shown to servers that ask for it.
    pub identity: Option<Identity>,
}

/// Makes encrypted connections; clones share it and its tickets.
#[derive(Debug, Clone)]
pub struct Client {
    made: Arc<Reloading<Made>>,
}

#[derive(Debug)]
struct Made {
    config: Arc<ClientConfig>,
    authority: PathBuf,
    /// Seconds since 1970.
    authority_end: u64,
}

impl Client {
    /// Reads the files. `protocol` is the one that is spoken inside.
    pub fn load(files: ClientFiles, protocol: &'static [u8]) -> Result<Self, Error> {
        let ClientFiles { authority, identity } = files.clone();
        let mut paths = vec![authority];
        paths.extend(identity.into_iter().flat_map(|Identity { certificate, key }| [certificate, key]));
        let made = Reloading::load(paths, move |contents| build(&files, protocol, contents))?;
        Ok(Self { made: Arc::new(made) })
    }

    /// Looks at the files now instead of within some seconds.
    pub fn reload(&self) {
        self.made.reload();
    }

    /// Connects to a server that must prove to be `host`, a name or an address.
    pub async fn connect(&self, host: &str, port: u16) -> Result<ClientStream, Error> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(|_| Error::Name(host.to_owned()))?;
        let made = self.made.get();
        if made.authority_end < validity::now() {
            return Err(Error::AuthorityEnded { path: made.authority.clone() });
        }
        let stream = TcpStream::connect((host, port)).await.map_err(Error::Connect)?;
        // Messages are small and waited for.
        stream.set_nodelay(true).map_err(Error::Connect)?;
        TlsConnector::from(Arc::clone(&made.config)).connect(name, stream).await.map_err(Error::Handshake)
    }

    /// What tonic's `connect_with_connector` takes, and hyper's client; addresses are `https://host:port`.
    pub fn connector(&self) -> Connector {
        Connector { client: self.clone() }
    }
}

/// Connects for tonic, whose own connector would forget the tickets with each new endpoint, and for hyper.
#[derive(Debug, Clone)]
pub struct Connector {
    client: Client,
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let client = self.client.clone();
        Box::pin(async move {
            let Some(host) = uri.host() else { return Err(Error::Name(uri.to_string())) };
            client
                .connect(host, uri.port_u16().unwrap_or(PORT))
                .await
                .map(|stream| TokioIo::new(Stream(stream)))
        })
    }
}

fn build(files: &ClientFiles, protocol: &'static [u8], contents: &[Vec<u8>]) -> Result<Made, Error> {
    let ClientFiles { authority, identity } = files;
    let [authority_content, own @ ..] = contents else {
        return Err(Error::NoCertificate { path: authority.clone() });
    };
    let (store, authority_end) = pem::authorities(authority, authority_content)?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Error::Authority { path: authority.clone(), reason: error.to_string() })?
        .with_root_certificates(store);
    let mut config = match (identity, own) {
        (Some(Identity { certificate, key }), [certificate_content, key_content]) => builder
            .with_client_auth_cert(
                pem::certificates(certificate, certificate_content)?,
                pem::key(key, key_content)?,
            )
            .map_err(|source| Error::Identity { path: certificate.clone(), key: key.clone(), source })?,
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(Made { config: Arc::new(config), authority: authority.clone(), authority_end })
}
