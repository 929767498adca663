//! The program's ceilings under real traffic on the loopback interface. Needs CAP_NET_RAW.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use metaflow_agent::capture::{Error, LiveConfig, LiveSource};

/// Hundredths of one CPU; an agent without traffic needs less than one.
const CEILING: u32 = 4;
/// Over how long it is measured what the agent needs.
const MEASURED: Duration = Duration::from_secs(3);
/// How much has to be shed until it is below depends on the machine. Three looks a second apart for each of three steps; others may have its
/// cores.
const PATIENCE: Duration = Duration::from_secs(60);

struct Agent(Child);

impl Agent {
    /// One that sees packets of loopback and nothing else, and has no node.
    fn start(folder: &Path, log: &Path) -> Self {
        let config = format!(
            "servers = []\nmachine_id = \"ceilings\"\ndata_dir = {:?}\n[capture]\ninterfaces = [\"lo\"]\n[ebpf]\nenabled = \"off\"\n\
             [profile]\non_cpu = false\n[events]\nprocesses = false\n[guard]\ncpu_percent_max = {CEILING}\ndisk_free_min = \"1 MiB\"\n",
            folder.join("data")
        );
        let file = folder.join("agent.toml");
        fs::write(&file, config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_metaflow-agent"));
        command.arg("--config").arg(file).stdin(Stdio::null()).stdout(Stdio::null());
        Self(command.stderr(File::create(log).unwrap()).spawn().unwrap())
    }

    /// CPU time since its start: fields 14 and 15, counted behind the name.
    fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace();
        let ticks: u64 = fields.skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Datagrams back and forth until `stop`.
fn talk(stop: &AtomicBool) {
    let [one, other] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    one.connect(other.local_addr().unwrap()).unwrap();
    other.connect(one.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        one.send(&buffer).unwrap();
        other.recv(&mut buffer).unwrap();
        other.send(&buffer).unwrap();
        one.recv(&mut buffer).unwrap();
    }
}

#[test]
fn an_agent_beyond_its_cpu_ceiling_looks_at_less_until_it_is_below() {
    let config = LiveConfig { interfaces: vec!["lo".to_owned()], ..LiveConfig::default() };
    if let Err(Error::Socket { source, .. }) = LiveSource::open(config)
        && source.kind() == std::io::ErrorKind::PermissionDenied
    {
        eprintln!("skipped: no CAP_NET_RAW");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let agent = Agent::start(folder.path(), &log);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| talk(&stop));
        let begun = Instant::now();
        let has_shed = || fs::read_to_string(&log).unwrap().contains("looks at less");
        let ceiling = f64::from(CEILING) / 100.0;
        let mut used = f64::MAX;
        while (!has_shed() || used > ceiling) && begun.elapsed() < PATIENCE {
            let (before, measured) = (agent.cpu(), Instant::now());
            while measured.elapsed() < MEASURED {
                park_timeout(MEASURED);
            }
            used = (agent.cpu() - before).as_secs_f64() / measured.elapsed().as_secs_f64();
        }
        stop.store(true, Ordering::Relaxed);
        let text = fs::read_to_string(&log).unwrap();
        assert!(has_shed(), "it never looked at less:\n{text}");
        assert!(used <= ceiling, "{used} of a CPU:\n{text}");
    });
}
