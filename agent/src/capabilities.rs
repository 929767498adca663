//! What works on this host: a line for each ability, with what to do where it does not.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use crate::{
    capture::{LiveConfig, LiveSource},
    config::{Config, Enabled},
    facts::{Collector, Identity, machine_id},
    guard::free_bytes,
    probes::{
        Capability, Probes, Rival, Settings,
        host::{EventSettings, HostProbes, ProfileSettings},
    },
};

/// Tries each ability and says how it went.
pub fn print(out: &mut dyn Write, config: &Config) -> anyhow::Result<()> {
    let Identity { hostname, kernel_release, architecture, os } = Identity::read();
    writeln!(out, "host: {hostname}, {os}, Linux {kernel_release} {architecture}")?;
    writeln!(out, "machine id: {}", machine_id(&config.machine_id))?;
    writeln!(out, "packet capture: {}", packet_capture())?;
    inside(out, config)?;
    let (snapshot, _) = Collector::default().look();
    writeln!(
        out,
        "processes: {}, listeners: {}, interfaces: {}",
        snapshot.processes.len(),
        snapshot.listeners.len(),
        snapshot.interfaces.len()
    )?;
    writeln!(out, "processes of other users: {}", other_users())?;
    writeln!(out, "spool: {}", spool(&config.data_dir))?;
    Ok(())
}

fn packet_capture() -> String {
    match LiveSource::open(LiveConfig::default()) {
        Ok(_) => "yes".to_owned(),
        Err(error) => format!("no ({:#}): run as root or grant CAP_NET_RAW", anyhow::Error::from(error)),
    }
}

/// One line for each ability of eBPF: whether it works, why not, and what is lost then.
fn inside(out: &mut dyn Write, config: &Config) -> anyhow::Result<()> {
    if config.ebpf.enabled == Enabled::Off {
        writeln!(out, "eBPF: off (ebpf.enabled)")?;
        return Ok(());
    }
    let rival = Rival::find();
    // The programs are taken away again at once.
    let (probes, report) = Probes::open(&Settings::new(&config.ebpf, config.excluded_ports()));
    tell(out, report)?;
    match probes {
        Some(probes) => writeln!(out, "eBPF: requests are seen in processes, by {}", probes.step().name())?,
        None => writeln!(out, "eBPF: no; requests are seen in packets alone")?,
    }
    let profile = ProfileSettings { on_cpu: true, off_cpu: true, frequency: 99, only_listed: false };
    let events = EventSettings { processes: true, files_from_us: Some(u32::MAX) };
    for (_, report) in [HostProbes::profile(&profile), HostProbes::events(&events)] {
        tell(out, report)?;
    }
    if let Some(rival) = rival {
        writeln!(out, "eBPF: {rival} now; a second one keeps to packets")?;
    }
    for limit in LIMITS {
        writeln!(out, "not seen on any host: {limit}")?;
    }
    Ok(())
}

/// What no kernel makes up for.
const LIMITS: [&str; 5] = [
    "callers in programs that were built without frame pointers; profiles show their innermost functions and little above them",
    "TLS of GnuTLS, NSS and Java, and of programs without symbols that have OpenSSL or rustls inside (counted: unseen_tls; the log names them)",
    "paths and headers that an HTTP/2 or gRPC connection said before the agent looked, and only points back to since: rows have none of them",
    "datagrams of Unix sockets (counted: unix_datagrams)",
    "the bytes of sendfile, splice and io_uring (counted where their length is seen: unseen_transfers)",
];

fn tell(out: &mut dyn Write, report: Vec<Capability>) -> io::Result<()> {
    for Capability { name, problem, lost } in report {
        match problem {
            None => writeln!(out, "eBPF, {name}: yes")?,
            Some(problem) => writeln!(out, "eBPF, {name}: no ({problem}); without it: {lost}")?,
        }
    }
    Ok(())
}

/// The descriptors of process 1 are as well guarded as any.
fn other_users() -> &'static str {
    match fs::read_dir("/proc/1/fd") {
        Ok(_) => "yes",
        Err(_) => {
            "no: their sockets stay without a process; run as root or grant CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
        }
    }
}

fn spool(directory: &Path) -> String {
    // The first directory above that exists is where it would be made.
    let existing = directory.ancestors().find(|path| path.is_dir()).unwrap_or_else(|| Path::new("/"));
    match free_bytes(existing) {
        Some(bytes) => format!("{} ({} MiB free)", directory.display(), bytes >> 20),
        None => format!("{}: cannot be read", directory.display()),
    }
}
