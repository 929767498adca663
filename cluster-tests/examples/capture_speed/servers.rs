//! Real servers, and their own clients.

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use metaflow_cluster_tests::{process::free_port, wait_for};
use tokio::process::Command;

use crate::agent::cpu_us;
use crate::client;

const PATIENCE: Duration = Duration::from_secs(60);

/// What is asked of a server.
pub(crate) struct Load {
    pub(crate) name: &'static str,
    kind: Kind,
    /// wrk: the path. redis-benchmark: requests in one write.
    argument: &'static str,
    connections: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nginx,
    Redis,
    MariaDb,
    Python,
}

/// The first is the worst case: a server that does nothing but answer, on connections that stay.
pub(crate) const LOADS: [Load; 7] = [
    Load { name: "nginx-200", kind: Kind::Nginx, argument: "/", connections: 32 },
    Load { name: "nginx-1KiB", kind: Kind::Nginx, argument: "/1k", connections: 32 },
    Load { name: "nginx-100KiB", kind: Kind::Nginx, argument: "/100k", connections: 32 },
    Load { name: "redis", kind: Kind::Redis, argument: "1", connections: 32 },
    Load { name: "redis-pipelined", kind: Kind::Redis, argument: "16", connections: 32 },
    Load { name: "mariadb-selects", kind: Kind::MariaDb, argument: "", connections: 4 },
    Load { name: "python", kind: Kind::Python, argument: "/", connections: 2 },
];

/// The usual case: a program that computes something for each request.
const PYTHON: &str = r#"
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *arguments):
        pass
    def do_GET(self):
        rows = [{"number": number, "square": number * number} for number in range(200)]
        body = json.dumps(rows).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
class Server(http.server.ThreadingHTTPServer):
    disable_nagle_algorithm = True
Handler.disable_nagle_algorithm = True
Handler.wbufsize = -1
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;

pub(crate) struct Server {
    child: Child,
    port: u16,
    socket: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Server {
    pub(crate) async fn start(load: &Load, folder: &Path) -> Result<Self> {
        let port = free_port();
        let folder = folder.join(load.name);
        fs::create_dir_all(&folder)?;
        // Servers that give up root must be able to read.
        let root = folder.parent().context("a folder in a folder")?;
        fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let mut command = match load.kind {
            Kind::Nginx => nginx(&folder, port)?,
            Kind::Redis => redis(port),
            Kind::MariaDb => mariadb(&folder, port)?,
            Kind::Python => {
                let mut command = std::process::Command::new("/usr/bin/python3");
                command.args(["-c", PYTHON, &port.to_string()]);
                command
            }
        };
        let log = fs::File::create(folder.join("log"))?;
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{program} cannot be started"))?;
        let server = Self { child, port, socket: folder.join("socket").display().to_string() };
        wait_for(&program, PATIENCE, async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await)
            .await?;
        if load.kind == Kind::MariaDb {
            server.fill().await?;
        }
        Ok(server)
    }

    pub(crate) fn cpu_us(&self) -> Result<f64> {
        cpu_us(self.child.id())
    }

    /// Requests that were answered, and the seconds that they took.
    pub(crate) async fn drive(&self, load: &Load, seconds: u32) -> Result<(f64, f64)> {
        match load.kind {
            Kind::Nginx | Kind::Python => self.wrk(load, seconds).await,
            Kind::Redis => self.redis_benchmark(load, seconds).await,
            Kind::MariaDb => self.sysbench(load, seconds).await,
        }
    }

    async fn wrk(&self, load: &Load, seconds: u32) -> Result<(f64, f64)> {
        let (text, _) = client(Command::new("wrk").args([
            "-t1",
            &format!("-c{}", load.connections),
            &format!("-d{seconds}s"),
            &format!("http://127.0.0.1:{}{}", self.port, load.argument),
        ]))
        .await?;
        ensure!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "{text}");
        let line = text.lines().find(|line| line.contains(" requests in ")).context("wrk says nothing")?;
        let mut words = line.split_whitespace();
        let requests = words.next().context("no number")?.parse()?;
        let took = words.nth(2).context("no time")?;
        Ok((requests, took.trim_end_matches([',', 's']).parse()?))
    }

