//! The programs that are traced, in chains.

mod shop;

use std::{
    fs::File,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::process::free_port;

const START_DEADLINE: Duration = Duration::from_secs(60);
/// Python as the distribution has it: other ones lack its libraries.
const PYTHON: &str = "/usr/bin/python3";

/// One program of a chain.
#[derive(Debug)]
pub struct Part {
    pub port: u16,
    /// Port of the program that asks it; none: the driver.
    pub below: Option<u16>,
    /// How often it is asked in one trace.
    pub asked: usize,
}

/// Programs that run until this is dropped; the first is asked by the driver.
#[derive(Debug)]
pub struct Chain {
    pub parts: Vec<Part>,
    /// Processes whose traces need probes in their files.
    pub looked_into: Vec<u32>,
    folder: PathBuf,
    children: Vec<Child>,
    /// Certificate and key of what is encrypted from here on.
    tls: Option<[String; 2]>,
}

/// What the driver does.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub traces: usize,
    pub connections: usize,
    /// Requests a second of all connections; 0: as fast as it goes.
    pub rate: usize,
}

impl Chain {
    pub fn new(folder: &Path) -> Self {
        Self {
            parts: Vec::new(),
            looked_into: Vec::new(),
            folder: folder.to_owned(),
            children: Vec::new(),
            tls: None,
        }
    }

    pub fn ports(&self) -> Vec<u16> {
        self.parts.iter().map(|part| part.port).collect()
    }

    /// nginx, the server with threads and the one of Go are asked by TLS.
    pub fn encrypt(&mut self) -> Result<()> {
        let files = ["server.crt", "server.key"].map(|name| self.folder.join(name).display().to_string());
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-subj", "/CN=localhost", "-out", &files[0], "-keyout", &files[1]])
            .output()
            .context("failed to run openssl")?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        self.tls = Some(files);
        Ok(())
    }

    fn add(&mut self, port: u16, below: Option<u16>, asked: usize) {
        self.parts.push(Part { port, below, asked });
    }

    /// The program that was started last is not asked before there are probes in it.
    fn look_into_last(&mut self) {
        self.looked_into.extend(self.children.last().map(Child::id));
    }

