//! Handshakes over loopback between good and bad certificates.

use std::{fs, path::Path};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::HandshakeKind;
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;

/// An authority and the folder of what it gave out.
struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

fn now() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + std::time::UNIX_EPOCH.elapsed().unwrap()
}

fn params(names: &[&str], days: i64) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = now() - Duration::days(30);
    params.not_after = now() + Duration::days(days);
    params
}

impl Authority {
    fn new(days: i64) -> Self {
        let mut params = params(&[], days);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        // Authorities of one name would be told apart by their signatures alone.
        params.distinguished_name.push(DnType::CommonName, format!("authority {:?}", key.public_key_raw()));
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn authority(&self) -> PathBuf {
        self.path("ca.crt")
    }

    /// Gives out a certificate that ends in `days`.
    fn issue(&self, file: &str, names: &[&str], days: i64) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = params(names, days).signed_by(&key, &self.issuer).unwrap();
        let identity = Identity {
            certificate: self.path(&format!("{file}.crt")),
            key: self.path(&format!("{file}.key")),
        };
        fs::write(&identity.certificate, certificate.pem()).unwrap();
        fs::write(&identity.key, key.serialize_pem()).unwrap();
        identity
    }

    fn server(&self, identity: Identity, client_authority: Option<PathBuf>) -> Server {
        Server::load(ServerFiles { identity, client_authority }, HTTP_2).unwrap()
    }

    fn client(&self, identity: Option<Identity>) -> Client {
        Client::load(ClientFiles { authority: self.authority(), identity }, HTTP_2).unwrap()
    }
}

/// Both ends of a try, and whether a byte went there and back.
struct Outcome {
    server: Result<HandshakeKind, String>,
    client: Result<(), String>,
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

async fn attempt(server: &Server, client: &Client) -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = server.accept(stream).await.map_err(|error| chain(&error))?;
        let byte = stream.read_u8().await.map_err(|error| error.to_string())?;
        stream.write_u8(byte).await.map_err(|error| error.to_string())?;
        stream.shutdown().await.map_err(|error| error.to_string())?;
        Ok(stream.get_ref().1.handshake_kind().unwrap())
    };
    let asking = async {
        let mut stream = client.connect("127.0.0.1", port).await.map_err(|error| chain(&error))?;
        stream.write_u8(7).await.map_err(|error| error.to_string())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.map_err(|error| error.to_string())?;
        assert_eq!(answer, [7]);
        Ok(())
    };
    let (server, client) = tokio::join!(serving, asking);
    Outcome { server, client }
}

#[tokio::test]
async fn both_ends_prove_themselves_and_the_second_handshake_resumes() {
    let authority = Authority::new(30);
    let server = authority
        .server(authority.issue("node", &["127.0.0.1", "n1.example"], 30), Some(authority.authority()));
    let client = authority.client(Some(authority.issue("agent", &["agent"], 30)));
    let first = attempt(&server, &client).await;
    assert_eq!((first.server, first.client), (Ok(HandshakeKind::Full), Ok(())));
    let second = attempt(&server, &client).await;
    assert_eq!((second.server, second.client), (Ok(HandshakeKind::Resumed), Ok(())));
}

#[tokio::test]
async fn tickets_are_worth_nothing_after_the_files_changed() {
    let authority = Authority::new(30);
    let server = authority.server(authority.issue("node", &["127.0.0.1"], 30), Some(authority.authority()));
    let client = authority.client(Some(authority.issue("agent", &["agent"], 30)));
    attempt(&server, &client).await.client.unwrap();
    let other = Authority::new(30);
    fs::copy(other.authority(), authority.authority()).unwrap();
    server.reload();
    let refused = attempt(&server, &client).await;
    assert!(refused.server.unwrap_err().contains("certificate"));
    assert!(refused.client.is_err());
}

