//! What an operator may ask about the inside of a cluster: two real nodes, each asked about both, over HTTP and by `metaflow ctl`.

use std::{io::Read as _, path::Path, time::Duration};

use metaflow_wire::{
    Batch, Hello, PROTOCOL_VERSION, SyncRequest, SyncResponse, seq, sync_request, sync_response,
};
use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{
    agents::now,
    kit::{Node, PATIENCE, acks_until, covers, free_udp_ports, program, requests},
};

/// Polls a page until it is as wanted.
async fn until(node: &Node, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let polling = async {
        loop {
            last = node.page(path).await.body;
            if wanted(&last) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, polling).await.is_ok(), "{path} never was as wanted: {last}");
    last
}

async fn pair(folders: [&Path; 2]) -> [Node; 2] {
    let ports = free_udp_ports();
    let secret = folders[0].join("secret");
    std::fs::write(&secret, "nobody else would say this, and it is long enough").unwrap();
    let cluster = |own: usize| {
        format!(
            "[cluster]\nlisten = \"127.0.0.1:{}\"\nseeds = [\"127.0.0.1:{}\"]\nsecret_file = {secret:?}\n",
            ports[own],
            ports[1 - own]
        )
    };
    let settings = [cluster(0), cluster(1)];
    let (one, two) = tokio::join!(
        Node::start_with(folders[0], "node_id = 1\n", &settings[0]),
        Node::start_with(folders[1], "node_id = 2\n", &settings[1])
    );
    [one, two]
}

