//! How much memory the program takes at most, under the load that makes the most of it: Redis, pipelined. The test needs root, BPF and Debian's
//! packages redis-server and redis-tools, so its name has `as_root` in it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What the whole program may take, with both ways to see requests: rings that it shares with the kernel (32 MiB as the kernel counts them), its code,
/// names of functions, and whatever is on its way. Code that is not optimised is larger.
const BOUND_MB: f64 = if cfg!(debug_assertions) { 112.0 } else { 100.0 };
/// Other agents on this machine, those of other tests, have to end first.
const PATIENCE: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(50);
/// Requests of the client, and how many of them it sends at once.
const REQUESTS: &str = "3000000";
const PIPELINE: &str = "64";

/// Ends with the test.
struct Program(Child);

impl Program {
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = File::create(log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(command.spawn().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::park_timeout(PAUSE);
    }
}

/// One that looks at everything, from when it has looked at what was there before it.
fn agent(folder: &Path) -> Program {
    let config = format!(
        "servers = []\nmachine_id = \"memory\"\ndata_dir = {:?}\n[ebpf]\nenabled = \"required\"\n\
         [guard]\ncpu_percent_max = 1000\ndisk_free_min = \"1 MiB\"\n",
        folder.join("data")
    );
    let (file, log) = (folder.join("agent.toml"), folder.join("agent.log"));
    fs::write(&file, config).unwrap();
    let start = || {
        Program::start(Command::new(env!("CARGO_BIN_EXE_metaflow-agent")).arg("--config").arg(&file), &log)
    };
    let mut agent = start();
    until("the agent looks", || {
        if agent.0.try_wait().unwrap().is_some() {
            agent = start();
        }
        let log = fs::read_to_string(&log).unwrap();
        log.contains("capturing") && log.contains("lives of processes")
    });
    // From here on counts what it takes at most.
    fs::write(format!("/proc/{}/clear_refs", agent.0.id()), "5").unwrap();
    agent
}

/// The most that a process had at one time.
fn peak_mb(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<f64>().unwrap() * 1_024.0 / 1e6
}

/// Requests that the agent has seen, as its status file says.
fn sessions(folder: &Path) -> u64 {
    let text = fs::read_to_string(folder.join("data/status.json")).unwrap_or_default();
    let status: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    status["sessions"].as_u64().unwrap_or(0)
}

#[test]
fn a_storm_of_pipelined_requests_takes_a_bounded_amount_of_memory_as_root() {
    let folder = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let number = port.to_string();
    let mut server = Command::new("redis-server");
    server.args(["--port", &number, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]);
    let _server = Program::start(server.arg(folder.path()), &folder.path().join("redis.log"));
    until("redis listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    let agent = agent(folder.path());
    let client = Command::new("redis-benchmark")
        .args(["-p", &number, "-P", PIPELINE, "-c", "32", "-n", REQUESTS, "-t", "get", "-q"])
        .output()
        .unwrap();
    assert!(client.status.success(), "{client:?}");
    until("requests are seen", || sessions(folder.path()) > 10_000);
    let peak = peak_mb(agent.0.id());
    let status = fs::read_to_string(folder.path().join("data/status.json")).unwrap();
    assert!(peak < BOUND_MB, "{peak} MB\n{status}");
}
