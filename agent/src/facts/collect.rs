//! Looks at /proc and netlink, cheaply enough for once a second.
//!
//! Each look reads the list of processes and one line of each; the details of a process are read when it is new, once more a look
//! later (it may have moved to its cgroup), and when its name changes. Links of descriptors are read only when the socket tables show
//! an inode that is not known, and no more than [`LINKS_MAX`] a look.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt},
    path::Path,
};

use metaflow_wire::{Interface, Process};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    Host, Listener, Snapshot, Socket, netlink,
    process::{self, Belonging, Stat},
    sockets::{self, Entry},
};

/// Processes that are told: 10,000 of them fill a message of facts by half.
const PROCESSES_MAX: usize = 10_000;
/// Listeners that are told.
const LISTENERS_MAX: usize = 20_000;
/// Links of descriptors read in one look: about 50 ms in the worst case.
const LINKS_MAX: usize = 20_000;
/// Network namespaces whose sockets are read.
const NAMESPACES_MAX: usize = 64;
/// Looks between two readings of the sockets of other network namespaces.
const OTHER_NAMESPACES_EVERY: u32 = 5;
/// Largest text of one table: about 100,000 sockets.
const TEXT_MAX: usize = 16 << 20;
/// Looks that search for the process of a socket; sockets of the kernel have none.
const SEARCHES_MAX: u8 = 3;
/// Looks between two readings of the interfaces.
const INTERFACES_EVERY: u32 = 5;
/// Looks between two readings of the name of a kernel thread's number.
const KERNEL_THREADS_EVERY: u32 = 60;

/// Programs of MetaFlow: agent, node and the engine that a node runs.
pub(crate) const OWN: [&str; 2] = ["metaflow", "metaflow-agent"];

const TCP: u8 = 6;
const UDP: u8 = 17;
const TABLES: [(&str, u8); 4] = [("tcp", TCP), ("tcp6", TCP), ("udp", UDP), ("udp6", UDP)];

struct Known {
    stat: Stat,
    process: Process,
    namespace: u64,
    /// Details are read once more.
    is_fresh: bool,
}

/// What is remembered from look to look.
#[derive(Default)]
pub struct Collector {
    looks: u32,
    known: BTreeMap<u32, Known>,
    kernel_threads: FxHashSet<u32>,
    /// Process of a socket.
    inodes: FxHashMap<u64, u32>,
    /// Sockets without a process, and how often one was searched.
    searched: FxHashMap<u64, u8>,
    /// Process at which the next search begins when the last one ran out of links.
    search_from: u32,
    interfaces: Vec<Interface>,
    /// Sockets of other network namespaces.
    others: Vec<(u8, Entry)>,
    text: Vec<u8>,
}

impl Collector {
    pub fn look(&mut self) -> (Snapshot, Host) {
        if self.looks.is_multiple_of(INTERFACES_EVERY) {
            match netlink::interfaces() {
                Ok(interfaces) => self.interfaces = interfaces,
                Err(error) => tracing::debug!(%error, "failed to read interfaces"),
            }
        }
        if self.looks.is_multiple_of(KERNEL_THREADS_EVERY) {
            self.kernel_threads.clear();
        }
        self.looks = self.looks.wrapping_add(1);
        self.look_at_processes();
        let entries = self.read_tables();
        self.search(&entries);
        let sockets = || {
            entries.iter().filter_map(|(ip_protocol, entry)| {
                let pid = *self.inodes.get(&entry.inode)?;
                Some((*ip_protocol, entry, pid))
            })
        };
        let mut listeners: Vec<Listener> = sockets()
            .filter(|(_, entry, _)| entry.is_listener)
            .map(|(ip_protocol, Entry { local, .. }, pid)| Listener {
                ip: local.ip(),
                port: local.port(),
                ip_protocol,
                pid,
            })
            .collect();
        listeners.sort_unstable();
        listeners.dedup();
        listeners.truncate(LISTENERS_MAX);
        let own = self
            .known
            .iter()
            .filter(|(_, known)| OWN.contains(&known.process.name.as_str()))
            .map(|(pid, _)| *pid);
        let host = Host::new(
            netlink::addresses(&self.interfaces),
            sockets().map(|(ip_protocol, entry, pid)| Socket {
                ip_protocol,
                local: entry.local,
                remote: entry.remote,
                pid,
            }),
        )
        .with_own(own);
        let processes = self.known.iter().map(|(pid, known)| (*pid, known.process.clone())).collect();
        (Snapshot { processes, listeners, interfaces: self.interfaces.clone() }, host)
    }

