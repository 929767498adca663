//! Both ends of every row: each distinct end of a batch is looked up once, then its tags are spread over the rows column by column.

use std::{collections::HashMap, net::Ipv4Addr};

use metaflow_schema::{
    tags::{TagRow, Tags},
    types::{ip_cell, ip_cell_from_bytes},
};
use metaflow_wire::Endpoints;

use super::{
    Malformed,
    cells::Cells,
    snapshot::Snapshot,
    tags::{self, End},
};

/// What all tables take from [`Endpoints`].
pub(super) struct Ends {
    pub client: Tags,
    pub server: Tags,
    pub observation_point: Vec<u8>,
    pub protocol: Vec<u8>,
    pub server_port: Vec<u16>,
    pub interface_index: Vec<u32>,
}

/// Which ends a table describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sides {
    Server,
    Both,
}

pub(super) fn resolve(
    snapshot: &Snapshot,
    agent_id: u32,
    cells: &mut Cells<'_>,
    addresses: &[Vec<u8>],
    endpoints: Option<Endpoints>,
    sides: Sides,
) -> Result<Ends, Malformed> {
    let Endpoints {
        client_ip,
        server_ip,
        server_port,
        client_pid,
        server_pid,
        ip_protocol,
        observation_point,
        interface_index,
    } = endpoints.unwrap_or_default();
    let addresses = addresses
        .iter()
        .map(|address| ip_cell_from_bytes(address).ok_or(Malformed::Address(address.len())))
        .collect::<Result<Vec<_>, _>>()?;
    let observation_point = cells.byte("observation_point", observation_point)?;
    let protocol = cells.byte("ip_protocol", ip_protocol)?;
    let server_port = cells.port("server_port", server_port)?;
    let interface_index = cells.whole("interface_index", interface_index)?;

    cells.indexes("client_ip", &client_ip, addresses.len())?;
    cells.indexes("server_ip", &server_ip, addresses.len())?;
    let client_ip = cells.whole("client_ip", client_ip)?;
    let server_ip = cells.whole("server_ip", server_ip)?;
    let client_pid = cells.whole("client_pid", client_pid)?;
    let server_pid = cells.whole("server_pid", server_pid)?;

    let find = |end: &Key| {
        let ip = addresses.get(end.address as usize).copied().unwrap_or_default();
        let end = End { ip, pid: end.pid, port: end.port, ip_protocol: end.ip_protocol };
        tags::find(snapshot, agent_id, &end)
    };
    let client = match sides {
        Sides::Server => Tags::default(),
        Sides::Both => {
            // A client's port names nothing.
            let keys = client_ip.iter().zip(&client_pid).map(|(&address, &pid)| Key {
                address,
                pid,
                ..Key::default()
            });
            spread(keys, cells.rows, find)
        }
    };
    let services = server_port.iter().zip(&protocol);
    let keys = server_ip
        .iter()
        .zip(&server_pid)
        .zip(services)
        .map(|((&address, &pid), (&port, &ip_protocol))| Key { address, pid, port, ip_protocol });
    let server = spread(keys, cells.rows, find);
    Ok(Ends { client, server, observation_point, protocol, server_port, interface_index })
}

/// Tags of rows that describe one process of the agent's host each; the host's where the process is not known.
pub(super) fn of_processes(
    snapshot: &Snapshot,
    agent_id: u32,
    cells: &mut Cells<'_>,
    pids: Vec<u32>,
) -> Result<Tags, Malformed> {
    let pids = cells.whole("pid", pids)?;
    // Loopback stands for the agent's own host.
    let ip = ip_cell(Ipv4Addr::LOCALHOST.into());
    let keys = pids.iter().map(|&pid| Key { pid, ..Key::default() });
    Ok(spread(keys, cells.rows, |key| {
        let tags = tags::find(snapshot, agent_id, &End { ip, pid: key.pid, port: 0, ip_protocol: 0 });
        // Its number is known even where it was gone before the agent told of it.
        TagRow { pid: key.pid, ..tags }
    }))
}

/// An end by the batch's own numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Key {
    address: u32,
    pid: u32,
    port: u16,
    ip_protocol: u8,
}

fn spread(keys: impl Iterator<Item = Key>, rows: usize, find: impl Fn(&Key) -> TagRow) -> Tags {
    let mut known: HashMap<Key, u32> = HashMap::new();
    let mut distinct: Vec<TagRow> = Vec::new();
    let mut of_row: Vec<u32> = Vec::with_capacity(rows);
    let mut last: Option<(Key, u32)> = None;
    for key in keys {
        let place = match last {
            Some((before, place)) if before == key => place,
            _ => *known.entry(key).or_insert_with(|| {
                distinct.push(find(&key));
                // Not more than rows, and those are bounded.
                u32::try_from(distinct.len() - 1).unwrap_or(0)
            }),
        };
        last = Some((key, place));
        of_row.push(place);
    }
    columns(&distinct, &of_row)
}

macro_rules! spread_columns {
    ($distinct:expr, $of_row:expr, { $( $field:ident ),* $(,)? }) => {
        Tags { $( $field: column($distinct, $of_row, |row| row.$field), )* }
    };
}

fn columns(distinct: &[TagRow], of_row: &[u32]) -> Tags {
    spread_columns!(distinct, of_row, {
        ip, region_id, az_id, host_id, chost_id, l3_epc_id, vpc_id, subnet_id, l3_device_type, l3_device_id,
        pod_cluster_id, pod_node_id, pod_ns_id, pod_group_id, pod_id, pod_service_id, pod_ingress_id, lb_id,
        natgw_id, l2_vpc_id, service_id, process_id, pid, container_id, unit_id, auto_instance_type,
        auto_instance_id, auto_service_type, auto_service_id, tag_source,
    })
}

/// Most columns of a batch have one value: those are filled, not gathered.
fn column<T: Copy + PartialEq>(distinct: &[TagRow], of_row: &[u32], field: impl Fn(&TagRow) -> T) -> Vec<T> {
    let values: Vec<T> = distinct.iter().map(field).collect();
    match values.first() {
        None => Vec::new(),
        Some(first) if values.iter().all(|value| value == first) => vec![*first; of_row.len()],
        Some(_) => of_row.iter().map(|place| values[*place as usize]).collect(),
    }
}