#[tokio::test]
async fn bad_certificates_are_refused_and_the_reason_is_said() {
    let (authority, other, expired) = (Authority::new(30), Authority::new(30), Authority::new(-1));
    let node = || authority.issue("node", &["127.0.0.1"], 30);
    let agent = |from: &Authority, days| Some(from.issue("agent", &["agent"], days));
    let check = async |server: Server, client: Client, part: &str| {
        let Outcome { server, client } = attempt(&server, &client).await;
        let (server, client) = (server.unwrap_err(), client.unwrap_err());
        assert!(server.contains(part) || client.contains(part), "{part}: {server} / {client}");
    };
    let mutual = || authority.server(node(), Some(authority.authority()));
    check(mutual(), authority.client(None), "peer sent no certificates").await;
    check(mutual(), authority.client(agent(&other, 30)), "UnknownIssuer").await;
    check(mutual(), authority.client(agent(&authority, -1)), "expired").await;
    check(mutual(), other.client(agent(&authority, 30)), "UnknownIssuer").await;
    let elsewhere = authority.server(authority.issue("node", &["n2.example"], 30), None);
    check(elsewhere, authority.client(None), "not valid for name").await;
    let old = authority.server(authority.issue("node", &["127.0.0.1"], -1), None);
    check(old, authority.client(None), "expired").await;
    // The certificates that an authority gave out may be meant to last longer than itself.
    let asking = expired.client(None).connect("127.0.0.1", 1).await.unwrap_err();
    assert!(chain(&asking).ends_with("ca.crt has ended"), "{asking}");
    let asked = authority.server(node(), Some(expired.authority()));
    let refused = attempt(&asked, &authority.client(agent(&expired, 30))).await;
    assert!(refused.server.unwrap_err().contains("has ended"));
    assert!(refused.client.is_err());
}

#[tokio::test]
async fn plain_text_and_silence_are_told_apart() {
    let authority = Authority::new(30);
    let server = authority.server(authority.issue("node", &["127.0.0.1"], 30), None);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let reason = async |bytes: &[u8]| {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        server.accept(stream).await.unwrap_err().reason()
    };
    assert_eq!(reason(b"PRI * HTTP/2.0\r\n\r\n").await, "plain_text");
    assert_eq!(reason(b"").await, "handshake");
    assert_eq!(reason(b"\x16\x03\x01 nonsense").await, "handshake");
}

#[tokio::test]
async fn who_says_nothing_is_given_up() {
    let authority = Authority::new(30);
    let mut server = authority.server(authority.issue("node", &["127.0.0.1"], 30), None);
    server.within = std::time::Duration::from_millis(10);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    assert_eq!(server.accept(stream).await.unwrap_err().reason(), "handshake_timeout");
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_over_and_a_broken_one_is_not() {
    let authority = Authority::new(30);
    let server = authority.server(authority.issue("node", &["n2.example"], 30), None);
    let client = authority.client(None);
    attempt(&server, &client).await.client.unwrap_err();
    authority.issue("node", &["127.0.0.1"], 30);
    server.reload();
    attempt(&server, &client).await.client.unwrap();
    fs::write(authority.path("node.key"), "half of a fi").unwrap();
    server.reload();
    attempt(&server, &authority.client(None)).await.client.unwrap();
}

#[test]
fn files_that_cannot_be_used_are_named_and_no_key_is_printed() {
    let authority = Authority::new(30);
    let good = authority.issue("node", &["127.0.0.1"], 30);
    let other = authority.issue("other", &["127.0.0.1"], 30);
    let load = |certificate: &Path, key: &Path, client_authority: Option<&Path>| {
        let identity = Identity { certificate: certificate.to_owned(), key: key.to_owned() };
        let files = ServerFiles { identity, client_authority: client_authority.map(Path::to_owned) };
        chain(&Server::load(files, HTTP_2).unwrap_err())
    };
    let missing = authority.path("missing.crt");
    assert!(load(&missing, &good.key, None).contains("missing.crt"));
    assert!(load(&good.key, &good.key, None).contains("node.key holds no certificate"));
    assert!(load(&good.certificate, &good.certificate, None).contains("no private key"));
    let text = load(&good.certificate, &other.key, None);
    assert!(text.contains("node.crt cannot be used with") && text.contains("other.key"), "{text}");
    assert!(load(&good.certificate, &good.key, Some(&good.key)).contains("node.key holds no certificate"));
    let broken = authority.path("broken.key");
    fs::write(&broken, "-----BEGIN PRIVATE KEY-----\nSECRETSECRET\n-----END PRIVATE KEY-----\n").unwrap();
    assert!(!load(&good.certificate, &broken, None).contains("SECRET"));
}

#[test]
fn only_this_machine_is_local() {
    for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.8.8.8", "::1", "[::1]", "::ffff:127.0.0.1"] {
        assert!(is_local(host), "{host}");
    }
    for host in ["localhost.example", "10.0.0.1", "0.0.0.0", "::", "[fe80::1]", "", "127.0.0.1.example"] {
        assert!(!is_local(host), "{host}");
    }
}