    /// Asks the first program; each answer must be 200.
    pub fn drive(&self, port: u16, load: Load) -> Result<()> {
        let Load { traces, connections, rate } = load;
        let output = Command::new(PYTHON)
            .arg(program("driver.py"))
            .args([usize::from(port), traces, connections, rate].map(|number| number.to_string()))
            .args(self.tls.iter().map(|_| "tls"))
            .output()?;
        if !output.status.success() {
            bail!("the driver failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Starts a program and waits until it listens.
    fn start(&mut self, command: &mut Command, port: u16) -> Result<()> {
        let log = File::create(self.folder.join(format!("{port}.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir(&self.folder);
        self.children.push(command.spawn().with_context(|| format!("failed to start {command:?}"))?);
        let deadline = Instant::now() + START_DEADLINE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log = || std::fs::read_to_string(self.folder.join(format!("{port}.log"))).unwrap_or_default();
            let ended = self.children.last_mut().and_then(|child| child.try_wait().ok().flatten());
            ensure!(ended.is_none(), "{command:?} ended: {}", log());
            ensure!(Instant::now() < deadline, "{command:?} does not listen: {}", log());
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Redis, asked so often by a program in each trace.
    pub fn redis(&mut self, below: u16, asked: usize) -> Result<u16> {
        let port = free_port();
        let mut command = Command::new("redis-server");
        command.args([
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--port",
            &port.to_string(),
        ]);
        self.start(&mut command, port)?;
        self.add(port, Some(below), asked);
        Ok(port)
    }

    /// MariaDB with a user that needs no password.
    pub fn mariadb(&mut self, below: u16, asked: usize) -> Result<u16> {
        let port = free_port();
        let data = self.folder.join("mariadb");
        let made = Command::new("mariadb-install-db")
            .args([
                "--no-defaults",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--user=root",
            ])
            .arg(format!("--datadir={}", data.display()))
            .output()
            .context("failed to run mariadb-install-db")?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut command = Command::new("mariadbd");
        command
            .args(["--no-defaults", "--user=root", "--bind-address=127.0.0.1", "--skip-log-bin"])
            .args([format!("--port={port}"), format!("--datadir={}", data.display())])
            .arg(format!("--socket={}", self.folder.join("mariadb.sock").display()));
        self.start(&mut command, port)?;
        self.add(port, Some(below), asked);
        Ok(port)
    }

    /// A server of HTTP with threads, which asks Redis twice and the database (if there is one) once.
    pub fn threads(&mut self, port: u16, below: Option<u16>, redis: u16, sql: Option<u16>) -> Result<()> {
        let mut command = Command::new(PYTHON);
        command.arg(program("threads.py")).args([port, redis, sql.unwrap_or(0)].map(|port| port.to_string()));
        self.start(command.args(self.tls.iter().flatten()), port)?;
        if self.tls.is_some() {
            self.look_into_last();
        }
        self.add(port, below, 1);
        Ok(())
    }

    /// A server of HTTP in Node, which asks Redis twice, one after the other, over one connection.
    pub fn node(&mut self, port: u16, redis: u16) -> Result<()> {
        let mut command = Command::new("node");
        command.arg(program("loop.js")).args([port, redis].map(|port| port.to_string()));
        self.start(&mut command, port)?;
        self.add(port, None, 1);
        Ok(())
    }

    /// A server of HTTP in Java with a pool of threads, which asks another server.
    pub fn java(&mut self, port: u16, backend: u16) -> Result<()> {
        let mut command = Command::new("java");
        command
            .args(["-XX:+UseSerialGC", "-Xmx128m"])
            .arg(program("Pool.java"))
            .args([port, backend].map(|port| port.to_string()));
        self.start(&mut command, port)?;
        self.add(port, None, 1);
        Ok(())
    }

    /// A server of HTTP with threads that asks nothing.
    pub fn leaf(&mut self, below: u16, asked: usize) -> Result<u16> {
        let port = free_port();
        let mut command = Command::new(PYTHON);
        command.arg(program("threads.py")).args([port, 0, 0].map(|port| port.to_string()));
        self.start(&mut command, port)?;
        self.add(port, Some(below), asked);
        Ok(port)
    }

    /// A server of HTTP and one of gRPC, both tasks of tokio: an example of this crate.
    pub fn tokio(&mut self, port: u16) -> Result<()> {
        let own = std::env::current_exe()?;
        let profile = own.ancestors().nth(2).context("no folder of the profile")?;
        let binary = profile.join("examples/tokio_peer");
        let backend = free_port();
        self.start(Command::new(&binary).args(["back", &backend.to_string()]), backend)?;
        self.look_into_last();
        self.add(backend, Some(port), 1);
        self.start(Command::new(&binary).args(["front", &port.to_string(), &backend.to_string()]), port)?;
        self.look_into_last();
        self.add(port, None, 1);
        Ok(())
    }

    /// nginx in front of a server, as its manual has it: a new connection for each request. With an id of the request for what comes behind.
    pub fn nginx(&mut self, backend: u16, below: Option<u16>) -> Result<u16> {
        let port = free_port();
        let folder = self.folder.display();
        let (listen, scheme) = match &self.tls {
            Some([certificate, key]) => (
                format!("{port} ssl;\n    ssl_certificate {certificate};\n    ssl_certificate_key {key}"),
                "https",
            ),
            None => (port.to_string(), "http"),
        };
        let text = format!(
            "worker_processes 1;\nmaster_process off;\ndaemon off;\npid {folder}/nginx.pid;\nerror_log stderr;\nevents {{ worker_connections 1024; }}\n\
             http {{\n  access_log off;\n  client_body_temp_path {folder}/b;\n  proxy_temp_path {folder}/p;\n  fastcgi_temp_path {folder}/f;\n  \
             uwsgi_temp_path {folder}/u;\n  scgi_temp_path {folder}/s;\n  keepalive_requests 1000000;\n  server {{\n    listen \
             127.0.0.1:{listen};\n    location / {{\n      proxy_pass {scheme}://127.0.0.1:{backend};\n      proxy_set_header X-Request-ID \
             $request_id;\n    }}\n  }}\n}}\n"
        );
        let file = self.folder.join("nginx.conf");
        std::fs::write(&file, text)?;
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-p").arg(&self.folder).arg("-c").arg(&file);
        self.start(&mut command, port)?;
        if self.tls.is_some() {
            self.look_into_last();
        }
        self.add(port, below, 1);
        Ok(port)
    }

    /// haproxy in front of a server; it passes headers on.
    pub fn haproxy(&mut self, port: u16, backend: u16, below: Option<u16>) -> Result<()> {
        let text = format!(
            "global\n  maxconn 1000\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\nfrontend \
             front\n  bind 127.0.0.1:{port}\n  default_backend back\nbackend back\n  server one 127.0.0.1:{backend}\n"
        );
        let file = self.folder.join("haproxy.cfg");
        std::fs::write(&file, text)?;
        self.start(Command::new("/usr/sbin/haproxy").arg("-db").arg("-f").arg(&file), port)?;
        self.add(port, below, 1);
        Ok(())
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            // One that is gone already has nothing to be ended.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(name)
}