    /// Takes a number of requests and not a time: a short run tells how many fit.
    async fn redis_benchmark(&self, load: &Load, seconds: u32) -> Result<(f64, f64)> {
        let run = async |requests: f64| -> Result<f64> {
            let (text, _) = client(Command::new("redis-benchmark").args([
                "-p",
                &self.port.to_string(),
                "-c",
                &load.connections.to_string(),
                "-P",
                load.argument,
                "-t",
                "get",
                "--csv",
                "-n",
                &format!("{requests:.0}"),
            ]))
            .await?;
            let line = text.lines().find(|line| line.starts_with("\"GET\"")).context("no figure of GET")?;
            let rate = line.split(',').nth(1).context("no rate")?;
            Ok(rate.trim_matches('"').parse()?)
        };
        let requests = (run(20_000.0).await? * f64::from(seconds)).round();
        let rate = run(requests).await?;
        Ok((requests + 20_000.0, (requests + 20_000.0) / rate))
    }

    fn sysbench_command(&self, load_connections: u32, verb: &str, seconds: u32) -> Command {
        let mut command = Command::new("sysbench");
        command.args([
            "oltp_point_select",
            "--db-driver=mysql",
            "--mysql-host=127.0.0.1",
            &format!("--mysql-port={}", self.port),
            "--mysql-user=root",
            "--mysql-db=test",
            "--table-size=10000",
            &format!("--threads={load_connections}"),
            &format!("--time={seconds}"),
            verb,
        ]);
        command
    }

    async fn fill(&self) -> Result<()> {
        let mut command = Command::new("mariadb");
        command.args(["--socket", &self.socket, "-uroot", "-e", "CREATE DATABASE IF NOT EXISTS test"]);
        client(&mut command).await?;
        client(&mut self.sysbench_command(1, "prepare", 1)).await?;
        Ok(())
    }

    async fn sysbench(&self, load: &Load, seconds: u32) -> Result<(f64, f64)> {
        let (text, _) = client(&mut self.sysbench_command(load.connections, "run", seconds)).await?;
        let number = |name: &str| -> Result<f64> {
            let line = text.lines().find(|line| line.contains(name)).with_context(|| text.clone())?;
            let value = line.split(':').nth(1).and_then(|rest| rest.split_whitespace().next());
            Ok(value.context("no figure")?.trim_end_matches('s').parse()?)
        };
        Ok((number("total number of events:")?, number("total time:")?))
    }
}

fn nginx(folder: &Path, port: u16) -> Result<std::process::Command> {
    fs::write(folder.join("1k"), vec![b'x'; 1 << 10])?;
    fs::write(folder.join("100k"), vec![b'x'; 100 << 10])?;
    let configuration = format!(
        "daemon off; master_process off; pid {0}/pid; error_log {0}/error; events {{ worker_connections 1024; }}\n\
         http {{ access_log off; sendfile on; keepalive_requests 1000000000; client_body_temp_path {0}/body;\n\
         server {{ listen 127.0.0.1:{port}; root {0}; location = / {{ return 200 \"fine\"; }} }} }}\n",
        folder.display()
    );
    let path = folder.join("nginx.conf");
    fs::write(&path, configuration)?;
    let mut command = std::process::Command::new("/usr/sbin/nginx");
    command.arg("-e").arg(folder.join("error")).arg("-c").arg(path);
    Ok(command)
}

fn redis(port: u16) -> std::process::Command {
    let mut command = std::process::Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string()]);
    command
}

fn mariadb(folder: &Path, port: u16) -> Result<std::process::Command> {
    let data = folder.join("data");
    let made = std::process::Command::new("mariadb-install-db")
        .args(["--user=root", "--auth-root-authentication-method=normal", "--skip-test-db"])
        .arg(format!("--datadir={}", data.display()))
        .output()
        .context("mariadb-install-db cannot be started")?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut command = std::process::Command::new("/usr/sbin/mariadbd");
    command.args(["--no-defaults", "--user=root", "--bind-address=127.0.0.1", "--skip-name-resolve"]);
    command.arg(format!("--datadir={}", data.display()));
    command.arg(format!("--port={port}"));
    command.arg(format!("--socket={}", folder.join("socket").display()));
    Ok(command)
}
