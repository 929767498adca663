//! A trace whose hops are Unix sockets, as a user sees it: nginx in front of a server of Python, which asks Redis, all on one host; the real
//! agent, node and command line. Needs root and BPF.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Result, ensure};
use metaflow_cluster_tests::{
    process::{Node, binary, free_port, tail},
    wait_for,
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PATIENCE: Duration = Duration::from_secs(60);

/// Ended with the test.
struct Running(Child);

impl Running {
    fn start(folder: &Path, name: &str, command: &mut Command) -> Result<Self> {
        let log = std::fs::File::create(folder.join(name))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir(folder);
        Ok(Self(command.spawn()?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that is gone already has nothing to be ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// nginx, the server and Redis; gives the port of nginx.
fn programs(folder: &Path) -> Result<(u16, Vec<Running>)> {
    let path = |name: &str| folder.join(name).display().to_string();
    let (root, web, cache, port) = (folder.display(), path("web.sock"), path("redis.sock"), free_port());
    let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/unix.py");
    let configuration = format!(
        "daemon off; master_process off; pid {root}/pid; error_log stderr; worker_processes 1; user root;
        events {{ worker_connections 64; }}
        http {{ access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;
        uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;
        server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://unix:{web}:; }} }} }}"
    );
    std::fs::write(path("nginx.conf"), configuration)?;
    let redis = ["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket", &cache];
    let started = vec![
        Running::start(folder, "redis.log", Command::new("redis-server").args(redis))?,
        Running::start(
            folder,
            "server.log",
            Command::new("/usr/bin/python3").arg(server).args([&web, &cache]),
        )?,
        Running::start(
            folder,
            "nginx.log",
            Command::new("/usr/sbin/nginx").args([
                "-p",
                &path(""),
                "-e",
                "stderr",
                "-c",
                &path("nginx.conf"),
            ]),
        )?,
    ];
    Ok((port, started))
}

/// Starts the agent and waits until it looks into processes; while another one does (of another test), it waits for that one's end.
async fn agent(folder: &Path, node: &Node) -> Result<Running> {
    let configuration = format!(
        "servers = [\"{}\"]\ndata_dir = \"{}\"\n[ebpf]\nenabled = \"required\"\n",
        node.grpc_address(),
        folder.join("data").display()
    );
    std::fs::write(folder.join("agent.toml"), configuration)?;
    let start = || {
        let mut command = Command::new(binary("metaflow-agent"));
        Running::start(folder, "agent.log", command.arg("--config").arg(folder.join("agent.toml")))
    };
    let mut agent = start()?;
    wait_for("the agent to look", PATIENCE, async || {
        if agent.0.try_wait()?.is_some() {
            agent = start()?;
        }
        let log = std::fs::read_to_string(folder.join("agent.log"))?;
        ensure!(log.contains("capturing"), "{log}");
        Ok(())
    })
    .await?;
    Ok(agent)
}

#[tokio::test]
async fn a_trace_through_unix_sockets_is_shown_as_a_tree_as_root() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let node = Node::start(&folder.path().join("node")).await?;
    let (port, _programs) = programs(folder.path())?;
    let _agent = agent(folder.path(), &node).await?;
    let url = format!("http://127.0.0.1:{port}/order");
    let client = reqwest::Client::builder().no_proxy().build()?;
    wait_for("nginx to answer", PATIENCE, async || client.get(&url).send().await?.error_for_status()).await?;

    let mut curl = Command::new("curl");
    curl.args(["-sf", "-H", &format!("traceparent: 00-{TRACE}-b7ad6b7169203331-01"), &url]);
    ensure!(curl.output()?.stdout == b"ok");
    let expected = [
        "HTTP GET /order c-p",
        "  HTTP GET /order s-p nginx tcp_seq",
        "    HTTP GET /order c-p nginx syscall",
        "      HTTP GET /order s-p unix.py tcp_seq",
        "        Redis INCR order c-p unix.py syscall",
        "          Redis INCR order s-p redis-server tcp_seq",
    ];
    wait_for("the whole trace", PATIENCE, async || {
        let shown = tokio::process::Command::new(binary("metaflow"))
            .args(["ctl", "--url", &node.http_url(), "trace", TRACE])
            .output()
            .await?;
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        let error = String::from_utf8_lossy(&shown.stderr).into_owned();
        ensure!(tree(&text) == expected, "{text}{error}{}", tail(&folder.path().join("agent.log")));
        Ok(())
    })
    .await
}

/// What the processes saw: the depth, the request, where it was seen, by whom (but for who asked first) and why it is there.
fn tree(text: &str) -> Vec<String> {
    let mut lines = text.lines();
    let Some(column) = lines.next().and_then(|header| header.find("span")) else { return Vec::new() };
    let spans = lines.filter_map(|line| {
        let span = line.get(column..)?;
        let (name, rest) = span.split_once("-p ")?;
        let (name, side) = name.split_at(name.len() - 1);
        let depth = name.len() - name.trim_start().len();
        let words: Vec<&str> = rest.split_whitespace().collect();
        let by = if depth > 0 { words.get(..2)?.join(" ") } else { String::new() };
        // What the packets show stands between the first two.
        Some((depth, format!("{} {side}-p {by}", name.trim()).trim_end().to_owned()))
    });
    let spans: Vec<(usize, String)> = spans.collect();
    let mut depths: Vec<usize> = spans.iter().map(|(depth, _)| *depth).collect();
    depths.sort_unstable();
    depths.dedup();
    let level = |depth| depths.iter().position(|known| known == depth).unwrap_or(0);
    spans.iter().map(|(depth, span)| format!("{}{span}", "  ".repeat(level(depth)))).collect()
}