/// An agent that stays connected while its sender lives.
async fn connect(node: &Node, machine_id: &str) -> (u32, mpsc::Sender<SyncRequest>, Streaming<SyncResponse>) {
    let (sender, requests) = mpsc::channel(4);
    let hello = Hello {
        protocol_version: PROTOCOL_VERSION,
        machine_id: machine_id.to_owned(),
        hostname: format!("{machine_id}-host"),
        ..Default::default()
    };
    sender.send(SyncRequest { body: Some(sync_request::Body::Hello(hello)) }).await.unwrap();
    let mut answers = node.agent().await.sync(ReceiverStream::new(requests)).await.unwrap().into_inner();
    match answers.message().await.unwrap().unwrap().body {
        Some(sync_response::Body::Welcome(welcome)) => (welcome.agent_id, sender, answers),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn any_node_says_where_agents_batches_and_names_are() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [one, two] = pair([folders[0].path(), folders[1].path()]).await;
    let balance = until(&two, "/v1/balance", |page| {
        page["now"]["nodes"].as_array().is_some_and(|nodes| {
            nodes.len() == 2 && nodes.iter().all(|node| node["shards"].as_u64() > Some(0))
        })
    })
    .await;
    assert!(balance["now"]["shards_max_to_mean"].as_f64().unwrap() <= 1.05, "{balance}");
    let moves = two.page("/v1/balance?without=n1").await.body;
    assert_eq!(moves["then"]["nodes"].as_array().map(Vec::len), Some(1), "{moves}");
    assert!(moves["moves"]["shards"].as_u64() > Some(0), "{moves}");

    let (agent_id, _sync, _answers) = connect(&one, "machine-1").await;
    agents(&two, agent_id).await;
    let (sender, mut acks) = one.ingest().await;
    let batch = seq(1, 1);
    sender.send(requests(agent_id, batch, 7, now())).await.unwrap();
    acks_until(&mut acks, |ack| covers(&ack.committed, batch)).await;
    let mut damaged: Batch = requests(agent_id, seq(1, 2), 1, now());
    damaged.crc ^= 1;
    sender.send(damaged).await.unwrap();
    acks_until(&mut acks, |ack| ack.rejected.iter().any(|rejection| rejection.seq == seq(1, 2))).await;
    batches(&two, agent_id).await;
    // A store that stands still: the batch is on its way, and nobody has to guess where.
    one.signal_engine(Signal::STOP);
    sender.send(requests(agent_id, seq(1, 4), 2, now())).await.unwrap();
    let path = format!("/v1/ingest/trace?agent={agent_id}&seq=1:4");
    let part = "in the log of n1 since";
    let trace = until(&two, &path, |page| page["nodes"][0]["state"] == "inserting").await;
    assert!(trace["conclusion"].as_str().unwrap().contains(part), "{trace}");
    let wal =
        until(&two, "/v1/wal", |page| page["nodes"][0]["answer"]["oldest_seconds"].as_f64() > Some(0.5))
            .await;
    assert_eq!(
        (&wal["nodes"][0]["answer"]["batches"], &wal["nodes"][0]["answer"]["writing"]),
        (&1.into(), &1.into())
    );
    one.signal_engine(Signal::CONT);
    until(&two, &path, |page| page["is_stored"] == true).await;
    names(&two, &one).await;
    machines(&two).await;
    happenings(&two, &one).await;
    wrong_questions(&two).await;
    commands(&two, agent_id, folders[0].path()).await;

    drop(one);
    let silent = until(&two, "/v1/wal", |page| page["nodes"][0]["unanswered"].is_string()).await;
    assert_eq!(silent["nodes"][1]["answer"]["state"], "open", "the others answer all the same: {silent}");
    let trace = two.page(&format!("/v1/ingest/trace?agent={agent_id}&seq=9:9")).await.body;
    assert!(trace["conclusion"].as_str().unwrap().contains("1 nodes did not answer"), "{trace}");
    let (code, text) = two.ctl(&["wal", "status"]).await;
    assert!(code == Some(3) && text.contains("n1: "), "{text}");
    assert_eq!(two.terminate().await, Some(0));
}

/// Every verb against the node that has none of it.
async fn commands(node: &Node, agent_id: u32, folder: &Path) {
    let agent = agent_id.to_string();
    let bundle = folder.join("bundle.tar.gz").display().to_string();
    for (arguments, code, part) in [
        (&["shard", "explain", "machine-1-host"][..], 0, "it is connected to n1"),
        (&["shard", "explain", "nobody"], 1, "no node knows"),
        (&["balance", "--without", "n1"], 0, "would move"),
        (&["dict", "stats"], 0, "IDS USED"),
        (&["dict", "lookup", "agent", "machine-1"], 0, "partition"),
        (&["dict", "resolve", "agent", &agent, "-o", "json"], 0, "\"machine-1\""),
        (&["dict", "verify"], 0, "0 of 1024 partitions differ"),
        (&["wal", "status", "-o", "wide"], 0, "SYNCS"),
        (&["ingest", "trace", &agent, "1:1"], 0, "stored: 7 rows"),
        (&["ingest", "trace", &agent, "1:9"], 3, "not seen"),
        (&["doctor", "--node", "n1"], 0, "disk sync"),
        (&["events", "--kind", "agent"], 0, "connected"),
        (&["events", "--kind", "noise"], 1, "kinds are"),
        (&["debug", "bundle", "--file", &bundle], 0, "bundle.tar.gz"),
        (&["debug", "bundle", "--file", &bundle], 1, "failed to write"),
    ] {
        let (found, text) = node.ctl(arguments).await;
        assert_eq!(found, Some(code), "{arguments:?}: {text}");
        assert!(text.contains(part), "{arguments:?}: {text}");
    }
}

/// A node that waits for its store is asked for everything: no secret of it comes out.
#[tokio::test]
async fn no_secret_is_in_a_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    let created = tokio::process::Command::new(program())
        .args(["ctl", "token", "create", "--name", "operator", "--scope", "read", "--file"])
        .arg(&tokens)
        .output();
    let token = String::from_utf8(created.await.unwrap().stdout).unwrap().trim().to_owned();
    let (cluster, password) = ("the-secret-of-the-cluster-0123456789abcdef", "the password of the store");
    let secret_file = folder.path().join("secret");
    std::fs::write(&secret_file, cluster).unwrap();
    // The first line stands in the section [http].
    let settings = format!(
        "tokens_file = {tokens:?}\n[cluster]\nsecret_file = {secret_file:?}\n\
         [store]\nmode = \"server\"\nurls = [\"http://127.0.0.1:1\"]\npassword = \"{password}\"\n"
    );
    let node = Node::spawn_with(folder.path(), "", &settings).await;
    let file = folder.path().join("bundle.tar.gz");
    let (code, text) =
        node.ctl(&["debug", "bundle", "--file", &file.display().to_string(), "--token", &token]).await;
    assert_eq!(code, Some(3), "what needs the store is missing: {text}");
    let stored = std::fs::read_to_string(&tokens).unwrap();
    let digest = stored.split('"').find(|part| part.len() == 64).expect("a digest is in the file");
    let mut names = Vec::new();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(&file).unwrap()));
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        let name = entry.path().unwrap().display().to_string();
        for secret in [cluster, password, &token, digest] {
            assert!(!text.contains(secret), "{name} has {secret}");
        }
        names.push(name);
    }
    for name in [
        "status.json",
        "members.json",
        "doctor.json",
        "node-1/log.txt",
        "node-1/configuration.txt",
        "node-1/metrics.txt",
    ] {
        assert!(names.contains(&format!("metaflow-bundle/{name}")), "{name} is not in {names:?}");
    }
}

/// The agent is connected to the other node, and both its names find it.
async fn agents(node: &Node, agent_id: u32) {
    for name in [&agent_id.to_string(), "machine-1-host", "machine-1"] {
        let shard = node.page(&format!("/v1/shard?agent={name}")).await.body;
        assert_eq!(shard["agent_id"], agent_id, "{shard}");
        assert_eq!(shard["connected_to"], serde_json::json!(["n1"]), "{shard}");
        assert_eq!(shard["candidates"].as_array().map(Vec::len), Some(2), "{shard}");
        assert_eq!(shard["candidates"][0]["verdict"], "primary", "{shard}");
    }
}

