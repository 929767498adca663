//! The life of a cluster with real nodes and real senders of agents: it forms, a fourth node takes its share, one is drained by command,
//! one is killed, one ends by SIGTERM. After each step every agent is served, and at the end every batch is stored once.

use std::{
    path::Path,
    process::Output,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use metaflow_agent::sender;
use metaflow_chaos::{agent::Agent, stored_batches};
use metaflow_cluster_tests::{
    Value, cluster,
    process::{Node, binary, free_port},
    server::StoreServer,
    wait_for,
};

/// Far more than anything here takes; other builds may have the machine's cores.
const PATIENCE: Duration = Duration::from_secs(60);
const AGENTS: u32 = 24;
const ROWS: u32 = 10;

struct Cluster {
    nodes: Vec<Node>,
    agents: Vec<Agent>,
}

impl Cluster {
    async fn page(&self, node: usize, path: &str) -> Result<Value> {
        let url = format!("{}{path}", self.nodes[node].http_url());
        Ok(reqwest::get(url).await?.json().await?)
    }

    /// State of a node as another one sees it.
    async fn state(&self, seen_by: usize, node_id: u16) -> Result<String> {
        let page = self.page(seen_by, "/v1/cluster/members").await?;
        let members = page["members"].as_array().cloned().unwrap_or_default();
        let state = members.iter().find(|member| member["node_id"] == node_id).map(|member| &member["state"]);
        Ok(state.and_then(Value::as_str).unwrap_or("unknown").to_owned())
    }

    async fn wait_for_state(&self, seen_by: &[usize], node_id: u16, states: &[&str]) -> Result<()> {
        for index in seen_by {
            wait_for("a node's state to be seen", PATIENCE, async || {
                let state = self.state(*index, node_id).await?;
                ensure!(states.contains(&&*state), "node {} sees {node_id} as {state}", index + 1);
                anyhow::Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Agents that each of these nodes serves.
    async fn sessions(&self, nodes: &[usize]) -> Result<Vec<f64>> {
        let mut sessions = Vec::new();
        for node in nodes {
            sessions.push(self.nodes[*node].metric("metaflow_agent_sessions").await?);
        }
        Ok(sessions)
    }

    /// Waits until these nodes, and each of them, serve all agents.
    async fn wait_until_served_by(&self, nodes: &[usize]) -> Result<()> {
        wait_for("all agents to be served", PATIENCE, async || {
            let sessions = self.sessions(nodes).await?;
            let all = sessions.iter().sum::<f64>() == f64::from(AGENTS);
            let is_spread = sessions.iter().all(|sessions| *sessions > 0.0);
            let connected = self.agents.iter().filter(|agent| agent.is_connected()).count();
            ensure!(all && is_spread && connected == AGENTS as usize, "{sessions:?}, {connected} connected");
            anyhow::Ok(())
        })
        .await
    }

    fn append(&mut self) -> Result<()> {
        self.agents.iter_mut().try_for_each(|agent| agent.append(ROWS, "shop.example"))
    }

    /// `metaflow ctl` of a node.
    async fn ctl(&self, node: usize, arguments: &str) -> Result<(Option<i32>, String)> {
        let Output { status, stdout, stderr } = tokio::process::Command::new(binary("metaflow"))
            .arg("ctl")
            .args(arguments.split_whitespace())
            .env("METAFLOW_URL", self.nodes[node].http_url())
            .output()
            .await?;
        Ok((status.code(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned()))
    }

    async fn expect(&self, node: usize, arguments: &str, code: i32, part: &str) -> Result<()> {
        let (status, text) = self.ctl(node, arguments).await?;
        ensure!(status == Some(code), "ctl {arguments}: {status:?} instead of {code}: {text}");
        ensure!(text.contains(part), "ctl {arguments}: no {part:?} in {text}");
        Ok(())
    }
}

fn node(folder: &Path, index: usize, gossip: &[u16], store: &StoreServer) -> Result<Node> {
    let table = cluster::table(folder, gossip[index], &gossip[..3])?;
    let configuration = format!("{}\n{table}zone = \"z{index}\"\n", store.node_configuration());
    Node::configure_member(&folder.join(format!("node-{index}")), u16::try_from(index + 1)?, &configuration)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_forms_grows_is_drained_and_loses_nodes_while_its_agents_are_served() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut store = StoreServer::configure(&folder.path().join("server"))?;
    store.start().await?;
    let gossip = [free_port(), free_port(), free_port(), free_port()];
    let mut cluster = Cluster { nodes: Vec::new(), agents: Vec::new() };
    for index in 0..gossip.len() {
        cluster.nodes.push(node(folder.path(), index, &gossip, &store)?);
    }
    form(&mut cluster).await?;
    let server = cluster.nodes[0].grpc_address();
    for number in 0..AGENTS {
        let config = sender::Config::new(vec![server.clone()]);
        cluster.agents.push(Agent::start(folder.path(), number, config)?);
    }
    cluster.append()?;
    cluster.wait_until_served_by(&[0, 1, 2]).await?;
    cluster.expect(0, "member reachability", 0, " ms").await?;
    cluster.expect(1, "--member 3 status -o json", 0, "\"node_id\": 3").await?;
    join(&mut cluster).await?;
    drain(&mut cluster).await?;
    lose(&mut cluster).await?;
    end_by_signal(&mut cluster).await?;

    wait_for("every batch to be committed", PATIENCE, async || {
        let left = cluster.agents.iter().filter(|agent| !agent.is_done()).count();
        ensure!(left == 0, "{left} spools are not empty");
        anyhow::Ok(())
    })
    .await?;
    for agent in &cluster.agents {
        let name = &agent.name;
        let stored = stored_batches(&cluster.nodes[0], "flow_log", "l7_flow_log", name).await?;
        let whole = stored.values().all(|rows| *rows == u64::from(ROWS));
        ensure!(stored.len() == agent.batches as usize && whole, "{name}: {stored:?}");
    }
    cluster.nodes[0].terminate().await
}

/// Three nodes see each other soon after the last of them is there.
async fn form(cluster: &mut Cluster) -> Result<()> {
    for node in &mut cluster.nodes[..3] {
        node.spawn()?;
    }
    for node in &mut cluster.nodes[..3] {
        node.ready().await?;
    }
    let begun = Instant::now();
    for node_id in 1..=3 {
        cluster.wait_for_state(&[0, 1, 2], node_id, &["ready"]).await?;
    }
    eprintln!("the cluster had formed {:?} after its last node was ready", begun.elapsed());
    ensure!(begun.elapsed() < Duration::from_secs(4), "formed in {:?}", begun.elapsed());
    Ok(())
}

/// A fourth node gets its share of the agents, and the figures say so.
async fn join(cluster: &mut Cluster) -> Result<()> {
    cluster.nodes[3].restart().await?;
    cluster.wait_until_served_by(&[0, 1, 2, 3]).await?;
    cluster.append()?;
    let status = cluster.page(0, "/v1/cluster/status").await?;
    let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
    let fourth = nodes.iter().find(|node| node["node_id"] == 4).cloned().unwrap_or_default();
    let (expected, mean) = (fourth["agents_expected"].as_f64().unwrap_or(0.0), f64::from(AGENTS) / 4.0);
    ensure!(
        (mean * 0.9..=mean * 1.1).contains(&expected),
        "expected {expected} of {AGENTS} agents: {status}"
    );
    ensure!(status["agents"] == AGENTS && status["nodes_ready"] == 4, "{status}");
    cluster.expect(3, "status", 0, "4 of 4 nodes ready, 24 agents").await
}

/// The second node is emptied by a command to the first, and ends.
async fn drain(cluster: &mut Cluster) -> Result<()> {
    cluster.expect(0, "member drain n2 --dry-run", 0, "PARTITIONS").await?;
    ensure!(cluster.state(0, 2).await? == "ready", "a dry run drains nothing");
    cluster.append()?;
    let begun = Instant::now();
    cluster.expect(0, "member drain n2 --wait --timeout 50s", 0, "agents will move").await?;
    eprintln!("a node was empty {:?} after the command", begun.elapsed());
    ensure!(begun.elapsed() < Duration::from_secs(30), "drained in {:?}", begun.elapsed());
    cluster.nodes[1].ended().await?;
    cluster.wait_until_served_by(&[0, 2, 3]).await?;
    cluster.wait_for_state(&[0, 2, 3], 2, &["left"]).await?;
    cluster.expect(0, "status", 0, "3 of").await
}

/// The third node is killed: all notice, and its agents are served by others.
async fn lose(cluster: &mut Cluster) -> Result<()> {
    cluster.append()?;
    let begun = Instant::now();
    cluster.nodes[2].kill().await?;
    cluster.wait_for_state(&[0, 3], 3, &["dead"]).await?;
    let noticed = begun.elapsed();
    cluster.wait_until_served_by(&[0, 3]).await?;
    let served = begun.elapsed();
    eprintln!("a death was noticed by all in {noticed:?}, its agents were served elsewhere after {served:?}");
    ensure!(noticed < Duration::from_secs(4), "noticed in {noticed:?}");
    ensure!(served < Duration::from_secs(12), "served in {served:?}");
    cluster.expect(0, "status", 3, "is dead").await?;
    cluster.expect(0, "member drain n1", 4, "--force").await?;
    cluster.expect(0, "member remove n4", 4, "not dead").await?;
    cluster.expect(0, "member show n9", 1, "there are n1").await?;
    cluster.expect(3, "member remove n3", 0, "told").await?;
    cluster.wait_for_state(&[0, 3], 3, &["unknown"]).await?;
    cluster.expect(0, "status", 0, "2 of").await
}

/// A signal drains like the command: the agents of the fourth node go to the first while it still serves.
async fn end_by_signal(cluster: &mut Cluster) -> Result<()> {
    cluster.append()?;
    cluster.nodes[3].terminate().await?;
    cluster.wait_until_served_by(&[0]).await?;
    cluster.wait_for_state(&[0], 4, &["drained", "left"]).await
}
