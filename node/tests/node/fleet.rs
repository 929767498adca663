//! Agents from the command line: what they are, what they run with, what they see. One started node for all of it.

use metaflow_wire::{Heartbeat, Hello, PROTOCOL_VERSION, SyncRequest, seq, sync_request, sync_response};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    sync::watch,
};
use tokio_stream::wrappers::ReceiverStream;

use crate::kit::{Node, PATIENCE, acks_until, covers, program, requests};

/// What a `metaflow` command ended with: exit code, output, errors.
type Ended = (i32, String, String);

async fn metaflow(node: &Node, arguments: &[&str]) -> Ended {
    let output = Command::new(program()).args(arguments).env("METAFLOW_URL", &node.url).output();
    let output = tokio::time::timeout(PATIENCE, output).await.expect("it ends").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// An agent that takes what its node sends, and says so; the last settings it got.
async fn agent(node: &Node, machine: &str, region: &str) -> watch::Receiver<String> {
    let (requests, queue) = tokio::sync::mpsc::channel(8);
    let hello = Hello {
        protocol_version: PROTOCOL_VERSION,
        machine_id: machine.to_owned(),
        hostname: format!("{machine}-host"),
        agent_version: "0.0.0".to_owned(),
        region: region.to_owned(),
        ..Hello::default()
    };
    let send = |body| SyncRequest { body: Some(body) };
    requests.send(send(sync_request::Body::Hello(hello))).await.unwrap();
    let mut answers = node.agent().await.sync(ReceiverStream::new(queue)).await.unwrap().into_inner();
    let (settings, got) = watch::channel(String::new());
    let mut version = 0;
    let mut beat = tokio::time::interval(std::time::Duration::from_millis(200));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => if let Some(sync_response::Body::Config(config)) = answer.body {
                        version = config.version;
                        settings.send_replace(config.toml);
                    },
                    _ => return,
                },
                _ = beat.tick() => {}
            }
            let heartbeat = Heartbeat { config_version: version, cpu_percent: 150, ..Heartbeat::default() };
            if requests.send(send(sync_request::Body::Heartbeat(heartbeat))).await.is_err() {
                return;
            }
        }
    });
    got
}

async fn got(settings: &mut watch::Receiver<String>, part: &str) {
    let waiting = settings.wait_for(|settings| settings.contains(part));
    tokio::time::timeout(PATIENCE, waiting).await.expect("it is pushed").unwrap();
}

#[allow(clippy::disallowed_methods, reason = "a test has no clock of the process")]
fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_agents_tell_them_what_to_run_with_and_watch_what_they_see() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path()).await;
    let mut web = agent(&node, "web-1", "eu").await;
    let mut db = agent(&node, "db-1", "").await;
    listed(&node).await;
    configured(&node, folder.path(), &mut web, &mut db).await;
    switched(&node, &mut web, &mut db).await;
    observed(&node).await;
    assert_eq!(node.terminate().await, Some(0));

    // What was set is there after a restart.
    let node = Node::start(folder.path()).await;
    let (code, out, _) = metaflow(&node, &["ctl", "agent", "config", "show", "web"]).await;
    assert!(code == 0 && out.contains("cpu_percent_max = 20") && out.contains("for the weekend"), "{out}");
    assert_eq!(node.terminate().await, Some(0));
}

async fn listed(node: &Node) {
    // An agent is welcomed a moment before it is listed.
    let listing = async {
        loop {
            let (code, out, _) =
                metaflow(node, &["ctl", "agent", "list", "--region", "eu", "-o", "json"]).await;
            let agents: serde_json::Value = serde_json::from_str(&out).unwrap_or_default();
            if code == 0 && agents.as_array().is_some_and(|agents| agents.len() == 1) {
                return agents;
            }
        }
    };
    let agents = tokio::time::timeout(PATIENCE, listing).await.expect("the agent is listed");
    let agent = &agents[0];
    assert_eq!(
        (&agent["machine_id"], &agent["node_id"], &agent["group"]),
        (&"web-1".into(), &1.into(), &"default".into())
    );
    let (code, out, _) = metaflow(node, &["ctl", "agent", "list"]).await;
    assert!(code == 0 && out.lines().count() == 3 && out.contains("db-1-host"), "{out}");
    let (code, out, _) = metaflow(node, &["ctl", "agent", "show", "web-1-host"]).await;
    assert!(code == 0 && out.contains("machine_id") && out.contains("web-1"), "{out}");
    let (code, _, error) = metaflow(node, &["ctl", "agent", "show", "nobody"]).await;
    assert!(code == 1 && error.contains("nobody"), "{error}");
}

