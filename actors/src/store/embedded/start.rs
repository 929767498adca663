//! One start of the engine: ports, password, configuration, process, first answer.

use std::{
    fmt::Write,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    process::{Child, ChildStdin, Command},
    time::Instant,
};

use super::{Config, Native, Passwords, config};
use crate::store::{Error, Servers};

/// Exit code of an engine whose folder another one has.
const FOLDER_IN_USE: i32 = 75;
/// The engine answers 0.2-0.5 s after its start.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// Time between two tries to get the folder of an engine that is ending.
const FOLDER_AGAIN_AFTER: Duration = Duration::from_millis(200);

pub(super) struct Started {
    pub(super) child: Child,
    /// The engine ends when this is dropped. Taken from the child, because waiting for a child closes what it holds.
    pub(super) lifeline: Option<ChildStdin>,
    pub(super) servers: Servers,
    pub(super) native: Native,
}

pub(super) fn log_path(folder: &Path) -> PathBuf {
    folder.join("engine.log")
}

fn output_path(folder: &Path) -> PathBuf {
    folder.join("engine.out")
}

/// Starts the engine and waits for its first answer; waits for a previous engine in the folder to end.
pub(super) async fn start(config: &Config, passwords: &Passwords) -> Result<Started, Error> {
    let deadline = Instant::now() + config.ready_within;
    loop {
        match attempt(config, passwords, deadline).await? {
            Some(started) => return Ok(started),
            None if Instant::now() + FOLDER_AGAIN_AFTER >= deadline => {
                return Err(Error::Setup(format!(
                    "another engine has {} and did not end within {:?}: stop the other node, or give this one another folder",
                    config.folder.display(),
                    config.ready_within
                )));
            }
            None => tokio::time::sleep(FOLDER_AGAIN_AFTER).await,
        }
    }
}

/// None when another engine has the folder.
async fn attempt(
    config: &Config,
    passwords: &Passwords,
    deadline: Instant,
) -> Result<Option<Started>, Error> {
    let Config { executable, library, folder, limits: _, is_shard: _, ready_within } = config;
    let setup = |what: &str, error: std::io::Error| {
        Error::Setup(format!("failed to {what} of the embedded engine in {}: {error}", folder.display()))
    };
    std::fs::create_dir_all(folder).map_err(|error| setup("create the folder", error))?;
    // The password of a running engine must not be overwritten: its lock is tried before the files are written.
    if folder_is_in_use(folder).map_err(|error| setup("open the lock", error))? {
        return Ok(None);
    }
    config::write(config, passwords).map_err(|error| setup("write the configuration", error))?;
    let [http_port, tcp_port] = free_ports().map_err(|error| setup("find free ports", error))?;
    let output = File::create(output_path(folder)).map_err(|error| setup("open the output", error))?;
    let errors = output.try_clone().map_err(|error| setup("open the output", error))?;
    let mut child = Command::new(executable)
        .arg("store-engine")
        .arg("--library")
        .arg(library)
        .arg("--data")
        .arg(folder)
        .args(["--http-port", &http_port.to_string(), "--tcp-port", &tcp_port.to_string()])
        .stdin(Stdio::piped())
        .stdout(output)
        .stderr(errors)
        // A Ctrl-C is for the node: it needs the engine until its last row is stored.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| setup(&format!("start the process {}", executable.display()), error))?;
    let lifeline = child.stdin.take();
    let url = format!("http://127.0.0.1:{http_port}");
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().map_err(|error| setup("wait for the process", error))? {
            if status.code() == Some(FOLDER_IN_USE) {
                return Ok(None);
            }
            return Err(Error::Setup(format!(
                "the embedded engine ended at its start ({status}): {}",
                last_lines(&output_path(folder))
            )));
        }
        if answers(http_port).await {
            let servers = Servers {
                urls: vec![url],
                user: config::USER.to_owned(),
                password: passwords.node.clone(),
                compress: false,
            };
            let native = Native { port: tcp_port, user: config::READER, password: passwords.reader.clone() };
            return Ok(Some(Started { child, lifeline, servers, native }));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    Err(Error::Setup(format!(
        "the embedded engine did not answer within {ready_within:?}: see {}",
        log_path(folder).display()
    )))
}

fn folder_is_in_use(folder: &Path) -> std::io::Result<bool> {
    match File::create(folder.join("engine.lock"))?.try_lock() {
        Ok(()) => Ok(false),
        Err(std::fs::TryLockError::WouldBlock) => Ok(true),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

/// 128 random bits.
pub(super) fn password() -> std::io::Result<String> {
    let mut random = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    }))
}

/// Ports that are free now. Should somebody take one before the engine does, the engine ends and is started with others.
fn free_ports() -> std::io::Result<[u16; 2]> {
    let bind = || {
        let socket = TcpSocket::new_v4()?;
        socket.bind(([127, 0, 0, 1], 0).into())?;
        std::io::Result::Ok(socket)
    };
    let (http, tcp) = (bind()?, bind()?);
    Ok([http.local_addr()?.port(), tcp.local_addr()?.port()])
}

/// True when the engine says that it is ready.
async fn answers(port: u16) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"GET /ping HTTP/1.0\r\n\r\n").await?;
        let mut answer = [0; 512];
        let mut length = 0;
        while length < answer.len() {
            match stream.read(&mut answer[length..]).await? {
                0 => break,
                more => length += more,
            }
        }
        std::io::Result::Ok(answer[..length].starts_with(b"HTTP/1.") && answer[..length].ends_with(b"Ok.\n"))
    };
    tokio::time::timeout(Duration::from_secs(1), ask).await.is_ok_and(|answer| answer.unwrap_or(false))
}

fn last_lines(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> =
        text.lines().filter(|line| !line.is_empty() && !line.starts_with("Logging ")).collect();
    lines[lines.len().saturating_sub(3)..].join(" / ")
}
