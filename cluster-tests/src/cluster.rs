//! Several nodes that share a store: one cluster.

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};

use crate::{
    process::{Node, free_port},
    server::StoreServer,
    wait_for,
};

const PATIENCE: Duration = Duration::from_secs(60);
/// What the nodes of a test share.
pub const SECRET: &str = "nobody else would say this, and it is long enough\n";

/// Nodes 1, 2, ... and their ClickHouse server; all end with the test.
pub struct Cluster {
    pub store: StoreServer,
    pub nodes: Vec<Node>,
}

impl Cluster {
    /// Starts them, and waits until each sees all others ready. `grpc` is more lines of the `[grpc]` table.
    pub async fn start(folder: &Path, count: u16, grpc: &str) -> Result<Self> {
        let mut store = StoreServer::configure(&folder.join("store"))?;
        store.start().await?;
        let ports: Vec<u16> = (0..count).map(|_| free_port()).collect();
        let mut nodes = Vec::new();
        for (node_id, port) in (1..).zip(&ports) {
            let table = table(folder, *port, &ports)?;
            let configuration = format!("{grpc}\n{}\n{table}", store.node_configuration());
            let folder = folder.join(format!("node-{node_id}"));
            let mut node = Node::configure_member(&folder, node_id, &configuration)?;
            node.spawn()?;
            nodes.push(node);
        }
        for node in &mut nodes {
            node.ready().await?;
        }
        let cluster = Self { store, nodes };
        for node in &cluster.nodes {
            wait_for("a node to see all others", PATIENCE, async || {
                let url = format!("{}/v1/cluster/members", node.http_url());
                let text = reqwest::get(url).await?.text().await?;
                ensure!(text.matches("\"state\":\"ready\"").count() == usize::from(count), "{text}");
                anyhow::Ok(())
            })
            .await?;
        }
        Ok(cluster)
    }

    /// Where agents connect.
    pub fn servers(&self) -> Vec<String> {
        self.nodes.iter().map(Node::grpc_address).collect()
    }
}

/// The `[cluster]` table of a node that gossips at a port of this machine; the nodes of `folder` share a secret. More lines may follow.
pub fn table(folder: &Path, port: u16, seeds: &[u16]) -> Result<String> {
    let secret = folder.join("cluster-secret");
    if !secret.exists() {
        std::fs::write(&secret, SECRET)?;
    }
    let seeds: Vec<String> = seeds.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
    Ok(format!(
        "[cluster]\nlisten = \"127.0.0.1:{port}\"\nseeds = [{}]\nsecret_file = {secret:?}\n",
        seeds.join(", ")
    ))
}