async fn configured(
    node: &Node,
    folder: &std::path::Path,
    web: &mut watch::Receiver<String>,
    db: &mut watch::Receiver<String>,
) {
    let ctl = async |line: &str| {
        let arguments: Vec<&str> = ["ctl", "agent"].into_iter().chain(line.split_whitespace()).collect();
        metaflow(node, &arguments).await
    };
    let done = async |line: &str| {
        let (code, out, error) = ctl(line).await;
        assert_eq!(code, 0, "{line}: {out} {error}");
        out
    };
    done("group set web --hostname web-*").await;
    let file = folder.join("web.toml");
    std::fs::write(&file, "[guard]\ncpu_percent = 20\n").unwrap();
    let set = format!("config set web -f {}", file.display());
    let (code, _, error) = ctl(&set).await;
    assert!(code == 1 && error.contains("guard.cpu_percent") && error.contains("cpu_percent_max"), "{error}");
    std::fs::write(&file, "[guard]\ncpu_percent_max = 20\n").unwrap();
    let dry = done(&format!("{set} --dry-run")).await;
    assert!(dry.contains("+ guard.cpu_percent_max = 20") && dry.contains("1 agent would get"), "{dry}");
    assert_eq!(*web.borrow(), "");
    let note = ["--note", "for the weekend", "--wait"];
    let arguments: Vec<&str> =
        ["ctl", "agent"].into_iter().chain(set.split_whitespace()).chain(note).collect();
    let (code, out, error) = metaflow(node, &arguments).await;
    assert!(code == 0 && out.contains("1 agent get"), "{out} {error}");
    got(web, "cpu_percent_max = 20").await;
    assert_eq!(*db.borrow(), "", "another group's settings");

    std::fs::write(&file, "[guard]\ncpu_percent_max = 30\n").unwrap();
    done(&format!("{set} --rollout 100%")).await;
    got(web, "cpu_percent_max = 30").await;
    done("config rollback web --wait").await;
    got(web, "cpu_percent_max = 20").await;
    let (code, _, error) = ctl("config promote web").await;
    assert!(code == 1 && error.contains("no rollout"), "{error}");
    let out = done("group list").await;
    assert!(out.contains("web") && out.contains("default"), "{out}");
    done("group set below --parent web").await;
    let (code, _, error) = ctl("group delete web").await;
    assert!(code == 4 && error.contains("below"), "unsafe: {error}");
    done("assign db-1 --group below").await;
    got(db, "cpu_percent_max = 20").await;
    done("assign db-1 --by-rules").await;
}

async fn switched(node: &Node, web: &mut watch::Receiver<String>, db: &mut watch::Receiver<String>) {
    let (code, out, error) = metaflow(node, &["ctl", "agent", "disable", "--all", "--wait"]).await;
    assert!(code == 0 && out.contains("2 agents get"), "{out} {error}");
    got(web, "enabled = false").await;
    got(db, "enabled = false").await;
    metaflow(node, &["ctl", "agent", "enable", "--all", "--wait"]).await;
    let (code, _, error) = metaflow(node, &["ctl", "agent", "disable", "--agent", "db-1", "--wait"]).await;
    assert_eq!(code, 0, "{error}");
    assert!(db.borrow().contains("enabled = false") && !web.borrow().contains("enabled"));
    let (code, _, _) = metaflow(node, &["ctl", "agent", "enable"]).await;
    assert_eq!(code, 1, "whom?");
}

/// A command that follows sees a request that an agent sends after it.
async fn observed(node: &Node) {
    let agent_id = node.agent_id("web-1").await;
    let mut command = Command::new(program())
        .args(["observe", "-f", "--protocol", "http", "--to", "10.0.0.2"])
        .env("METAFLOW_URL", &node.url)
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(command.stdout.take().unwrap()).lines();
    let (sender, mut acks) = node.ingest().await;
    let sending = async {
        for at in 1.. {
            sender.send(requests(agent_id, seq(9, at), 2, now())).await.unwrap();
            acks_until(&mut acks, |ack| covers(&ack.committed, seq(9, at))).await;
        }
    };
    let reading = tokio::time::timeout(PATIENCE, lines.next_line());
    let line = tokio::select! {
        () = sending => unreachable!("it sends for ever"),
        line = reading => line.expect("a call is shown").unwrap().unwrap(),
    };
    assert!(line.contains(" -> 10.0.0.2  http GET /cart  ok 200 0.5ms"), "{line}");
    let (code, _, error) = metaflow(node, &["observe", "--status", "odd"]).await;
    assert!(code == 1 && error.contains("timeout"), "{error}");
}
