//! Everything that nodes ask each other, with certificates on both sides of every connection: queries over the stores of both, names, requests
//! that are handed on, agents, a drain. And a third node, of another authority, that knows the cluster's secret: it is refused both ways.

use std::{path::Path, process::Output, time::Duration};

use anyhow::{Context as _, Result, ensure};
use metaflow_cluster_tests::{
    Value, cluster,
    ledger::LedgerAgent,
    process::{Node, binary, free_port, number},
    wait_for,
};
use metaflow_tls::{Client, ClientFiles, HTTP_2, Identity};
use tokio::process::Command;

const PATIENCE: Duration = Duration::from_secs(60);
const ROWS_A_BATCH: u32 = 20;
const BATCHES: [u32; 2] = [3, 5];
const ALL: &str = "SELECT Count(row) AS n FROM l7_flow_log";

struct Cluster<'a> {
    folder: &'a Path,
    nodes: Vec<Node>,
}

/// The folder of the authority that a node has its certificate of; the last one is the stranger's.
fn authority(index: usize) -> &'static str {
    if index < BATCHES.len() { "tls" } else { "strange" }
}

async fn metaflow(arguments: &[&str]) -> Result<Output> {
    let program = binary("metaflow");
    Ok(Command::new(program).arg("ctl").args(arguments).kill_on_drop(true).output().await?)
}

