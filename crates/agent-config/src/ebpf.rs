//! `[ebpf]`: what is seen inside processes and their sockets, beside packets.

use anyhow::ensure;
use serde::{Deserialize, Serialize};

use super::Size;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ebpf {
    pub enabled: Enabled,
    /// Plain text of TLS libraries (OpenSSL, BoringSSL, Go, rustls).
    pub tls: bool,
    /// Bytes of one transfer that are looked at.
    pub payload_max: Size,
    /// Memory for records that wait for the agent; a power of two.
    pub ring: Size,
    /// Sockets followed at one time; about 2 KB each.
    pub sockets_max: usize,
    /// Traffic from or to these ports alone; empty: all. `capture.excluded_ports` counts here, too.
    pub only_ports: Vec<u16>,
    /// Processes of these names alone; empty: all.
    pub only_processes: Vec<String>,
    /// Processes of these names are not looked at.
    pub excluded_processes: Vec<String>,
}

/// Whether eBPF is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enabled {
    /// As far as the host allows it; what is missing is said, and packets go on.
    Auto,
    /// The agent does not start without it.
    Required,
    Off,
}

impl Default for Ebpf {
    fn default() -> Self {
        Self {
            enabled: Enabled::Auto,
            tls: true,
            payload_max: Size(2_047),
            ring: Size(8 << 20),
            sockets_max: 65_536,
            only_ports: Vec::new(),
            only_processes: Vec::new(),
            excluded_processes: Vec::new(),
        }
    }
}

impl Ebpf {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let ring = self.ring.0;
        ensure!(
            ring.is_power_of_two() && (64 << 10..=1 << 30).contains(&ring),
            "ebpf.ring is not a power of two between 64 KiB and 1 GiB"
        );
        ensure!(
            (64..=2_047).contains(&self.payload_max.0),
            "ebpf.payload_max is not between 64 and 2047 bytes"
        );
        ensure!(self.sockets_max > 0, "ebpf.sockets_max is 0");
        Ok(())
    }
}
