//! What is spoken to in plain text, and encrypted connections through tonic.

use std::{fs, path::Path, sync::Arc, time::Duration};

use metaflow_tls::{Client, ClientFiles, HTTP_2, Identity, Server, ServerFiles};
use metaflow_wire::{SyncRequest, agent_service_client::AgentServiceClient, sync_request};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::*;
use crate::sender::peer::{Manner, Peer};

#[tokio::test]
async fn a_server_beyond_this_host_is_not_spoken_to_in_plain_text() {
    let mut config = Config::new(vec![]);
    // What is allowed fails by its connection.
    config.connect_timeout = Duration::from_millis(1);
    for (server, insecure, part) in [
        ("192.0.2.1:1", false, "insecure = true"),
        ("node.invalid:1", false, "insecure = true"),
        ("node.invalid:1", true, "failed to connect"),
        ("127.0.0.1:1", false, "failed to connect"),
        ("[::1]:1", false, "failed to connect"),
    ] {
        config.insecure = insecure;
        let error = connect(&config, server).await.unwrap_err();
        assert!(error.to_string().contains(part), "{server} {insecure}: {error:#}");
    }
}

/// Makes `ca.crt` and a pair of files for each name, which all stand for 127.0.0.1.
fn certificates(folder: &Path, names: &[&str]) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    fs::write(folder.join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);
    for name in names {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        fs::write(folder.join(format!("{name}.crt")), certificate.pem()).unwrap();
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

fn identity(folder: &Path, name: &str) -> Identity {
    Identity { certificate: folder.join(format!("{name}.crt")), key: folder.join(format!("{name}.key")) }
}

/// Encrypts the way to `behind`; tells how each handshake went.
async fn encrypt(server: Server, behind: String) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (handshakes, told) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (server, behind, handshakes) = (server.clone(), behind.clone(), handshakes.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = server.accept(stream).await else { return };
                let kind = format!("{:?}", stream.get_ref().1.handshake_kind());
                let mut onward = TcpStream::connect(behind).await.unwrap();
                handshakes.send(kind).await.unwrap();
                // It ends with the connection, in whatever way.
                tokio::io::copy_bidirectional(&mut stream, &mut onward).await.ok();
            });
        }
    });
    (address, told)
}

async fn hello(config: &Config, server: &str) -> anyhow::Result<()> {
    let mut client = AgentServiceClient::new(connect(config, server).await?);
    let request = SyncRequest { body: Some(sync_request::Body::Hello(Default::default())) };
    let mut answers = client.sync(tokio_stream::once(request)).await?.into_inner();
    answers.message().await?.context("no welcome")?;
    Ok(())
}

#[tokio::test]
async fn connections_are_encrypted_and_the_second_one_resumes_the_session() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    certificates(folder, &["node", "agent"]);
    let authority = folder.join("ca.crt");
    let files = ServerFiles { identity: identity(folder, "node"), client_authority: Some(authority.clone()) };
    let peer: Arc<Peer> = Peer::new(Manner::Commit);
    let (behind, _task) = peer.serve().await;
    let (server, mut handshakes) = encrypt(Server::load(files, HTTP_2).unwrap(), behind.clone()).await;

    let mut config = Config::new(vec![]);
    let files = ClientFiles { authority: authority.clone(), identity: Some(identity(folder, "agent")) };
    config.tls = Some(Client::load(files, HTTP_2).unwrap());
    for expected in ["Some(Full)", "Some(Resumed)"] {
        hello(&config, &server).await.unwrap();
        assert_eq!(handshakes.recv().await.unwrap(), expected);
    }
    // A server of plain text, and a client that shows nothing.
    let error = hello(&config, &behind).await.unwrap_err();
    assert!(format!("{error:#}").contains("no encrypted connection"), "{error:#}");
    config.tls = Some(Client::load(ClientFiles { authority, identity: None }, HTTP_2).unwrap());
    let error = hello(&config, &server).await.unwrap_err();
    assert!(format!("{error:?}").contains("CertificateRequired"), "{error:?}");
}
