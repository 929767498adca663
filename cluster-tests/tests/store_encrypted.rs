//! A node and a ClickHouse server on the other side of an encrypted connection.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use metaflow_cluster_tests::{
    ledger::LedgerAgent,
    process::{Node, binary},
    server::StoreServer,
    wait_for,
};
use metaflow_tls::{HTTP_1, Identity, Server, ServerFiles};
use tokio::{
    net::{TcpListener, TcpStream},
    process::Command,
};

const PATIENCE: Duration = Duration::from_secs(60);
const BATCHES: u32 = 5;
const ROWS_A_BATCH: u32 = 20;

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs())
}

/// An authority, and a certificate for this machine.
async fn authority(folder: &Path) -> Result<()> {
    let mut command = Command::new(binary("metaflow"));
    command.args(["ctl", "cert", "bootstrap", "--node", "store,127.0.0.1", "--directory"]).arg(folder);
    let output = command.output().await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Speaks TLS in front of a server that does not: the engine here has no certificate. Gives its port.
async fn door(certificates: &Path, target: String) -> Result<u16> {
    let file = |name: &str| certificates.join(name);
    let identity = Identity { certificate: file("store.crt"), key: file("store.key") };
    let tls = Server::load(ServerFiles { identity, client_authority: None }, HTTP_1)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (tls, target) = (tls.clone(), target.clone());
            tokio::spawn(async move {
                let Ok(mut client) = tls.accept(client).await else { return };
                let Ok(mut server) = TcpStream::connect(target).await else { return };
                // Either end may go away.
                tokio::io::copy_bidirectional(&mut client, &mut server).await.ok();
            });
        }
    });
    Ok(port)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_to_a_store_that_proves_itself_and_to_no_other() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let mut server = StoreServer::configure(&path("server"))?;
    server.start().await?;
    let (known, other) = (path("known"), path("other"));
    authority(&known).await?;
    authority(&other).await?;
    let url = format!("https://127.0.0.1:{}", door(&known, server.address()).await?);
    let configuration = |authority: &Path| {
        let lines = server.node_configuration_through(&url);
        format!("{lines}authority = {:?}\n", authority.join("ca.crt"))
    };

    let mut stranger = Node::configure(&path("stranger"), &configuration(&other))?;
    stranger.spawn()?;
    wait_for("the node to say why it does not reach the store", PATIENCE, async || {
        let log = std::fs::read_to_string(stranger.log())?;
        ensure!(log.contains("certificate") && log.contains("UnknownIssuer"), "{log}");
        Ok(())
    })
    .await?;
    stranger.kill().await?;
    let databases = server.sql("SHOW DATABASES").await?;
    ensure!(!databases.iter().any(|name| name == "flow_log"), "{databases:?}");

    let node = Node::start_with(&path("node"), &configuration(&known)).await?;
    let mut agent = LedgerAgent::new("ledger", 3, BATCHES, ROWS_A_BATCH, now());
    let grpc = node.grpc_url();
    agent.run(|| grpc.clone(), PATIENCE).await?;
    let rows = node.number("flow_log", "SELECT Count(row) FROM l7_flow_log").await?;
    ensure!(rows == f64::from(BATCHES * ROWS_A_BATCH), "{rows} rows");
    let stored = server.sql("SELECT count() FROM flow_log.l7_flow_log").await?;
    let stored: f64 = stored.first().context("no answer")?.parse()?;
    ensure!(stored == rows, "{stored} rows");
    Ok(())
}