    fn look_at_processes(&mut self) {
        let mut alive = FxHashSet::default();
        for pid in numbers(Path::new("/proc")).take(PROCESSES_MAX * 4) {
            if self.kernel_threads.contains(&pid) {
                continue;
            }
            let Some(stat) = read_text(pid, "stat").and_then(|text| process::parse_stat(&text)) else {
                continue;
            };
            if stat.is_kernel_thread {
                self.kernel_threads.insert(pid);
                continue;
            }
            alive.insert(pid);
            let known = self.known.get(&pid);
            let is_new = known.is_none_or(|known| known.stat != stat);
            if is_new || known.is_some_and(|known| known.is_fresh) {
                if self.known.len() >= PROCESSES_MAX && known.is_none() {
                    continue;
                }
                self.known.insert(pid, read_details(pid, stat, is_new));
            }
        }
        self.known.retain(|pid, _| alive.contains(pid));
    }

    /// The sockets of every network namespace that a process is in: of this one over netlink, of the others by their texts, which cost
    /// more and are read less often.
    fn read_tables(&mut self) -> Vec<(u8, Entry)> {
        let own = namespace_of("self");
        let mut entries = Vec::new();
        for ip_protocol in [TCP, UDP] {
            match netlink::sockets(ip_protocol) {
                Ok(sockets) => entries.extend(sockets.into_iter().map(|entry| (ip_protocol, entry))),
                // The kernel lacks the module.
                Err(_) => self.read_texts("self", ip_protocol, &mut entries),
            }
        }
        if self.looks % OTHER_NAMESPACES_EVERY == 1 {
            let mut namespaces: FxHashMap<u64, u32> = FxHashMap::default();
            for (pid, known) in self.known.iter().filter(|(_, known)| known.namespace != own) {
                if namespaces.len() < NAMESPACES_MAX {
                    namespaces.entry(known.namespace).or_insert(*pid);
                }
            }
            let mut others = Vec::new();
            for pid in namespaces.into_values() {
                for ip_protocol in [TCP, UDP] {
                    self.read_texts(&pid.to_string(), ip_protocol, &mut others);
                }
            }
            self.others = others;
        }
        entries.extend_from_slice(&self.others);
        entries
    }

    fn read_texts(&mut self, process: &str, ip_protocol: u8, entries: &mut Vec<(u8, Entry)>) {
        for (table, _) in TABLES.iter().filter(|(_, protocol)| *protocol == ip_protocol) {
            // Each read walks the kernel's table up to its place: few large ones are cheaper.
            self.text.clear();
            let read = File::open(format!("/proc/{process}/net/{table}"))
                .and_then(|mut file| read_in_large_pieces(&mut file, &mut self.text));
            if read.is_ok() {
                let text = String::from_utf8_lossy(&self.text);
                entries.extend(sockets::parse(&text).map(|entry| (ip_protocol, entry)));
            }
        }
    }

    /// Finds the processes of sockets that are new.
    fn search(&mut self, entries: &[(u8, Entry)]) {
        let present: FxHashSet<u64> = entries.iter().map(|(_, entry)| entry.inode).collect();
        let known = &self.known;
        self.inodes.retain(|inode, pid| present.contains(inode) && known.contains_key(pid));
        self.searched.retain(|inode, _| present.contains(inode));
        let mut wanted: FxHashSet<u64> = present
            .into_iter()
            .filter(|inode| !self.inodes.contains_key(inode))
            .filter(|inode| self.searched.get(inode).is_none_or(|times| *times < SEARCHES_MAX))
            .collect();
        if wanted.is_empty() {
            return;
        }
        let mut links = 0;
        // From where the last search ended, and round to there.
        let order = known.range(self.search_from..).chain(known.range(..self.search_from));
        let mut search_from = 0;
        for pid in order.map(|(pid, _)| *pid) {
            if wanted.is_empty() {
                break;
            }
            if links >= LINKS_MAX {
                search_from = pid;
                break;
            }
            let directory = format!("/proc/{pid}/fd");
            // A process that ended, or of another user without the right to look.
            let Ok(descriptors) = fs::read_dir(&directory) else { continue };
            for descriptor in descriptors.flatten() {
                links += 1;
                let Ok(link) = fs::read_link(descriptor.path()) else { continue };
                if let Some(inode) = sockets::parse_link(link.as_os_str().as_bytes())
                    && wanted.remove(&inode)
                {
                    self.inodes.insert(inode, pid);
                }
            }
        }
        self.search_from = search_from;
        if search_from == 0 {
            for inode in wanted {
                *self.searched.entry(inode).or_default() += 1;
            }
        }
    }
}