async fn bootstrap(directory: &Path, nodes: &[&str]) -> Result<()> {
    let directory = directory.display().to_string();
    let mut arguments = vec!["cert", "bootstrap", "--agents", "--directory", &directory];
    nodes.iter().for_each(|node| arguments.extend(["--node", node]));
    let output = metaflow(&arguments).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl<'a> Cluster<'a> {
    async fn start(folder: &'a Path) -> Result<Self> {
        bootstrap(&folder.join("tls"), &["n1", "n2"]).await?;
        bootstrap(&folder.join("strange"), &["n3"]).await?;
        std::fs::write(folder.join("secret"), cluster::SECRET)?;
        let gossip = [free_port(), free_port(), free_port()];
        let seeds = gossip.map(|port| format!("\"127.0.0.1:{port}\"")).join(", ");
        let mut nodes = Vec::new();
        for (index, port) in gossip.iter().enumerate() {
            let (node_id, tls) = (u16::try_from(index + 1)?, folder.join(authority(index)));
            let configuration = format!(
                "[cluster]\nlisten = \"127.0.0.1:{port}\"\nseeds = [{seeds}]\nsecret_file = {:?}\n\
                 [tls]\ncertificate = {:?}\nkey = {:?}\nclient_authority = {:?}\n",
                folder.join("secret"),
                tls.join(format!("n{node_id}.crt")),
                tls.join(format!("n{node_id}.key")),
                tls.join("ca.crt"),
            );
            let mut node =
                Node::configure_member(&folder.join(format!("n{node_id}")), node_id, &configuration)?;
            node.spawn()?;
            nodes.push(node);
        }
        Ok(Self { folder, nodes })
    }

    /// Exit code, answer and complaint of a command to a node.
    async fn said(&self, index: usize, arguments: &[&str]) -> Result<(Option<i32>, Value, String)> {
        let url = self.nodes[index].http_url().replace("http://", "https://");
        let ca = self.folder.join(authority(index)).join("ca.crt").display().to_string();
        let access = ["--url", &url, "--ca", &ca, "-o", "json"];
        let output = metaflow(&[arguments, &access].concat()).await?;
        let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        Ok((output.status.code(), answer, String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// The answer, where nothing may be wrong.
    async fn ctl(&self, index: usize, arguments: &[&str]) -> Result<Value> {
        let (code, answer, complaint) = self.said(index, arguments).await?;
        ensure!(code == Some(0), "{arguments:?} at n{}: {code:?}: {complaint} {answer}", index + 1);
        Ok(answer)
    }

    /// All see all: gossip knows no certificates.
    async fn meet(&self) -> Result<()> {
        for index in 0..self.nodes.len() {
            wait_for("a node to see all others ready", PATIENCE, async || {
                let (_, members, complaint) = self.said(index, &["member", "list"]).await?;
                let ready = members.as_array().into_iter().flatten();
                let ready = ready.filter(|member| member["state"] == "ready").count();
                ensure!(ready == self.nodes.len(), "n{}: {complaint} {members}", index + 1);
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    async fn send(&self) -> Result<()> {
        let file = |name: &str| self.folder.join("tls").join(name);
        let identity = Identity { certificate: file("agent.crt"), key: file("agent.key") };
        let files = ClientFiles { authority: file("ca.crt"), identity: Some(identity) };
        let tls = Client::load(files, HTTP_2)?;
        let now = std::time::UNIX_EPOCH.elapsed()?.as_secs();
        for (index, batches) in BATCHES.into_iter().enumerate() {
            let mut agent = LedgerAgent::new(&format!("ledger-{index}"), 4, batches, ROWS_A_BATCH, now);
            agent.tls = Some(tls.clone());
            let url = self.nodes[index].grpc_url().replace("http://", "https://");
            agent.run(|| url.clone(), PATIENCE).await?;
        }
        Ok(())
    }
}

/// `to` as `from` reaches it: milliseconds, or why not.
fn reached(rows: &Value, from: u64, to: u64) -> Option<&Value> {
    let row = rows.as_array()?.iter().find(|row| row["node_id"] == from)?;
    row["reaches"].as_array()?.iter().find(|other| other["node_id"] == to)
}

fn error(reached: Option<&Value>) -> &str {
    reached.and_then(|reached| reached["error"].as_str()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_one_authority_work_together_and_a_stranger_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = Cluster::start(folder.path()).await?;
    cluster.meet().await?;
    cluster.send().await?;
    stores(&cluster).await?;
    names(&cluster).await?;
    handed_on(&cluster).await?;
    stranger(&cluster).await?;
    // The stranger goes, or its shards would be nobody's.
    cluster.nodes[2].kill().await?;
    let (_, drained, complaint) = cluster.said(0, &["member", "drain", "n2", "--wait"]).await?;
    ensure!(complaint.is_empty(), "{complaint} {drained}");
    cluster.nodes[1].ended().await?;
    cluster.nodes[0].terminate().await
}

/// Both answer for the stores of both, and name the one that they cannot ask.
async fn stores(cluster: &Cluster<'_>) -> Result<()> {
    let all = f64::from(BATCHES.iter().sum::<u32>() * ROWS_A_BATCH);
    for index in 0..BATCHES.len() {
        wait_for("a node to answer for both", PATIENCE, async || {
            let (code, answer, complaint) = cluster.said(index, &["query", "--db", "flow_log", ALL]).await?;
            ensure!(number(answer["values"][0].get(0)) == Some(all), "{complaint} {answer}");
            ensure!(code == Some(3) && complaint.contains("rows of n3 are missing"), "{code:?} {complaint}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// What one of the two named, the other knows by the same id.
async fn names(cluster: &Cluster<'_>) -> Result<()> {
    for index in 0..BATCHES.len() {
        wait_for("names to be known to both", PATIENCE, async || {
            let machine = format!("ledger-{index}");
            let (_, found, complaint) = cluster.said(0, &["dict", "lookup", "agent", &machine]).await?;
            let nodes = found["nodes"].as_array().with_context(|| format!("{complaint} {found}"))?;
            let known = |node_id: u64| {
                let node = nodes.iter().find(|node| node["node_id"] == node_id)?;
                node["ids"][0]["id"].as_u64().filter(|id| *id != 0)
            };
            ensure!(known(1).is_some() && known(1) == known(2), "{found}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Requests that concern another node, and questions that all answer.
async fn handed_on(cluster: &Cluster<'_>) -> Result<()> {
    let own = cluster.ctl(0, &["--member", "n2", "member", "show", "n2"]).await?;
    ensure!(own["node_id"] == 2, "{own}");
    let (_, rows, complaint) = cluster.said(0, &["member", "reachability"]).await?;
    for (from, to) in [(1, 2), (2, 1)] {
        let is_reached = reached(&rows, from, to).is_some_and(|reached| reached["milliseconds"].is_number());
        ensure!(is_reached, "{complaint} {rows}");
    }
    let (_, agents, complaint) = cluster.said(1, &["agent", "list"]).await?;
    let text = agents.to_string();
    ensure!(text.contains("ledger-0") && text.contains("ledger-1"), "{complaint} {text}");
    Ok(())
}

/// Nobody calls the node of another authority, and it calls nobody; each says why.
async fn stranger(cluster: &Cluster<'_>) -> Result<()> {
    let (code, rows, complaint) = cluster.said(0, &["member", "reachability"]).await?;
    ensure!(code == Some(3) && error(reached(&rows, 1, 3)).contains("UnknownIssuer"), "{complaint} {rows}");
    let (code, rows, complaint) = cluster.said(2, &["member", "reachability"]).await?;
    ensure!(code == Some(3) && error(reached(&rows, 3, 1)).contains("UnknownIssuer"), "{complaint} {rows}");
    let (code, answer, complaint) = cluster.said(2, &["query", "--db", "flow_log", ALL]).await?;
    ensure!(number(answer["values"][0].get(0)).unwrap_or(0.0) == 0.0, "it read rows: {answer}");
    for missing in ["rows of n1 are missing", "rows of n2 are missing"] {
        ensure!(code == Some(3) && complaint.contains(missing), "{code:?} {complaint}");
    }
    Ok(())
}
