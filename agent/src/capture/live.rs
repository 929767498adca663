//! Interfaces of this host as a source.
//!
//! One ring on all interfaces, or one on each that is named. Named interfaces may come and go: they are looked for every second.

use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::filter::program;
use super::ring::{self, Ring, Size};
use super::{Error, Progress, Source, Statistics, block};
use crate::packet::Frame;

/// Time between two looks for interfaces.
const LOOK: Duration = Duration::from_secs(1);

/// Blocks taken from one ring in one poll.
const POLL_BLOCKS_MAX: usize = 8;

/// What to capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveConfig {
    /// Names; all interfaces when empty.
    pub interfaces: Vec<String>,
    /// Bytes kept of each frame.
    pub snap_length: u32,
    /// Memory of one ring, shared with the kernel.
    pub ring_bytes: u32,
    /// Packets from or to these TCP and UDP ports stay in the kernel: the agent's and the node's own traffic. The first 64 count.
    pub excluded_ports: Vec<u16>,
}

impl Default for LiveConfig {
    fn default() -> Self {
        Self { interfaces: Vec::new(), snap_length: 4_096, ring_bytes: 8 << 20, excluded_ports: Vec::new() }
    }
}

/// Rings on interfaces.
pub struct LiveSource {
    config: LiveConfig,
    taps: Vec<Tap>,
    /// Answers questions about interfaces.
    names: Socket,
    looked: Option<Instant>,
    statistics: Statistics,
}

struct Tap {
    /// None for all interfaces.
    name: Option<String>,
    index: u32,
    ring: Ring,
}

impl LiveSource {
    /// Opens the rings. An interface that is named but not there is waited for; missing rights are an error.
    pub fn open(config: LiveConfig) -> Result<Self, Error> {
        let names = Socket::new(Domain::UNIX, Type::DGRAM, None).map_err(|source| Error::Wait { source })?;
        let mut source =
            Self { config, taps: Vec::new(), names, looked: None, statistics: Statistics::default() };
        if source.config.interfaces.is_empty() {
            let ring = source
                .ring(0, false)
                .map_err(|source| Error::Socket { interface: "all".to_owned(), source })?;
            source.taps.push(Tap { name: None, index: 0, ring });
        } else {
            source.look()?;
        }
        Ok(source)
    }

    /// Interfaces that are captured at the moment; none means all.
    pub fn interfaces(&self) -> impl Iterator<Item = &str> {
        self.taps.iter().filter_map(|tap| tap.name.as_deref())
    }

    fn ring(&self, interface: u32, loopback: bool) -> std::io::Result<Ring> {
        // A block of 128 KiB holds the longest frame; larger ones save wakeups, and a ring needs a few to work with.
        let block_bytes = (self.config.ring_bytes / 16).max(1).next_power_of_two().clamp(1 << 17, 1 << 20);
        let blocks = (self.config.ring_bytes / block_bytes).max(4);
        let filter = program(&self.config.excluded_ports, self.config.snap_length.clamp(64, 65_535));
        Ring::open(interface, Size { block_bytes, blocks }, &filter, loopback)
    }

    /// Opens rings on named interfaces that appeared and closes those of interfaces that went.
    fn look(&mut self) -> Result<(), Error> {
        self.looked = Some(Instant::now());
        let Self { taps, names, statistics, .. } = self;
        taps.retain(|tap| {
            let stays =
                tap.name.as_deref().is_none_or(|name| interface_index(names, name) == Some(tap.index));
            if !stays {
                count(&tap.ring, statistics);
            }
            stays
        });
        for name in self.config.interfaces.clone() {
            if self.taps.iter().any(|tap| tap.name.as_deref() == Some(&name)) {
                continue;
            }
            let Some(index) = interface_index(&self.names, &name) else { continue };
            match self.ring(index, name == "lo") {
                Ok(ring) => self.taps.push(Tap { name: Some(name), index, ring }),
                // It went between the look and the opening.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(source) => return Err(Error::Socket { interface: name, source }),
            }
        }
        Ok(())
    }

    fn drain(&mut self, each: &mut dyn FnMut(&Frame<'_>)) -> bool {
        let before = self.statistics.frames + self.statistics.ignored;
        for tap in &mut self.taps {
            for _ in 0..POLL_BLOCKS_MAX {
                let Some(seen) = tap.ring.block(|bytes| block::frames(bytes, each)) else { break };
                self.statistics.frames += seen.frames;
                self.statistics.ignored += seen.ignored;
            }
        }
        self.statistics.frames + self.statistics.ignored > before
    }
}

impl Source for LiveSource {
    fn poll(&mut self, wait: Duration, each: &mut dyn FnMut(&Frame<'_>)) -> Result<Progress, Error> {
        if !self.config.interfaces.is_empty() && self.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            self.look()?;
        }
        if self.drain(each) {
            return Ok(Progress::Frames);
        }
        let rings = self.taps.iter().map(|tap| &tap.ring);
        ring::wait(rings, wait.min(LOOK)).map_err(|source| Error::Wait { source })?;
        Ok(if self.drain(each) { Progress::Frames } else { Progress::Idle })
    }

    fn statistics(&mut self) -> Statistics {
        for tap in &self.taps {
            count(&tap.ring, &mut self.statistics);
        }
        self.statistics
    }
}

/// Adds what the kernel counted.
fn count(ring: &Ring, statistics: &mut Statistics) {
    if let Ok(counts) = ring.counts() {
        statistics.dropped += counts.dropped;
        statistics.full += counts.full;
    }
}

/// The index of an interface that is there. Asked of the kernel through a socket: `/sys` may show another network namespace.
fn interface_index(socket: &Socket, name: &str) -> Option<u32> {
    rustix::net::netdevice::name_to_index(socket, name).ok()
}
