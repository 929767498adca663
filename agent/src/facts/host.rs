//! Whose address and whose socket something is: the basis of rows. Pure.

use std::net::{IpAddr, SocketAddr};

use metaflow_schema::enums::ObservationPoint;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{emit::Basis, flow::Ends};

/// A socket of a process here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    /// IANA protocol number.
    pub ip_protocol: u8,
    pub local: SocketAddr,
    /// None for sockets that listen or are not connected.
    pub remote: Option<SocketAddr>,
    pub pid: u32,
}

/// Addresses and sockets of a host at one moment.
#[derive(Debug, Default)]
pub struct Host {
    addresses: FxHashSet<IpAddr>,
    connected: FxHashMap<(u8, SocketAddr, SocketAddr), u32>,
    bound: FxHashMap<(u8, u16), Vec<(IpAddr, u32)>>,
    /// Processes of MetaFlow.
    own: FxHashSet<u32>,
}

impl Host {
    pub fn new(
        addresses: impl IntoIterator<Item = IpAddr>,
        sockets: impl IntoIterator<Item = Socket>,
    ) -> Self {
        let mut host = Self { addresses: addresses.into_iter().collect(), ..Self::default() };
        for Socket { ip_protocol, local, remote, pid } in sockets {
            match remote {
                Some(remote) => {
                    host.connected.insert((ip_protocol, local, remote), pid);
                }
                None => host.bound.entry((ip_protocol, local.port())).or_default().push((local.ip(), pid)),
            }
        }
        host
    }

    /// The same host, knowing which processes are MetaFlow's.
    #[must_use]
    pub fn with_own(mut self, pids: impl IntoIterator<Item = u32>) -> Self {
        self.own = pids.into_iter().collect();
        self
    }

    pub fn is_here(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.contains(&address)
    }

    /// The process at one end of a flow.
    fn pid(&self, ip_protocol: u8, local: SocketAddr, remote: SocketAddr) -> u32 {
        if !self.is_here(local.ip()) {
            return 0;
        }
        if let Some(pid) = self.connected.get(&(ip_protocol, local, remote)) {
            return *pid;
        }
        let Some(bound) = self.bound.get(&(ip_protocol, local.port())) else { return 0 };
        // Bound to the address itself is more exact than bound to all.
        bound
            .iter()
            .find(|(ip, _)| *ip == local.ip())
            .or_else(|| bound.iter().find(|(ip, _)| ip.is_unspecified()))
            .map_or(0, |(_, pid)| *pid)
    }
}

impl Basis for Host {
    fn observation_point(&self, ends: &Ends) -> ObservationPoint {
        match (self.is_here(ends.client_ip), self.is_here(ends.server_ip)) {
            (true, true) => ObservationPoint::Local,
            (true, false) => ObservationPoint::Client,
            (false, true) => ObservationPoint::Server,
            (false, false) => ObservationPoint::Rest,
        }
    }

    fn pids(&self, ends: &Ends) -> (u32, u32) {
        let client = SocketAddr::new(ends.client_ip, ends.client_port);
        let server = SocketAddr::new(ends.server_ip, ends.server_port);
        (self.pid(ends.ip_protocol, client, server), self.pid(ends.ip_protocol, server, client))
    }

    fn is_own(&self, pid: u32) -> bool {
        self.own.contains(&pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(local: &str, remote: Option<&str>, pid: u32) -> Socket {
        let remote = remote.map(|remote| remote.parse().unwrap());
        Socket { ip_protocol: 6, local: local.parse().unwrap(), remote, pid }
    }

    fn ends(client: &str, server: &str) -> Ends {
        let (client, server): (SocketAddr, SocketAddr) = (client.parse().unwrap(), server.parse().unwrap());
        Ends {
            client_ip: client.ip(),
            server_ip: server.ip(),
            client_port: client.port(),
            server_port: server.port(),
            ip_protocol: 6,
        }
    }

    #[test]
    fn both_ends_are_found_when_both_are_here() {
        let host = Host::new(
            [[10, 0, 0, 1].into()],
            [
                socket("0.0.0.0:80", None, 1),
                socket("10.0.0.1:81", None, 2),
                socket("0.0.0.0:81", None, 3),
                socket("10.0.0.1:5000", Some("10.0.0.9:443"), 4),
                socket("127.0.0.1:6000", Some("127.0.0.1:80"), 5),
                socket("127.0.0.1:80", Some("127.0.0.1:6000"), 6),
            ],
        );
        let check = |client: &str, server: &str, point: ObservationPoint, pids: (u32, u32)| {
            let ends = ends(client, server);
            assert_eq!((host.observation_point(&ends), host.pids(&ends)), (point, pids), "{client} {server}");
        };
        check("10.0.0.9:1", "10.0.0.1:80", ObservationPoint::Server, (0, 1));
        check("10.0.0.9:1", "10.0.0.1:81", ObservationPoint::Server, (0, 2));
        check("10.0.0.1:5000", "10.0.0.9:443", ObservationPoint::Client, (4, 0));
        check("127.0.0.1:6000", "127.0.0.1:80", ObservationPoint::Local, (5, 6));
        check("10.0.0.7:80", "10.0.0.8:81", ObservationPoint::Rest, (0, 0));
        check("10.0.0.7:80", "10.0.0.1:99", ObservationPoint::Server, (0, 0));
    }
}