async fn batches(node: &Node, agent_id: u32) {
    for (batch, is_stored, part) in [
        (seq(1, 1).to_string(), true, "stored: 7 rows in flow_log.l7_flow_log, brought by n1"),
        ("1:2".to_owned(), false, "refused by n1 and lost: checksum"),
        ("1:3".to_owned(), false, "not seen"),
    ] {
        let trace = node.page(&format!("/v1/ingest/trace?agent={agent_id}&seq={batch}")).await.body;
        assert!(trace["conclusion"].as_str().unwrap().contains(part), "{trace}");
        assert_eq!(trace["is_stored"], is_stored, "{trace}");
    }
    let wal = node.page("/v1/wal").await.body;
    for at in 0..2 {
        assert_eq!(wal["nodes"][at]["answer"]["state"], "open", "{wal}");
        assert_eq!(wal["nodes"][at]["answer"]["batches"], 0, "{wal}");
    }
    assert_eq!(wal["nodes"][0]["answer"]["committed"], 1, "{wal}");
}

async fn names(node: &Node, other: &Node) {
    let found = until(node, "/v1/dictionary/lookup?kind=agent&name=machine-1", |page| {
        page["nodes"].as_array().is_some_and(|nodes| {
            nodes.iter().all(|node| node["ids"].as_array().is_some_and(|ids| ids.len() == 1))
        })
    })
    .await;
    assert!(found["owner"].is_string() && found["replicas"].as_array().map(Vec::len) == Some(1), "{found}");
    let id = found["canonical_id"].as_u64().unwrap();
    let resolved = node.page(&format!("/v1/dictionary/resolve?kind=agent&id={id}")).await.body;
    assert_eq!(resolved["names"], serde_json::json!(["machine-1"]), "{resolved}");
    let fine = until(node, "/v1/dictionary/verify", |page| page["is_fine"] == true).await;
    assert!(fine["nodes"][0]["store"]["compared"]["entries"].as_u64() > Some(2), "{fine}");
    let stats = node.page("/v1/dictionary/stats").await.body;
    assert!(stats["nodes"][0]["answer"]["kinds"].as_array().is_some_and(|kinds| kinds.len() > 2), "{stats}");
    assert_eq!(other.metric("metaflow_dictionary_aliases{kind=\"agent\"}").await, 0.0);
}

async fn machines(node: &Node) {
    let doctor = node.page("/v1/doctor").await.body;
    for at in 0..2 {
        let checks = doctor["nodes"][at]["answer"]["checks"].as_array().unwrap();
        for name in [
            "socket",
            "gossip socket",
            "mtu",
            "clock",
            "disk space",
            "disk sync",
            "file limit",
            "store",
            "engine",
        ] {
            assert!(checks.iter().any(|check| check["check"] == name), "{name} is not in {doctor}");
        }
        let tables = checks.iter().filter(|check| check["check"] == "table").collect::<Vec<_>>();
        assert!(tables.len() == 1 && tables[0]["health"] == "ok", "{doctor}");
    }
    let settings = node.page("/v1/settings").await.body;
    assert!(
        settings["nodes"][0]["answer"]["configuration"].as_str().unwrap().contains("node_id: 1"),
        "{settings}"
    );
    let logs = node.page("/v1/logs?node=n1").await.body;
    let lines = logs["nodes"][0]["answer"]["lines"].to_string();
    assert!(
        lines.contains("the node is ready") && logs["nodes"].as_array().map(Vec::len) == Some(1),
        "{logs}"
    );
}

async fn happenings(node: &Node, other: &Node) {
    let of = |page: &Value, at: usize| page["nodes"][at]["answer"]["events"].to_string();
    until(node, "/v1/events", |page| {
        of(page, 1).contains("node 1 is there")
            && of(page, 0).contains("connected")
            && of(page, 0).contains("answers")
    })
    .await;
    let page = node.page("/v1/events").await.body;
    let next = |at: usize| page["nodes"][at]["answer"]["next"].as_u64().unwrap();
    let (_, _sync, _answers) = connect(other, "machine-2").await;
    let path = format!("/v1/events?kind=agent&after=1:{},2:{}", next(0), next(1));
    let page = until(node, &path, |page| of(page, 0).contains("connected")).await;
    assert_eq!(page["nodes"][0]["answer"]["events"][0]["kind"], "agent", "{page}");
}

async fn wrong_questions(node: &Node) {
    for (path, part) in [
        ("/v1/shard", "agent"),
        ("/v1/shard?agent=nobody", "no node knows"),
        ("/v1/balance?without=n9", "n9"),
        ("/v1/ingest/trace?agent=1&seq=x", "GENERATION:COUNTER"),
        ("/v1/dictionary/lookup?kind=colour&name=x", "pod_ns"),
        ("/v1/wal?node=n7", "the nodes are n1, n2"),
        ("/v1/events?kind=noise", "kinds are"),
    ] {
        let answer = node.page(path).await;
        assert_eq!(answer.status, 400, "{path}");
        assert!(answer.description().contains(part), "{path}: {answer:?}");
    }
}