fn namespace_of(process: &str) -> u64 {
    fs::metadata(format!("/proc/{process}/ns/net")).map_or(0, |metadata| MetadataExt::ino(&metadata))
}

fn read_in_large_pieces(file: &mut File, text: &mut Vec<u8>) -> io::Result<()> {
    const PIECE: usize = 256 << 10;
    while text.len() < TEXT_MAX {
        let length = text.len();
        text.resize(length + PIECE, 0);
        let read = file.read(&mut text[length..])?;
        text.truncate(length + read);
        if read == 0 {
            break;
        }
    }
    Ok(())
}

fn numbers(directory: &Path) -> impl Iterator<Item = u32> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| OsStr::to_str(&entry.file_name()).and_then(|name| name.parse().ok()))
}

/// A text of a process; names that are not UTF-8 are read as far as they are.
fn read_text(pid: u32, file: &str) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/{file}")).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn read_details(pid: u32, stat: Stat, is_fresh: bool) -> Known {
    let arguments = process::arguments(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default());
    let Belonging { unit, container_id, pod_uid } =
        read_text(pid, "cgroup").map(|text| process::parse_cgroup(&text)).unwrap_or_default();
    let namespace = namespace_of(&pid.to_string());
    let process = Process {
        pid,
        start_ticks: stat.start_ticks,
        name: process::name(&stat.comm, &arguments),
        command_line: process::command_line(&arguments),
        unit,
        container_id,
        user_id: read_text(pid, "status").and_then(|text| process::parse_user_id(&text)).unwrap_or(0),
        pod_uid,
    };
    Known { stat, process, namespace, is_fresh }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        process::{Command, Stdio},
        time::Instant,
    };

    use super::*;
    use crate::{emit::Basis as _, flow::Ends};

    #[test]
    fn its_own_listener_and_connections_are_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let connection = TcpStream::connect(server).unwrap();
        let (_accepted, client) = listener.accept().unwrap();
        let (snapshot, host) = Collector::default().look();
        let pid = std::process::id();
        let own = Listener { ip: server.ip(), port: server.port(), ip_protocol: TCP, pid };
        assert!(snapshot.listeners.contains(&own), "{:?}", snapshot.listeners);
        let process = &snapshot.processes[&pid];
        assert!(!process.name.is_empty() && process.start_ticks > 0, "{process:?}");
        let ends = Ends {
            client_ip: client.ip(),
            server_ip: server.ip(),
            client_port: client.port(),
            server_port: server.port(),
            ip_protocol: TCP,
        };
        assert_eq!(host.pids(&ends), (pid, pid));
        drop(connection);
    }

    #[test]
    fn a_child_is_noticed_when_it_starts_and_when_it_ends() {
        let mut collector = Collector::default();
        let (before, _) = collector.look();
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        let (during, _) = collector.look();
        let delta = during.delta(&before, 2).unwrap();
        assert!(delta.processes.iter().any(|process| process.pid == pid), "{delta:?}");
        drop(child.stdin.take());
        child.wait().unwrap();
        let (after, _) = collector.look();
        assert!(after.delta(&during, 3).unwrap().gone_pids.contains(&pid));
    }

    #[test]
    fn a_look_costs_little() {
        let mut collector = Collector::default();
        collector.look();
        let begin = Instant::now();
        for _ in 0..5 {
            collector.look();
        }
        // The mark is 10 ms a second in a release build on a quiet machine; this is an order of magnitude above.
        let each = begin.elapsed() / 5;
        assert!(each.as_millis() < 500, "{each:?}");
    }
}
